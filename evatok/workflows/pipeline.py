"""Everything in order: from games to a report, each step once.

A finished step leaves a record with its settings, its result and a digest of what it was made
from. Run again, the pipeline skips what is finished, takes up what was interrupted, and refuses to
mix results of different settings: it says what to remove instead.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from evaluation.encoders.base import weights_checksum
from evaluation.encoders.nano import FeaturesConfig, NanoNet
from evatok.core.config import Config, ConfigError, find_settings, load_config
from evatok.core.devices import resolve_device
from evatok.core.errors import EvatokError, MissingFileError
from evatok.core.paths import refuse_overwrite
from evatok.hub import PARTS, PREFERENCE, TEXT, Models, load_model, save_model
from evatok.measure.clip_sets import gate, held_out_sets, uniform_rows
from evatok.report.gallery import gallery, write_picture
from evatok.report.tables import ReportConfig, draw, measure, write_report
from evatok.workflows.own_settings import OwnConfig, derive
from evatok.workflows.search import SearchConfig, search_config
from evatok.workflows.step_record import read_record, result_digest, write_record
from evatok.workflows.text import TextConfig, copy_text, train_text
from evatok.workflows.time_estimate import time_of
from evatok.workflows.tokens import TokensConfig, write_shards
from evatok.workflows.train import train_config
from generator.gpt import GPT
from generator.train import GeneratorConfig
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from tokenizer.training.router_stage import RouterTraining
from tokenizer.training.tokenizer_stage import FinalConfig, ProxyConfig
from training.loop import MAY_CHANGE
from training.run_folder import alone
from video.arcade import recorder

Say = Callable[[str], None]

WIDE = "final-wide"  # optional: the final tokenizer goes on, for every w_q

# Settings that change no result; `steps` does.
HARMLESS = MAY_CHANGE - {"steps"} | {"workers", "cache_dir", "processes"}


class GateError(EvatokError):
    """Quality does not rise with the budget."""


class ArcadeConfig(Config):
    """What is recorded; see `video.arcade.recorder.record`."""

    root: Path
    source: recorder.Source = "atari"
    games: tuple[str, ...] | None = None  # None: all of the source
    train_clips: int = Field(default=150, ge=1)  # files of each game
    test_clips: int = Field(default=15, ge=1)
    num_frames: int = Field(default=48, ge=2)
    size: int = Field(default=64, ge=16)
    seed: int = Field(default=0, ge=0)
    fps: int = Field(default=15, ge=1)
    workers: int = Field(default=2, ge=1)


class GateConfig(Config):
    """What the proxy must show before the rest makes sense."""

    set: str = "arcade"  # the source whose folder has this name
    min_gain: float = 2.0  # dB from the lowest to the highest uniform level
    clips: int = Field(default=360, ge=1)  # of each set


class PipelineConfig(Config):
    """pipeline.yaml; every other step has a file of its own beside it."""

    stage: Literal["pipeline"] = "pipeline"
    run_dir: Path
    arcade: ArcadeConfig | None = None  # None: the data is there already
    gate: GateConfig | None = GateConfig()  # None: go on whatever the proxy shows
    report: ReportConfig = ReportConfig()


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: also of its folder.
        settings: what decides its result.
        needs: steps whose results it uses.
        run: does it and returns a JSON-able result.
    """

    name: str
    settings: Config | None
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]


FILES: dict[str, type[Config]] = {
    "pipeline": PipelineConfig,
    "features": FeaturesConfig,
    "proxy": ProxyConfig,
    "search": SearchConfig,
    "router": RouterTraining,
    PREFERENCE: RouterTraining,
    TEXT: TextConfig,
    "final": FinalConfig,
    WIDE: FinalConfig,
    "tokens": TokensConfig,
    "generator": GeneratorConfig,
}


