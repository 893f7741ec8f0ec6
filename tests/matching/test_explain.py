"""The diagnostic picture."""

from __future__ import annotations

import pytest

from cropreg.matching.explain import explain

from .conftest import decoded, encode, scene


def test_the_explanation_shows_four_panels_for_a_found_pair(original, pixels):
    sheet = decoded(explain(original, encode(pixels[217:990, 403:1406]))[1])
    assert sheet.shape[1] > 900
    assert sheet.shape[0] > 600


@pytest.mark.parametrize("crop", [b"no picture", encode(scene(2)[:700, :900]), encode(scene(1)[:40, :60])])
def test_the_explanation_never_raises_for_a_bad_pair(original, crop):
    assert explain(original, crop)[1].startswith(b"\x89PNG")
