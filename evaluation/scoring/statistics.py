"""Mean and covariance of a set's features in a file: a side of a distance without its videos.

Read are `.npz`, and `.pt` files of torch that hold nothing but tensors and plain values:

| what | names | written by |
| --- | --- | --- |
| mean | `mu` or `mean`; or `raw_mean`, the sum of features | TTUR; StyleGAN-V, cd-fvd |
| covariance | `sigma`, `cov`, `covariance`; or `raw_cov`, of outer products | likewise |
| number of clips | `num_items`, `count` or `n` | likewise |
| divided by N, not N − 1 | `biased`; sums are so by their nature | this module |
| features of what | `network`, `checksum`, `cut`, `data` | this module |

StyleGAN-V and cd-fvd keep theirs as a pickle, which may run anything when it is read; it is refused
with the line that converts it. What is written here holds their names too.

Shape letters: N clips, D features.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.encoders.base import FeatureNetwork
from evaluation.metrics.frechet import (
    Moments,
    distance_between,
    moments_of,
    moments_of_features,
)
from evaluation.scoring.clips import Cut, VideoClips
from evaluation.scoring.feature_cache import FeatureCache
from evaluation.scoring.score import shared_features
from evatok.core.errors import EvatokError
from evatok.core.files import atomic_file
from evatok.core.loading.arrays import DAMAGE, iter_npz, read_torch
from evatok.core.processes.distributed import joined_rank
from evatok.core.processes.threads import one_thread
from video.clips import sides

MEAN, COVARIANCE = ("mu", "mean"), ("sigma", "cov", "covariance")
COUNT = ("num_items", "count", "n")
SUMS = ("raw_mean", "raw_cov")
TORCH, PICKLED = (".pt", ".pth"), (".pkl", ".pickle")
ASYMMETRY = 1e-6  # of the largest entry
# Of a cut, must be the same on both sides: what makes it so
SAME = {"num_frames": "--frames {}", "size": "--size {}", "resize": "--resize {}",
        "shrink": "the --preset that it was made with",
        "shrink_by": "the --preset that it was made with"}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance.

    Attributes:
        path: of the file.
        mean: (D,) float64.
        covariance: (D, D) float64.
        count: N; None where the file does not tell.
        biased: whether the covariance was divided by N; None where the file does not tell.
        network: name of the feature network, "" where the file does not tell.
        checksum: of its weights, likewise.
        cut: how the clips were cut, likewise {}.
        data: fingerprint of the set; of the numbers where the file does not tell.
    """

    path: Path
    mean: Tensor
    covariance: Tensor
    count: int | None
    biased: bool | None
    network: str
    checksum: str
    cut: dict[str, Any]
    data: str

    def moments(self, biased: bool) -> Moments:
        """Moments with the covariance divided by N or N − 1, where the file tells by which.

        Raises:
            EvatokError: the covariance is none.
        """
        scale = 1.0
        if self.count is not None and self.biased not in (None, biased):
            scale = self.count / (self.count - 1)
            scale = 1 / scale if biased else scale
        try:
            return moments_of(self.mean, self.covariance * scale, self.count)
        except EvatokError as error:
            raise EvatokError(f"{self.path}: {error}") from None

    def check(self, network: FeatureNetwork, cut: Cut) -> None:
        """Refuse statistics of another network, other weights, or clips of another kind."""
        if self.network not in ("", network.name):
            raise EvatokError(
                f"{self.path} is of the network {self.network}, not {network.name}: "
                f"give --features {self.network}"
            )
        if self.checksum not in ("", network.checksum):
            raise EvatokError(
                f"{self.path} is of {network.name} with other weights (sha256 {self.checksum[:8]}, "
                f"not {network.checksum[:8]}): take the same, or make it anew"
            )
        if len(self.mean) != network.dim:
            raise EvatokError(
                f"{self.path} has {len(self.mean)} features, {network.name} has {network.dim}: "
                "name its network with --features"
            )
        mine = cut.model_dump(mode="json")
        for key, remedy in SAME.items():
            there, here = (c.get(key, getattr(Cut(), key)) for c in (self.cut, mine))
            if self.cut and there != here:
                raise EvatokError(
                    f"{self.path} is of clips with {key} {there}, not {here}: "
                    f"give {remedy.format(there)}"
                )


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics, not videos; a pickle is taken for some, to be refused."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".npz", *TORCH, *PICKLED):
        return False
    if suffix in PICKLED:
        return True
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
        else:
            loaded = torch.load(path, map_location="meta", weights_only=True)
            names = set(loaded) if isinstance(loaded, Mapping) else set()
    except DAMAGE:  # whoever reads it says so
        return False
    return bool(names & set(MEAN) and names & set(COVARIANCE)) or set(SUMS) <= names


