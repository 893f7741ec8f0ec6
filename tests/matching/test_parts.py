"""The stages by themselves: what each promises to the next."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from cropreg.boxes import Box
from cropreg.images import decode_reduced
from cropreg.matching import place as places
from cropreg.matching import rivals, settle
from cropreg.matching.find import find
from cropreg.matching.fine import Window, common_place
from cropreg.matching.follow import Found, follow
from cropreg.matching.judge import answer
from cropreg.matching.kept import _lies_flat, kept_or_free
from cropreg.matching.local import displacements, pull_at_edges, shared_slope
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Pair, Plane, band_pass, band_pass_part
from cropreg.matching.progressive import first_scan
from cropreg.matching.register import PATIENCE, register
from cropreg.matching.rivals import Elsewhere
from cropreg.matching.search import Candidate, standing_out, summits
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.verify import verify

from .conftest import encode, scene

TURNED = np.array([[1.0, -1e-5, 300.0], [1e-5, 1.0, 200.0]])


def test_the_settings_need_neither_opencv_nor_numpy():
    code = "import sys, cropreg.matching.settings; sys.exit(bool({'cv2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_setting_tells_its_reason():
    assert all(field.description for field in MatcherSettings.model_fields.values())


@pytest.mark.parametrize("size_wh", [(6, 9), (40, 31), (300, 211)])
def test_a_slope_of_tone_has_no_edge_where_a_part_was_cut_out_of_it(size_wh):
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size_wh))
    slope = 3 * x - 2 * y + 20
    assert np.abs(band_pass_part(slope, 5)).max() < 1e-3
    assert np.abs(band_pass(slope, 5)).max() > 1


def test_small_parts_are_band_passed_like_large_ones():
    picture = np.random.default_rng(5).normal(120, 20, (90, 400)).astype(np.float32)
    middle = np.s_[20:70, 100:140]
    inner = np.s_[7:-7, 7:-7]
    assert np.allclose(band_pass_part(picture[middle], 15)[inner], band_pass_part(picture, 15)[middle][inner], atol=1e-3)
    wide, narrow = np.tile(picture[:40, :40], (1, 10)), picture[:40, :40]  # beyond the borders at the top both go on alike
    assert np.allclose(band_pass_part(wide, 15)[:, 20:21], band_pass_part(narrow, 15)[:, 20:21], atol=1e-3)


@pytest.fixture(scope="module")
def pair() -> Pair:
    picture = scene(7, 640, 480)[..., 0]
    return Pair(Plane(picture).smoothed(0.9), Plane(picture[100:340, 120:440]).smoothed(0.9), 15)


@pytest.mark.parametrize("model", ["shift", "turn", "scale", "similarity", "free"])
def test_registration_leads_back_to_the_place_and_predicts_its_error(pair, model):
    fit = register(pair, places.shifted(121.3, 98.9), model, iterations=20)
    assert fit.converged
    assert places.distance_px(fit.place, places.shifted(120, 100), (320, 240)) < 0.02
    assert fit.sigma_px < 0.05


def test_registration_gives_up_where_nothing_agrees(pair):
    fit = register(pair, places.shifted(10, 10), "shift", iterations=20)
    assert fit.ncc < 0.5


def test_registration_loses_patience_where_little_agrees_but_not_where_it_starts_far_off(pair, monkeypatch):
    steps: list[object] = []
    moved = Pair.moved
    monkeypatch.setattr(Pair, "moved", lambda self, matrix: steps.append(matrix) or moved(self, matrix))
    far = places.shifted(130, 100)
    register(pair, far, "shift", iterations=20)
    patient = len(steps)
    assert register(pair, far, "shift", iterations=20, least_ncc=0.99).ncc < 0.2
    assert len(steps) - patient == PATIENCE + 1 < patient
    assert register(pair, places.shifted(123, 100), "shift", iterations=20, least_ncc=0.5).converged


def test_windows_of_mere_noise_do_not_pull_the_place(pair):
    centers = np.array([[0.0, 0.0], [320.0, 0.0], [0.0, 240.0], [320.0, 240.0]])
    wishes = [(0.1, 0.1, 0.2), (0.1, 0.1, 0.3), (0.1, 0.1, 0.1), (6.0, 9.0, 0.86)]  # x, y, rest
    windows = [Window(c, np.array(wish[:2]), 0.04, wish[2], pair) for c, wish in zip(centers, wishes, strict=True)]
    for window, center in zip(windows, centers, strict=True):
        vars(window)["told_at"] = np.array([center, center])
    start = places.shifted(10, 20)
    place = common_place(windows, start, 0.5, telling_rest=0.5)
    assert places.distance_px(place, places.shifted(10.1, 20.1), (320, 240)) < 0.01
    for window in windows:  # nothing better is left
        vars(window)["rest"] = 0.8
    noise = windows
    assert np.isfinite(common_place(noise, start, 0.5, telling_rest=0.5)).all()


def test_a_window_tells_of_each_direction_where_its_slopes_are():
    picture = np.full((300, 400), 90, np.uint8)
    picture[:, 250:] += 60  # an upright edge, and
    picture[90:] += 40  # a horizon
    crop = Plane(picture).window(100, 20, 360, 220)
    window = Window(np.array([130.0, 100.0]), np.zeros(2), 0.01, 0.0, Pair(Plane(picture), crop, 15))
    (x_of_x, _), (_, y_of_y) = window.told_at
    assert abs(x_of_x - 250) < 1 and abs(y_of_y - 90) < 1, "in the pixels of the picture that the crop is a part of"


def test_verification_tells_the_place_from_its_surroundings(pair):
    right = verify(pair, places.shifted(120, 100), most_tiles=8, least_tile_px=10, noise=0.4)
    wrong = verify(pair, places.shifted(150, 130), most_tiles=8, least_tile_px=10, noise=0.4)
    assert right.low > 0.99
    assert wrong.low < 0.3
    assert right.tiles == 64


def test_a_place_that_leaves_the_original_says_by_how_much(pair):
    assert verify(pair, places.shifted(480, 0), most_tiles=8, least_tile_px=10, noise=0.4).inside == pytest.approx(0.5, abs=0.01)


def test_tiles_of_an_object_that_moved_tell_by_how_much():
    picture = scene(8, 640, 480)[..., 1].astype(np.float32)
    moved = picture.copy()
    moved[160:288, 192:320] = picture[160:288, 191:319]
    pair = Pair(Plane(picture).smoothed(0.9), Plane(moved).smoothed(0.9), 15)
    found = displacements(pair, places.shifted(0, 0), tiles_px=(32,))[0]
    still = np.hypot(*np.moveaxis(found.shifts_px, -1, 0))
    inner = found.shifts_px[6:8, 7:9]  # rows and columns of 32 px well inside the object
    assert np.allclose(inner[..., 0], -1, atol=0.25)
    assert still[:4].max() < 0.02


@pytest.mark.parametrize(
    ("stretch_x", "stretch_y", "turn_deg", "pull_px"),
    [(1, 1, 0, 0), (1.002, 1, 0, 0.64), (1, 1.002, 0, 0.48), (0.998, 0.998, 0, 0.64), (1, 1, 0.1, 0.56), (1, 1, -0.1, 0.56)],
)
def test_tiles_tell_by_how_much_a_turn_or_a_stretch_moves_the_edges(stretch_x, stretch_y, turn_deg, pull_px):
    picture = scene(8, 640, 480)[..., 1].astype(np.float32)
    turn = np.deg2rad(turn_deg)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([stretch_x, stretch_y])
    center = np.array([319.5, 239.5])
    matrix = np.column_stack([linear, center - linear @ center])
    other = cv2.warpAffine(picture, matrix, (640, 480), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    pair = Pair(Plane(picture).smoothed(0.9), Plane(other).smoothed(0.9), 15)
    tiles = displacements(pair, places.shifted(0, 0), tiles_px=(16,))[0]
    pull, error = pull_at_edges(tiles, tiles.sigmas_px < 0.08, 640 / 480)
    assert pull == pytest.approx(pull_px, rel=0.2, abs=0.03)  # one step of Lucas-Kanade overshoots
    assert error < 0.03


@pytest.mark.parametrize(("size_wh", "flat"), [((1000, 700), True), ((1004, 703), False), ((996, 697), False)])
def test_tiles_tell_a_crop_as_it_was_cut_from_one_of_nearly_its_size(size_wh, flat):
    original = scene(8)
    crop = cv2.resize(original[200 : 200 + size_wh[1], 300 : 300 + size_wh[0]], (1000, 700), interpolation=cv2.INTER_AREA)
    whole, part = Picture.of_pixels(original, "original"), Picture.of_pixels(crop, "crop")
    s = MatcherSettings()
    near = Candidate(places.shifted(300 + (size_wh[0] - 1000) / 2, 200 + (size_wh[1] - 700) / 2), 0.9, 16.0)
    found = follow(whole, part, [near], "shift", "ncc", s)
    assert found.is_shift
    assert _lies_flat(found, s) is flat
    assert kept_or_free(whole, part, found, s)[1] is flat


@pytest.mark.parametrize(("turn_deg", "kept"), [(0.0, True), (0.4, False), (-0.8, False)])
def test_tiles_tell_a_turn_though_no_place_explains_much_of_the_crop(turn_deg, kept):
    """A black and white crop may have tones of its own, of which the original's grey shows hardly more after the turn than before."""
    original = scene(7)
    matrix = cv2.getRotationMatrix2D((900, 600), turn_deg, 1.0)
    matrix[:, 2] -= 400, 250
    crop = cv2.warpAffine(original, matrix, (1000, 700), flags=cv2.INTER_CUBIC).astype(np.float32)
    own = cv2.resize(np.random.default_rng(4).normal(0, 15, (70, 100)), (1000, 700), interpolation=cv2.INTER_CUBIC)
    crop = np.clip(crop + own[..., None], 0, 255).astype(np.uint8)
    whole, part = Picture.of_pixels(original, "original"), Picture.of_pixels(crop, "crop")
    s = MatcherSettings()
    found = follow(whole, part, [Candidate(places.shifted(400, 250), 0.9, 16.0)], "shift", "ncc", s)
    assert found.is_shift
    free, was_kept = kept_or_free(whole, part, found, s)
    assert was_kept is kept
    assert places.angle_deg(free.place) == pytest.approx(turn_deg, abs=0.05)


