"""Pictures side by side and token bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evatok.report.drawing import (
    BAR_GIVEN,
    BAR_NOW,
    STRIP_HEIGHT,
    TITLE_HEIGHT,
    Panel,
    canvas_size,
    compose,
)
from evatok.report.gallery import contact_sheet


def frames(count: int, height: int, width: int, value: int = 200) -> np.ndarray:
    return np.full((count, height, width, 3), value, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (33, 17), (1, 1)])
def test_sizes_are_even_and_pictures_in_place(height: int, width: int) -> None:
    panels = [Panel("a", frames(8, height, width, 10)), Panel("b", frames(8, height, width, 250))]
    out = compose(panels, [4, 8], 64, panel_size=64)
    assert out.dtype == np.uint8 and out.shape[0] == 8
    assert out.shape[1] % 2 == 0 and out.shape[2] % 2 == 0
    assert out.shape[2:0:-1] == canvas_size(2, height, width, 64)
    picture = out[:, TITLE_HEIGHT:-STRIP_HEIGHT]
    assert (picture[:, :, 0] == 10).all() and (picture[:, :, -1] == 250).all()


def test_bar_on_show_follows_the_block() -> None:
    out = compose([Panel("", frames(8, 16, 16))], [64, 64], 64, panel_size=64, given_blocks=1)
    strip = out[:, -STRIP_HEIGHT:]

    def has(frame: int, half: int, colour: tuple[int, int, int]) -> bool:
        part = strip[frame, :, 32 * half : 32 * (half + 1)]
        return bool((part == np.array(colour, np.uint8)).all(-1).any())

    assert has(0, 0, BAR_NOW) and not has(0, 1, BAR_NOW)
    assert has(7, 1, BAR_NOW) and has(7, 0, BAR_GIVEN)


def test_longer_bars_for_more_tokens() -> None:
    out = compose([Panel("", frames(1, 16, 16))], [4, 64], 64, panel_size=64)
    colours = out[0, -STRIP_HEIGHT:].reshape(-1, 3)
    now = (colours == np.array(BAR_NOW, np.uint8)).all(-1).sum()
    from evatok.report.drawing import BAR

    assert (colours == np.array(BAR, np.uint8)).all(-1).sum() > 3 * now


def test_uneven_panels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different numbers of frames: \[3, 4\]"):
        compose([Panel("a", frames(3, 8, 8)), Panel("b", frames(4, 8, 8))], [4], 64)


def test_a_contact_sheet_shows_every_strip() -> None:
    """Frames of a clip beside each other, from the first to the last; kinds below each other."""
    shades = torch.arange(16, dtype=torch.uint8) * 10
    clips = shades.view(1, 1, 16, 1, 1).expand(5, 3, 16, 8, 12)
    kinds = {"original": clips, "sample": 255 - clips}
    sheet = contact_sheet([f"cell {n}" for n in range(5)], kinds, columns=2, frames=4)
    for wanted in ([0, 50, 100, 150], [255, 205, 155, 105]):
        strip = np.repeat(wanted, 12)
        lines = sum(
            int((sheet[top, left : left + 48, 0] == strip).all())
            for top in range(sheet.shape[0])
            for left in range(sheet.shape[1] - 47)
        )
        assert lines == 5 * 8  # five cells, each eight pixels high