def read_statistics(path: Path) -> Statistics:
    """Statistics of a file; see the head of this module.

    Raises:
        FileNotFoundError: no such file.
        EvatokError: a pickle, damaged, or no mean and covariance that belong together.
    """
    if path.suffix.lower() in PICKLED:
        names = ", ".join(map(repr, (COUNT[0], *SUMS)))
        raise EvatokError(
            f"{path} is a pickle, which may run anything when it is read: if you trust its origin, "
            f"convert it once: python -c \"import numpy, pickle; s = pickle.load(open('{path}', "
            f"'rb')); numpy.savez('{path.stem}.npz', **{{k: s[k] for k in ({names})}})\""
        )
    found = dict(iter_npz(path)) if path.suffix.lower() == ".npz" else read_torch(path)
    if not isinstance(found, Mapping):
        raise EvatokError(f"{path} holds a {type(found).__name__}, no mean and covariance by name")
    mean, covariance = _of(found, MEAN), _of(found, COVARIANCE)
    count, biased = _of(found, COUNT), _of(found, ("biased",))
    number = None if count is None else _number(path, count)
    if mean is None or covariance is None:
        sums = [_of(found, (name,)) for name in SUMS]
        if any(value is None for value in sums) or number is None:
            raise EvatokError(f"{path}: no mean and covariance, or sums and their number, in it")
        mean, covariance = (_float64(path, value) for value in sums)
        mean, covariance, biased = mean / number, covariance / number, True
        if mean.ndim == 1 and covariance.ndim == 2:
            covariance = covariance - torch.outer(mean, mean)
    mean, covariance = _float64(path, mean), _float64(path, covariance)
    if mean.ndim != 1 or tuple(covariance.shape) != (len(mean), len(mean)) or not len(mean):
        raise EvatokError(
            f"{path}: a mean of {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)} "
            "do not belong together: they are (D,) and (D, D)"
        )
    if (covariance - covariance.T).abs().max() > ASYMMETRY * covariance.abs().max():
        raise EvatokError(f"{path}: the covariance is not symmetric")
    digest = hashlib.sha256(mean.numpy().tobytes() + covariance.numpy().tobytes()).hexdigest()
    cut = _text(found, "cut")
    return Statistics(
        path=path,
        mean=mean,
        covariance=covariance,
        count=number,
        biased=None if biased is None else bool(biased),
        network=_text(found, "network"),
        checksum=_text(found, "checksum"),
        cut=_object(path, cut) if cut else {},
        data=_text(found, "data") or digest,
    )


def _of(found: Mapping[Any, Any], names: tuple[str, ...]) -> Any:
    return next((found[name] for name in names if name in found), None)


def _text(found: Mapping[Any, Any], name: str) -> str:
    value = found.get(name, "")
    return str(value) if not isinstance(value, Tensor) else ""


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EvatokError(f"{path}: its cut is no JSON object")
    return value


def _number(path: Path, value: Any) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not array.item() >= 2:
        raise EvatokError(f"{path}: the number of clips is {value!r}, not 2 or more")
    return int(array.item())


