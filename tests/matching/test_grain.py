"""Skies and walls: plain crops that show nothing but the noise both files share."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cropreg.boxes import Box
from cropreg.matching.find import find

from .conftest import Pixels, encode

X, Y, W, H = 413, 250, 331, 277


def sky(seed: int, noise: float, width: int = 1500, height: int = 1000) -> Pixels:
    """A clear sky: a soft gradient, and the noise of one exposure."""
    rng = np.random.default_rng(seed)
    tone = np.linspace(90, 170, height)[:, None] + np.linspace(0, 8, width)[None]
    return np.clip(np.repeat((tone + rng.normal(0, noise, tone.shape))[..., None], 3, axis=2), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [100, 90])
def test_a_crop_of_a_clear_sky_is_found_by_its_grain(quality):
    picture = sky(1, 3.0)
    match = find(encode(picture, quality=97), encode(picture[Y : Y + H, X : X + W], quality=quality))
    assert match.verdict == "found" and match.box == Box(X, Y, X + W, Y + H)


def test_a_crop_of_the_next_exposure_of_a_clear_sky_is_not_found():
    match = find(encode(sky(1, 3.0), quality=97), encode(sky(2, 3.0)[Y : Y + H, X : X + W], quality=97))
    assert match.verdict in ("flat", "no_match")


def test_the_grid_of_jpegs_blocks_is_no_grain():
    rows, columns = np.mgrid[:1000, :1500]
    wall = np.repeat((128 + 2 * (rows % 8 == 0) + 2 * (columns % 8 == 0)).astype(np.uint8)[..., None], 3, axis=2)
    match = find(encode(wall, "PNG"), encode(wall[240 : 240 + H, 400 : 400 + W], "PNG"))
    assert match.verdict in ("flat", "no_match", "ambiguous", "doubtful")


def exposures(shared: float, own: float, count: int = 2) -> list[Pixels]:
    """A clear sky taken several times: some of its noise is the sensor's own pattern and the same each time."""
    rng = np.random.default_rng(7)
    tone = np.linspace(90, 110, 1000)[:, None] + np.linspace(0, 8, 1500)[None]
    pattern = rng.normal(0, shared, tone.shape)
    pictures = [np.clip(tone + pattern + rng.normal(0, own, tone.shape), 0, 255) for _ in range(count)]
    return [np.repeat(p.astype(np.uint8)[..., None], 3, axis=2) for p in pictures]


@pytest.mark.parametrize("noise", [1.0, 1.5])
def test_grain_of_which_jpeg_has_left_little_is_found_all_the_same(noise):
    picture = sky(3, noise)
    match = find(encode(picture, quality=92), encode(picture[Y : Y + H, X : X + W], quality=80))
    assert match.verdict == "found" and match.box == Box(X, Y, X + W, Y + H)
    assert match.scale == 1 and match.angle_deg == 0 and match.probability is not None and match.probability > 0.9


def test_the_fixed_pattern_of_a_sensor_does_not_make_one_exposure_of_another():
    first, second = exposures(shared=0.4, own=1.2)
    crop = second[Y : Y + H, X : X + W]
    assert find(encode(first, "PNG"), encode(crop, "PNG")).verdict in ("flat", "no_match")
    assert find(encode(second, "PNG"), encode(crop, "PNG")).box == Box(X, Y, X + W, Y + H)


def test_dust_on_the_glass_does_not_make_one_scan_of_another():
    first, second = exposures(shared=0.0, own=1.2)
    for x, y in ((X + 40, Y + 60), (X + 250, Y + 210)):
        first[y : y + 3, x : x + 3] = second[y : y + 3, x : x + 3] = 40
    match = find(encode(first, "PNG"), encode(second[Y : Y + H, X : X + W], "PNG"))
    assert match.verdict != "found"


def test_grain_that_repeats_itself_fits_in_no_one_place():
    wall = np.tile((100 + np.random.default_rng(5).normal(0, 1.2, (200, 300))).astype(np.uint8), (5, 5))
    wall = np.repeat(wall[..., None], 3, axis=2)
    match = find(encode(wall, "PNG"), encode(wall[250 : 250 + H, 310 : 310 + W], "PNG"))
    assert match.verdict in ("flat", "no_match", "ambiguous", "doubtful")


@pytest.mark.parametrize(("share", "found"), [(0.5, False), (0.85, True)])
def test_nearly_all_of_a_crop_must_share_the_grain(share, found):
    """Put together of two exposures, or retouched in the middle; at the border that would be a frame."""
    first, second = exposures(shared=0.0, own=1.2)
    crop, left, right = first[Y : Y + H, X : X + W].copy(), int(W * share / 2), int(W * (1 - share / 2))
    crop[:, left:right] = second[Y : Y + H, X + left : X + right]
    assert (find(encode(first, "PNG"), encode(crop, "PNG")).verdict == "found") == found


def slats(seed: int) -> Pixels:
    """A wall of equal slats, its light falling off slowly, and the noise of one exposure: only that tells one slat from another."""
    rows, columns = np.mgrid[:1600, :2000]
    tone = 120 + 40 * np.exp(-(((rows - 900) / 700) ** 2)) + 40 * (columns % 90) / 90 - 30 * (columns % 90 > 70)
    return np.clip(tone + np.random.default_rng(seed).normal(0, 2.0, tone.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("x", "y"), [(800, 600), (300, 200)])
def test_grain_tells_one_slat_from_the_next_where_windows_ask_for_different_places(x, y):
    picture = slats(0)
    match = find(encode(picture, quality=95), encode(picture[y : y + 900, x : x + 1000], quality=92))
    assert (match.verdict, match.box) == ("found", Box(x, y, x + 1000, y + 900))
    other = find(encode(slats(9), quality=95), encode(picture[y : y + 900, x : x + 1000], quality=92))
    assert other.verdict in ("ambiguous", "doubtful", "no_match")


def test_a_large_crop_of_a_sky_does_not_become_float32_as_a_whole():
    picture = sky(5, 2.5, 4000, 3000)[..., 0]
    part = np.ascontiguousarray(picture[203:2804, 307:3710])
    tracemalloc.start()
    match = find(picture, part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert match.verdict == "found" and match.box == Box(307, 203, 3710, 2804)
    assert peak < 5 * part.size  # the maps of both pictures at a quarter take 3
