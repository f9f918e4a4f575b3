"""One measurement, with all that decides whether another may stand beside it.

A record is a JSON file. Two numbers compare only when protocol, its settings, feature network,
weights, number of clips and real set are the same; a published number is comparable with nothing
but what its paper's protocol and network have measured, and says so by its source.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evatok.core.errors import EvatokError
from evatok.core.files import write_text
from evatok.core.loading.records import read_json

PACKAGES = ("torch", "numpy", "torchmetrics", "av")


class Key(NamedTuple):
    """Key that two comparable records share."""

    source: str
    protocol: str
    metric: str
    network: str
    checksum: str
    clips: int | None
    settings: str
    data: str


class Record(BaseModel):
    """One measurement.

    Attributes:
        name: of what was measured, as a table shows it.
        source: "measured" by this software, or "published" by a paper.
        protocol: such as ucf101-gfvd, k600-fp, arcade-rfvd, folder.
        metric: what `value` is, such as fvd; tables are sorted by it, lower is better.
        value: the number.
        interval: its 95 % interval.
        network: feature network; "" for a metric without one.
        checksum: of the network's weights.
        num_clips: scored on each side; None where a paper does not tell.
        damaged: files that could not be read, with reasons.
        settings: of the protocol: frames, size, window, seed, biased …
        data: fingerprint of the real side.
        model: hash of what made the fake side.
        extra: further numbers to show: tokens, parameters, PSNR …
        versions: of what measured it.
        seconds: of wall time.
        reference: of a published number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    source: Literal["measured", "published"] = "measured"
    protocol: str = Field(min_length=1)
    metric: str = "fvd"
    value: float = Field(allow_inf_nan=False)
    interval: tuple[float, float] | None = None
    network: str = ""
    checksum: str = ""
    num_clips: int | None = Field(default=None, ge=1)
    damaged: dict[str, str] = {}
    settings: dict[str, Any] = {}
    data: str = ""
    model: str = ""
    extra: dict[str, int | float | str] = {}
    versions: dict[str, str] = {}
    seconds: float | None = None
    reference: str = ""

    @property
    def key(self) -> Key:
        """Records of one key make one table."""
        settings = json.dumps(self.settings, sort_keys=True)
        return Key(
            self.source,
            self.protocol,
            self.metric,
            self.network,
            self.checksum,
            self.num_clips,
            settings,
            self.data,
        )


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def read_records(path: Path | str) -> list[Record]:
    """The records of a file, which holds one or a list.

    Raises:
        FileNotFoundError: no such file.
        EvatokError: it is no record; the message says what is wrong.
    """
    path = Path(path)
    try:
        data = read_json(path, "write it anew, or name another file")
        rows = data if isinstance(data, list) else [data]
        return [Record.model_validate(row) for row in rows]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EvatokError(f"{path} is no record: {place}: {first['msg']}") from None


def write_records(path: Path | str, records: list[Record] | Record) -> None:
    """Write one record, or a list, whole or not at all."""
    path = Path(path)
    dumped = (
        records.model_dump(mode="json")
        if isinstance(records, Record)
        else [record.model_dump(mode="json") for record in records]
    )
    write_text(path, json.dumps(dumped, indent=1, ensure_ascii=False) + "\n")
