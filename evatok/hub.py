"""The trained parts of a model, loaded and saved; `evatok.model_folders` says where they lie."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn

from evaluation.encoders.load import load_features
from evaluation.encoders.nano import NanoFeatures, NanoNet
from evaluation.scoring.records import Record
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.files import atomic_file, partial_folder, write_text
from evatok.core.loading.pretrained import FILES
from evatok.core.paths import refuse_overwrite
from evatok.model_card import model_card
from evatok.model_folders import (
    HUB_ID,
    PREFERENCE,
    SHIPPED_FEATURES,
    TEXT,
    locate,
    part_folder,
    parts_of,
)
from evatok.workflows.text import Captioner, copy_text
from generator.gpt import GPT, GPTLayer
from generator.inference.optimize import Weights, prepare_for_inference, weights_of
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.search.assigners import Assigner, make_assigner

logger = logging.getLogger(__name__)


class Models:
    """The parts of one folder, each loaded when it is first asked for; weights in float32.

    Attributes:
        directory: the folder.
        device: where all parts are.
    """

    def __init__(self, directory: Path, device: torch.device | str = "cpu") -> None:
        self.directory, self.device = directory, torch.device(device)

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are there."""
        return parts_of(self.directory)

    @property
    def loaded(self) -> dict[str, nn.Module]:
        """The parts that were used so far, by their names."""
        return {name: vars(self)[name] for name in self.parts if name in vars(self)}

    def folder(self, part: str) -> Path:
        """Return the folder of a part, which may be absent."""
        return part_folder(self.directory, part)

    @cached_property
    def features(self) -> NanoNet:
        """The feature network behind FVD[nano]: the shipped one where the folder has none."""
        if "features" not in self.parts:
            return self._here(NanoNet, SHIPPED_FEATURES)
        return self._load("features", NanoNet)

    @cached_property
    def proxy(self) -> VideoTokenizer:
        """The stage-1 tokenizer, trained on random assignments."""
        return self._load("proxy", VideoTokenizer)

    @cached_property
    def router(self) -> Router:
        """Clip → assignment; the conditioned router at its own w_q where there is no other."""
        if "router" not in self.parts and PREFERENCE in self.parts:
            return self.preference
        return self._load("router", Router)

    @cached_property
    def preference(self) -> Router:
        """Clip and w_q → assignment."""
        return self._load(PREFERENCE, Router)

    @property
    def conditioned_router(self) -> Router:
        """The router to ask with a w_q; the plain one, which refuses, where there is no other."""
        return self.preference if PREFERENCE in self.parts else self.router

    def assigner(self, spec: str, max_tokens: int | None = None) -> Assigner:
        """A way to choose assignments for the final tokenizer; see `tokenizer.search.assigners`.

        A search measures with the proxy, and in a folder without one with the final tokenizer.
        """
        kind, _, value = spec.partition(":")
        router = self.router if kind in ("router", "best") else None
        if kind == "router" and value:
            router = self.conditioned_router
        is_searched = kind in ("best", "threshold") and "proxy" in self.parts
        proxy = self.proxy if is_searched else None
        return make_assigner(spec, self.final, router, proxy, max_tokens)

    @cached_property
    def final(self) -> VideoTokenizer:
        """The stage-4 tokenizer, trained on the router's assignments; before it, the proxy."""
        if "final" not in self.parts and "proxy" in self.parts:
            logger.warning("%s has no final tokenizer yet: the proxy is used", self.directory)
            return self.proxy
        return self._load("final", VideoTokenizer)

    @cached_property
    def generator(self) -> GPT:
        """Class, text or frames → tokens; with compiled steps where they can be had."""
        return prepare_for_inference(self._fitting_generator())

    def sample_with(self, weights: Weights, graphs: bool) -> None:
        """Load the generator anew for these decode steps; see `optimize.prepare_for_inference`."""
        self.generator = prepare_for_inference(self._fitting_generator(), weights, graphs=graphs)

    def _fitting_generator(self) -> GPT:
        """The generator, whose tokens the final tokenizer knows.

        Raises:
            EvatokError: it was trained on another tokenizer's.
        """
        generator: GPT = self._load("generator", GPT)
        if not {"final", "proxy"} & set(self.parts):
            return generator
        told, final = generator.vocabulary, self.final
        ours = tuple(told.levels), told.codebook_size, told.num_blocks
        theirs = final.levels.values, final.config.codebook_size, final.num_blocks
        if ours != theirs:
            raise EvatokError(
                f"{self.folder('generator')} was not trained on the tokens of "
                f"{self.folder('final')}: levels, codes and blocks are {ours}, not {theirs}; "
                "export both from one run"
            )
        return generator

    @cached_property
    def text(self) -> Captioner:
        """Captions and their pieces, as the generator was trained with.

        Raises:
            EvatokError: the generator takes no text, or text of other pieces.
        """
        condition, folder = self.generator.text, self.directory / TEXT
        if condition is None:
            raise EvatokError(
                f"the generator in {self.directory} was not trained on texts: give its tokens.yaml "
                "a text and its generator.yaml a text_share, and train it"
            )
        captioner = Captioner.load(folder)
        if captioner.pieces.digest != condition.digest:
            raise EvatokError(f"{folder} is not the text model that the generator was trained with")
        return captioner

    def _load(self, part: str, kind: Any) -> Any:
        folder = self.folder(part)
        for name in FILES:
            if not (folder / name).is_file():
                own = Path(f"{self.directory.name}.yaml")
                settings = self.directory.name if own.is_file() else "configs/nano"
                raise MissingFileError(
                    f"no {part} in {self.directory} ({folder / name} is missing): "
                    f"`evatok pipeline {settings}` trains and exports it"
                )
        return self._here(kind, folder)

    def _here(self, kind: Any, folder: Path) -> Any:
        with torch.inference_mode(False):  # gradients may be wanted later, though not now
            return load_model(kind, folder).to(self.device)


