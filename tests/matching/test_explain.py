"""The diagnostic picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cropreg.matching import explain as explaining
from cropreg.matching import place as places
from cropreg.matching.explain import explain

from .conftest import decoded, encode, scene


def test_the_explanation_shows_four_panels_for_a_found_pair(original, pixels):
    sheet = decoded(explain(original, encode(pixels[217:990, 403:1406]))[1])
    assert sheet.shape[1] > 900
    assert sheet.shape[0] > 600


def test_the_tiles_are_those_of_the_place_that_was_settled_on_not_of_one_given_up(original, pixels, monkeypatch):
    search, drawn = explaining.search, []

    def misled(*args):
        found = search(*args)
        elsewhere = places.compose(places.shifted(-380, 200), found.place)
        return found if args[4] else replace(found, fit=replace(found.fit, place=elsewhere))

    monkeypatch.setattr(explaining, "search", misled)
    monkeypatch.setattr(
        explaining, "_residual", lambda found: drawn.append(found.place[:, 2].tolist()) or np.zeros((9, 9, 3), np.uint8)
    )
    explain(original, encode(pixels[217:990, 403:1406]))
    assert np.allclose(drawn, [[403, 217]], atol=1)


@pytest.mark.parametrize("crop", [b"no picture", encode(scene(2)[:700, :900]), encode(scene(1)[:40, :60])])
def test_the_explanation_never_raises_for_a_bad_pair(original, crop):
    assert explain(original, crop)[1].startswith(b"\x89PNG")
