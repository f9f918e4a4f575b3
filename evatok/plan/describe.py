"""Description of a trained model: parameters by part, levels, vocabulary.

Of its parts config.json and the header of the weights are read, and neither torch nor a weight is
loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from evatok.core.loading.records import RecordError, read_object
from evatok.model_folders import COPY_ANEW, locate, part_folder, parts_of

# Last words of what is stored beside parameters: running statistics.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "usage")
LOOSE = "other"  # parameters of no module


def describe_model(model: str) -> dict[str, Any]:
    """Describe trained parts by name or folder.

    Returns:
        JSON-able: `parts`, a row each, and for every part its parameters by module.

    Raises:
        FileNotFoundError: no models are there.
        RecordError: a file of a part is damaged.
    """
    directory = locate(model)
    counts, facts = {}, {}
    for part in parts_of(directory):
        folder = part_folder(directory, part)
        counts[part] = _stored_parameters(folder / "model.safetensors")
        facts[part] = facts_of(read_object(folder / "config.json", COPY_ANEW), folder)
    return {"model": str(directory)} | rows_of(counts, facts)


def rows_of(
    counts: Mapping[str, Mapping[str, int]], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the description of parts.

    Args:
        counts: of each part, parameters by module.
        facts: of each part, see `facts_of`.
    """
    parts = [{"part": name, "parameters": sum(inner.values())} for name, inner in counts.items()]
    return {"parts": parts} | {name: {**facts[name], **counts[name]} for name in counts}


def facts_of(config: Mapping[str, Any], folder: Path | str) -> dict[str, Any]:
    """Return what config.json of a part says in plain words.

    Args:
        config: of a tokenizer, a router, a generator or the nano feature network.
        folder: where it is from, for the message.

    Raises:
        RecordError: a key is missing or of another kind.
    """
    try:
        if "vocabulary" in config:
            return _generator(config)
        if "levels" in config:
            return _on_clips(config)
        if "class_names" in config:
            return {"dim": config["dim"], "class_names": list(config["class_names"])}
        return {}
    except (KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise RecordError(f"{folder}/config.json is incomplete ({error}): {COPY_ANEW}") from None


def _on_clips(config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a tokenizer or a router."""
    levels, blocks = list(config["levels"]), config["num_frames"] // config["patch"][0]
    facts = {
        "levels": levels,
        "num_blocks": blocks,
        "assignments": len(levels) ** blocks,
        "num_frames": config["num_frames"],
        "size": config["size"],
    }
    return facts | {key: config[key] for key in ("codebook_size", "code_dim") if key in config}


def _generator(config: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary, frames, text = config["vocabulary"], config.get("frames"), config.get("text")
    levels, blocks = list(vocabulary["levels"]), vocabulary["num_blocks"]
    names, pieces = list(vocabulary.get("class_names", ())), vocabulary.get("num_text", 0)
    size = vocabulary["codebook_size"] + len(levels) + 3 + len(names) + (pieces and 1 + pieces)
    longest = blocks * (1 + levels[-1]) + (2 + text["max_pieces"] if text else 1)
    prefix = list(frames["prefix"]) if frames else []
    if frames:
        per_block = frames.get("frames_per_block", 4)
        whole = frames["num_frames"] // per_block
        kept = whole if frames.get("repredict_partial", True) else len(prefix)
        given = 2 + sum(1 + count for count in prefix)
        longest = max(longest, given + (blocks - kept) * (1 + levels[-1]))
    return {
        "vocabulary": size,
        "codes": vocabulary["codebook_size"],
        "levels": levels,
        "num_blocks": blocks,
        "class_names": names,
        "text_pieces": pieces,
        "max_tokens": longest,
        "frame_condition": {"frames": frames["num_frames"], "prefix": prefix} if frames else None,
    }


def _stored_parameters(path: Path) -> dict[str, int]:
    """Return the parameters of each module in a safetensors file, from its header alone."""
    try:
        with safe_open(path, "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RecordError(f"{path} is no whole safetensors file ({error}): {COPY_ANEW}") from None
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        words = name.split(".")
        if words[-1] not in BUFFERS:
            counts[words[0] if len(words) > 1 else LOOSE] += math.prod(shape)
    loose = counts.pop(LOOSE, 0)
    return dict(counts) | ({LOOSE: loose} if loose else {})
