"""Trained models in folders: config.json and model.safetensors, loaded strictly.

The order matters. config.json is read and checked, the file's header is read, the module is built
on the meta device, which allocates nothing, and compared with the header; only then is memory asked
for. A folder from the Hugging Face hub goes the same way.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from pydantic import TypeAdapter, ValidationError
from torch import nn

from evatok.core.errors import MissingFileError
from evatok.core.loading.model_card import LIBRARY, LICENCE, NO_NUMBERS, card
from evatok.core.loading.records import first_mistake, read_object
from evatok.core.loading.shapes import ShapesAlone
from evatok.core.loading.weights import Declared, ModelFileError, read_header, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS)
CLASSES = "architectures"  # key of config.json, as the hub knows it: a list with the class's name
COMPUTED = 2**30  # bytes of tables that a module computes from its config, beside its weights
REMEDY = "copy the folder anew, or train and export the model again"


class Pretrained(PyTorchModelHubMixin, library_name=LIBRARY, license=LICENCE):
    """The hub's mixin, with a strict `from_pretrained` and a config.json that names its class.

    `save_pretrained` and `push_to_hub` are the mixin's. They write a model card too: give
    `model_card_kwargs={"numbers": "…"}` for measurements, in Markdown, with their protocol.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, and config.json with the class."""
        super()._save_pretrained(save_directory)
        kept = self._hub_mixin_config or {}
        assert isinstance(kept, dict)
        config = {CLASSES: [type(self).__name__], **kept}
        text = json.dumps(config, sort_keys=True, indent=2)
        (save_directory / CONFIG).write_text(text, encoding="utf-8")

    def generate_model_card(self, numbers: str = "") -> ModelCard:  # type: ignore[override]
        """Return the card of this part: pipeline tag, licence, use, size, numbers.

        Args:
            numbers: measurements with their protocol, in Markdown.
        """
        assert isinstance(self, nn.Module)
        name = type(self).__name__
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [line.strip() for line in (inspect.getdoc(type(self)) or "").splitlines()]
        body = [
            lines[0] if lines else "",
            f"`{type(self).__module__}.{name}` of the {LIBRARY} package: {count:,} parameters.",
            f"```python\nfrom {type(self).__module__} import {name}\n\n"
            f'model = {name}.from_pretrained("FOLDER_OR_REPOSITORY")\n```',
            numbers or NO_NUMBERS,
        ]
        return card(name, self._hub_mixin_info.model_card_data, body)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Return a model in eval mode with all its weights from a folder, or from the hub.

        Args:
            pretrained_model_name_or_path: folder with config.json and model.safetensors, or
                `owner/name` on the hub.
            force_download: as in the hub's mixin, likewise the rest.
            token: of an account.
            cache_dir: of the hub.
            local_files_only: download nothing.
            revision: of the repository.

        Raises:
            FileNotFoundError: no such folder, or one of the two files is missing.
            EvatokError: a file is damaged, its sizes are impossible, or weights are missing,
                unexpected, of another shape or not finite; the message names it.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _download(
                str(pretrained_model_name_or_path),
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
            )
        return load(cls, folder)


def _download(name: str, **options: Any) -> Path:
    """Fetch the two files of a model of the hub into its cache; their folder."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise MissingFileError(f"no model folder {name}")
    try:
        files = [Path(hf_hub_download(name, file, **options)) for file in FILES]
    except (OSError, ValueError) as error:  # offline, absent, forbidden: all are OSErrors
        reason = str(error).strip().splitlines()
        raise MissingFileError(
            f"{name} is no folder here, and the Hugging Face hub does not give it "
            f"({reason[0] if reason else type(error).__name__})"
        ) from error
    return files[0].parent


def load(cls: type[Any], folder: Path, remedy: str = REMEDY) -> Any:
    """Build a module of a class from its folder; see `Pretrained.from_pretrained`."""
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder / name} is missing: {remedy}")
    arguments = read_arguments(cls, folder / CONFIG, remedy)
    header = read_header(folder / WEIGHTS, remedy)
    wanted = _outline(cls, arguments, header, folder / CONFIG, remedy)
    tensors = read_weights(folder / WEIGHTS, wanted, remedy)
    with torch.inference_mode(False):  # gradients may be wanted later, though not now
        model: nn.Module = cls(**arguments)
        model.load_state_dict(tensors)
    return model.eval()


def read_arguments(cls: type[Any], path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Read what a module is built with from its config.json, each argument as it is annotated.

    A class with an argument `config` takes the whole file for it, others take a key for each.

    Raises:
        EvatokError: no JSON object, an unknown or missing key, or a value that does not fit.
    """
    data = read_object(path, remedy)
    named = data.pop(CLASSES, [cls.__name__])  # absent in older folders
    if named != [cls.__name__]:
        found = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
        raise ModelFileError(f"{path} is of a {found}, not of a {cls.__name__}: {remedy}")
    hints = typing.get_type_hints(cls.__init__)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if [parameter.name for parameter in parameters] == ["config"]:
        data = {"config": data}
    unknown = sorted(data.keys() - {parameter.name for parameter in parameters})
    if unknown:
        raise ModelFileError(f"{path}: {unknown[0]!r} is no key of a {cls.__name__}: {remedy}")
    arguments = {}
    for parameter in parameters:
        if parameter.name not in data:
            if parameter.default is inspect.Parameter.empty:
                raise ModelFileError(f"{path}: {parameter.name} is missing: {remedy}")
            continue
        try:
            adapter = TypeAdapter(hints[parameter.name])
            arguments[parameter.name] = adapter.validate_python(data[parameter.name])
        except ValidationError as error:
            where = "" if parameter.name == "config" else f"{parameter.name}."
            raise ModelFileError(f"{path}: {where}{first_mistake(error)}: {remedy}") from None
    return arguments


def _outline(
    cls: type[Any],
    arguments: Mapping[str, Any],
    header: Mapping[str, Declared],
    path: Path,
    remedy: str,
) -> dict[str, torch.Tensor]:
    """The state dict of the module on the meta device."""
    for key, layers in _counts(arguments):
        if layers > len(header):  # each has a weight or more; many would take long to build
            raise ModelFileError(
                f"{path}: {key} is {layers}, but {WEIGHTS} has {len(header)} tensors: {remedy}"
            )
    try:
        with torch.device("meta"), ShapesAlone():
            model: nn.Module = cls(**arguments)
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ModelFileError(f"{path}: impossible sizes ({reason}): {remedy}") from None
    wanted = model.state_dict()
    computed = sum(b.nbytes for name, b in model.named_buffers() if name not in wanted)
    if computed > COMPUTED:
        raise ModelFileError(f"{path}: impossible sizes (tables of {computed} bytes): {remedy}")
    return wanted


def _counts(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every number of layers in the arguments."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _counts(inner, f"{name}.{key}" if name else str(key))
    elif hasattr(value, "model_dump"):
        yield from _counts(value.model_dump(), name)
    elif name.rpartition(".")[2] == "layers" and isinstance(value, int):
        yield name, value
