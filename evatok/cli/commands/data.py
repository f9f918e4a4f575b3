"""Commands that make sets to train on: of downloaded videos, and of games."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evatok.cli.options import AsJson, Bar, Seed
from evatok.cli.output import show
from evatok.core.errors import EvatokError

Folder = Annotated[Path, typer.Argument(help="The downloaded copy.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for the copies; without it only a check.")
]
Full = Annotated[bool, typer.Option("--full", help="Decode every frame in the check.")]
Size = Annotated[int, typer.Option(min=2, help="Pixels of the short side of the copies, even.")]
Keyframes = Annotated[int, typer.Option(min=1, help="Frames from one key frame to the next.")]
Crf = Annotated[int, typer.Option(min=0, max=51, help="Quality of H.264; 0 = lossless.")]
Preset = Annotated[str, typer.Option(help="Of x264: ultrafast … veryslow.")]
Fps = Annotated[
    float | None,
    typer.Option(help="Frames a second of the copies. Default: as they are; webvid 3."),
]
MaxDamaged = Annotated[float, typer.Option(min=0, max=1, help="Stop above this share.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; no change to the bytes.")]
Larp = Annotated[bool, typer.Option("--larp-lists", help="Also lists as LARP's code reads them.")]


FPS = {"webvid": 3.0}  # of the copies, where a paper trains at another rate than the files


def data_command(
    name: Annotated[Literal["ucf101", "k600", "webvid"], typer.Argument(help="The set.")],
    directory: Folder,
    out: Out = None,
    full: Full = False,
    fps: Fps = None,
    size: Size = 128,
    keyframe_every: Keyframes = 16,
    crf: Crf = 18,
    preset: Preset = "medium",
    max_damaged: MaxDamaged = 0.05,
    workers: Workers = 2,
    larp_lists: Larp = False,
    as_json: AsJson = False,
) -> None:
    """Check a downloaded set against its lists and prepare it for training.

    \b
    Example:
        evatok data ucf101 downloads/UCF-101 --out data/ucf101 --workers 16
        evatok data k600 downloads/k600 --out data/k600 --workers 64
        evatok data webvid downloads/webvid --out data/webvid --workers 64
    """
    from evatok.core.paths import refuse_overwrite
    from evatok.workflows.prepare import check, make
    from video.prepare import Recipe

    if larp_lists and name == "webvid":
        raise EvatokError("--larp-lists: there are none of webvid; leave it out")
    if out is not None:
        refuse_overwrite([out], [directory], inside=True)
    with Bar("looking at files") as progress:
        found, result = check(name, directory, full=full, workers=workers, progress=progress)
    if out is not None:
        recipe = Recipe(
            size=size,
            fps=FPS.get(name) if fps is None else fps,
            keyframe_every=keyframe_every,
            crf=crf,
            preset=preset,
        )
        with Bar("writing copies") as progress:
            result["prepared"] = make(
                found,
                out,
                recipe,
                max_damaged=max_damaged,
                larp_lists=larp_lists,
                workers=workers,
                progress=progress,
            )
    show(result, as_json)


def arcade_command(
    directory: Annotated[Path, typer.Argument(help="Folder to make.")],
    train_clips: Annotated[int, typer.Option(help="Training files of each game.")] = 150,
    test_clips: Annotated[int, typer.Option(help="Test files of each game.")] = 15,
    frames: Annotated[int, typer.Option(help="Frames of a file.")] = 48,
    size: Annotated[int, typer.Option(help="Pixels, square and even.")] = 64,
    fps: Annotated[int, typer.Option(help="Frames a second, as written in the files.")] = 15,
    seed: Seed = 0,
    games: Annotated[str, typer.Option(help="Names with commas; by default all.")] = "",
    source: Annotated[
        Literal["atari", "procgen", "doom"], typer.Option(help="What is played.")
    ] = "atari",
    workers: Annotated[int, typer.Option(min=1, help="Processes; no change to the bytes.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Record labelled footage of games, in the layout of UCF-101.

    \b
    Example:
        evatok arcade data/arcade --train-clips 20 --test-clips 4
        evatok arcade data/procgen --source procgen --train-clips 300 --test-clips 40 --frames 64
    """
    from video.arcade import recorder

    chosen = tuple(games.split(",")) if games else recorder.games_of(source)
    with Bar("recording") as progress:
        recorder.record(
            directory,
            chosen,
            train_clips,
            test_clips,
            frames,
            size,
            seed,
            fps,
            workers,
            progress,
            source,
        )
    files = (train_clips + test_clips) * len(chosen)
    show({"directory": str(directory), "games": len(chosen), "files": files}, as_json)