def test_a_crop_is_correlated_anew_with_another_original_or_otherwise():
    one, other = (Picture.of_pixels(scene(seed), "") for seed in (8, 9))
    crop = Picture.of_pixels(scene(8)[100:800, 200:1100], "")
    first = crop.maps_in(one, 48, 15)
    assert crop.maps_in(one, 48, 15) is first
    for original, template_px, band_px in ((other, 48, 15), (one, 48, 15), (one, 96, 15), (one, 48, 9)):
        fresh = Picture.of_pixels(scene(8)[100:800, 200:1100], "").maps_in(original, template_px, band_px)
        again = crop.maps_in(original, template_px, band_px)
        assert np.array_equal(again.plain, fresh.plain)
        assert np.array_equal(again.banded, fresh.banded)


@pytest.mark.parametrize(("finer", "anew"), [(1, False), (2, True)])
def test_rivals_are_sought_on_the_search_s_maps_only_at_its_resolution(finer, anew):
    whole, part = Picture.of_pixels(scene(8), ""), Picture.of_pixels(scene(8)[200:900, 300:1300], "")
    s = MatcherSettings()
    found = follow(whole, part, [Candidate(places.shifted(300, 200), 0.9, 16.0)], "shift", "ncc", s)
    template, _ = rivals._on_grid(found)
    factor = rivals.reduction((template.shape[1], template.shape[0]), s.template_px)
    turned = replace(found, fit=replace(found.fit, place=TURNED))  # a crop that was turned has maps of its own
    expected = rivals._correlated(whole, part, turned, template, factor // finer, s, plain=True)
    kept = part.maps_in(whole, s.template_px, s.band_px)
    scores = rivals._correlated(whole, part, found, template, factor // finer, s, plain=True)
    assert [is_band for is_band, _ in scores] == [False, True]
    assert [ours is own for (_, ours), own in zip(scores, (kept.plain, kept.banded), strict=True)] == [not anew, not anew]
    for (_, ours), (_, own) in zip(scores, expected, strict=True):
        assert np.abs(ours - own).max() < 0.1
    (only,) = rivals._correlated(whole, part, found, template, factor // finer, s, plain=False)
    assert only[0] and np.array_equal(only[1], scores[1][1])


@pytest.mark.parametrize(("elsewhere", "tied"), [(0.9, False), (0.03, True)])
def test_windows_of_a_sky_do_not_choose_between_two_places(pair, monkeypatch, elsewhere, tied):
    found = Found(register(pair, places.shifted(120, 100), "shift", iterations=1), None, "ncc", pair)
    other = places.shifted(40, 100)

    def windows(original, crop, place, *, rectangles, **_):
        rests = [0.90, 0.02] if place is found.place else [0.98, elsewhere]
        return [
            Window(np.array([(x1 + x2) / 2, (y1 + y2) / 2]), np.zeros(2), 0.01, rests[y2 > 160], pair)
            for x1, y1, x2, y2 in rectangles
        ]

    monkeypatch.setattr(rivals, "register_windows", windows)
    monkeypatch.setattr(rivals, "choose_windows", lambda *_: [(x, y, x + 80, y + 80) for y in (0, 80, 160) for x in (0, 80, 160)])
    pictures = [Picture.of_pixels(np.asarray(plane.pixels, np.uint8), "") for plane in (pair.original, pair.crop)]
    assert rivals.tell_apart(*pictures, found, [other], MatcherSettings()) == (found, tied)


@pytest.mark.parametrize(("least_rest", "verdict"), [(0.66, "found"), (0.80, "doubtful")])
def test_tiles_that_convince_are_not_believed_where_no_full_size_window_agrees(pair, least_rest, verdict):
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    evidence = verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4)
    windows = [Window(np.array([60.0, 60.0]), np.zeros(2), 0.01, rest, pair) for rest in (least_rest, 0.86, 0.82)]
    settled = settle.Settled(Found(fit, evidence, "ncc", pair), fit.place, True, 0.03, windows, tried=9)
    blank = Match("unreadable", original_wh=(640, 480), crop_wh=(320, 240))
    assert answer(blank, (320, 240), settled, Elsewhere(None, []), False, MatcherSettings(lively=1e9)).verdict == verdict


@pytest.mark.parametrize(("error_px", "verdict"), [(0.02, "found"), (4.5, "doubtful")])
def test_a_plain_crop_whose_windows_ask_for_different_places_is_not_found(pair, error_px, verdict):
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    evidence = verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4)
    windows = [Window(np.array([60.0, 60.0]), np.zeros(2), 0.01, 0.4, pair)] * 6
    settled = settle.Settled(Found(fit, evidence, "ncc", pair), fit.place, True, error_px, windows, tried=8)
    blank = Match("unreadable", original_wh=(640, 480), crop_wh=(320, 240))
    match = answer(blank, (320, 240), settled, Elsewhere(None, []), False, MatcherSettings(lively=1e9))
    assert match.verdict == verdict
    assert settled.may_be_mirage(MatcherSettings())


@pytest.mark.parametrize(
    ("rests", "verdict"),
    [
        ([0.01, 0.02, 0.01, 0.9], "found"),  # something painted over
        ([0.01, 0.02, 0.9, 0.9], "doubtful"),
        ([0.2, 0.3, 0.2, 0.25], "doubtful"),  # the same lines, and other numbers
        ([0.9], "found"),
    ],
)
def test_lively_windows_that_show_something_else_are_no_matter_of_jpeg(pair, rests, verdict):
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    evidence = verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4)
    windows = [Window(np.array([60.0, 60.0]), np.zeros(2), 0.01, rest, pair) for rest in rests]
    settled = settle.Settled(Found(fit, evidence, "ncc", pair), fit.place, True, 0.03, windows, tried=len(rests))
    blank = Match("unreadable", original_wh=(640, 480), crop_wh=(320, 240))
    of = MatcherSettings(strange_rest=1.1)
    assert answer(blank, (320, 240), settled, Elsewhere(None, []), False, of).verdict == verdict
    assert answer(blank, (320, 240), settled, Elsewhere(None, []), False, of.model_copy(update={"lively": 1e9})).verdict == "found"


