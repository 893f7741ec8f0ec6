"""What a person lays round a crop that is no even frame: doubtful, with the box of the picture inside."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from cropreg import boxes
from cropreg.boxes import Box
from cropreg.matching import find as finding
from cropreg.matching.border import foreign_sides
from cropreg.matching.find import find
from cropreg.matching.place import shifted
from cropreg.matching.plane import Pair, Plane
from cropreg.matching.verify import verify

from .conftest import Pixels, encode, evening, scene

pytestmark = pytest.mark.long

BOX = Box(403.0, 217.0, 1406.0, 990.0)
WHITE = (255, 255, 255)


def captioned(crop: Pixels) -> Pixels:
    h, w = crop.shape[:2]
    edge = w // 20
    card = cv2.copyMakeBorder(crop, edge, 4 * edge, edge, edge, cv2.BORDER_CONSTANT, value=WHITE)
    cv2.putText(card, "Summer 1974, at the sea", (edge, h + 3 * edge), cv2.FONT_HERSHEY_SIMPLEX, w / 700, (40, 40, 40), 3)
    return np.asarray(card, np.uint8)


def shadowed(crop: Pixels) -> Pixels:
    h, w = crop.shape[:2]
    edge = w // 25
    sheet = np.full((h + 2 * edge, w + 2 * edge, 3), 255, np.float32)
    sheet[3 * edge // 2 : 3 * edge // 2 + h, 3 * edge // 2 : 3 * edge // 2 + w] = 90
    sheet = cv2.GaussianBlur(sheet, (0, 0), edge / 3)
    sheet[edge : edge + h, edge : edge + w] = crop
    return np.asarray(sheet, np.uint8)


def framed_twice(crop: Pixels) -> Pixels:
    edge = crop.shape[1] // 50
    inner = cv2.copyMakeBorder(crop, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=(20, 20, 20))
    return np.asarray(cv2.copyMakeBorder(inner, *[3 * edge] * 4, cv2.BORDER_CONSTANT, value=WHITE), np.uint8)


def rounded(crop: Pixels) -> Pixels:
    h, w = crop.shape[:2]
    radius = h // 15
    shown = np.zeros((h, w), np.uint8)
    cv2.rectangle(shown, (radius, 0), (w - radius, h), 1, -1)
    cv2.rectangle(shown, (0, radius), (w, h - radius), 1, -1)
    for center in ((radius, radius), (w - radius, radius), (radius, h - radius), (w - radius, h - radius)):
        cv2.circle(shown, center, radius, 1, -1)
    return np.where(shown[..., None] == 1, crop, 255).astype(np.uint8)


@pytest.mark.parametrize("laid", [captioned, shadowed])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_caption_or_a_shadow_makes_a_crop_doubtful_and_is_left_out_of_the_box(
    original: bytes, pixels: Pixels, resize: Callable[[Pixels, float], Pixels], laid: Callable[[Pixels], Pixels], scale: float
) -> None:
    crop = laid(pixels[217:990, 403:1406])
    match = find(original, encode(resize(crop, scale) if scale < 1 else crop))
    assert (match.verdict, match.box is None) == ("doubtful", False)
    assert boxes.iou(tuple(match.box), tuple(BOX)) > 0.97


def test_two_frames_round_each_other_are_both_left_out(original: bytes, pixels: Pixels) -> None:
    match = find(original, encode(framed_twice(pixels[217:990, 403:1406])))
    assert match.verdict == "found"
    assert boxes.iou(tuple(match.box), tuple(BOX)) > 0.997


def test_rounded_corners_are_no_frame(original: bytes, pixels: Pixels) -> None:
    match = find(original, encode(rounded(pixels[217:990, 403:1406])))
    assert (match.verdict, match.box) == ("found", BOX)


def test_lines_are_counted_from_the_border_inwards_at_each_side() -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, (800, 1000)), (0, 0), 2)
    grey = (120 + 20 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    crop = grey[200:500, 300:720].copy()
    crop[:11], crop[:, -23:] = 250, 250
    whole, part = Plane(grey), Plane(crop)
    evidence = verify(Pair(whole, part, 15), shifted(300, 200), most_tiles=8, least_tile_px=10, noise=0.4)
    assert foreign_sides(whole, part, shifted(300, 200), evidence) == pytest.approx((0, 11, 23, 0), abs=1)


@pytest.mark.parametrize("side", range(4))
def test_a_bar_at_one_side_makes_a_crop_doubtful_and_is_left_out_of_the_box(original: bytes, pixels: Pixels, side: int) -> None:
    sides = [0, 0, 0, 0]
    sides[side] = 60
    match = find(
        original, encode(cv2.copyMakeBorder(pixels[217:990, 403:1406], *sides, cv2.BORDER_CONSTANT, value=(250, 250, 250)))
    )
    assert match.verdict == "doubtful"
    assert boxes.iou(tuple(match.box), tuple(BOX)) > 0.98


@pytest.mark.parametrize("seed", [20, 22, 24])
def test_dark_crops_that_jpeg_has_emptied_at_their_border_are_found(seed: int) -> None:
    dark = (scene(seed) * 0.25).astype(np.uint8)
    match = find(encode(dark), encode(dark[300:900, 500:1300], quality=40))
    assert (match.verdict, match.box) == ("found", Box(500.0, 300.0, 1300.0, 900.0))


def test_noise_laid_over_the_border_of_a_sky_is_not_found_with_it() -> None:
    crop = evening(1)[30:730, 50:950].copy()
    assert find(encode(evening(1)), encode(crop, quality=95)).verdict == "found"
    crop[-40:] = np.random.default_rng(1).integers(0, 255, (40, 900, 3))
    assert find(encode(evening(1)), encode(crop, quality=95)).verdict != "found"


@pytest.mark.parametrize("tone", [0, 255])
def test_what_fades_away_at_its_sides_is_no_frame(original: bytes, pixels: Pixels, tone: int) -> None:
    y, x = np.mgrid[:773, :1003]
    inside = np.minimum(np.minimum(x, 1002 - x), np.minimum(y, 772 - y)) / 100
    strength = np.clip(inside, 0, 1)[..., None] ** 5
    crop = (pixels[217:990, 403:1406] * strength + tone * (1 - strength)).astype(np.uint8)
    match = find(original, encode(crop))
    assert match.verdict != "found" or boxes.iou(tuple(match.box), tuple(BOX)) > 0.98


def test_three_frames_round_each_other_are_all_left_out(original: bytes, pixels: Pixels) -> None:
    crop = pixels[217:990, 403:1406]
    for px, tone in ((15, 0), (40, 255), (20, 0)):
        crop = np.pad(crop, ((px, px), (px, px), (0, 0)), constant_values=tone)
    match = find(original, encode(crop))
    assert match.verdict == "found"
    assert boxes.iou(tuple(match.box), tuple(BOX)) > 0.997


def test_frames_within_frames_are_followed_only_so_far(monkeypatch: pytest.MonkeyPatch, pixels: Pixels) -> None:
    crop = pixels[300:400, 500:640]
    for i in range(12):
        crop = np.pad(crop, ((30, 30), (30, 30), (0, 0)), constant_values=255 * (i % 2))
    trimmed: list[int] = []
    judge = finding._judge
    monkeypatch.setattr(finding, "_judge", lambda *a: trimmed.append(a[2].num_trimmed) or judge(*a))
    assert find(encode(pixels), encode(crop)).verdict != "found"
    assert max(trimmed) == finding.MOST_TRIMMED


def test_a_margin_of_the_original_s_own_is_no_bar_however_its_tones_were_edited(pixels: Pixels) -> None:
    page = pixels.copy()
    page[:, :460] = 0
    edited = (255 * (page[200:1000, 400:1400] / 255) ** 2.2).astype(np.uint8)
    match = find(encode(page), encode(edited))
    assert (match.verdict, match.box) == ("found", Box(400.0, 200.0, 1400.0, 1000.0))


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("edge", [0, 30])  # of the same paper round it
@pytest.mark.parametrize("caption", ["", "Summer 1974, at the sea"])
@pytest.mark.parametrize("box", [Box(0.0, 0.0, 1813.0, 1211.0), Box(403.0, 500.0, 1406.0, 1211.0), BOX])
def test_a_bar_of_paper_with_or_without_a_caption_is_left_out_to_the_pixel(
    original: bytes, pixels: Pixels, box: Box, caption: str, edge: int, scale: float
) -> None:
    """Beyond it lies nothing of the original, which the crop as it is would reach over."""
    x1, y1, x2, y2 = map(int, box)
    h, w = y2 - y1, x2 - x1
    card = cv2.copyMakeBorder(pixels[y1:y2, x1:x2], edge, h // 11 + edge, edge, edge, cv2.BORDER_CONSTANT, value=WHITE)
    cv2.putText(card, caption, (w // 6, card.shape[0] - h // 30), cv2.FONT_HERSHEY_SIMPLEX, w / 900, (30, 30, 30), 2, cv2.LINE_AA)
    match = find(original, encode(np.asarray(cv2.resize(card, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)))
    assert match.box is not None and match.verdict == ("found" if edge and not caption else "doubtful")
    assert max(abs(a - b) for a, b in zip(match.box, box, strict=True)) <= (0 if scale == 1 else 2.5)


def test_the_sky_of_another_picture_is_no_bar_of_paper() -> None:
    other = scene(4).copy()
    other[:200] = 200
    assert find(encode(scene(1)), encode(other[:900, :1300])).verdict == "no_match"
