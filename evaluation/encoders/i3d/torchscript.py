"""The TorchScript I3D of StyleGAN-V's evaluation, `i3d_torchscript.pt`, from a file of the user's.

    evatok fvd real samples --features i3d-torchscript:i3d_torchscript.pt

It is the Kinetics-400 network of `evaluation.encoders.i3d.network` as a program with its weights
inside, which LARP, AdapTok and most code for FVD call. TorchScript is code: a file runs only when
its sha256 is the published one, or when the caller trusts it.

The call is `forward(x, rescale=False, resize=False, return_features=True)`: clips stay in [-1, 1]
and are resized here, to 224 × 224, as for `i3d` (bilinear, half-pixel centres, no antialias). What
the script itself does for `resize=True` is not relied on, so its rows stand apart from those of
`i3d`, under a name and a checksum of their own.

Shape letters: B batch, F frames, H W pixels, D = 400.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from evaluation.encoders.base import check_clips, exact_float32
from evaluation.encoders.i3d.network import MIN_FRAMES, NUM_CLASSES, preprocess
from evaluation.fetch import WeightsError
from evatok.core.errors import EvatokError, MissingFileError

NAME = "i3d-torchscript"
SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"  # 51,235,320 bytes
SOURCE = "https://github.com/universome/fvd-comparison (i3d_torchscript.pt)"


class ScriptFeatures:
    """A TorchScript I3D as a feature network: clips of any size, F ≥ 9, to 400 logits.

    Attributes:
        checksum: sha256 of the file's bytes.
    """

    name = NAME
    dim = NUM_CLASSES

    def __init__(self, program: bytes, device: str | torch.device = "cpu") -> None:
        """Load a program; `load_i3d_torchscript` decides first whether it may run.

        Raises:
            WeightsError: it is no TorchScript.
        """
        self.checksum = hashlib.sha256(program).hexdigest()
        self.device = torch.device(device)
        try:
            with warnings.catch_warnings():
                # torch advises torch.export, which does not read this published file.
                warnings.simplefilter("ignore", DeprecationWarning)
                model = torch.jit.load(io.BytesIO(program), map_location=self.device)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"the file is no TorchScript program ({reason})") from error
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, 400) float32, on the CPU, of clips (B, 3, F, H, W) in [-1, 1], F ≥ 9.

        Raises:
            EvatokError: clips of another shape, or a program that does not return (B, 400).
        """
        check_clips(clips)
        if clips.shape[2] < MIN_FRAMES:
            raise EvatokError(
                f"clips of {clips.shape[2]} frames: I3D needs {MIN_FRAMES} or more; longer clips "
                "(--frames) repeat the last frame of a shorter video"
            )
        rows = [clips.new_zeros(0, self.dim, dtype=torch.float32, device="cpu")]
        with exact_float32(self.device):
            step = 1 if self.device.type == "cpu" else max(len(clips), 1)  # as in `I3DFeatures`
            for start in range(0, len(clips), step):
                part = clips[start : start + step].to(self.device, torch.float32)
                rows.append(self._features(preprocess(part).contiguous()))
        return torch.cat(rows)

    def _features(self, frames: Tensor) -> Tensor:
        out = self.model(frames, rescale=False, resize=False, return_features=True)
        if not isinstance(out, Tensor) or out.shape != (len(frames), self.dim):
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise EvatokError(
                f"the TorchScript program returns {found} for {len(frames)} clips, not "
                f"({len(frames)}, {self.dim}): it is no I3D for FVD"
            )
        return out.float().cpu()


def load_i3d_torchscript(
    path: str | Path | None, device: str | torch.device = "cpu", *, trust: bool = False
) -> ScriptFeatures:
    """The network from a file whose sha256 is the published one, or which the caller trusts.

    The bytes that are checked are the bytes that run: the file is read once.

    Raises:
        EvatokError: no file was named.
        FileNotFoundError: it is not there.
        WeightsError: it is another file and is not trusted, or no TorchScript.
    """
    where = f"{NAME}:FILE, with i3d_torchscript.pt of {SOURCE}, sha256 {SHA256}"
    if path is None:
        raise EvatokError(f"{NAME} needs its file: {where}")
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no file {path}; give {where}")
    program = path.read_bytes()
    found = hashlib.sha256(program).hexdigest()
    if found != SHA256 and not trust:
        raise WeightsError(
            f"{path} is not the published I3D: its sha256 is {found}, expected {SHA256}; a "
            "TorchScript file is a program, so only `evatok fvd --trust` runs another"
        )
    try:
        return ScriptFeatures(program, device)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
