"""Even borders: what is a frame at every side, what is the picture's own margin, and what nobody can tell."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cropreg.matching.find import find
from cropreg.matching.frame import inside_frame, margins_of
from cropreg.matching.picture import Picture
from cropreg.matching.place import shifted

from .conftest import Pixels, decoded, encode, starry

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FRAME, BARS, NONE = (30, 30, 30, 30), (30, 30, 0, 0), (0, 0, 0, 0)  # above, below, left, right


def bordered(crop: Pixels, above_below_left_right: tuple[int, int, int, int], tone: tuple[int, int, int]) -> Pixels:
    return np.asarray(cv2.copyMakeBorder(crop, *above_below_left_right, cv2.BORDER_CONSTANT, value=tone), np.uint8)


@pytest.mark.long
@pytest.mark.parametrize("border", [FRAME, BARS, NONE], ids=["frame", "bars", "none"])
@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_a_black_border_round_a_starry_night_is_no_sky(seed: int, border: tuple[int, int, int, int]) -> None:
    """All but the stars that it lacks is as black as the original there."""
    original = encode(starry(seed))
    match = find(original, encode(bordered(decoded(original)[148:801, 203:1302], border, BLACK), quality=88))
    assert match.verdict in (("found",) if border == NONE else ("found", "doubtful")), match
    assert match.box is not None
    assert max(abs(a - b) for a, b in zip(match.box, (203, 148, 1302, 801), strict=True)) <= 2


@pytest.mark.long
def test_a_star_that_is_hardly_seen_in_a_shrunk_crop_makes_no_frame() -> None:
    original = encode(starry(7))
    crop = decoded(original)[148:801, 203:1302].copy()
    crop[:, :40] = crop[:60] = 0
    whole = decoded(original).copy()
    whole[148:801, 203:1302] = crop
    whole[200:800:60, 215] = 120
    shrunk = cv2.resize(whole[148:801, 203:1302], None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    match = find(encode(whole), encode(np.asarray(shrunk, np.uint8)))
    assert match.verdict == "found" and match.box is not None
    assert max(abs(a - b) for a, b in zip(match.box, (203, 148, 1302, 801), strict=True)) <= 2


@pytest.mark.parametrize(
    ("cut", "border", "own", "sure"),
    [
        ((160, 240), FRAME, (0, 0, 0, 0), True),
        ((100, 300), FRAME, (0, 0, 0, 0), False),  # white at both sides: as well two bars, and the sheet's own margins
        ((100, 240), FRAME, (0, 0, 0, 0), True),  # seen at three sides: it goes round
        ((70, 240), BARS, (30, 0, 0, 0), True),  # not at the right: bars, and the margin at the left is the sheet's own
    ],
)
def test_what_a_frame_is_where_it_shows_tells_where_it_does_not(
    cut: tuple[int, int], border: tuple[int, int, int, int], own: tuple[int, int, int, int], sure: bool
) -> None:
    """A grey sheet with something printed from x = 100 to 300."""
    sheet = np.full((300, 400, 3), 255, np.uint8)
    sheet[:, 100:300] = np.random.default_rng(1).integers(0, 200, (300, 200, 1), np.uint8)
    x1, x2 = cut
    crop = bordered(sheet[50:250, x1:x2], border, WHITE)
    inner = inside_frame(Picture.of_pixels(crop, "crop"))
    assert inner is not None and inner.sides[1] == inner.sides[3] == 30
    place = shifted(x1 - border[2], 50 - border[0])
    assert margins_of(inner, sheet[..., 0], crop[..., 0], place) == (own, sure)
