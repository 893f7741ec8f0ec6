"""Skies and walls: plain crops that show nothing but the noise both files share."""

from __future__ import annotations

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
