"""Own videos that go on from trained models: which parts these have, and of what sizes.

Reads config.json of each part and no weights, so that settings are checked at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from evatok.core.config import Config, ConfigError
from evatok.core.errors import MissingFileError
from evatok.core.loading.records import first_mistake, read_object
from evatok.model_folders import COPY_ANEW, PREFERENCE, locate, part_folder, parts_of
from generator.conditions import FrameCondition
from generator.gpt import GPTConfig
from tokenizer.model import TokenizerConfig
from tokenizer.router import RouterConfig
from video.clips import Size, sides

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Part:
    """One trained part.

    Attributes:
        folder: with its config.json and weights.
        model: its sizes, as the settings of its stage have them.
    """

    folder: Path
    model: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What training goes on from.

    Attributes:
        name: as it was given.
        proxy: the tokenizer that learns from random assignments: the final one where there is no
            proxy, as the reverse.
        final: the final tokenizer.
        router: the router for one w_q, or the other one where there is only that.
        preference: the router for every w_q, likewise. None of both where there is no router.
        generator: None where there is none.
        frames: how its generator is given frames, if it is.
    """

    name: str
    proxy: Part
    final: Part
    router: Part | None
    preference: Part | None
    generator: Part | None
    frames: FrameCondition | None

    @property
    def shape(self) -> TokenizerConfig:
        """Sizes of the tokenizers that own videos must share."""
        return TokenizerConfig.model_validate(self.final.model)

    def check(self, size: Size, frames: int, levels: tuple[int, ...]) -> None:
        """Refuse clips or levels that these models do not have, in one line."""
        model = self.shape
        for name, own, theirs in (
            ("size", _words(size), _words(model.size)),
            ("frames", frames, model.num_frames),
            ("levels", list(levels), list(model.levels)),
        ):
            if own != theirs:
                raise ConfigError(
                    f"start_from {self.name} has {name} {theirs}, not {own}: leave {name} as it "
                    "is there, or start from nothing"
                )


def _words(size: Size) -> str:
    """Width before height, as on the command line."""
    return "x".join(map(str, reversed(sides(size))))


def read_start(name: str, run_dir: Path) -> Start:
    """The parts of a model that own videos go on from.

    Args:
        name: of shipped models, a folder, or `owner/name` on the hub; see `model_folders.locate`.
        run_dir: of the results, which is another folder.

    Raises:
        FileNotFoundError: no such models, or no tokenizer among them.
        ConfigError: a part whose sizes own videos cannot have, or the run itself.
    """
    directory = locate(name)
    if directory.resolve() == run_dir.resolve():
        raise ConfigError(f"start_from {name} is where this run writes: give the new run a name")
    there = parts_of(directory)

    def folder(*parts: str) -> Path | None:
        return next((part_folder(directory, part) for part in parts if part in there), None)

    def part(schema: type[C], *parts: str) -> Part | None:
        at = folder(*parts)
        return None if at is None else Part(at, _sizes(schema, at))

    proxy = part(TokenizerConfig, "proxy", "final")
    final = part(TokenizerConfig, "final", "proxy")
    if proxy is None or final is None:
        raise MissingFileError(f"start_from {name}: {directory} has no tokenizer")
    at = folder("generator")
    generator = frames = None
    if at is not None:
        told = read_object(at / "config.json", COPY_ANEW, ("size", "vocabulary"))
        generator = Part(at, _checked(GPTConfig, told["size"], at))
        if told.get("frames") is not None:
            frames = FrameCondition.model_validate(told["frames"])
    return Start(
        name,
        proxy,
        final,
        part(RouterConfig, "router", PREFERENCE),
        part(RouterConfig, PREFERENCE, "router"),
        generator,
        frames,
    )


def _sizes(schema: type[Config], folder: Path) -> dict[str, Any]:
    told = read_object(folder / "config.json", COPY_ANEW)
    return _checked(schema, {k: v for k, v in told.items() if k in schema.model_fields}, folder)


def _checked(schema: type[Config], sizes: Any, folder: Path) -> dict[str, Any]:
    try:
        return schema.model_validate(sizes).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(f"{folder / 'config.json'}: {first_mistake(error)}") from None