@pytest.mark.parametrize(("apart_px", "least", "most"), [(0.1, 0.0, 0.5), (6.0, 5.0, 10.0)])
def test_windows_that_ask_for_different_places_are_told_by_the_predicted_error(pair, monkeypatch, apart_px, least, most):
    shifts = apart_px * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]])
    windows = [Window(np.array([60.0, 60.0]), shift, 0.01, 0.4, pair) for shift in shifts]
    monkeypatch.setattr(settle, "register_windows", lambda *_, **__: windows)
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    found = Found(replace(fit, sigma_px=1.0), verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4), "ncc", pair)
    original, crop = (Picture.of_pixels(np.asarray(plane.pixels, np.uint8), "") for plane in (pair.original, pair.crop))
    assert least <= settle.settle(original, crop, found, True, MatcherSettings()).error_px < most


@pytest.mark.parametrize(("apart_px", "kept"), [(0.0, False), (0.05, False), (0.8, True)])
def test_windows_that_disagree_do_not_tell_that_a_crop_was_sampled_anew(pair, monkeypatch, apart_px, kept):
    shifts = [np.array([0.33 + x * apart_px, y * apart_px]) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    windows = [Window(np.array([60.0, 60.0]), shift, 0.01, 0.01, pair) for shift in shifts]
    monkeypatch.setattr(settle, "register_windows", lambda *_, **__: windows)
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    found = Found(replace(fit, sigma_px=1.0), verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4), "ncc", pair)
    original, crop = (Picture.of_pixels(np.asarray(plane.pixels, np.uint8), "") for plane in (pair.original, pair.crop))
    settled = settle.settle(original, crop, found, True, MatcherSettings())
    assert settled.kept is kept
    assert np.allclose(settled.place[:, 2] % 1, 0) is kept


