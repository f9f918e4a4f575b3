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
from typing import Any

from evaluation.encoders.base import weights_checksum
from evaluation.encoders.nano import NanoNet
from evatok.core.compute.devices import resolve_device
from evatok.core.config import Config, ConfigError
from evatok.core.errors import EvatokError
from evatok.core.paths import refuse_overwrite
from evatok.core.suggest import did_you_mean
from evatok.hub import Models, load_model, save_model
from evatok.measure.clip_sets import gate, held_out_sets, uniform_rows
from evatok.model_folders import PARTS, PREFERENCE, TEXT
from evatok.report.gallery import gallery, write_picture
from evatok.report.tables import draw, measure, write_report
from evatok.workflows.own.time_estimate import Clock, in_words, time_of
from evatok.workflows.pipeline_settings import (
    WIDE,
    PipelineConfig,
    final_of,
    locate_settings,
    read_settings,
)
from evatok.workflows.search import Pace, search_config
from evatok.workflows.step_record import (
    changed_settings,
    read_record,
    result_digest,
    write_record,
)
from evatok.workflows.text import copy_text, train_text
from evatok.workflows.tokens import write_shards
from evatok.workflows.train import train_config
from generator.gpt import GPT
from tokenizer.model import VideoTokenizer
from tokenizer.router import Router
from training.runs.run_folder import run_lock
from video.arcade import recorder

Say = Callable[[str], None]


class GateError(EvatokError):
    """Quality does not rise with the budget."""


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
        self.settings = read_settings(directory, device)
        self.parts = [part for part in (*PARTS, PREFERENCE) if part in self.settings]
        self.config: PipelineConfig = self.settings["pipeline"]
        self.run_dir = self.config.run_dir
        self.final = final_of(self.settings)  # whose tokenizer is shipped
        self.clock = Clock({})

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
            raise EvatokError(
                f"no step {until!r}; there are {', '.join(names)}{did_you_mean(until, names)}"
            )
        rows, results = [], {}
        self._tell_time()
        with run_lock(self.run_dir):
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
        """Say how long own videos take, from real steps timed now; see `time_estimate`."""
        done = {name for name in self.settings if self._is_done(name)}
        if self.config.gate is not None or done >= self.settings.keys() - {"pipeline"}:
            return
        self.say("timing a few steps of every stage …")
        self.clock = Clock(time_of(self.settings, self.device))
        for name in done:
            self.clock.learn(name, read_record(self._record_path(name))["seconds"])
        parts = {n: self.clock.expected(n) for n in (step.name for step in self.steps())}
        told = ", ".join(f"{n} {in_words(s)}" for n, s in parts.items() if s and n not in done)
        self.say(f"about {in_words(self.clock.left())} in all, corrected as stages end: {told}")

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
        guess = self.clock.expected(step.name)
        left = f": about {in_words(guess)} of {in_words(self.clock.left())} left" if guess else ""
        self.say(title + left)
        start = time.perf_counter()
        record["result"] = step.run()
        record["seconds"] = round(time.perf_counter() - start, 1)
        record["finished"] = True
        write_record(path, record)
        guessed = f", estimated {in_words(guess)}" if guess else ""
        self.say(f"{title}: finished in {in_words(record['seconds'])}{guessed}")
        if old is None:  # what was taken up counts only its last part
            self.clock.learn(step.name, record["seconds"])
        return record, True

    def _compare(self, step: Step, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        folder, path = self.run_dir / step.name, self._record_path(step.name)
        changed = [name for name in step.needs if old["inputs"].get(name) != new["inputs"][name]]
        if changed:
            raise ConfigError(
                f"{step.name} was made from another result of {', '.join(changed)}: "
                f"remove {folder} and {path} to do it again"
            )
        schema = None if step.settings is None else type(step.settings)
        differ = changed_settings(schema, old["settings"], new["settings"])
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
        for shard in sorted(folder.glob("*/table-*.parquet")):
            digest.update(shard.read_bytes())
        return result | {"table_sha256": digest.hexdigest()}

    def _search_progress(self) -> Callable[[str, int, int], None]:
        pace, last = Pace(lambda text: self.say(f"  {text}")), time.perf_counter()

        def progress(split: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > 30 or done == total:
                last = now
                pace(split, done, total)

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


def run_pipeline(
    directory: Path,
    until: str | None = None,
    force: bool = False,
    say: Say = print,
    device: str | None = None,
) -> dict[str, Any]:
    """Read a folder of settings and do what is not done yet; see `Pipeline`, `Pipeline.run`."""
    directory = locate_settings(directory)
    pipeline = Pipeline(directory, say, device)
    refuse_overwrite([pipeline.run_dir], [directory], inside=True)
    return pipeline.run(until, force)
