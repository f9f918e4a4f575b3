"""The demo: everything that the trained models do, on clips they have not seen, on one page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from evaluation.encoders.nano import NanoFeatures
from evatok.core.compute.devices import resolve_device
from evatok.core.config import Config, find_settings, load_config
from evatok.core.errors import EvatokError
from evatok.core.files import write_text
from evatok.core.loading.records import read_record
from evatok.core.paths import paths_in, refuse_overwrite, safe_names
from evatok.generate.prompts import text_files
from evatok.generate.reconstruct import reconstruct_files
from evatok.generate.sample_set import CHUNKS, MANIFEST, sample_set
from evatok.generate.samples import frame_condition, predict_clips, request_seed
from evatok.generate.token_file import EncodeSettings
from evatok.hub import Models, load
from evatok.measure.clip_sets import (
    ClipSet,
    Network,
    held_out_sets,
    prediction_rows,
    sampling_rows,
    tokenizer_rows,
    uniform_rows,
)
from evatok.model_folders import SHIPPED
from evatok.report.drawing import Panel, canvas_size, compose
from evatok.report.page import Page
from evatok.report.tables import TITLES, draw
from generator.inference.requests import SamplingConfig
from video.arcade import recorder
from video.clips import sides, to_frames
from video.dataset import DataConfig, SourceConfig
from video.lists import read_folder
from video.writing import write_video

Say = Callable[[str], None]

SETTINGS = find_settings("games/demo")
RESULT = "demo.json"
OWN = ".demo"  # in a folder of samples that a demo has made, and makes anew
PACKED = SHIPPED.parent / "footage" / "procgen"  # held-out clips


class DemoConfig(Config):
    """Size of the demo; configs/games/demo.yaml, configs/nano/demo.yaml."""

    # Atari games, recorded for the demo; none: held-out clips of Procgen, which travel with evatok.
    games: tuple[str, ...] = ()
    clips_per_game: int = Field(default=3, ge=1)  # files of 48 frames, of recorded games
    more_sources: tuple[SourceConfig, ...] = ()  # other labelled clips, where they are at hand
    more_videos: Path | None = None  # folder of any videos, where it is at hand
    cache_dir: Path = Path("runs/cache")
    reconstructions: int = Field(default=6, ge=1)  # videos shown of each set
    samples_per_class: int = Field(default=1, ge=1)  # shown
    texts: tuple[str, ...] = ()  # one sample of each, if the generator takes texts
    predictions: int = Field(default=6, ge=1)  # shown of each set
    scored_clips: int = Field(default=144, ge=2)  # of each set
    sampling: SamplingConfig = SamplingConfig(guidance=2.0)
    seed: int = Field(default=7, ge=0)  # footage of another seed than the training's


Tables = dict[str, list[dict[str, int | float | str | None]]]


class _Report(BaseModel):
    """Sections of the page for a report.json."""

    tables: Tables


def run_demo(
    output: Path,
    model: str = "games",
    say: Say = print,
    settings: Path = SETTINGS,
    device: str = "cpu",
) -> dict[str, Any]:
    """Reconstruct, sample, predict, score, and write output/index.html.

    Args:
        output: folder; the page is written last.
        model: name or folder of trained parts.
        say: told what begins.
        settings: of `DemoConfig`.
        device: where the models work.

    Returns:
        JSON-able: the page, the tables and the seconds taken.
    """
    start = time.perf_counter()
    config = load_config(DemoConfig, settings)
    models = load(model, resolve_device(device))
    read = [settings, models.directory, *paths_in(config)]
    refuse_overwrite([output, output / "index.html", output / RESULT], read, links=False)
    demo = Demo(config, models, output, say)
    refuse_others_samples(demo.sample_dir, output)
    if config.games:
        say("recording games")
    demo.record()
    sets = held_out_sets(demo.data(), config.scored_clips)
    page = Page(
        "evatok: adaptive-length video tokens",
        "Every clip of 16 frames is cut into four blocks; a router decides how many tokens each "
        "block gets. Bars under a picture show the tokens spent, the lit one belongs to the frames "
        "on show.",
    )
    say("reconstructing")
    demo.reconstructions(page)
    say("sampling every class")
    demo.samples(page)
    if config.texts and models.generator.text is not None:
        say("sampling texts")
        demo.texts(page)
    say("predicting frames")
    demo.predictions(page, sets)
    say("scoring")
    tables = demo.tables(page, sets)
    seconds = time.perf_counter() - start
    page.write(
        output / "index.html",
        f"Made by `evatok demo` from {model} in {seconds:.0f} s on {models.device}.",
    )
    result = {
        "page": str(output / "index.html"),
        "seconds": round(seconds, 1),
        "clips": {one.name: len(one) for one in sets},
        **tables,
    }
    write_text(output / RESULT, json.dumps(result, indent=1))
    return result


class Demo:
    """The parts of the demo, each of which adds a section to the page."""

    def __init__(self, config: DemoConfig, models: Models, output: Path, say: Say) -> None:
        self.config, self.models, self.output, self.say = config, models, output, say
        self.footage = output / "arcade" if config.games else PACKED
        self.size = models.final.config.size
        self.sides = sides(self.size)
        self.num_frames = models.final.config.num_frames
        self.sample_dir = output / "videos" / "samples"

    def record(self) -> None:
        """Fresh footage, if games are named; the same folder is used again."""
        if not self.config.games:
            return
        recorder.record(
            self.footage,
            self.config.games,
            train_clips=1,
            test_clips=self.config.clips_per_game,
            num_frames=3 * self.num_frames,
            size=max(self.sides),
            seed=self.config.seed,
            num_workers=os.cpu_count() or 1,
        )

    def data(self) -> DataConfig:
        """The footage, and the other sources that are here."""
        return DataConfig(
            sources=(
                SourceConfig(kind="ucf101", root=self.footage),
                *self.config.more_sources,
            ),
            num_frames=self.num_frames,
            size=self.size,
            cache_dir=self.config.cache_dir,
        )

    def reconstructions(self, page: Page) -> None:
        """Whole videos side by side."""
        page.section(
            "Real videos through the tokenizer",
            "Left what the tokenizer sees, right what it gives back from its tokens alone.",
        )
        models, count = self.models, self.config.reconstructions
        settings = EncodeSettings(fit="crop", sound=False)
        files: list[Path] = []
        for source in self.data().sources:
            if source.root.is_dir():
                videos = [item.path for item in source.items("test")]
                files += videos[:: max(1, len(videos) // count)][:count]
        more = self.config.more_videos
        if more is not None and more.is_dir():
            files += [item.path for item in read_folder(more)][:count]
        items = []
        for index, file in enumerate(files):
            folder = self.output / "videos" / "reconstructions" / f"{index:02d}"
            row = reconstruct_files(models, [file], folder, settings=settings)["files"][0]
            per_clip = row["tokens"] / len(row["clips"])
            detail = f"{row['frames']} frames · {row['psnr']:.1f} dB · {per_clip:.0f} tokens a clip"
            items.append((self._link(row["output"]), file.name, detail))
        page.videos(items, canvas_size(2, *self.sides))

    def samples(self, page: Page) -> None:
        """Clips of every class."""
        scale = self.config.sampling.guidance
        page.section(
            "Clips generated from a class", f"One token names the class; guidance {scale:g}."
        )
        folder = self.sample_dir
        remove_samples(folder)  # of an earlier page
        write_text(folder / OWN, "`evatok demo` makes these samples anew\n")
        done = sample_set(
            self.models,
            (),
            self.config.samples_per_class,
            self.config.seed,
            self.config.sampling,
            folder,
        )
        rows = done["samples"]
        items = [(self._link(row["file"]), row["class"], _tokens(row)) for row in rows]
        page.videos(items, canvas_size(1, *self.sides), min_width=200)

    def texts(self, page: Page) -> None:
        """Clips of what texts say."""
        config = self.config
        page.section(
            "Clips generated from a text",
            "Captions say the class, bright or dark, much or little motion; guidance "
            f"{config.sampling.guidance:g}.",
        )
        folder = self.output / "videos" / "texts"
        done = text_files(self.models, config.texts, 1, config.seed, config.sampling, folder)
        items = [(self._link(row["file"]), row["text"], _tokens(row)) for row in done["samples"]]
        page.videos(items, canvas_size(1, *self.sides), min_width=200)

    def predictions(self, page: Page, sets: list[ClipSet]) -> None:
        """The rest of real clips from their first frames."""
        condition = frame_condition(self.models)
        page.section(
            "Frame prediction",
            f"The first {condition.num_frames} frames are given; the rest is generated. A green "
            "bar is a block that was given.",
        )
        items = []
        stems = safe_names([real.name for real in sets])
        for real, stem in zip(sets, stems, strict=True):
            clips = torch.cat(list(real.batches()))[: self.config.predictions]
            seeds = [request_seed(self.config.seed, place) for place in range(len(clips))]
            predicted, tokens = predict_clips(self.models, clips, seeds, self.config.sampling)
            for place, blocks in enumerate(tokens.assignment.tolist()):
                frames = compose(
                    [
                        Panel("real", to_frames(clips[place]).numpy()),
                        Panel("predicted", to_frames(predicted[place]).numpy()),
                    ],
                    blocks,
                    self.models.final.levels.values[-1],
                    given_blocks=condition.kept_blocks,
                )
                path = self.output / "videos" / "predictions" / f"{stem}-{place:02d}.mp4"
                write_video(path, frames, 15)
                name = real.class_names[int(real.labels[place])]
                items.append((self._link(path), name, f"{sum(blocks)} tokens"))
        page.videos(items, canvas_size(2, *self.sides))

    def tables(self, page: Page, sets: list[ClipSet]) -> dict[str, Any]:
        """Numbers and curves on the demo's clips, and those of the training's report."""
        config, models = self.config, self.models
        networks = [Network(NanoFeatures(models.features, models.device))]
        name = networks[0].features.name
        scale = config.sampling.guidance
        tables = {
            "levels": uniform_rows(models.proxy, sets),
            "tokenizers": tokenizer_rows(models, sets, networks),
            "samples": sampling_rows(
                models, sets, networks, config.sampling, (scale,), config.seed
            ),
            "predictions": prediction_rows(models, sets, networks, config.sampling, config.seed),
        }
        page.section(
            "Numbers of this run",
            f"Measured just now on the clips above and others like them. FVD[{name}] is taken with "
            f"our own small network; it compares with nothing but FVD[{name}] at the same count.",
        )
        for table, rows in tables.items():
            page.heading(TITLES[table])
            page.table(rows)
        plots = draw(tables, self.output / "figures")
        page.section("Curves")
        page.plots([(self._link(path), caption) for path, caption in plots])
        report = report_of(models.directory)
        if report:
            page.section(
                "Numbers of the training",
                "From the report that `evatok pipeline` wrote when these models were trained, on "
                "more held-out clips.",
            )
            for name, rows in report.items():
                page.heading(TITLES.get(name, name))
                page.table(rows)
        return tables

    def _link(self, path: str | Path) -> str:
        return Path(path).relative_to(self.output).as_posix()


class _Sample(BaseModel):
    """What the demo needs of a sample in a set's manifest."""

    file: str


