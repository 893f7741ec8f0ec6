"""Small crops that show hardly more than an edge: it looks alike all along, and like others; what is said of them must be right."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg.boxes import Box
from cropreg.matching import find as finding
from cropreg.matching import place as places
from cropreg.matching.find import find
from cropreg.matching.follow import Found, _levels, compare
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Pair, Plane
from cropreg.matching.register import register
from cropreg.matching.rivals import _followed, tell_apart
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.settle import settle

from .conftest import encode, scene

S = MatcherSettings()
GREY = np.ascontiguousarray(scene(8)[..., 1])
WIDE, HIGH = 81, 47


@cache
def bands(seed: int) -> NDArray[np.uint8]:
    """Pale bands that swing across a dark wall; each has a sharp edge and one that fades."""
    rows, columns = np.mgrid[:800, :1260].astype(float)
    random = np.random.default_rng(seed)
    phase = (rows + 60 * np.sin(columns / 170 + random.uniform(0, 6)) + 0.45 * columns) / 110
    phase = (phase + 0.15 * np.sin(columns / 90) * np.cos(rows / 130)) % 1
    tone = 20 + 220 * np.clip((phase - 0.2) / 0.25, 0, 1) * (phase < 0.75)
    return np.clip(cv2.GaussianBlur(tone, (0, 0), 1) + random.normal(0, 1, tone.shape), 0, 255).astype(np.uint8)


def at(pair: Pair, x: int, y: int) -> Found:
    """What a comparison sees at a place."""
    fit = register(pair, places.shifted(x, y), "shift", iterations=5)
    return Found(fit, compare(pair, fit.place, S), "ncc", pair)


def cut(seed: int, x: int, y: int, settings: MatcherSettings = S) -> Match:
    """The match of a small crop of the wall, both saved as JPEG."""
    wall = bands(seed)
    return find(encode(wall, quality=92), encode(wall[y : y + HIGH, x : x + WIDE], quality=90), settings)


@pytest.mark.parametrize(("seed", "x", "y"), [(26, 643, 255), (18, 316, 162)])
def test_an_edge_that_looks_like_another_is_told_from_it_by_what_is_left_over(seed, x, y):
    assert cut(seed, x, y).verdict in ("no_match", "doubtful", "ambiguous")
    blind = cut(seed, x, y, MatcherSettings(most_unexplained=1e9, another_picture=1e9, repeat_ncc=2.0))
    assert blind.verdict == "found" and blind.box != Box(x, y, x + WIDE, y + HIGH)


def test_nor_is_it_believed_where_something_else_looks_much_like_it():
    assert cut(45, 1017, 459).verdict in ("no_match", "doubtful", "ambiguous")
    blind = cut(45, 1017, 459, MatcherSettings(alone_gap=-1.0))
    assert blind.verdict == "found" and blind.box != Box(1017, 459, 1017 + WIDE, 459 + HIGH)


@pytest.mark.parametrize(("seed", "x", "y"), [(15, 164, 496), (25, 830, 559), (55, 477, 162)])
def test_a_place_from_which_the_windows_slide_to_the_very_place_is_no_second_one(seed, x, y):
    match = cut(seed, x, y)
    assert (match.verdict, match.box) == ("found", Box(x, y, x + WIDE, y + HIGH))


def test_where_something_looks_alike_the_right_place_is_looked_for_again():
    match = cut(23, 331, 6)
    assert (match.verdict, match.box) == ("found", Box(331, 6, 331 + WIDE, 6 + HIGH))
    assert cut(23, 331, 6, MatcherSettings(most_unexplained=1e9, another_picture=1e9)).verdict != "found"


@pytest.mark.parametrize(
    ("left_over", "taken"), [((0.2, 1.1), False), ((1.1, 0.2), True), ((None, 1.1), True), ((1.1, None), True)]
)
def test_another_place_is_taken_only_if_it_leaves_no_more_over(monkeypatch, left_over, taken):
    search, seen = finding.search, []
    unsure, other = Match("doubtful", "first"), Match("found")
    answers = [(unsure, False, left_over[0]), (other, True, left_over[1])]
    monkeypatch.setattr(finding, "search", lambda *a: seen.append(seen[0] if seen else search(*a[:4])) or seen[-1])
    monkeypatch.setattr(finding, "_settled", lambda *a: answers[len(seen) - 1])
    assert find(encode(GREY), encode(GREY[200:900, 300:1300])) == (other if taken else unsure)
    assert len(seen) == 2


def test_a_clear_peak_is_believed_rather_than_what_slides_away_from_it():
    match = cut(58, 530, 491)
    assert (match.verdict, match.box) == ("found", Box(530, 491, 530 + WIDE, 491 + HIGH))
    assert cut(58, 530, 491, MatcherSettings(peak_ncc=1.1)).verdict != "found"


def test_a_small_crop_with_much_texture_is_not_asked_what_is_left_over():
    part = np.ascontiguousarray(GREY[300:400, 500:620])
    whole, crop = Picture.of_pixels(GREY, ""), Picture.of_pixels(part, "")
    found = at(Pair(Plane(GREY).smoothed(0.9), Plane(part).smoothed(0.9), 15), 500, 300)
    assert settle(whole, crop, found, True, S).unexplained is None
    assert settle(whole, crop, found, True, S, alone=False).unexplained is not None


def test_places_a_pixel_apart_are_one_and_places_farther_apart_are_tied():
    wall = np.tile(GREY[:300, :300], (3, 3))
    crop = np.ascontiguousarray(wall[320:520, 330:560])
    found = at(Pair(Plane(wall).smoothed(0.9), Plane(crop).smoothed(0.9), 15), 330, 320)
    pictures = Picture.of_pixels(wall, ""), Picture.of_pixels(crop, "")
    near, far = places.shifted(332, 321), places.shifted(30, 320)
    assert tell_apart(*pictures, found, [near], S) == (found, False)
    assert tell_apart(*pictures, found, [near, far], S)[1]


def test_places_a_few_pixels_apart_that_both_fit_are_two():
    wall = np.tile(GREY[:300, 40:45], (1, 100))
    crop = np.ascontiguousarray(wall[100:250, 100:300])
    found = at(Pair(Plane(wall).smoothed(0.9), Plane(crop).smoothed(0.9), 15), 100, 100)
    assert tell_apart(Picture.of_pixels(wall, ""), Picture.of_pixels(crop, ""), found, [places.shifted(105, 100)], S)[1]


@pytest.mark.parametrize(("px", "quality"), [(50, 80), (90, 80)])
def test_a_small_crop_of_a_repeating_wall_is_ambiguous_though_each_part_was_coded_by_itself(px, quality):
    tile = cv2.GaussianBlur(np.tile(np.random.default_rng(px).normal(0, 1, (px, px)).astype(np.float32), (3, 3)), (0, 0), 3)
    tile = tile[px : 2 * px, px : 2 * px]
    wall = np.clip(np.tile(tile / tile.std() * 30 + 128, (900 // px + 1, 1200 // px + 1)), 0, 255).astype(np.uint8)
    original = encode(wall, quality=quality)
    decoded = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert find(original, encode(decoded[203:322, 311:488], quality=92)).verdict == "ambiguous"


@pytest.mark.parametrize(("start", "follows"), [((330, 320), False), ((36, 324), True), ((100, 100), False)])
def test_a_rival_is_followed_only_where_it_fits_and_is_another_place(start, follows):
    wall = np.tile(GREY[:300, :300], (3, 3))
    pair = Pair(Plane(wall).smoothed(0.9), Plane(wall[320:520, 330:560]).smoothed(0.9), 15)
    place = _followed([pair.reduced(4), pair.reduced(2)], [0.9, 0.9], places.shifted(*start), places.shifted(330, 320), (230, 200))
    assert (place is not None) == follows
    assert place is None or np.abs(place[:, 2] - (30, 320)).max() < 0.5


def test_a_clear_peak_near_enough_is_followed_on_the_finest_level_alone():
    assert list(_levels(3.0, "shift", clear=True)) == [0]
    assert list(_levels(3.0, "shift", clear=False)) == [1, 0]
    assert list(_levels(6.0, "shift", clear=True)) == [2, 0]
    assert list(_levels(3.0, "similarity", clear=True)) == [2, 1, 0]
