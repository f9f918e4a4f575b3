"""The static page: relative, self-contained, escaped, written whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from evatok.report.page import Page, number
from evatok.report.plots import line_plot


class Closed(HTMLParser):
    """Collects attributes and checks that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained(tmp_path: Path) -> None:
    page = Page("Title <b>", "lead & more")
    page.section("Videos", "text with <angle> brackets")
    page.videos([("videos/a b.mp4", 'say "hi"', "4 · 8 tokens")], (520, 350))
    page.section("Numbers")
    page.table([{"name": "router", "psnr": 27.123456, "n": 1200}, {"name": "u", "psnr": None}])
    page.plots([("figures/x.svg", "a curve")])
    path = tmp_path / "deep" / "index.html"
    page.write(path, "made by a test")
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]

    text = path.read_text(encoding="utf-8")
    parser = Closed()
    parser.feed(text)
    assert parser.open == []
    assert parser.sources == ["#section-1", "#section-2", "videos/a%20b.mp4", "figures/x.svg"]
    assert "://" not in text and "--shape: 67.308%" in text
    assert "<angle>" not in text and "&lt;angle&gt;" in text
    assert re.search(r'<td class="number">27\.12</td>', text) and "1,200" in text and "–" in text


def test_numbers() -> None:
    assert [number(v) for v in (None, True, 3, 12345, 0.98765, 1234.5, "x")] == [
        "–", "True", "3", "12,345", "0.9877", "1,234", "x",
    ]  # fmt: skip


def test_plot_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        line_plot(
            tmp_path / name / "plot.svg",
            {"arcade": [(16, 20.0), (256, 28.0)]},
            title="t",
            x_label="tokens",
            y_label="dB",
            marked={"router": (100, 27)},
            log_x=True,
        )
    first, second = ((tmp_path / name / "plot.svg").read_bytes() for name in ("a", "b"))
    assert first == second and b"<svg" in first
    assert not list(tmp_path.rglob("partial-*"))


def test_links_and_text_of_any_names(tmp_path: Path) -> None:
    """A browser asks for the file that is meant; nothing in a caption controls a terminal."""
    page = Page("t", "")
    page.videos([("videos/50% #1?.mp4", "a\x1b[31m\nb", "")], (64, 64))
    page.plots([("figures/caf\udce9 x.svg", "")])
    page.write(tmp_path / "index.html", "")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="videos/50%25%20%231%3F.mp4"' in text and 'src="figures/caf%E9%20x.svg"' in text
    assert "\x1b" not in text
