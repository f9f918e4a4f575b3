"""A few held-out clips of a recording, and their licences: small enough to travel with the code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from video.decoding.container import VideoError
from video.lists import read_ucf101
from video.reading import read_frames
from video.writing import write_video

LICENCES = """Pictures of the games Procgen, https://github.com/openai/procgen (code: OpenAI, MIT).

CC0: Kenney and most other authors.
CC BY 4.0: frog by GameArtGuppy.com; mountain and forest backgrounds by ansimuz.
CC BY 3.0: backgrounds by davis123, Alucard and SugarMoonWitch.
OGA-BY 3.0: backgrounds by CraftPix.net 2D Game Assets.

The pictures were made smaller, played as games and encoded as video.
"""


def pack(
    recording: Path,
    output: Path,
    classes: Sequence[str] = (),
    clips: int = 2,
    num_frames: int = 32,
    crf: int = 22,
    max_bytes: int = 500_000,
) -> int:
    """Copy the first frames of test videos of Procgen, in the layout that they have there.

    `read_ucf101(output, "test")` and a data source of `kind: ucf101` read the result. The folder
    appears when it is complete.

    Args:
        recording: folder of `evatok arcade --source procgen`.
        output: folder to make.
        classes: their names; none = all.
        clips: of each class.
        num_frames: of each, from its start.
        crf: quality of H.264.
        max_bytes: of all files together.

    Returns:
        Bytes of all files.

    Raises:
        VideoError: no such class, too few videos or frames, too many bytes, or `output` exists.
    """
    items = read_ucf101(recording, "test")
    known = sorted({item.class_name for item in items})
    unknown = sorted(set(classes) - set(known))
    if unknown:
        raise VideoError(f"{recording}: no class {unknown[0]!r}; there are {', '.join(known)}")
    if output.exists():
        raise VideoError(f"{output} exists; choose another folder or remove it")
    chosen = sorted(classes) or known
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    try:
        names = []
        for name in chosen:
            own = [item for item in items if item.class_name == name][:clips]
            if len(own) < clips:
                raise VideoError(f"{recording}: {name} has {len(own)} test videos, not {clips}")
            for item in own:
                frames = read_frames(item.path, 0, num_frames)
                if len(frames) < num_frames:
                    raise VideoError(f"{item.path}: {len(frames)} frames, not {num_frames}")
                write_video(partial / item.id, frames, 15, crf, preset="veryslow")
                names.append(item.id)
        lines = [f"{number} {name}" for number, name in enumerate(chosen, 1)]
        (partial / "classInd.txt").write_text("\n".join(lines) + "\n")
        (partial / "testlist01.txt").write_text("\n".join(names) + "\n")
        (partial / "LICENCES.txt").write_text(LICENCES)
        total = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        if total > max_bytes:
            raise VideoError(
                f"{total} bytes are more than {max_bytes}: raise crf {crf}, or take fewer clips"
            )
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return total
