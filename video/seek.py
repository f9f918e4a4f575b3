"""Windows of frames from anywhere in a file, without decoding all that comes before.

Only files that `write_video(keyframe_every=…)` has written are read so: their key frames begin
closed groups, at known places. In other files a decoder that starts at a key frame may lack what
later frames refer to, and shows something else without a word; these are decoded from the start.

Shape letters: F frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import av.error
import numpy as np
import torch
from torch import Tensor

from video.clips import Size, resize_crop
from video.decoding.container import VideoError, group_size, open_video
from video.decoding.picture import to_picture
from video.decoding.stills import is_animation
from video.reading import iter_frames, read_frames


def count_frames(path: Path | str) -> int:
    """Frames of a video: of its packets, where one is one frame; else decoded.

    Raises:
        VideoError: not a readable video.
    """
    path = Path(path)
    if is_animation(path):
        return sum(1 for _ in iter_frames(path))
    container, stream = open_video(path)
    with container:
        if group_size(container) is not None:
            try:
                return sum(packet.size > 0 for packet in container.demux(stream))
            except (av.error.FFmpegError, ValueError) as error:
                raise VideoError(f"{path}: damaged ({error})") from error
    return sum(1 for _ in iter_frames(path))


def read_window(path: Path | str, start: int, count: int, size: Size | None = None) -> Tensor:
    """The same frames as `read_frames(path, start, count, size)`, sooner where that is safe.

    Returns:
        (F, H, W, 3) uint8 RGB, F ≤ count.

    Raises:
        VideoError: not a readable video, damaged before the window's end, or over before `start`.
    """
    path = Path(path)
    if is_animation(path):
        return read_frames(path, start, count, size)
    container, stream = open_video(path)
    with container:
        group = group_size(container)
        rate, unit = stream.average_rate, stream.time_base
        if group is None or rate is None or unit is None:
            return read_frames(path, start, count, size)
        pictures: list[np.ndarray] = []
        number = start // group * group  # of the group's key frame
        try:
            container.seek(round(number / rate / unit), stream=stream)
            for frame in container.decode(stream):
                if frame.pts != round(number / rate / unit):
                    raise VideoError(f"{path}: frame {number} is not where it should be")
                if number >= start:
                    pictures.append(to_picture(frame))
                number += 1
                if len(pictures) == count:
                    break
        except VideoError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(f"{path}: damaged at frame {number} ({error})") from error
    if not pictures:
        raise VideoError(f"{path}: ends before frame {start}")
    frames = torch.from_numpy(np.stack(pictures))
    return frames if size is None else resize_crop(frames, size)