@pytest.mark.parametrize(("low", "windows", "verdict"), [(0.45, 1, "doubtful"), (0.45, 3, "found"), (0.76, 0, "found")])
def test_a_line_that_fits_at_any_scale_does_not_place_a_resized_crop(pair, low, windows, verdict):
    fit = register(pair, places.shifted(120, 100), "shift", iterations=20)
    evidence = replace(verify(pair, fit.place, most_tiles=8, least_tile_px=10, noise=0.4), median=0.8, low=low)
    seen = [Window(np.array([60.0, 60.0]), np.zeros(2), 0.01, 0.07, pair)] * windows
    settled = settle.Settled(Found(fit, evidence, "ncc", pair), fit.place, False, 0.03, seen or None, tried=windows)
    blank = Match("unreadable", original_wh=(640, 480), crop_wh=(320, 240))
    assert answer(blank, (320, 240), settled, Elsewhere(None, []), False, MatcherSettings()).verdict == verdict


def test_the_first_scan_of_a_progressive_file_shows_the_same_reduced_picture():
    data = encode(scene(9), progressive=True, quality=90)
    start = first_scan(data)
    assert start is not None
    assert len(start) < len(data) / 4
    whole, part = (decode_reduced(d, "x", 8, grey=True).pixels.astype(int) for d in (data, start))
    assert np.abs(whole - part).mean() < 1.5


