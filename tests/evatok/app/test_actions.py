"""What the tabs of the page do, on toy parts and without the page."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evatok
from evatok.app import actions, page
from evatok.app.pictures import animation, card, facts, note, tokens_chart
from evatok.cli.app import main
from evatok.core.errors import EvatokError
from video.reading import read_frames
from video.writing import write_video

Square = Callable[[int, int, int, int], np.ndarray]


@pytest.fixture(scope="module")
def model(toy_dir: Path) -> evatok.Model:
    return evatok.load(toy_dir, device="cpu")


@pytest.fixture
def wide(square: Square, tmp_path: Path) -> Path:
    write_video(tmp_path / "wide.mp4", square(37, 48, 400, 0), 12)
    return tmp_path / "wide.mp4"


def test_a_reconstruction_tells_tokens_of_every_tile_and_block(
    model: evatok.Model, wide: Path, tmp_path: Path
) -> None:
    made = actions.reconstruct(model, wide, tmp_path / "out", max_tokens=8)
    width = actions.MAX_SIDE
    assert made.video.frames.shape == (37, 23, width, 3)  # scaled to the longest side
    tokens = evatok.open(made.token_file)
    assert made.num_tokens == len(tokens) and made.num_bytes == made.token_file.stat().st_size
    assert made.bits_per_pixel == 8 * made.num_bytes / (37 * 23 * width)
    assert made.tiles.shape == (made.grid[0] * made.grid[1], 10) and made.grid[1] > 1
    assert made.seconds[:2] == pytest.approx((0, 4 / 12)) and len(made.seconds) == 10
    assert all(part.sum(1).max() <= 8 for part in tokens.assignment)
    again = model.decode(tokens).frames.float()
    error = ((again - made.video.frames.float()) / 255).square().mean()
    assert made.psnr == pytest.approx(-10 * float(torch.log10(error)), abs=1e-3)
    assert len(read_frames(made.decoded)) == len(read_frames(made.original)) == 37


def test_refined_tokens_are_others_and_as_many(
    model: evatok.Model, wide: Path, tmp_path: Path
) -> None:
    made, refined = (
        actions.reconstruct(model, wide, tmp_path / str(steps), max_tokens=8, refine=steps)
        for steps in (0, 10)
    )
    assert np.array_equal(made.tiles, refined.tiles) and refined.psnr >= made.psnr
    assert made.token_file.read_bytes() != refined.token_file.read_bytes()
    with pytest.raises(EvatokError, match="99 steps of refinement asked for: from 0 to 60"):
        actions.reconstruct(model, wide, tmp_path / "out", refine=99)


def test_samples_come_block_by_block_and_are_those_of_sample(model: evatok.Model) -> None:
    seen = [
        [len(clip.blocks) for clip in clips]
        for clips in actions.sample(model, ["left", "Right"], count=3, seed=4)
    ]
    assert seen[0] == [0, 0, 0] and seen[-1] == [4, 4, 4] and len(seen) == 13
    *_, clips = actions.sample(model, ["left", "Right"], count=3, seed=4)
    same = model.sample(["Left", "Right", "Left"], seed=4)
    assert [clip.title for clip in clips] == ["Left", "Right", "Left"]
    for clip, other in zip(clips, same, strict=True):
        assert clip.is_done and clip.frames is not None
        assert np.abs(clip.frames.astype(int) - other.frames.numpy()).max() <= 1


def test_samples_obey_lengths_and_texts(text_dir: Path) -> None:
    model = evatok.load(text_dir, device="cpu")
    *_, clips = actions.sample(model, text="a dark clip of right", count=2, lengths="4, 1,2,1")
    assert [clip.blocks for clip in clips] == [[4, 1, 2, 1]] * 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "one of the two"),
        ({"classes": ["Left"], "text": "left"}, "one of the two"),
        ({"classes": ["Up"]}, "no class Up"),
        ({"classes": ["Left"], "count": 9}, "from 1 to 8"),
        ({"classes": ["Left"], "lengths": "4,x"}, "numbers with commas"),
        ({"classes": ["Left"], "lengths": "3,3,3,3"}, "each is one of"),
        ({"classes": ["Left"], "max_tokens": 2}, "the shortest clip has 4"),
    ],
)
def test_samples_refuse(model: evatok.Model, given: dict[str, Any], told: str) -> None:
    with pytest.raises(EvatokError, match=told):
        list(actions.sample(model, **given))


def test_a_prediction_begins_with_the_given_frames(model: evatok.Model, wide: Path) -> None:
    made = actions.predict(model, wide, frames=20, start=3)
    assert (len(made.real), len(made.predicted), made.given) == (20, 20, 5)
    assert made.psnr is not None
    assert actions.predict(model, wide, frames=20, start=30).psnr is None  # 7 are left
    for frames, start, told in ((5, 0, "from 6 to"), (16, -1, "from 0 to"), (16, 35, "has 37")):
        with pytest.raises(EvatokError, match=told):
            actions.predict(model, wide, frames, start)


def test_a_comparison_is_that_of_fvd(square: Square, tmp_path: Path) -> None:
    for side, seed in (("a", 0), ("b", 5)):
        for number in range(2):
            write_video(tmp_path / side / f"{number}.mp4", square(16, 32, 32, seed + number), 15)
    sides = [sorted((tmp_path / side).iterdir()) for side in "ab"]
    made = actions.compare(sides[0], sides[1], tmp_path / "work", "cpu")
    value = evatok.fvd(tmp_path / "a", tmp_path / "b", features="nano", device="cpu")
    assert made == actions.Comparison(value, (2, 2))
    with pytest.raises(EvatokError, match="the second folder has 1 videos"):
        actions.compare(sides[0], sides[1][:1], tmp_path / "more")


def test_html_holds_no_tag_of_the_user_and_no_other_host(square: Square) -> None:
    title = "<script>alert(1)</script>"
    tiles = np.array([[1, 2, 4], [4, 4, 1]])
    html = card(title, square(4, 8, 8, 0), 15, title, [1, 2], 4, 1) + card(title, None, 15, "")
    html += facts([(title, title)]) + note(title) + tokens_chart(tiles, (1, 2), (0.0, 0.5, 1.0))
    assert "<script" not in html and "http" not in html
    assert html.count("<svg") == 2 and ">5</text>" in html and ">6</text>" in html
    assert animation(square(4, 8, 8, 0), 15).startswith("data:image/webp;base64,")
    assert tokens_chart(tiles[:1], (1, 1), (0.0, 0.5, 1.0)).count("<svg") == 1


def test_errors_of_users_become_a_line() -> None:
    def refuses(reason: Exception) -> Iterator[tuple[str, str]]:
        yield "begun", "chart"
        raise reason

    handler = page.in_one_line(refuses, ["keep", "keep"], str)
    begun, refused = handler(EvatokError("too\nshort <b>"))
    assert begun == ("", "begun", "chart") and refused[1:] == ("keep", "keep")
    assert "too short &lt;b&gt;" in refused[0] and 'role="alert"' in refused[0]
    _, refused = handler(EvatokError(f"{tempfile.gettempdir()}/gradio/12/my.mp4: not readable"))
    assert ">my.mp4: not readable<" in refused[0]
    with pytest.raises(ValueError, match="ours"):  # a mistake of ours keeps its traceback
        list(handler(ValueError("ours")))


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == (
        "evatok: the page needs the package gradio: pip install 'evatok[app]'\n"
    )