class Pipeline:
    """The steps of one folder of settings."""

    def __init__(self, directory: Path, say: Say = print, device: str | None = None) -> None:
        """Read all settings.

        Args:
            directory: of them, or the one file that `evatok init` writes.
            say: told what begins.
            device: for every step, instead of the settings'.

        Raises:
            ConfigError: a file is wrong, or two files do not agree; every mistake is named.
            FileNotFoundError: a file is missing.
        """
        self.say, self.device = say, resolve_device(device or "auto")
        is_own = directory.is_file()
        self.settings: dict[str, Any] = (
            _derived(directory, device)
            if is_own
            else {
                name: load_config(schema, directory / f"{name}.yaml", _placed(schema, device))
                for name, schema in FILES.items()
                if name not in (PREFERENCE, TEXT, WIDE) or (directory / f"{name}.yaml").is_file()
            }
        )
        self.parts = [part for part in (*PARTS, PREFERENCE) if part in self.settings]
        self.config: PipelineConfig = self.settings["pipeline"]
        self.run_dir = self.config.run_dir
        self.final = WIDE if WIDE in self.settings else "final"  # whose tokenizer is shipped
        if not is_own:
            self._agree(directory)

    def _agree(self, directory: Path) -> None:
        """Refuse settings that would train on something else than the step before has made."""
        s, run = self.settings, self.run_dir
        wanted = [
            ("search.model", s["search"].model, run / "proxy" / "model"),
            ("router.table", s["router"].table, run / "search" / "train"),
            ("router.held_out_table", s["router"].held_out_table, run / "search" / "test"),
            ("router.search_batch", s["router"].search_batch, s["search"].batch_size),
            ("router.search_seed", s["router"].search_seed, s["search"].seed),
            *[
                (f"{PREFERENCE}.{key}", getattr(s[PREFERENCE], key), getattr(s["router"], key))
                for key in ("data", "table", "held_out_table", "search_batch", "search_seed")
                if PREFERENCE in s
            ],
            ("final.router", s["final"].router, run / "router" / "model"),
            *[
                (f"{WIDE}.{key}", getattr(s[WIDE], key), value)
                for key, value in (
                    ("start_from", run / "final" / "model"),
                    ("router", run / PREFERENCE / "model"),
                )
                if WIDE in s
            ],
            ("tokens.tokenizer", s["tokens"].tokenizer, run / self.final / "model"),
            ("tokens.router", s["tokens"].router, run / "router" / "model"),
            ("tokens.text", s["tokens"].text, run / TEXT if TEXT in s else None),
            ("generator.tokens", s["generator"].tokens, run / "tokens"),
        ]
        wrong = [f"{name} is {is_}, should be {should}" for name, is_, should in wanted
                 if is_ != should]  # fmt: skip
        if s["router"].data != s["search"].data:
            wrong.append("router.data is not search.data, whose clips it loads again")
        if TEXT in s and s[TEXT].data.sources != s["tokens"].data.sources:
            wrong.append("text.data.sources are not tokens.data.sources, whose clips it describes")
        if WIDE in s and PREFERENCE not in s:
            wrong.append(f"{WIDE}.yaml needs a router of {PREFERENCE}.yaml, a new file")
        if self.config.report.preferences and PREFERENCE not in s:
            wrong.append(f"report.preferences asks for a router of {PREFERENCE}.yaml, a new file")
        if wrong:
            raise ConfigError(f"{directory}: {'; '.join(wrong)}")

    def steps(self) -> list[Step]:
        """All steps in order."""
        s = self.settings

        def training(name: str, *needs: str) -> Step:
            return Step(name, s[name], needs, lambda: self._train(name))

        gate = self.config.gate
        first = () if self.config.arcade is None else ("arcade",)
        text = (TEXT,) if TEXT in s else ()
        steps = [] if not first else [Step("arcade", self.config.arcade, (), self._record)]
        return [
            *steps,
            *([training("features", *first)] if "features" in s else []),
            training("proxy", *first),
            *([Step("gate", gate, ("proxy",), self._gate)] if gate is not None else []),
            Step("search", s["search"], ("proxy",), self._search),
            training("router", "search"),
            *([training(PREFERENCE, "search")] if PREFERENCE in s else []),
            training("final", "router"),
            *([training(WIDE, "final", PREFERENCE)] if WIDE in s else []),
            *([Step(TEXT, s[TEXT], first, self._text)] if text else []),
            Step("tokens", s["tokens"], (self.final, "router", *text), self._tokens),
            training("generator", "tokens"),
            Step("export", None, (*map(self._step_of, self.parts), *text), self._export),
            Step("report", self.config.report, ("export", "search"), self._report),
        ]

    def run(self, until: str | None = None, force: bool = False) -> dict[str, Any]:
        """Do what is not done yet.

        Args:
            until: last step to do; all if None.
            force: go on although the gate does not hold.

        Returns:
            JSON-able: state, seconds and result of every step gone through.

        Raises:
            GateError: quality does not rise with the budget.
            ConfigError: a finished step does not fit the present settings.
        """
        steps = self.steps()
        names = [step.name for step in steps]
        if until is not None and until not in names:
            raise EvatokError(f"no step {until!r}; there are {', '.join(names)}")
        rows, results = [], {}
        self._tell_time()
        with alone(self.run_dir):
            for number, step in enumerate(steps, 1):
                record, is_new = self._do(step, f"{number}/{len(steps)} {step.name}")
                state = "done now" if is_new else "was done"
                rows.append({"step": step.name, "state": state, "seconds": record["seconds"]})
                results[step.name] = record["result"]
                if step.name == "gate" and not force:
                    _check_gate(record["result"]["gate"], self.run_dir / "gate")
                if step.name == until:
                    break
        return {"steps": rows, "run_dir": str(self.run_dir), "results": results}

    def _tell_time(self) -> None:
        """Say how long own videos take, from the operations of a step and its measured speed."""
        if "gate" in {step.name for step in self.steps()}:
            return
        done = [name for name in self.settings if self._is_done(name)]
        left = {n: c for n, c in self.settings.items() if n not in done}
        seconds = time_of(left, self.settings["proxy"], self.device)
        parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
        total = sum(seconds.values()) / 60
        self.say(f"about {total:.0f} minutes, a guess from one measured step: {parts}")

    def _is_done(self, name: str) -> bool:
        path = self._record_path(name)
        return path.is_file() and read_record(path)["finished"]

    # --- records ---

    def _record_path(self, name: str) -> Path:
        return self.run_dir / "steps" / f"{name}.json"

    def _do(self, step: Step, title: str) -> tuple[dict[str, Any], bool]:
        """Do a step unless it is done: its record, and whether it was done now."""
        settings = {} if step.settings is None else step.settings.model_dump(mode="json")
        inputs = {
            name: result_digest(read_record(self._record_path(name))["result"])
            for name in step.needs
        }
        record = {"step": step.name, "settings": settings, "inputs": inputs, "finished": False}
        path = self._record_path(step.name)
        old = read_record(path) if path.is_file() else None
        if old is not None and old["step"] != step.name:
            raise ConfigError(f"{path} is the record of {old['step']}: remove it")
        if old is not None:
            self._compare(step, old, record)
            if old["finished"]:
                self.say(f"{title}: finished before, in {old['seconds']:.0f} s")
                return old, False
        write_record(path, record)
        self.say(title)
        start = time.perf_counter()
        record["result"] = step.run()
        record["seconds"] = round(time.perf_counter() - start, 1)
        record["finished"] = True
        write_record(path, record)
        self.say(f"{title}: finished in {record['seconds']:.0f} s")
        return record, True

    def _compare(self, step: Step, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        folder, path = self.run_dir / step.name, self._record_path(step.name)
        changed = [name for name in step.needs if old["inputs"].get(name) != new["inputs"][name]]
        if changed:
            raise ConfigError(
                f"{step.name} was made from another result of {', '.join(changed)}: "
                f"remove {folder} and {path} to do it again"
            )
        before, now = _flat(_filled(step, old["settings"])), _flat(new["settings"])
        differ = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key.split(".")[-1] not in HARMLESS
        ]
        if differ:
            raise ConfigError(
                f"{step.name} was begun with other settings ({'; '.join(differ)}): set them back, "
                f"or remove {path} to take it up again, and {folder} too to begin it anew"
            )

    # --- steps ---

    def _record(self) -> dict[str, Any]:
        settings = self.config.arcade
        assert settings is not None
        values = settings.model_dump()
        values["num_workers"] = values.pop("workers")
        recorder.record(**values)
        lists = {s: settings.root / f"{s}list01.txt" for s in ("train", "test")}
        counts = {name: len(path.read_text().splitlines()) for name, path in lists.items()}
        return {
            "root": str(settings.root),
            "games": len(settings.games or recorder.games_of(settings.source)),
            **counts,
        }

    def _train(self, name: str) -> dict[str, Any]:
        result = train_config(self.settings[name], self.run_dir / name)
        return result | {"weights": weights_checksum(self._model(name).state_dict())}

    def _model(self, name: str) -> Any:
        kinds: dict[str, Any] = {
            "features": NanoNet,
            "proxy": VideoTokenizer,
            "router": Router,
            PREFERENCE: Router,
            "final": VideoTokenizer,
            WIDE: VideoTokenizer,
            "generator": GPT,
        }
        return load_model(kinds[name], self.run_dir / name / "model")

    def _step_of(self, part: str) -> str:
        """The step that made a part of the models."""
        return self.final if part == "final" else part

    def _gate(self) -> dict[str, Any]:
        config = self.config.gate
        assert config is not None
        sets = held_out_sets(self.settings["proxy"].data, config.clips)
        rows = uniform_rows(self._model("proxy").to(self.device), sets)
        judged = gate(rows, config.set, config.min_gain)
        plots = draw({"levels": rows}, self.run_dir / "gate")
        return {"levels": rows, "gate": judged, "plot": str(plots[0][0])}

    def _search(self) -> dict[str, Any]:
        folder = self.run_dir / "search"
        result = search_config(self.settings["search"], folder, self._search_progress())
        digest = hashlib.sha256()
        for shard in sorted(folder.glob("*/*.parquet")):
            digest.update(shard.read_bytes())
        return result | {"table_sha256": digest.hexdigest()}

    def _search_progress(self) -> Callable[[str, int, int], None]:
        start = time.perf_counter()
        last = start

        def progress(split: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > 30 or done == total:
                last = now
                self.say(f"  {split}: {done} of {total} clips, {now - start:.0f} s")

        return progress

    def _text(self) -> dict[str, Any]:
        return train_text(self.settings[TEXT], self.run_dir / TEXT)

    def _tokens(self) -> dict[str, Any]:
        return write_shards(self.settings["tokens"], self.run_dir / "tokens")

    def _export(self) -> dict[str, Any]:
        sizes = {}
        for part in self.parts:
            folder = self.run_dir / "export" / part
            save_model(self._model(self._step_of(part)), folder, half=True)
            sizes[part] = sum(file.stat().st_size for file in folder.iterdir())
        if TEXT in self.settings:
            sizes[TEXT] = copy_text(self.run_dir / TEXT, self.run_dir / "export" / TEXT)
        return {
            "folder": str(self.run_dir / "export"),
            "bytes": sizes | {"all": sum(sizes.values())},
        }

    def _report(self) -> dict[str, Any]:
        s, folder = self.settings, self.run_dir / "report"
        # What is shipped is what is measured.
        models = Models(self.run_dir / "export", self.device)
        tables = measure(
            models,
            s["final"].data,
            s["search"],
            self.run_dir / "search",
            s["router"].w_q,
            self.config.report,
            lambda text: self.say(f"  {text}"),
        )
        records = {name: read_record(self._record_path(name)) for name in s if name != "pipeline"}
        about = {
            "settings": self.config.report.model_dump(mode="json"),
            "features": models.features.class_names,
            "seconds": {name: record["seconds"] for name, record in records.items()},
            "validation": {
                name: record["result"]["validation"]
                for name, record in records.items()
                if "validation" in record["result"]
            },
            "export_bytes": read_record(self._record_path("export"))["result"]["bytes"],
        }
        only = None if self.config.gate is None else self.config.gate.set
        shown, *_ = held_out_sets(s["final"].data, self.config.report.clips, only)
        path = folder / "figures" / "clips.png"
        write_picture(gallery(models, shown), path)
        caption = "Held-out clips and the tokens of their blocks, from the cheapest to the dearest"
        write_report(tables, about, folder, [(path, caption)])
        shutil.copyfile(folder / "report.json", self.run_dir / "export" / "report.json")
        return {"folder": str(folder), "tables": tables}


def _check_gate(result: Mapping[str, Any], folder: Path) -> None:
    if not result["passed"]:
        values = ", ".join(f"{value:.2f}" for value in result["psnr"])
        raise GateError(
            f"the gate does not hold on {result['set']}: PSNR {values} dB over the levels, a gain "
            f"of {result['gain']:.2f} dB where {result['min_gain']:g} are wanted, rising at every "
            f"level; see {folder}. Train the proxy longer, or go on anyway with --force"
        )


def _filled(step: Step, settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings with the defaults of those that have come since, which change nothing."""
    if step.settings is None:
        return settings
    try:
        return type(step.settings).model_validate(settings).model_dump(mode="json")
    except ValidationError:  # a setting has gone since: it will be named
        return settings


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as {"a.b.0": value}."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    flat: dict[str, Any] = {}
    for key, value in items:
        name = f"{prefix}{key}"
        is_nested = isinstance(value, dict | list)
        flat |= _flat(value, f"{name}.") if is_nested else {name: value}
    return flat


def _placed(schema: type[Config], device: str | None) -> list[str]:
    """Overrides that put a step on a device, where it has one."""
    if device is None:
        return []
    return [
        f"{key}={device}"
        for key, has_it in (
            ("train.device", "train" in schema.model_fields),
            ("device", "device" in schema.model_fields),
        )
        if has_it
    ]


def _derived(path: Path, device: str | None) -> dict[str, Any]:
    """The settings of every step, from the one file of own videos."""
    own = load_config(OwnConfig, path)
    settings: dict[str, Any] = {}
    for name, values in derive(own).items():
        schema = FILES[name]
        if device is not None:
            if "train" in values:
                values = values | {"train": values["train"] | {"device": device}}
            elif "device" in schema.model_fields:
                values = values | {"device": device}
        try:
            settings[name] = schema.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{path}: {name}: {error.errors()[0]['msg']}") from None
    return settings


def _located(settings: Path) -> Path:
    """A folder of settings, or the file of own videos that a name stands for."""
    own = Path(f"{settings}.yaml")
    if own.is_file():
        return own
    settings = find_settings(settings)
    if settings.is_file():
        return settings
    if not settings.is_dir():
        raise MissingFileError(
            f"no folder {settings} and no {own}: `evatok init NAME --data DIR` writes one"
        )
    return settings


def run_pipeline(
    directory: Path,
    until: str | None = None,
    force: bool = False,
    say: Say = print,
    device: str | None = None,
) -> dict[str, Any]:
    """Read a folder of settings and do what is not done yet; see `Pipeline`, `Pipeline.run`."""
    directory = _located(directory)
    pipeline = Pipeline(directory, say, device)
    refuse_overwrite([pipeline.run_dir], [directory], inside=True)
    return pipeline.run(until, force)
