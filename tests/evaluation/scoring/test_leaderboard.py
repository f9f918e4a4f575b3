"""Records and the tables that they make."""

from __future__ import annotations

import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluation.scoring.leaderboard import FORMATS, PUBLISHED, add, one_table, render, tables, title
from evaluation.scoring.page import page
from evaluation.scoring.records import Record, read_records, write_records
from tests.evaluation.scoring.records import record


def written(records: list[Record], form: str) -> str:
    return page(records) if form == "html" else render(records, form)  # type: ignore[arg-type]


def test_only_what_compares_shares_a_table() -> None:
    rows = [
        record("b", 2.0),
        record("a", 1.0),
        record("other count", 0.5, num_clips=99),
        record("other weights", 0.5, checksum="f00"),
        record("other size", 0.5, settings={"size": 64}),
        record("paper", 0.1, source="published"),
        record("other real set", 0.5, data="f1e2"),
    ]
    found = tables(rows)
    assert sorted(len(table) for table in found.values()) == [1, 1, 1, 1, 1, 2]
    assert [r.name for table in found.values() if len(table) == 2 for r in table] == ["a", "b"]
    with pytest.raises(ValueError, match=r"do not compare: source is .*clips is 100 or 99"):
        one_table([rows[0], rows[2], rows[5]], "arcade-rfvd")
    with pytest.raises(ValueError, match=r"no record of protocol 'x'; there are arcade-rfvd"):
        one_table(rows, "x")
    assert [r.name for r in one_table(rows[:2], "arcade-rfvd", "nano")] == ["a", "b"]


def test_a_board_grows_and_holds_nothing_twice(tmp_path: Path) -> None:
    board = tmp_path / "board.json"
    rows = [record("a", 1.0, interval=(0.5, 1.5), extra={"tokens": 70}), record("b", 2.0)]
    assert add(board, rows[:1]) == rows[:1]
    assert add(board, rows) == rows[1:]
    assert read_records(board) == rows
    assert not list(tmp_path.glob(".*"))


def test_a_board_that_several_add_to_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "new" / "board.json"

    def slowly(path: Path, records: list[Record]) -> None:
        time.sleep(0.05)  # meanwhile the others read, if nothing keeps them from it
        write_records(path, records)

    monkeypatch.setattr("evaluation.scoring.leaderboard.write_records", slowly)
    rows = [record(name, 1.0) for name in "abcdef"]
    with ThreadPoolExecutor(len(rows)) as pool:
        added = list(pool.map(lambda row: add(board, [row]), rows))
    assert added == [[row] for row in rows]
    assert sorted(row.name for row in read_records(board)) == list("abcdef")
    assert [path.name for path in board.parent.iterdir()] == ["board.json"]


def test_two_real_sets_are_two_tables() -> None:
    """Two games, each against itself, with equal counts; and no table hides another."""
    games = [record("frogger", 1.0, data="aa" * 32), record("pong", 2.0, data="bb" * 32)]
    assert [len(table) for table in tables(games).values()] == [1, 1]
    with pytest.raises(ValueError, match=r"do not compare: data is aaaa.* or bbbb"):
        one_table(games, "arcade-rfvd")
    sizes = [record("small", 3.0, settings={"size": 64}), record("large", 4.0)]
    for form in ("md", "csv", "html"):
        text = written([*games, *sizes], form)
        assert all(name in text for name in ("frogger", "pong", "small", "large"))
        assert "real set aaaaaaaa" in text and "real set bbbbbbbb" in text


def test_formats(tmp_path: Path) -> None:
    rows = [record("a|<b>", 1.25, interval=(0.5, 1.5), extra={"tokens": 70}), record("c", 2.0)]
    markdown = render(rows, "md")
    assert "## arcade-rfvd: fvd[nano], 100 clips" in markdown
    assert "| a\\|&lt;b> | 1.25 | 0.5 to 1.5 | 70 |" in markdown
    assert render(rows, "csv").splitlines()[0] == "table,name,fvd,95 %,tokens"
    with pytest.raises(ValueError, match=f"not one of {', '.join(FORMATS)}"):
        render(rows, "pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\nb", "a\r\n| x |", "\x1b[31mred\x9b", "[x](evil)", "`x\\|`"])
def test_names_stay_in_their_cell(name: str) -> None:
    """Line breaks, ESC and marks of Markdown in a name that a record brings."""
    plain = render([record("plain", 1.0)], "md").count("\n")
    for form in ("md", "csv", "html"):
        text = written([record(name, 1.0, protocol=name)], form)
        assert not any(letter in text for letter in "\r\x1b\x9b")
    markdown = render([record(name, 1.0, protocol=name)], "md")
    assert markdown.count("\n") == plain and "](evil)" not in markdown
    (row,) = list(csv.reader(render([record(name, 1.0)], "csv").splitlines()))[1:]
    assert len(row) == 3


def test_published_rows_are_marked() -> None:
    rows = read_records(PUBLISHED)
    assert all(r.source == "published" and r.reference for r in rows)
    gfvd = {r.name: r.value for r in rows if r.protocol == "ucf101-gfvd"}
    assert gfvd["EVATok (633 M)"] == 48 and gfvd["LARP-L-Long (632 M)"] == 57
    assert all("published, not measured here" in title(key) for key in tables(rows))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("", "is no JSON"),
        ('{"name": "a"}', "is no record: protocol: Field required"),
        ('{"name": "a", "protocol": "p", "value": 1, "fvd": 2}', "is no record: fvd: Extra"),
        ('{"name": "a", "protocol": "p", "value": "much"}', "is no record: value"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_records(tmp_path / "r.json")


def test_records_travel_through_files(tmp_path: Path) -> None:
    one = record("a", 1.0, damaged={"real/x.mp4": "empty"}, interval=(0.5, 1.5))
    write_records(tmp_path / "one.json", one)
    assert read_records(tmp_path / "one.json") == [one]
    assert json.loads((tmp_path / "one.json").read_text())["format"] == 1