def _float64(path: Path, value: Any) -> Tensor:
    """A tensor or array as float64, all of it finite."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        value = torch.from_numpy(value.astype(np.float64))
    if not isinstance(value, Tensor) or value.is_complex():
        raise EvatokError(f"{path}: mean and covariance are arrays of numbers")
    if not value.isfinite().all():
        raise EvatokError(f"{path}: mean or covariance is not finite")
    return value.detach().double()


def network_of(paths: Sequence[Path], otherwise: str = "") -> str:
    """The network that files of statistics name.

    Args:
        paths: of the files.
        otherwise: what it is where none of them names one.

    Raises:
        EvatokError: none of them names one, and there is no other.
    """
    names = [statistics.network for statistics in map(read_statistics, paths)]
    named = next(filter(None, names), otherwise)
    if not named:
        raise EvatokError(f"{paths[0]} does not name its network: give --features, such as i3d")
    return named


def statistics_of(
    real: Path,
    output: Path,
    network: FeatureNetwork,
    *,
    cut: Cut,
    cache: FeatureCache | None = None,
) -> dict[str, Any]:
    """Write the statistics of anyone's videos. Joined processes share the clips.

    Returns:
        JSON-able, in the first process: the file, clips, features, network, and what was damaged,
        padded or too short. Nothing in the others.
    """
    clips = VideoClips(real, cut)
    (features,) = shared_features(clips, [network], "real", cache).vectors
    if joined_rank().rank:
        return {}
    write_statistics(output, features, network, cut, clips.fingerprint())
    return {
        "file": str(output),
        "num_clips": len(features),
        "num_features": network.dim,
        "network": network.name,
        "num_files": len(clips.videos),
        "damaged": clips.damaged,
        "padded": clips.padded,
        "short": clips.short,
    }


def write_statistics(
    path: Path, features: Tensor, network: FeatureNetwork, cut: Cut, data: str
) -> None:
    """Write the statistics of features as `.npz`, or as `.pt` of torch, whole or not at all.

    Args:
        path: ends in one of the two.
        features: (N, D), N ≥ 2.
        network: that made them.
        cut: how the clips were cut.
        data: fingerprint of the set.

    Raises:
        EvatokError: another suffix.
    """
    check_suffix(path)
    with one_thread():  # the same bits on any machine
        x = features.double()
        mean = x.mean(0)
        centred = x - mean
        covariance = centred.T @ centred / len(x)
        sums = {"raw_mean": x.sum(0), "raw_cov": x.T @ x}
    numbers = {"mu": mean, "sigma": covariance, **sums}
    told = {"network": network.name, "checksum": network.checksum}
    told |= {"cut": cut.model_dump_json(), "data": data}
    counts = {"num_items": len(x), "num_features": x.shape[1], "biased": 1}
    with atomic_file(path) as partial, partial.open("wb") as file:
        if path.suffix.lower() == ".npz":
            arrays = {name: tensor.numpy() for name, tensor in numbers.items()}
            np.savez(file, **arrays, **counts, **told)  # type: ignore[arg-type]
        else:
            torch.save({**numbers, **counts, **told}, file)


def check_suffix(path: Path) -> None:
    """Refuse to write statistics under another suffix than `.npz` and those of torch."""
    if path.suffix.lower() not in (".npz", *TORCH):
        raise EvatokError(f"{path}: statistics are written as .npz or .pt: name the file so")


def score_statistics(
    real: Path,
    fake: Path,
    network: FeatureNetwork,
    *,
    cut: Cut,
    biased: bool = True,
    cache: FeatureCache | None = None,
) -> dict[str, Any]:
    """Fréchet distance of two sides of which one at least is a file of statistics.

    Joined processes share the clips, as in `evaluation.scoring.score.score_sides`.

    Returns:
        As `evaluation.scoring.score.score_folders`; the count of a side is None where its file does
        not tell it. `statistics` names the files. In other processes than the first it is empty.

    Raises:
        EvatokError: statistics of another network, or of clips of another kind.
    """
    found: dict[str, Moments] = {}
    told: dict[str, Any] = {"statistics": {}, "biased": biased}
    for side, path in (("real", real), ("fake", fake)):
        if is_statistics(path):
            statistics = read_statistics(path)
            statistics.check(network, cut)
            found[side] = statistics.moments(biased)
            if statistics.count is None or statistics.biased is None:
                told["biased"] = None  # as the file has it, by N or by N - 1
            told[f"num_{side}"] = statistics.count
            told["statistics"][side] = str(path)
            data = statistics.data
        else:
            clips = VideoClips(path, cut)
            (features,) = shared_features(clips, [network], side, cache).vectors
            with one_thread():
                found[side] = moments_of_features(features, biased)
            told[f"num_{side}"] = len(features)
            told[f"num_files_{side}"] = len(clips.videos)
            told |= {f"damaged_{side}": clips.damaged, f"padded_{side}": clips.padded}
            if cut.short == "skip":
                told[f"short_{side}"] = clips.short
            data = clips.fingerprint() if side == "real" and not joined_rank().rank else ""
        if side == "real":
            told["data"] = data
    if joined_rank().rank:
        return {}
    with one_thread():
        value = distance_between(found["real"], found["fake"])
    return {
        f"fvd[{network.name}]": value,
        "networks": {network.name: network.checksum},
        "num_frames": cut.num_frames,
        "size": list(sides(cut.shrink or cut.size)),
        "cut": cut.model_dump(mode="json"),
        **told,
    }
