"""`evatok data ucf101 | k600 | webvid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evatok.options import AsJson, Bar
from evatok.output import show

data_app = typer.Typer(
    help="Check a downloaded set against its lists and prepare it for training.",
    rich_markup_mode=None,
)

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
    float | None, typer.Option(help="Frames a second of the copies; default: as they are.")
]
MaxDamaged = Annotated[float, typer.Option(min=0, max=1, help="Stop above this share.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; no change to the bytes.")]
Larp = Annotated[bool, typer.Option("--larp-lists", help="Also lists as LARP's code reads them.")]


def _run(
    name: str,
    directory: Path,
    out: Path | None,
    full: bool,
    recipe: dict[str, Any],
    max_damaged: float,
    workers: int,
    larp_lists: bool,
    as_json: bool,
) -> None:
    from evatok.prepare import check, make
    from video.prepare import Recipe

    with Bar("looking at files") as progress:
        found, result = check(name, directory, full=full, workers=workers, progress=progress)
    if out is not None:
        with Bar("writing copies") as progress:
            made = make(
                found,
                out,
                Recipe(**recipe),
                max_damaged=max_damaged,
                larp_lists=larp_lists,
                workers=workers,
                progress=progress,
            )
        result["prepared"] = made
    show(result, as_json)


@data_app.command("ucf101")
def ucf101_command(
    directory: Folder,
    out: Out = None,
    full: Full = False,
    size: Size = 128,
    keyframe_every: Keyframes = 16,
    crf: Crf = 18,
    preset: Preset = "medium",
    max_damaged: MaxDamaged = 0.05,
    workers: Workers = 2,
    larp_lists: Larp = False,
    as_json: AsJson = False,
) -> None:
    """UCF-101: 9 537 and 3 783 videos of 101 classes.

    \b
    Example:
        evatok data ucf101 downloads/UCF-101 --out data/ucf101 --workers 16
    """
    recipe = {"size": size, "keyframe_every": keyframe_every, "crf": crf, "preset": preset}
    _run("ucf101", directory, out, full, recipe, max_damaged, workers, larp_lists, as_json)


@data_app.command("k600")
def k600_command(
    directory: Folder,
    out: Out = None,
    full: Full = False,
    size: Size = 128,
    keyframe_every: Keyframes = 16,
    crf: Crf = 18,
    preset: Preset = "medium",
    max_damaged: MaxDamaged = 0.05,
    workers: Workers = 2,
    larp_lists: Larp = False,
    as_json: AsJson = False,
) -> None:
    """Kinetics-600, with its csv lists in the folder or in `annotations`.

    \b
    Example:
        evatok data k600 downloads/k600 --out data/k600 --workers 64
    """
    recipe = {"size": size, "keyframe_every": keyframe_every, "crf": crf, "preset": preset}
    _run("k600", directory, out, full, recipe, max_damaged, workers, larp_lists, as_json)


@data_app.command("webvid")
def webvid_command(
    directory: Folder,
    out: Out = None,
    full: Full = False,
    fps: Fps = 3.0,
    size: Size = 128,
    keyframe_every: Keyframes = 16,
    crf: Crf = 18,
    preset: Preset = "medium",
    max_damaged: MaxDamaged = 0.05,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """WebVid at 3 frames a second, with its captions.

    \b
    Example:
        evatok data webvid downloads/webvid --out data/webvid --workers 64
    """
    recipe = {"size": size, "keyframe_every": keyframe_every, "crf": crf, "preset": preset}
    recipe["fps"] = fps
    _run("webvid", directory, out, full, recipe, max_damaged, workers, False, as_json)
