"""Bytes against quality: token files beside x264 and AV1 (SVT-AV1) on the same pictures.

    python -m benchmarks.rate natural=clips ucf101=data/UCF-101 games=runs/nano/arcade \
        --files 8 -o out/rate --json

Of every set, `--files` files spread over its sorted list give their first `--frames` frames:
cropped and resized to the model's size (`--fit crop`), or at their own size in tiles (`--fit
tile`). A codec's bytes are those of its packets without container and comments; ours are the
chunks of the file without its header. A model of pictures (`--model images --frames 1`) stands
beside JPEG and WebP instead, each with the bytes of its whole file. PSNR and SSIM are means over
files, the perceptual distance is that of EfficientNet-Lite0 (no LPIPS; --perceptual takes
another). Codecs run with slow presets.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from PIL import Image
from torch import Tensor

from evaluation.metrics.quality import psnr, ssim
from evaluation.perceptual.distance import PerceptualDistance
from evaluation.perceptual.load import load_perceptual
from evatok.generate.token_file import EncodeSettings, encode_file
from evatok.generate.token_rate import Rate
from evatok.hub import Models, load
from tokenizer.evt.codec import ChunkDecoder
from tokenizer.evt.pictures import to_coded
from tokenizer.evt.reader import EvtReader
from video.clips import resize, to_clip
from video.decoding.picture import rgb
from video.lists import videos_under
from video.reading import read_frames
from video.timed import write_timed

RATES = (0.0, 0.5, 1.0, 1.5, 2.0)  # w_q
X264 = (51, 47, 43, 38, 33, 28)  # crf
AV1 = (63, 60, 55, 48, 40, 32)
STILL = (0, 5, 10, 20, 40)  # quality

# bytes, frames, seconds of encoding, seconds of decoding
CodecResult = tuple[int, Tensor, float, float]


def coded_by(codec: str, crf: int, frames: Tensor) -> CodecResult:
    """Frames (F, H, W, 3) uint8 through a video codec."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2].numpy()
    options = {"crf": str(crf), "preset": "veryslow" if codec == "libx264" else "4"}
    buffer, start, size = io.BytesIO(), time.perf_counter(), 0
    kept: BitStreamFilterContext | None = None
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        for picture in [*even, None]:
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame):
                parts = [packet]
                if codec == "libx264":  # without the comment that x264 puts into the first one
                    kept = kept or BitStreamFilterContext("filter_units=remove_types=6", stream)
                    parts = kept.filter(packet)
                size += sum(part.size for part in parts)
                container.mux(parts)
    middle = time.perf_counter()
    buffer.seek(0)
    with av.open(buffer) as written:
        made = [rgb(frame) for frame in written.decode(video=0)]
    out = frames.clone()
    out[:, : even.shape[1], : even.shape[2]] = torch.from_numpy(np.stack(made))
    return size, out, middle - start, time.perf_counter() - middle


def coded_by_still(kind: str, quality: int, frames: Tensor) -> CodecResult:
    """One picture (1, H, W, 3) uint8 through a codec of pictures, with its slowest settings."""
    buffer, start = io.BytesIO(), time.perf_counter()
    slow: dict[str, Any] = {"optimize": True} if kind == "JPEG" else {"method": 6}
    Image.fromarray(frames[0].numpy()).save(buffer, kind, quality=quality, **slow)
    middle = time.perf_counter()
    with Image.open(buffer) as image:
        made = torch.from_numpy(np.array(image.convert("RGB")))[None]
    return len(buffer.getvalue()), made, middle - start, time.perf_counter() - middle


def coded_by_tokens(models: Models, w_q: float, frames: Tensor) -> CodecResult:
    """Frames (F, H, W, 3) uint8 through a token file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.mkv", Path(folder) / "out.evt"
        ticks = ((40 * index, picture) for index, picture in enumerate(frames.numpy()))
        write_timed(source, ticks, Fraction(1, 1000), crf=0)
        start = time.perf_counter()
        settings = EncodeSettings(sound=False)
        encode_file(models, source, target, Rate(f"router:{w_q}"), settings)
        middle = time.perf_counter()
        with EvtReader(target) as reader:
            decoder = ChunkDecoder(reader.header, models.final)
            clips = [clip.pictures for clip in decoder.clips(reader.chunks())]
            out = resize(torch.cat(clips), reader.header.shown)
            size = reader.size - (reader.header_end if len(frames) > 1 else 0)
    return size, out, middle - start, time.perf_counter() - middle


def measured(
    coded: CodecResult, frames: Tensor, distance: PerceptualDistance, size: int
) -> dict[str, float]:
    """One row of numbers."""
    count, made, encode, decode = coded
    real, fake = to_clip(frames)[None], to_clip(made)[None]
    with torch.no_grad():
        small = [to_clip(to_coded(x, "crop", size))[None] for x in (made, frames)]
        far = float(distance(*small).mean())
    return {
        "bytes": count,
        "bits_per_pixel": 8 * count / frames[..., 0].numel(),
        "psnr": float(psnr(fake, real).mean()),
        "ssim": float(ssim(fake, real).mean()),
        distance.name: far,
        "encode_fps": len(frames) / encode,
        "decode_fps": len(frames) / decode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", help="name=FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/rate"))
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--fit", choices=("crop", "tile"), default="crop")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--perceptual", default="efficientnet-lite0")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    models, distance = load(arguments.model), load_perceptual(arguments.perceptual)
    size = models.final.config.size
    ways: dict[str, Callable[[Tensor], CodecResult]] = {}
    for w_q in RATES:
        ways[f"tokens w_q {w_q}"] = lambda x, w_q=w_q: coded_by_tokens(models, w_q, x)
    is_still = models.final.config.num_frames == 1
    for crf in () if is_still else X264:
        ways[f"x264 crf {crf}"] = lambda x, crf=crf: coded_by("libx264", crf, x)
    for crf in () if is_still else AV1:
        ways[f"av1 crf {crf}"] = lambda x, crf=crf: coded_by("libsvtav1", crf, x)
    for kind in ("JPEG", "WebP") if is_still else ():
        for value in STILL:
            ways[f"{kind} {value}"] = lambda x, kind=kind, value=value: coded_by_still(
                kind, value, x
            )
    rows: list[dict[str, Any]] = []
    for name, _, folder in (text.partition("=") for text in arguments.sets):
        files = sorted(videos_under(Path(folder)))
        chosen = files[:: max(1, len(files) // arguments.files)][: arguments.files]
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for file in chosen:
            frames = read_frames(file, count=arguments.frames, on_damage=lambda _: None)
            frames = to_coded(frames, arguments.fit, size)
            for way, code in ways.items():
                found[way].append(measured(code(frames), frames, distance, size))
        for way, values in found.items():
            means = {key: float(np.mean([row[key] for row in values])) for key in values[0]}
            rows.append({"set": name, "codec": way, "files": len(chosen), **means})
            if not arguments.json:
                print(rows[-1], flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with open(arguments.output / "rate.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if arguments.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
