"""Base of the frozen video transformers; the only module that imports `transformers`.

VideoMAE and V-JEPA 2 cut a clip into tubelets of frames × rows × columns and run plain layers over
them. Transformers' own modules do the work, layer by layer, so that the run can stop at the last
layer that is wanted.

Shape letters: B batch, F frames, H W pixels, N tokens = T' · H' · W', C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from evaluation.encoders.base import check_clips, resize_frames, weights_checksum
from evaluation.encoders.encoder import Grid, check_layers
from evatok.core.errors import EvatokError, MissingPackageError
from evatok.core.loading.records import read_object
from evatok.core.loading.weights import Declared, ModelFileError, check_finite, read_header

# Of ImageNet, for pixels in [0, 1]; the usual values of both networks' preprocessors.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


DIMENSIONS = ("hidden_size", "intermediate_size", "vocab_size")  # keys that tensors show
LIMITED = ("image_size", "crop_size", "num_frames", "frames_per_clip", "patch_size", "tubelet_size",
           "num_attention_heads", "num_channels")  # fmt: skip
LARGEST = 2048
MOST_CELLS = 2**16  # VideoMAE-B has 1568; each is a row of a table that is computed
REMEDY = "copy the folder anew, or give the folder of another"


def transformers(needed_by: str = "video transformers", extra: str = "encoders") -> ModuleType:
    """The package, imported late: it is optional and takes seconds.

    Args:
        needed_by: what needs it, for the error.
        extra: of ours that brings it.

    Raises:
        ImportError: it is not installed; the message says how to mend that.
    """
    try:
        import transformers as package
    except ImportError as error:
        raise MissingPackageError(
            f'{needed_by} need transformers; install it with pip install "evatok[{extra}]"'
        ) from error
    return package


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without progress bars and reports; what they say is checked instead."""
    logging = transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_pretrained(kind: str, folder: Path) -> nn.Module:
    """A model of Transformers' class `kind`, in float32, every weight from the folder's file.

    Args:
        kind: name of the class.
        folder: with config.json and model.safetensors; tensors of other parts are left out.

    Raises:
        EvatokError: the file lacks some of the weights or is none (they are never left random).
    """
    file = folder / "model.safetensors"
    if file.is_file():  # otherwise Transformers says what is missing
        _check_sizes(folder / "config.json", read_header(file, REMEDY))
    cls = getattr(transformers(), kind)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError,
            ArithmeticError, SafetensorError, StrictDataclassError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise EvatokError(f"{folder}: no weights of a {kind} ({reason})") from None
    wrong = [*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])]
    if wrong or info["error_msgs"]:
        some = ", ".join(sorted(wrong)[:3])
        raise EvatokError(f"{file}: {len(wrong)} weights of a {kind} are not in it: {some} …")
    check_finite(model.state_dict(), file, REMEDY)
    return model


def _check_sizes(path: Path, header: Mapping[str, Declared]) -> None:
    """Refuse a config.json whose network is not the file's: Transformers would try to build it."""
    config = read_object(path, REMEDY)
    dimensions = {size for declared in header.values() for size in declared.shape}
    limits = dict.fromkeys(LIMITED, LARGEST) | {"num_hidden_layers": len(header)}
    for key, value in config.items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if key in DIMENSIONS and not (is_count and value in dimensions):
            raise ModelFileError(
                f"{path}: {key} is {value!r}, but no tensor of {len(header)} in the file beside it "
                f"has that size: {REMEDY}"
            )
        if key in limits and not (is_count and 1 <= value <= limits[key]):
            raise ModelFileError(
                f"{path}: {key} is {value!r}, not from 1 to {limits[key]}: {REMEDY}"
            )
    side = config.get("image_size", config.get("crop_size", 1)) // config.get("patch_size", 1)
    times = config.get("num_frames", 1) // config.get("tubelet_size", 1)
    if side**2 * times > MOST_CELLS:
        raise ModelFileError(f"{path}: {times} × {side} × {side} cells are too many: {REMEDY}")


def normalise(
    clips: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Clips (B, 3, F, H, W) in [-1, 1], each colour by a mean and deviation for [0, 1]."""
    shift = torch.tensor(mean, device=clips.device).view(1, 3, 1, 1, 1)
    scale = torch.tensor(std, device=clips.device).view(1, 3, 1, 1, 1)
    return ((clips + 1) / 2 - shift) / scale


class TransformerEncoder(ABC):
    """A frozen video transformer as a `VideoEncoder`; subclasses say how its parts are called."""

    def __init__(
        self,
        name: str,
        net: nn.Module,
        *,
        tubelet: Grid,
        size: int,
        width: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Freeze a network.

        Args:
            name: see `VideoEncoder`.
            net: Transformers' module.
            tubelet: frames, rows and columns of a token.
            size: edge of its frames.
            width: C.
            mean: of each colour, for pixels in [0, 1].
            std: likewise.
        """
        self.name, self.net = name, net.eval().requires_grad_(False)
        self.checksum = weights_checksum(net.state_dict())
        self.tubelet, self.size, self._width = tubelet, size, width
        self.mean, self.std = tuple(mean), tuple(std)

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The transformer layers in order."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens (B, N, C) of normalised pixels (B, F, 3, H, W)."""

    @abstractmethod
    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm."""

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return len(self.layers())

    def width(self, layer: int) -> int:
        """C, the same in every layer."""
        check_layers(self, [layer])
        return self._width

    def grid(self, layer: int, num_frames: int) -> Grid:
        """The same in every layer; the network's own size whatever that of the clips."""
        check_layers(self, [layer])
        frames, rows, columns = self.tubelet
        if num_frames < frames or num_frames % frames:
            raise EvatokError(f"{self.name} takes clips of {frames} · n frames, not {num_frames}")
        return num_frames // frames, self.size // rows, self.size // columns

    def pixels(self, clips: Tensor) -> Tensor:
        """Clips in [-1, 1] as the network was trained: resized with antialias, normalised."""
        check_clips(clips)
        clips = resize_frames(clips.float(), self.size, antialias=True)
        return normalise(clips, self.mean, self.std)

    def hidden(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """See `VideoEncoder.hidden`; precision is as autocast says."""
        check_layers(self, layers)
        grid = self.grid(1, clips.shape[2])
        pixels = self.pixels(clips)
        self.net.to(clips.device)
        found: dict[int, Tensor] = {}
        x = self.embed(pixels.transpose(1, 2))
        for number, layer in enumerate(self.layers()[: max(layers)], 1):
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out  # V-JEPA 2 returns its attention too
            if number in layers:
                tokens = self.finish(x) if number == self.num_layers else x
                found[number] = tokens.unflatten(1, grid)  # (B, T', H', W', C)
        return [found[layer] for layer in layers]
