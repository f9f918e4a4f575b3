"""Pictures in files of their own, and animated ones, read by Pillow.

Shape letters: H W pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from video.decoding.container import Survey, VideoError
from video.decoding.picture import over_black

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
UNREADABLE = (*BROKEN, Image.DecompressionBombError)
SHORTEST = 10  # ms: a frame that is told to take no time
UNTIMED = {"GIF": 100, "TIFF": 40}  # ms of a frame, in files that tell nothing of time
CONTROL = b"\x21\xf9\x04"  # how a GIF's control block begins


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture: 16 bits to 8, alpha over black, turned as EXIF asks.

    Raises:
        VideoError: no readable picture.
    """
    try:
        with Image.open(path) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        raise VideoError(f"{path}: no readable picture ({_one_line(error)})") from None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise VideoError("its pixels are floats, of no known range: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # one channel of 16 bits, in 16 or 32
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((deep + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def is_animation(path: Path) -> bool:
    """Whether a file is an animated WebP, by its header."""
    if path.suffix.lower() != ".webp":
        return False
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:  # whoever reads it says so
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:21][0] & 2)


def is_picture(path: Path) -> bool:
    """Whether a file is read by Pillow, not as video: a picture by its suffix, moving or not.

    Also a GIF of several frames without control blocks: FFmpeg finds one frame in it.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return path.suffix.lower() in PICTURES or _is_plain_gif(path)


def _is_plain_gif(path: Path) -> bool:
    if path.suffix.lower() != ".gif":
        return False
    try:
        with Image.open(path) as image:
            if image.format != "GIF" or "duration" in image.info:  # of a control block
                return False
            return getattr(image, "is_animated", False) and CONTROL not in path.read_bytes()
    except UNREADABLE:  # whoever reads it says so
        return False


def is_still(path: Path) -> bool:
    """Whether a file is a picture that does not move."""
    if not is_picture(path):
        return False
    try:
        with Image.open(path) as image:
            return not getattr(image, "is_animated", False)
    except UNREADABLE:  # whoever reads it says so
        return False


def iter_animation(path: Path) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Frames (H, W, 3) uint8 RGB of a picture, each with its time in seconds; one of a still.

    Raises:
        VideoError: it is damaged, or no picture.
    """
    time, count = 0, 0
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield Fraction(time, 1000), _rgb(ImageOps.exif_transpose(frame.copy()))
                time += _duration(frame)
                count += 1
    except UNREADABLE as error:
        reason = _one_line(error)
        raise VideoError(f"{path}: damaged after {count} frames ({reason})") from None


def survey_animation(path: Path) -> Survey:
    """The times of a picture's frames, one of a still, and the end of the last.

    Raises:
        VideoError: it is damaged, or no picture.
    """
    times = [0]
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
                times.append(times[-1] + _duration(frame))
    except UNREADABLE as error:
        raise VideoError(f"{path}: damaged ({_one_line(error)})") from None
    return Survey(tuple(Fraction(t, 1000) for t in times[:-1]), len(times) - 1)


def _duration(image: Image.Image) -> int:
    untold = UNTIMED.get(image.format or "", 0)
    return max(round(image.info.get("duration", untold)), SHORTEST)


def _one_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known kind"
    return " ".join(str(error).split()) or type(error).__name__
