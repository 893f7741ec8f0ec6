"""Even borders: what is a frame at every side, what is the picture's own margin, and what nobody can tell."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from cropreg.boxes import Box
from cropreg.matching import find as finding
from cropreg.matching.find import find
from cropreg.matching.frame import inside_frame, margins_of, paper_sides, shared_lines
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.place import from_box, shifted
from cropreg.matching.plane import Plane, between

from .conftest import Pixels, decoded, encode, scene, starry

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
    assert match.verdict == "found" or (match.verdict == "doubtful" and border != NONE), match
    assert match.box is not None
    assert match.verdict == "doubtful" or max(abs(a - b) for a, b in zip(match.box, (203, 148, 1302, 801), strict=True)) <= 2


def test_a_star_that_shrinking_has_dimmed_is_not_missing_and_one_that_was_painted_over_is() -> None:
    sky = np.zeros((300, 500), np.uint8)
    for x in range(3, 500, 31):  # at every distance from the pixels of the crop
        sky[3 + x % 47, x] = 200
    crop = np.asarray(cv2.resize(sky, (200, 120), interpolation=cv2.INTER_AREA), np.uint8)
    sides = (0, 24, 0, 0)
    matrix = between(Plane(sky), Plane(crop), from_box(Box(0, 0, 500, 300), (200, 120)))
    assert shared_lines(sky, crop, matrix, sides) == (sides, sides, True)
    sky[10:14, 250:254] = 200
    assert shared_lines(sky, crop, matrix, sides) == (sides, (0, 24 - 10 * 2 // 5 - 2, 0, 0), True)


@pytest.mark.long
@pytest.mark.parametrize("quality", [20, 85])
def test_a_speck_taken_from_a_margin_makes_no_frame_for_sure(quality: int) -> None:
    sheet = np.full((1211, 1813, 3), 248, np.uint8)
    sheet[250:950, 350:1450] = scene(2)[250:950, 350:1450]
    speckled = sheet.copy()
    cv2.circle(speckled, (270, 500), 3, (120, 120, 120), -1, cv2.LINE_AA)
    match = find(encode(speckled), encode(sheet[190:900, 200:1300], quality=quality))
    assert (match.verdict, match.box) == ("doubtful", Box(200, 190, 1300, 900))


@pytest.mark.long
@pytest.mark.parametrize("turn", ["mirrored", "upside down"])
def test_a_crop_that_is_turned_stays_so_though_an_even_sky_looks_like_a_bar(turn: str) -> None:
    picture = scene(1).copy()
    picture[:300] = 235
    crop = decoded(encode(picture))[100:1000, 300:1500]
    match = find(encode(picture), encode(np.ascontiguousarray(crop[:, ::-1] if turn == "mirrored" else crop[::-1, ::-1])))
    assert match.reason is not None and turn in match.reason
    assert match.box == Box(300, 100, 1500, 1000)


@pytest.mark.long
def test_borders_within_borders_of_another_picture_are_not_judged_twice_each(monkeypatch: pytest.MonkeyPatch) -> None:
    card = scene(5)
    for tone in (20, 240, 60, 200):
        card = np.asarray(cv2.copyMakeBorder(card, 30, 30, 30, 30, cv2.BORDER_CONSTANT, value=(tone,) * 3), np.uint8)
    calls, judge = [], finding._judge
    monkeypatch.setattr(finding, "_judge", lambda *a: calls.append(1) or judge(*a))
    assert find(encode(scene(1)), encode(card)).verdict == "no_match"
    assert len(calls) <= 5


def test_a_crop_whose_export_has_rounded_its_sides_is_seen_whole() -> None:
    picture = Picture.of_pixels(np.zeros((1003, 734), np.uint8), "crop")
    scale = (734 / 1049 * 1003 / 1433) ** 0.5
    match = Match("found", box=Box(205, 116, 1254, 1549), scale=scale, angle_deg=0.0)
    assert finding._place_of(match, picture) is not None
    assert finding._place_of(replace(match, box=Box(213, 124, 1246, 1541)), picture) is None


@pytest.mark.parametrize(
    ("cut", "border", "own", "sure"),
    [
        ((160, 240), FRAME, (0, 0, 0, 0), True),
        ((100, 300), FRAME, (0, 0, 0, 0), True),  # white at both sides, but as wide as above and below
        ((80, 320), FRAME, (20, 0, 20, 0), False),  # as well two bars, and the sheet's own margins
        ((100, 240), FRAME, (0, 0, 0, 0), True),  # seen at three sides: it goes round
        ((70, 240), BARS, (30, 0, 0, 0), True),  # not at the right: bars, and the margin at the left is the sheet's own
        ((80, 320), (30, 120, 0, 0), (20, 0, 20, 0), False),  # a card that is wider below, and its sides perhaps narrower
        (
            (80, 240),
            (60, 60, 30, 30),
            (50, 0, 0, 0),
            False,
        ),  # one that is narrower at the sides: where, at the left, nobody can tell
        ((80, 240), (0, 60, 0, 0), (20, 0, 0, 0), True),  # one bar, and none opposite
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
    assert inner is not None and (inner.sides[1], inner.sides[3]) == border[:2]
    place = shifted(x1 - border[2], 50 - border[0])
    with_trimmed = tuple(n + more for n, more in zip(own, inner.trimmed, strict=True))
    assert margins_of(inner, sheet[..., 0], crop[..., 0], place) == (with_trimmed, sure)


@pytest.mark.parametrize("value", [0.83, 1.0, 1.12])
@pytest.mark.parametrize("tone", [0, 255])
def test_a_margin_stays_one_though_its_tone_is_beyond_all_that_the_picture_shows(tone: int, value: float) -> None:
    """A print with a margin, made darker or brighter as a whole: of black and white the picture inside tells nothing."""
    print_ = cv2.copyMakeBorder(cv2.resize(scene(4), (700, 500)) // 2 + 60, 70, 70, 70, 70, cv2.BORDER_CONSTANT, value=(tone,) * 3)
    crop = np.clip(print_[20:610, 30:800] * value, 0, 255).astype(np.uint8)
    match = find(encode(print_, quality=92), encode(crop, quality=80))
    assert (match.verdict, match.box) == ("found", Box(30, 20, 800, 610))


def test_a_margin_whose_tone_nobody_can_foretell_is_doubtful_and_its_box_right() -> None:
    print_ = cv2.copyMakeBorder(cv2.resize(scene(4), (700, 500)) // 2 + 20, 70, 70, 70, 70, cv2.BORDER_CONSTANT, value=(255,) * 3)
    curve = np.interp(np.arange(256), [0, 160, 255], [0, 160, 190]).astype(np.uint8)  # what is brighter than the picture was dimmed
    match = find(encode(print_, quality=92), encode(curve[print_[20:610, 30:800]], quality=80))
    assert (match.verdict, match.box) == ("doubtful", Box(30, 20, 800, 610))


@pytest.mark.parametrize(("bar", "quality"), [(BLACK, 85), (WHITE, 85), (WHITE, 60)])
def test_a_bar_whose_edge_jpeg_has_blurred_takes_no_line_with_it(bar: tuple[int, int, int], quality: int) -> None:
    photo = scene(6)
    crop = cv2.copyMakeBorder(photo[100:600, 120:700], 0, 0, 61, 61, cv2.BORDER_CONSTANT, value=bar)
    match = find(encode(photo, quality=92), encode(crop, quality=quality))
    assert (match.verdict, match.box) == ("found", Box(120, 100, 700, 600))


def test_a_picture_turned_in_its_own_canvas_does_not_reach_beyond_its_original() -> None:
    photo = scene(3)
    turned = np.asarray(Image.fromarray(photo).rotate(1.0, Image.Resampling.BICUBIC))
    assert find(encode(photo, quality=92), encode(turned)).verdict == "found"


@pytest.mark.parametrize("tone", [215, 235])
def test_a_bright_band_some_lines_beyond_a_crop_does_not_hide_its_white_frame(tone: int) -> None:
    photo = np.minimum(scene(5), 200)
    photo[60:94] = tone
    crop = bordered(photo[100:600, 200:800], (20, 20, 20, 20), WHITE)
    match = find(encode(photo, quality=92), encode(crop))
    assert (match.verdict, match.box) == ("found", Box(200, 100, 800, 600))


def test_the_tone_of_two_bars_is_not_asked_of_the_other_sides() -> None:
    """Those are long, and mostly black."""
    photo = np.where(scene(6) > 140, scene(6), 0)
    photo[:8] = photo[590:610] = 0
    crop = cv2.copyMakeBorder(photo[3:603, 120:1000], 0, 0, 19, 19, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    match = find(encode(photo, quality=92), encode(crop, quality=85))
    assert (match.verdict, match.box) == ("found", Box(120, 3, 1000, 603))


def test_a_crop_that_reaches_beyond_its_original_is_not_found() -> None:
    """The window it was shown in: a title above, with a name and a button, and thin sides."""
    photo = scene(7)
    bar = np.full((36, photo.shape[1], 3), 60, np.uint8)
    cv2.putText(bar, "IMG_2041.jpg - Viewer", (20, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (220, 220, 220), 2)
    cv2.circle(bar, (photo.shape[1] - 40, 18), 9, (90, 90, 230), -1)
    match = find(encode(photo, quality=92), encode(np.vstack([bar, photo])))
    assert match.verdict != "found"


def test_bars_of_paper_end_at_a_clear_edge_and_take_a_third_of_a_side_at_most() -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (200, 100), np.uint8)
    picture[:50] = 250
    picture[20:30, 30:60] = 40  # letters
    assert paper_sides(picture) == (0, 50, 0, 0)
    picture[:80] = 250
    assert paper_sides(picture) == (0, 0, 0, 0)
    picture[:80] = np.linspace(250, 210, 80)[:, None]  # a sky
    assert paper_sides(picture) == (0, 0, 0, 0)
    dissolving = np.where(rng.random((200, 100)) < np.linspace(-0.2, 2, 200)[:, None], picture, 250)
    assert paper_sides(np.asarray(dissolving, np.uint8)) == (0, 0, 0, 0)