def load(name_or_path: str | Path = "nano", device: torch.device | str = "cpu") -> Models:
    """Find models; see `locate`.

    Args:
        name_or_path: as in `locate`.
        device: where the models work.
    """
    return Models(locate(name_or_path), device)


def feature_networks(
    names: str, model: str, trust: bool = False, device: torch.device | str = "cpu"
) -> list[Any]:
    """Load feature networks by their names, commas between; `nano` is the model's own of that name.

    Names and `trust` are those of `evaluation.encoders.load.load_features`.
    """
    networks: list[Any] = []
    for name in filter(None, names.split(",")):
        own = NanoFeatures(load(model).features, device) if name == "nano" else None
        if own is None or own.name != name:
            own = load_features(name, device=device, trust=trust)
        networks.append(own)
    return networks


def load_model(kind: Any, folder: Path) -> Any:
    """A model of this class from a folder, in eval mode and without gradients."""
    model: nn.Module = kind.from_pretrained(folder)
    return model.eval().requires_grad_(False)


def save_model(model: nn.Module, folder: Path, *, half: bool = False) -> None:
    """Write config.json and model.safetensors of a model with the hub's mixin, whole or not at all.

    Args:
        model: is left as it is.
        folder: made if absent; files of these names are replaced.
        half: floating-point tensors in float16, as shipped.
    """
    saved: Any = copy.deepcopy(model).half() if half else model
    with partial_folder(folder) as made:
        saved.save_pretrained(made)
        for name in FILES:  # and not the model card that the mixin adds
            with atomic_file(folder / name) as partial:
                os.replace(made / name, partial)


def export_run(
    run: Path,
    output: Path,
    records: Sequence[Record] = (),
    loaded: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Copy the parts of a run into a folder of their own, weights in float16, and a model card.

    Args:
        run: folder of a pipeline, at any stage.
        output: folder to make; parts of these names are replaced.
        records: measurements for the card.
        loaded: parts in memory, by their names: they are written where they differ from the run's.

    Returns:
        JSON-able: the folder, its parts and their bytes.

    Raises:
        FileNotFoundError: no part is trained yet.
        EvatokError: the output lies in the run, or a changed generator cannot be saved.
    """
    models = load(run)
    refuse_overwrite([output], [models.directory], inside=True, links=False)
    kinds = {"features": NanoNet, "router": Router, PREFERENCE: Router, "generator": GPT}
    sizes = {}
    for part in models.parts:
        model = load_model(kinds.get(part, VideoTokenizer), models.folder(part))
        if loaded is not None and part in loaded:
            model = _with_changes(model, loaded[part])
        save_model(model, output / part, half=True)
        sizes[part] = sum((output / part / name).stat().st_size for name in FILES)
    if (models.directory / TEXT).is_dir():
        sizes[TEXT] = copy_text(models.directory / TEXT, output / TEXT)
    write_text(output / "README.md", str(model_card(output, output.name, records)))
    return {"folder": str(output), "bytes": sizes | {"all": sum(sizes.values())}}


def _with_changes(stored: nn.Module, loaded: nn.Module) -> nn.Module:
    """A part as it is in memory; what was read from disk where nothing has changed.

    Raises:
        EvatokError: it is a changed generator in a form that samples and cannot be saved.
    """
    ours, theirs = stored.state_dict(), loaded.state_dict()
    if isinstance(stored, GPT) and isinstance(loaded, GPT) and ours.keys() != theirs.keys():
        if any(isinstance(layer, GPTLayer) for layer in loaded.layers):
            return loaded  # another generator
        plain = prepare_for_inference(stored, weights_of(loaded.weights), False).state_dict()
        if not _same_tensors(plain, theirs):
            raise EvatokError(
                "the generator was changed in a form that samples and cannot be saved: train a "
                "generator that GPT.from_pretrained reads"
            )
        return stored
    if _same_tensors(ours, theirs):
        return stored
    shapes = ({name: x.shape for name, x in state.items()} for state in (ours, theirs))
    if len({tuple(sorted(each.items())) for each in shapes}) > 1:
        return loaded  # another model
    stored.load_state_dict(theirs)  # whatever device and type they have
    return stored


def _same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(x.cpu(), theirs[name].to("cpu", x.dtype)) for name, x in ours.items()
    )


def push_run(
    run: Path,
    repository: str,
    records: Sequence[Record] = (),
    loaded: Mapping[str, nn.Module] | None = None,
    **options: Any,
) -> str:
    """Export a run, and upload it as one repository of the Hugging Face hub.

    Args:
        run: as in `export_run`.
        repository: `owner/name`; made if absent.
        records: as in `export_run`.
        loaded: likewise.
        options: of `huggingface_hub.HfApi.upload_folder`: revision, commit_message, create_pr; and
            `private`, `token`.

    Returns:
        Address of the commit.

    Raises:
        EvatokError: no such name can be, or the hub refuses it.
    """
    if not HUB_ID.fullmatch(repository):
        raise EvatokError(f"{repository!r} is no repository of the hub: give owner/name")
    api = HfApi(token=options.pop("token", None))
    private = options.pop("private", None)
    with TemporaryDirectory() as folder:
        made = Path(folder) / repository
        export_run(run, made, records, loaded)
        write_text(made / "README.md", str(model_card(made, repository, records)))
        try:
            name = api.create_repo(repository, private=private, exist_ok=True).repo_id
            done = api.upload_folder(repo_id=name, folder_path=made, **options)
        except OSError as error:  # no network, no permission: the hub's errors are OSErrors
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise EvatokError(f"the hub does not take {repository} ({reason})") from None
    return str(done)
