"""JSON records: what is no record is named in a line, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from evatok.core.loading import records
from evatok.core.loading.records import RecordError, read_object, read_record


class Row(BaseModel):
    name: str
    count: int


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1]",
        b"null",
        b'"text"',
        b"true",
        b"[" * 100_000,
        b'{"count": ' + b"9" * 5000 + b"}",
        b'{"name": "a"}',
        b'{"name": "a", "count": "many"}',
        b'{"name": ["' + b"x" * 10_000 + b'"], "count": 1}',
    ],
)
def test_what_is_no_record_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_record(Row, path, "write it anew")
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(": write it anew")
    assert "\n" not in message and len(message) < 500


def test_whole_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text('{"name": "a", "count": 3}')
    assert read_record(Row, path, "") == Row(name="a", count=3)
    assert read_object(path, "", ["name"]) == {"name": "a", "count": 3}
    with pytest.raises(RecordError, match=r"row\.json: size is missing: write it anew"):
        read_object(path, "write it anew", ["name", "size"])
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json", "")


def test_a_file_too_large_for_a_record_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LARGEST", 10)
    (tmp_path / "row.json").write_text('{"name": "a", "count": 3}')
    with pytest.raises(RecordError, match="25 bytes, which no record has"):
        read_object(tmp_path / "row.json", "")
