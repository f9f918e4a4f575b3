"""Commands that take whole videos through the tokenizer: to token files and back."""

from __future__ import annotations

import time
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from evatok.cli.options import AllowDamaged, AsJson, Device, Model, Output, Plain, Refine, eprint
from evatok.cli.output import show
from evatok.core.errors import EvatokError

Start = Annotated[float, typer.Option(min=0.0, help="Seconds after the first frame.")]
End = Annotated[float | None, typer.Option(min=0.0, help="Seconds; default: to the end.")]
Assignment = Annotated[
    str, typer.Option(help="router, uniform:32, 32,16,8,8, best or threshold:24.5 (dB).")
]
Quality = Annotated[
    float | None, typer.Option(help="Weight of quality w_q in [0, 2]; short for router:Q.")
]
NoSound = Annotated[bool, typer.Option("--no-sound", help="Leave the sound track out.")]


class Fit(StrEnum):
    """Fitting of a picture to the tokenizer's size."""

    tile = "tile"
    crop = "crop"
    pad = "pad"
    stretch = "stretch"


Fitting = Annotated[
    Fit,
    typer.Option(
        "--fit",
        help="tile: the whole picture at its own size; crop: its middle square; pad, stretch.",
    ),
]

KeepBorders = Annotated[
    bool, typer.Option("--keep-borders", help="Leave jumps between clips as they are decoded.")
]


def encode_command(
    files: Annotated[list[Path], typer.Argument(help="Videos or pictures of any size and length.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.evt, or a folder.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="A name or folder; default: nano, of a picture images."),
    ] = None,
    assignment: Assignment = "router",
    quality: Quality = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most that a clip of one tile may take.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Budget of the whole video, a mean.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Budget: size of the file.")] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Budget: as few tokens as reach so many dB.")
    ] = None,
    refine: Refine = 0,
    fit: Fitting = Fit.tile,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that tiles share; default: an eighth.")
    ] = None,
    start: Start = 0.0,
    end: End = None,
    no_sound: NoSound = False,
    chunk_clips: Annotated[
        int, typer.Option(min=1, max=256, help="Clips that are lost together when damaged.")
    ] = 4,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Tiles computed at once; without --refine of no effect on tokens."
        ),
    ] = 32,
    allow_damaged: AllowDamaged = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode whole videos into token files; run it again to continue one that was broken off.

    \b
    Example:
        evatok encode holiday.mp4 -o holiday.evt --tokens-per-second 2000
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.generate.token_file import (
        EncodeSettings,
        default_model,
        encode_files,
        require_all_encoded,
    )
    from evatok.generate.token_rate import Rate
    from evatok.hub import load

    rate = Rate(_assigned(assignment, quality), max_tokens, tokens_per_second, max_bytes, min_psnr)
    settings = EncodeSettings(
        fit=fit.value,
        overlap=overlap,
        start=start,
        end=end,
        sound=not no_sound,
        clips_per_chunk=chunk_clips,
        batch_size=batch_size,
        allow_damaged=allow_damaged,
        refine_steps=refine,
    )
    chosen, load_once = resolve_device(device), cache(load)
    result = encode_files(
        lambda file: load_once(model or default_model(file), chosen),
        files,
        output,
        rate,
        settings,
        None if as_json else Pace(),
    )
    rows = result["files"]
    show(rows[0] if len(files) == 1 else result, as_json)
    require_all_encoded(result)


def decode_command(
    file: Annotated[Path, typer.Argument(help="FILE.evt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.mp4, .mkv, .gif, .png.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The file's own; default: the shipped one that it names."),
    ] = None,
    start: Start = 0.0,
    end: End = None,
    native: Annotated[
        bool, typer.Option("--native", help="At the coded size, not the source's.")
    ] = False,
    no_sound: NoSound = False,
    keep_borders: KeepBorders = False,
    allow_damaged: AllowDamaged = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Decode a token file into a video with the times, size and sound of its source.

    \b
    Example:
        evatok decode holiday.evt -o holiday-again.mp4 --start 60 --end 70
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.generate.decoding import check_decoding, decode_file, named_model
    from evatok.hub import load

    check_decoding(file, output, start, end)
    result = decode_file(
        load(model or named_model(file), resolve_device(device)),
        file,
        output,
        start=start,
        end=end,
        native=native,
        sound=not no_sound,
        allow_damaged=allow_damaged,
        smooth=not keep_borders,
        progress=None if as_json else Pace(),
    )
    show(result, as_json)


def show_command(
    file: Annotated[Path, typer.Argument(help="FILE.evt.")],
    as_json: AsJson = False,
) -> None:
    """Tell what a token file holds: model, size, times, tokens, damage.

    \b
    Example:
        evatok show holiday.evt
    """
    from evatok.generate.decoding import show_file

    show(show_file(file), as_json)


def reconstruct_command(
    files: Annotated[list[Path], typer.Argument(help="Videos of any length and size.")],
    output: Output,
    assignment: Assignment = "router",
    quality: Quality = None,
    model: Model = "nano",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most that a clip may take (router, best).")
    ] = None,
    refine: Refine = 0,
    features: Annotated[str, typer.Option(help="Score with these: nano,i3d.")] = "",
    fit: Fitting = Fit.tile,
    no_sound: NoSound = False,
    plain: Plain = False,
    keep_borders: KeepBorders = False,
    allow_damaged: AllowDamaged = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode and decode videos; writes original and reconstruction side by side, with sound.

    \b
    Example:
        evatok reconstruct holiday.mp4 -o out/videos --quality 1.4
    """
    from evatok.core.compute.devices import resolve_device
    from evatok.generate.reconstruct import reconstruct_files, require_all_read
    from evatok.generate.token_file import EncodeSettings
    from evatok.generate.token_rate import Rate
    from evatok.hub import feature_networks, load

    models = load(model, resolve_device(device))
    result = reconstruct_files(
        models,
        files,
        output,
        Rate(_assigned(assignment, quality), max_tokens),
        EncodeSettings(
            fit=fit.value, sound=not no_sound, allow_damaged=allow_damaged, refine_steps=refine
        ),
        networks=feature_networks(features, model, device=models.device),
        plain=plain,
        smooth=not keep_borders,
        progress=None if as_json else Pace(),
    )
    if not as_json:
        for row in result["files"]:
            row["clips"] = len(row["clips"])
    show(result, as_json)
    require_all_read(result)


def _assigned(assignment: str, quality: float | None) -> str:
    """Return the assignment that both options name together."""
    if quality is None:
        return assignment
    if assignment != "router":
        raise EvatokError(f"--quality is the router's: leave out --assignment {assignment}")
    return f"router:{quality:g}"


class Pace:
    """Tells frames done, frames a second and, where the total is known, the time left."""

    def __init__(self) -> None:
        self.file, self.start, self.begun = "", 0.0, 0

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """Tell that so many frames of a file are done."""
        now = time.monotonic()
        if file != self.file:  # the first frames tell no pace: models load, kernels compile
            self.file, self.start, self.begun = file, now, done
            eprint(f"{file}: {done} frames")
            return
        speed = (done - self.begun) / max(now - self.start, 1e-9)
        left = ""
        if total and done < total and speed > 0:
            left = f", {timedelta(seconds=round((total - done) / speed))} left"
        eprint(
            f"{file}: {done}{f' of {total}' if total else ''} frames, {speed:.1f} frames/s{left}"
        )