class _Manifest(BaseModel):
    """What the demo needs of a set's manifest."""

    samples: list[_Sample]


def refuse_others_samples(folder: Path, output: Path) -> None:
    """Refuse to make samples where somebody else's are.

    Args:
        folder: of the demo's samples.
        output: of the demo: with a result of an earlier one, the samples are its.

    Raises:
        EvatokError: there are others.
    """
    is_own = (folder / OWN).is_file() or (output / RESULT).is_file()
    if (folder / MANIFEST).is_file() and not is_own:
        raise EvatokError(
            f"{folder} holds samples that no demo has made: move them elsewhere, or name another "
            "folder for the page"
        )


def remove_samples(folder: Path) -> None:
    """Remove the set of samples in a folder, if there is one, and nothing else from it.

    Raises:
        RecordError: its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    manifest = read_record(_Manifest, path, f"remove {folder}")
    for name in dict.fromkeys(sample.file for sample in manifest.samples):
        (folder / Path(name).name).unlink(missing_ok=True)
    for record in (folder / CHUNKS).glob("*.json"):
        record.unlink()
    path.unlink()  # last: a demo that was killed finds what is left


def report_of(folder: Path) -> Tables:
    """Return the tables of a model folder's report.json, none where there is no such file.

    Raises:
        RecordError: it is damaged.
    """
    path = folder / "report.json"
    if not path.is_file():
        return {}
    remedy = "take it out of the model's folder, or copy it there again"
    return read_record(_Report, path, remedy).tables


def _tokens(row: dict[str, Any]) -> str:
    return f"{row['tokens']} tokens: {' · '.join(map(str, row['assignment']))}"
