"""The card of a whole model: what its parts are, how it is used, what was measured and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from evaluation.scoring.records import Record
from evatok.core.loading.model_card import LIBRARY, LICENCE, NO_NUMBERS, card
from evatok.plan.describe import describe_model

USE = """```python
import evatok

model = evatok.load("{name}")
tokens = model.encode(evatok.read_video("clip.mp4"))
video = model.decode(tokens)
```"""
COLUMNS = ("metric", "value", "95 % interval", "protocol", "clips", "network", "settings", "of")


def model_card(directory: Path, name: str, records: Sequence[Record] = ()) -> ModelCard:
    """Return the card of the model in a folder.

    Args:
        directory: with a sub-folder for each part.
        name: the model's, as `evatok.load` takes it.
        records: measurements, as `evatok evaluate --record` writes them.
    """
    facts = describe_model(str(directory))
    parts = [(row["part"], f"{row['parameters']:,}") for row in facts["parts"]]
    tags = ["video", "video-tokenization", *(["video-generation"] if "generator" in facts else [])]
    data = ModelCardData(
        library_name=LIBRARY, license=LICENCE, pipeline_tag="video-to-video", tags=tags
    )
    body = [
        "Adaptive-length video tokenization: a router chooses how many tokens each block of a "
        "clip gets.",
        USE.format(name=name),
        "## Parts",
        _table(("part", "parameters"), parts),
        _tokenizer(facts.get("final", {})),
        "## Numbers",
        numbers(records),
    ]
    return card(name.rpartition("/")[2], data, body)


def numbers(records: Sequence[Record]) -> str:
    """Return the measurements as a Markdown table, each with its protocol."""
    if not records:
        return NO_NUMBERS
    rows = [
        (
            record.metric,
            f"{record.value:.4g}",
            "" if record.interval is None else "{:.4g} to {:.4g}".format(*record.interval),
            record.protocol,
            record.num_clips or "",
            f"{record.network} {record.checksum[:12]}".strip(),
            json.dumps(record.settings, sort_keys=True) if record.settings else "",
            record.name,
        )
        for record in records
    ]
    rule = "Two numbers compare only if protocol, clips, network and settings are the same."
    return f"{rule}\n\n{_table(COLUMNS, rows)}"


def _tokenizer(facts: dict[str, object]) -> str:
    if not facts:
        return ""
    return (
        f"Clips of {facts['num_frames']} frames at {facts['size']} × {facts['size']} pixels, "
        f"{facts['num_blocks']} blocks of {', '.join(map(str, facts['levels']))} tokens, "  # type: ignore[call-overload]
        f"{facts['codebook_size']:,} codes."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', '¦') for cell in line)} |" for line in lines
    )
