"""The board as one HTML file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.scoring.leaderboard import PUBLISHED, add
from evaluation.scoring.page import page, why_apart
from evaluation.scoring.records import Record, read_records
from evatok.cli.app import main
from tests.evaluation.scoring.records import record

CUT = {"window": "first", "seed": 42, "count": None, "shrink": None, "num_frames": 16, "size": 128}
SETTINGS = {"cut": CUT, "biased": True, "num_frames": 16, "size": [128, 128]}


def measured(name: str, value: float, **changes: object) -> Record:
    return record(name, value, **({"settings": SETTINGS} | changes))


class Tags(HTMLParser):
    """Tags that are open at the end, and all attributes that name another file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            assert tag != "section", "a tag inside was not closed"


def test_one_file_of_sound_tags() -> None:
    rows = [measured("a<b>&", 2.0, interval=(1.0, 4.0)), measured("c", 1.0, interval=(0.5, 1.5))]
    text = page([*rows, *read_records(PUBLISHED)])
    tags = Tags(text)
    assert not tags.open and not tags.loads
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "a&lt;b&gt;&amp;" in text and "a<b>" not in text
    assert text.index(">c</td>") < text.index(">a&lt;b&gt;")  # best first


def test_intervals_are_bars() -> None:
    text = page([measured("a", 2.0, interval=(1.0, 4.0)), measured("b", 3.0)])
    assert 'style="left:25.00%;width:75.00%"' in text and 'style="left:50.00%"' in text
    assert "95 % interval" in text and "none told" in text and "(0 to 4)" in text
    assert "95 % interval <" not in page([measured("b", 3.0)])
    below, above = (
        measured("a", 1.0, interval=(-9.0, 1.0)),
        measured("b", 1.0, interval=(9.0, 10.0)),
    )
    assert "left:0.00%;width:10.00%" in page([below, above])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "i3d"}, "the feature network: nano here, i3d there"),
        ({"num_clips": 2048}, "the number of clips: 100 here, 2048 there"),
        ({"data": "ab" * 32}, "the real set (fingerprint): not told here, abababab there"),
        ({"settings": SETTINGS | {"biased": False}}, "biased covariance: yes here, no there"),
        (
            {"settings": SETTINGS | {"cut": CUT | {"window": "random"}, "size": [64, 64]}},
            "window of a video: first here, random there; pixels: 128 × 128 here, 64 × 64 there",
        ),
        ({"source": "published"}, "there stand numbers of papers"),
        ({"settings": SETTINGS | {"rate": 3}}, "the setting rate: not told here, 3 there"),
    ],
)
def test_why_two_tables_are_apart(changes: dict[str, object], said: str) -> None:
    one, other = measured("a", 1.0), measured("b", 1.0, **changes)
    reasons = why_apart(one.key, other.key)
    assert reasons == said or (reasons.startswith("there stand") and said.startswith("there stand"))
    text = page([one, other])
    assert text.count("Why this table stands apart") == 2
    assert said.split(";")[0].replace("'", "&#39;") in text
    assert why_apart(one.key, one.key) == ""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board, out = tmp_path / "board.json", tmp_path / "page.html"
    add(board, [measured("a", 1.0)])
    words = ["leaderboard", "show", "--board", str(board)]
    assert main([*words, "--format", "html", "-o", str(out)]) == 0
    assert re.match("<!doctype html>", out.read_text()) and "page.html" in capsys.readouterr().out
    for more, said in ((["-o", str(out)], "--output needs --format"),
                       (["--format", "html", "-o", str(board)], str(board))):  # fmt: skip
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*words, "--format", "html"]) == 0
    assert capsys.readouterr().out == out.read_text()