def test_a_baseline_file_and_one_without_its_end_have_no_first_scan():
    assert first_scan(encode(scene(9, 200, 100))) is None
    data = encode(scene(9, 400, 300), progressive=True)
    assert first_scan(data[:-20]) is None


def test_registering_leaves_no_shear_behind_though_the_planes_steps_differ():
    original = Plane(cv2.resize(scene(5)[..., 1], (227, 151), interpolation=cv2.INTER_AREA), (8.0, 8.0)).smoothed(0.9)
    box = Box(320.0, 240.0, 1280.0, 880.0)
    pixels = Image.fromarray(scene(5)[240:880, 320:1280, 1]).resize((96, 66), Image.Resampling.BOX)  # 10 and 9.7 px a pixel
    crop = Plane(np.asarray(pixels), (10.0, 640 / 66)).smoothed(0.9)
    start = places.from_box(box, (960, 640), 8.0)
    (a, b, _), (c, d, _) = register(Pair(original, crop, 15), start, "similarity", iterations=30).place
    assert abs(a - d) < 1e-9 and abs(b + c) < 1e-9


def test_a_place_stands_out_where_it_is_the_only_one():
    picture = scene(11, 640, 480)[..., 0]
    crop = picture[100:340, 120:440]
    (candidate,) = standing_out(Plane(picture), Plane(crop), 160, 15, 0.85)
    assert places.distance_px(candidate.place, places.shifted(120, 100), (320, 240)) < 2
    assert standing_out(Plane(scene(12, 640, 480)[..., 0]), Plane(crop), 160, 15, 0.85) == []
    twice = np.hstack([picture, picture])
    assert standing_out(Plane(twice), Plane(crop), 160, 15, 0.85) == []
    assert standing_out(Plane(crop), Plane(picture), 160, 15, 0.85) == []


