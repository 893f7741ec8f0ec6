"""Textures that repeat themselves every few pixels, as weaves and tiles do: another of their places is never taken for the right one."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from cropreg.boxes import Box
from cropreg.matching.find import find
from cropreg.matching.rivals import repeated_by
from cropreg.matching.settings import MatcherSettings

from .conftest import Pixels, encode

S = MatcherSettings()


def weave(seed: int, wide: int, high: int, noise: float, light: float = 25.0, size_wh: tuple[int, int] = (1600, 1200)) -> Pixels:
    """A pattern of ``wide`` x ``high`` pixels all over, under a light that falls off slowly, and the noise of one exposure."""
    random, (w, h) = np.random.default_rng(seed), size_wh
    tile = cv2.GaussianBlur(np.tile(random.normal(0, 1, (high, wide)), (3, 3)), (0, 0), 0.7)[high : 2 * high, wide : 2 * wide]
    tones = np.tile(tile / tile.std() * 20, (h // high + 1, w // wide + 1))[:h, :w]
    falling = cv2.resize(random.normal(0, light, (6, 8)), (w, h), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + tones + falling + random.normal(0, noise, (h, w)), 0, 255).astype(np.uint8)


def verdicts(noise: float, wide: int, high: int, size_wh: tuple[int, int]) -> Counter[str]:
    """How often crops of some weaves are found, ``wrong``ly or not, and otherwise what is said."""
    counted: Counter[str] = Counter()
    for seed in range(6):
        picture, random = weave(seed, wide, high, noise, size_wh=size_wh), np.random.default_rng(seed + 100)
        w, h = int(random.integers(120, 600)), int(random.integers(100, 400))
        x, y = int(random.integers(size_wh[0] - w)), int(random.integers(size_wh[1] - h))
        match = find(encode(picture, quality=92), encode(picture[y : y + h, x : x + w], quality=int(random.integers(70, 96))))
        right = match.box == Box(x, y, x + w, y + h)
        counted[match.verdict if match.verdict != "found" or right else "wrong"] += 1
    return counted


SIZES = [(4, 8, (900, 700)), (11, 5, (2000, 1300)), (6, 7, (900, 700)), (10, 10, (1600, 1200)), (3, 12, (1600, 1200))]


@pytest.mark.parametrize(("wide", "high", "size_wh"), SIZES)
def test_places_that_nothing_tells_apart_are_never_found(wide, high, size_wh):
    counted = verdicts(0.0, wide, high, size_wh)
    assert counted["wrong"] == 0 and counted["ambiguous"] >= 2


@pytest.mark.parametrize(("wide", "high", "size_wh"), SIZES)
def test_noise_tells_one_repeat_from_the_next(wide, high, size_wh):
    counted = verdicts(5.0, wide, high, size_wh)
    assert counted["wrong"] == 0 and counted["found"] >= 1


def test_one_of_many_windows_of_a_facade_is_not_told_from_the_others():
    random = np.random.default_rng(3)
    tile = cv2.GaussianBlur(random.normal(128, 120, (69, 79)), (0, 0), 3).clip(0, 255)
    facade = np.tile(tile, (10, 14)) + random.normal(0, 0.7, (690, 1106))
    crop = facade[220:265, 500:560]
    assert find(*(encode(part.clip(0, 255).astype(np.uint8), quality=92) for part in (facade, crop))).verdict == "ambiguous"


def test_by_which_moves_a_texture_repeats_itself():
    random = np.random.default_rng(1)
    tile = cv2.GaussianBlur(np.tile(random.normal(0, 20, (9, 12)), (3, 3)), (0, 0), 0.8)[9:18, 12:24].astype(np.float32)
    moves = repeated_by(np.tile(tile, (12, 9)), S.repeat_px, S.repeat_ncc)
    assert moves and all(x % 12 == 0 and y % 9 == 0 for x, y in moves)
    assert len(moves) <= 4 and all(abs(x) <= 16 and abs(y) <= 16 for x, y in moves)
    assert not repeated_by(random.normal(0, 20, (100, 100)).astype(np.float32), S.repeat_px, S.repeat_ncc)
    assert not repeated_by(tile[:6, :6], S.repeat_px, S.repeat_ncc)


@pytest.mark.parametrize("noise", [1.5, 4.0])
def test_another_exposure_of_a_facade_is_not_told_by_its_fine_texture(noise):
    """Its windows are alike; its plaster is as fine as grain, but the same in every exposure."""
    random = np.random.default_rng(3)
    tile = cv2.GaussianBlur(random.normal(128, 120, (69, 79)), (0, 0), 3).clip(0, 255)
    facade = np.tile(tile, (20, 24)) + random.normal(0, 6, (1380, 1896))
    one, other = (
        np.clip(facade + np.random.default_rng(k).normal(0, noise, facade.shape), 0, 255).astype(np.uint8) for k in (1, 2)
    )
    original = encode(one, quality=95)
    match = find(original, encode(one[600:1200, 800:1500], quality=92))
    assert (match.verdict, match.box) == ("found", Box(800, 600, 1500, 1200))
    assert find(original, encode(other[600:1200, 800:1500], quality=92)).verdict != "found"