def test_more_resolution_finds_what_the_first_searches_have_missed(monkeypatch):
    monkeypatch.setattr("cropreg.matching.find.at_same_scale", lambda *_: [])
    monkeypatch.setattr("cropreg.matching.find.by_features", lambda *_, **__: [])
    monkeypatch.setattr("cropreg.matching.find.over_scales", lambda *_, **__: [])
    picture = scene(11, 1600, 1200)
    match = find(encode(picture, quality=92), encode(picture[130:910, 241:1300], quality=85))
    assert (match.verdict, match.box) == ("found", Box(241, 130, 1300, 910))


@pytest.mark.parametrize(("beyond_px", "most_px"), [(1.0, 1.5), (7.0, 7.5)])
def test_a_place_beyond_the_border_is_held_against_the_windows_that_ask_for_it(pair, monkeypatch, beyond_px, most_px):
    windows = [Window(np.array([60.0, 60.0 + i]), np.array([beyond_px, 0.0]), 0.01, 0.1, pair) for i in range(6)]
    monkeypatch.setattr(settle, "register_windows", lambda *_, **__: windows)
    fit = replace(register(pair, places.shifted(120, 100), "shift", iterations=20), place=places.shifted(320, 100), sigma_px=1.0)
    found = Found(fit, verify(pair, places.shifted(120, 100), most_tiles=8, least_tile_px=10, noise=0.4), "ncc", pair)
    original, crop = (Picture.of_pixels(np.asarray(plane.pixels, np.uint8), "") for plane in (pair.original, pair.crop))
    settled = settle.settle(original, crop, found, True, MatcherSettings())
    assert settled.place[0, 2] == 320
    far = settled.error_px > MatcherSettings().scattered_px
    assert far is (beyond_px > 4) and settled.error_px < most_px


@pytest.mark.parametrize("angle_deg", [0, 30, 90])
def test_slopes_are_shared_where_both_show_the_same_and_not_along_lines(angle_deg):
    rng = np.random.default_rng(angle_deg)
    noise = [rng.normal(0, 1, (150, 200)).astype(np.float32) for _ in range(2)]
    y, x = np.mgrid[:150, :200]
    across = x * np.cos(np.radians(angle_deg)) + y * np.sin(np.radians(angle_deg))
    lines, spots = 40 * np.sin(across / 4), 40 * cv2.GaussianBlur(rng.normal(0, 1, (150, 200)), (0, 0), 2)

    def shared(picture):
        planes = (Plane((picture + n).astype(np.float32)) for n in noise)
        return shared_slope(Pair(*planes, 15), places.shifted(0, 0))

    assert shared(lines) < 0.3
    assert shared(spots) > 0.8


def test_a_map_without_room_has_no_summits() -> None:
    for shape in ((0, 5), (4, 0)):
        assert summits(np.empty(shape, np.float32), 3, apart_px=2) == []


def test_windows_that_agree_correct_a_stretch_that_the_planes_were_led_to(pixels) -> None:
    """As the ruled lines of a table lead them, all of which lie in one direction."""
    grey = np.ascontiguousarray(pixels[..., 1])
    original, crop = Picture.of_pixels(grey, "original"), Picture.of_pixels(grey[100:700, 200:1200], "crop")
    pair = Pair(original.search_plane.smoothed(0.9), crop.search_plane.smoothed(0.9), 15)
    fit = register(pair, places.shifted(200, 100), "shift", iterations=20)
    stretched = np.array([[0.996, 0, 204], [0, 1, 100]])
    evidence = verify(pair, stretched, most_tiles=8, least_tile_px=10, noise=0.4)
    found = Found(replace(fit, place=stretched), evidence, "ncc", pair)
    settled = settle.settle(original, crop, found, False, MatcherSettings(moving_median=1e-6))  # such tiles all want to move
    assert places.distance_px(settled.place, places.shifted(200, 100), crop.size_wh) < 0.2
