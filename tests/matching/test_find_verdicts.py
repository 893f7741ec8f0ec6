"""Every verdict, and the traps: right or silent."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cropreg import boxes
from cropreg.boxes import Box
from cropreg.matching import features, judge
from cropreg.matching import find as finding
from cropreg.matching import place as places
from cropreg.matching.find import find, find_in
from cropreg.matching.frame import inside_frame
from cropreg.matching.picture import Picture
from cropreg.matching.plane import band_pass
from cropreg.matching.search import bands_map, correlation_map
from cropreg.matching.settings import MatcherSettings

from .conftest import Pixels, decoded, encode, scene, turned

pytestmark = pytest.mark.long


def test_another_picture_is_no_match(original):
    match = find(original, encode(scene(2)[100:900, 200:1400]))
    assert (match.verdict, match.box) == ("no_match", None)
    assert match.reason == "No place in the original looks like the crop."


def test_a_resized_crop_of_another_picture_is_no_match(original, resize):
    assert find(original, encode(resize(scene(2)[100:900, 200:1400], 0.4))).verdict == "no_match"


@pytest.mark.parametrize("px", [350, 480, 600])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_crop_that_is_in_part_of_another_picture_is_not_found(original, pixels, resize, px, scale):
    crop = pixels[100:900, 200:1400].copy()
    crop[:, :px] = scene(5)[100:900, 200 : 200 + px]
    assert find(original, encode(resize(crop, scale) if scale < 1 else crop)).verdict in ("no_match", "doubtful")


def frame_of_a_burst(pixels: np.ndarray, seed: int) -> np.ndarray:
    """The same scene a moment later: things have moved by some pixels, and the noise is new."""
    rng = np.random.default_rng(seed)
    h, w = pixels.shape[:2]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    dx, dy = (cv2.resize(rng.normal(0, 3, (6, 6)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC) for _ in range(2))
    later = cv2.remap(pixels, x + dx, y + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(np.clip(later + rng.normal(0, 2, later.shape), 0, 255), np.uint8)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_neighbouring_frame_of_a_burst_is_no_match(original, pixels, seed):
    match = find(original, encode(frame_of_a_burst(pixels, seed)[100:1000, 200:1500]))
    assert match.verdict == "no_match"


@pytest.mark.parametrize(("px", "found"), [(1.3, True), (3.0, False)])
def test_windows_that_agree_on_a_pixel_outvote_an_edit_of_one_part_but_no_thing_that_moved(px, found):
    crop = scene(3)[200:1100, 300:1500]
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]].astype(np.float32)
    here = np.clip(3.9 - np.hypot(x - 1000, y - 700) / 30, 0, 1)
    match = find(encode(scene(3)), encode(cv2.remap(crop, x + px * here, y, cv2.INTER_CUBIC)))
    assert match.box == Box(300.0, 200.0, 1500.0, 1100.0)
    assert (match.verdict == "found") == found


def twin(pixels: np.ndarray, px: int) -> np.ndarray:
    """The same scene from a step aside: what is far away has moved behind what is near, and the noise is new."""
    h, w = pixels.shape[:2]
    near = np.zeros((h, w), np.float32)
    cv2.ellipse(near, (w // 2, h // 2), (w // 3, h // 4), 0, 0, 360, 1, -1)
    near = cv2.GaussianBlur(near, (0, 0), 1)[..., None]
    both = pixels * near + np.roll(pixels, px, 1) * (1 - near)
    return np.asarray(np.clip(both + np.random.default_rng(3).normal(0, 1.5, both.shape), 0, 255), np.uint8)


@pytest.mark.parametrize(("seed", "scale"), [(1, 1.0), (1, 0.6), (2, 1.0), (2, 0.6)])
def test_a_twin_of_a_stereo_pair_is_not_found_by_what_is_near(seed, scale, resize):
    crop = twin(scene(seed), 24)[100:1000, 200:1500]
    match = find(encode(scene(seed)), encode(resize(crop, scale) if scale < 1 else crop))
    assert match.verdict in ("no_match", "doubtful")


def test_two_equal_places_are_ambiguous():
    tile = scene(4, 420, 300)
    original = encode(np.tile(tile, (4, 4, 1)), "PNG")
    match = find(original, encode(decoded(original)[100:700, 150:990], quality=90))
    assert match.verdict == "ambiguous"
    assert match.reason == "The crop fits equally well in more than one place."
    assert match.gap < 0.01


@pytest.mark.parametrize("side", [60, 120, 150])
def test_a_second_place_is_sought_for_a_small_crop_of_the_corner_too(side):
    picture = scene(5, 1200, 1200)[..., 0].copy()
    picture[:200, :200] = picture[700:900, 800:1000]
    assert find(picture, picture[:side, :side].copy()).verdict == "ambiguous"


@pytest.mark.parametrize("scale", [0.9, 0.45])
def test_two_equal_places_are_ambiguous_for_a_resized_crop_too(resize, scale):
    original = encode(np.tile(scene(4, 420, 300), (4, 4, 1)), "PNG")
    match = find(original, encode(resize(decoded(original)[100:700, 150:990], scale), quality=90))
    assert match.verdict == "ambiguous"


@pytest.mark.parametrize(
    ("seed", "side", "more"), [(1, 40, 4), (2, 46, 4), (5, 40, 4), (6, 46, 4), (4, 80, 4), (7, 56, 2), (7, 80, 2)]
)
def test_two_equal_places_are_ambiguous_for_a_tiny_crop_too(seed, side, more):
    picture = scene(seed).copy()
    end = side + more
    picture[901 - more : 901 + end, 1305 - more : 1305 + end] = picture[203 - more : 203 + end, 411 - more : 411 + end]
    crop = encode(picture[203 : 203 + side, 411 : 411 + side], quality=90)
    match = find(encode(picture, "PNG"), crop)
    assert (match.verdict, match.box.size_wh) == ("ambiguous", (side, side))
    assert find(encode(scene(seed), "PNG"), crop).verdict == "found"


def test_a_resized_crop_of_what_motion_has_blurred_to_lines_is_not_found():
    streaks = cv2.blur(scene(7).astype(np.float32), (1201, 1))
    picture = np.clip(streaks + np.random.default_rng(7).normal(0, 0.7, streaks.shape), 0, 255).astype(np.uint8)
    crop = cv2.resize(picture[400:625, 900:1125], None, fx=0.66, fy=0.66, interpolation=cv2.INTER_AREA)
    assert find(encode(picture), encode(crop, quality=85)).verdict != "found"


def test_a_place_where_full_size_windows_see_something_else_is_given_up_for_the_next_best(original, pixels, resize, monkeypatch):
    search, asked = finding.search, []

    def misled(*args):  # the first time, as a shore misleads that is the same all along
        asked.append(args[4:])
        found = search(*args)
        if len(asked) > 1:
            return found
        turned_over = places.compose(found.place, np.array([[-1.0, 0, 700], [0, -1.0, 560]]))
        return replace(found, fit=replace(found.fit, place=turned_over), evidence=replace(found.evidence, tiles=3))

    monkeypatch.setattr(finding, "search", misled)
    crop = encode(resize(pixels[200:1000, 300:1300], 0.7))
    assert find(original, crop, MatcherSettings(most_mirages=0)).verdict != "found" and len(asked) == 1
    asked.clear()
    match = find(original, crop)
    assert match.verdict == "found" and match.box is not None and boxes.iou(list(match.box), [300, 200, 1300, 1000]) > 0.998
    assert len(asked) == 2 and len(asked[1][0]) == 1


def test_a_place_refused_as_another_scan_is_given_up_where_no_window_agrees_either(original, pixels, resize, monkeypatch):
    search, settle, asked = finding.search, finding.settle, []

    def misled(*args):  # the first time, as planks mislead that are much alike, seen from afar
        asked.append(args[4:])
        found = search(*args)
        return found if len(asked) > 1 else replace(found, fit=replace(found.fit, place=places.shifted(40, 30)))

    def refused(*args, **flags):
        settled = settle(*args, **flags)
        if len(asked) > 1:
            return settled
        windows = [replace(window, rest=0.7) for window in settled.windows or []]
        return replace(settled, kept=True, place=places.shifted(40, 30), windows=windows, tried=9, moved=0, unexplained=9.0)

    monkeypatch.setattr(finding, "search", misled)
    monkeypatch.setattr(finding, "settle", refused)
    monkeypatch.setattr(finding, "kept_or_free", lambda whole, part, found, s: (found, len(asked) == 1))
    crop = encode(resize(pixels[200:1000, 300:1300], 0.95))
    assert find(original, crop, MatcherSettings(most_mirages=0)).verdict == "no_match"
    asked.clear()
    match = find(original, crop)
    assert match.verdict == "found" and match.box is not None and boxes.iou(list(match.box), [300, 200, 1300, 1000]) > 0.998
    assert len(asked) == 2 and len(asked[1][0]) == 1


def test_a_frame_whose_parts_have_all_moved_far_is_told_without_full_decodes(original, pixels):
    h, w = pixels.shape[:2]
    wave = cv2.resize(np.random.default_rng(4).normal(0, 9, (7, 7)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    later = cv2.remap(pixels, x + wave, y - wave, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    whole, part = Picture(original, "original"), Picture(encode(later[100:1100, 200:1700]), "crop")
    match = find_in(whole, part)
    assert match.verdict == "no_match" and match.reason is not None and "neighbouring frame" in match.reason
    assert whole.finest_step == part.finest_step == 8.0


@pytest.mark.parametrize("size_wh", [(2900, 24), (2400, 8), (1500, 4), (900, 1), (3, 380)])
def test_a_strip_of_another_picture_is_only_not_found(size_wh):
    w, h = size_wh
    match = find(encode(scene(3, 3000, 400)), encode(scene(4, 3000, 400)[:h, :w]))
    assert match.verdict in ("no_match", "flat")


@pytest.mark.parametrize("tone", [0, 117, 255])
def test_a_blank_crop_is_flat_though_its_correlation_is_1_everywhere(original, tone):
    match = find(original, encode(np.full((400, 600, 3), tone, np.uint8)))
    assert match.verdict == "flat"
    assert match.reason.endswith("it fits anywhere.")


@pytest.mark.parametrize("correlation", [correlation_map, bands_map])
def test_a_flat_template_correlates_with_nothing(correlation):
    picture = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    assert correlation(picture, np.full((10, 10), 7, np.float32)).max() == 0.0


@pytest.mark.parametrize("correlation", [correlation_map, bands_map])
def test_a_template_larger_than_the_picture_is_refused_not_swapped(correlation):
    with pytest.raises(AssertionError):
        correlation(np.zeros((10, 10), np.float32), np.ones((20, 20), np.float32))


@pytest.mark.parametrize("size_wh", [(20, 16), (21, 17), (90, 64)])
def test_band_passed_pictures_correlate_alike_without_their_means(size_wh):
    w, h = size_wh
    rng = np.random.default_rng(1)
    picture = band_pass(cv2.GaussianBlur(rng.normal(100, 40, (120, 180)).astype(np.float32), (0, 0), 1.5), 15)
    template = picture[30 : 30 + h, 50 : 50 + w] + rng.normal(0, 1, (h, w)).astype(np.float32)
    full, quick = correlation_map(picture, template), bands_map(picture, template)
    assert quick.shape == full.shape and np.abs(full - quick).max() < 0.03
    assert np.unravel_index(quick.argmax(), quick.shape) == (30, 50)
    assert quick.max() <= 1.0001


def test_a_crop_that_is_far_larger_than_its_original_asks_whether_the_folders_are_swapped(original):
    match = find(encode(scene(1, 300, 200)), original)
    assert match.verdict == "no_match"
    assert "Are the two folders swapped?" in match.reason


def test_a_mirrored_crop_is_doubtful_and_says_so(original, pixels):
    match = find(original, encode(np.ascontiguousarray(pixels[217:990, 403:1406][:, ::-1])))
    assert match.verdict == "doubtful"
    assert match.reason == "The crop is mirrored: left and right are exchanged."


@pytest.mark.parametrize(
    ("quarters", "said"), [(1, "by 90 degrees anticlockwise"), (2, "upside down"), (3, "by 90 degrees clockwise")]
)
@pytest.mark.parametrize("scale", [1.0, 0.55])
def test_a_crop_turned_by_quarters_is_doubtful_and_says_so_and_where_it_lies(original, pixels, resize, quarters, said, scale):
    crop = np.ascontiguousarray(np.rot90(pixels[217:990, 403:1406], quarters))
    match = find(original, encode(resize(crop, scale) if scale < 1 else crop))
    assert (match.verdict, match.reason) == ("doubtful", f"The crop is turned {said} against its original.")
    assert boxes.iou(tuple(match.box), (403, 217, 1406, 990)) > 0.995


def test_a_whole_picture_turned_by_a_quarter_is_not_too_large_for_itself(original, pixels):
    match = find(original, encode(np.ascontiguousarray(np.rot90(pixels))))
    assert (match.verdict, match.box) == ("doubtful", Box(0, 0, 1813, 1211))


def test_corners_that_come_to_agree_on_a_turn_out_of_range_are_no_candidate(monkeypatch):
    points = np.random.default_rng(1).uniform(0, 200, (40, 2))
    assert features.similarities(points, points, (0.5, 2.0), 16.0, 1)
    monkeypatch.setattr(features, "_least_squares", lambda *_: (1j, 0j, 40))
    assert not features.similarities(points, points, (0.5, 2.0), 16.0, 1)


@pytest.mark.parametrize(("tone", "border"), [(255, 40), (0, 90)])
def test_a_border_laid_round_the_crop_is_left_out_of_the_box(original, pixels, tone, border):
    crop = cv2.copyMakeBorder(pixels[217:990, 403:1406], border, border, border, border, cv2.BORDER_CONSTANT, value=(tone,) * 3)
    match = find(original, encode(crop))
    assert (match.verdict, match.box) == ("found", Box(403, 217, 1406, 990))
    assert match.crop_wh == (1003 + 2 * border, 773 + 2 * border)


def test_a_turned_crop_with_a_dark_margin_of_its_own_lies_where_its_picture_says(pixels):
    """As cut from a map whose sea is black at two sides."""
    world = np.zeros_like(pixels)
    world[250:800, 300:1000] = pixels[250:800, 300:1000]
    match = find(encode(world), encode(turned(world, (800.0, 600.0), (1100, 750), 2.0)))
    assert match.verdict == "found"
    assert boxes.iou(tuple(match.box), (250, 225, 1350, 975)) > 0.998


def test_an_even_margin_that_belongs_to_the_original_stays_in_the_box():
    page = np.full((1211, 1813, 3), 250, np.uint8)
    page[200:1000, 300:1500] = scene(6)[200:1000, 300:1500]
    original = encode(page)
    match = find(original, encode(decoded(original)[150:1050, 250:1550]))
    assert (match.verdict, match.box) == ("found", Box(250, 150, 1550, 1050))


def printed_page() -> np.ndarray:
    """A page (1211, 1813, 3): rows of words, wide paper margins, and a scanner's noise."""
    rng = np.random.default_rng(4)
    page = np.full((1211, 1813), 246.0)
    for top in range(150, 1050, 36):
        left = 200
        while left < 1560:
            width = int(rng.integers(20, 120))
            page[top : top + 16, left : left + width] = 246 - 200 * (rng.random((16, width)) < 0.5)
            left += width + 14
    noisy = np.clip(page + rng.normal(0, 1.2, page.shape), 0, 255).astype(np.uint8)
    return np.repeat(noisy[..., None], 3, axis=2)


@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_the_margin_of_a_page_is_no_frame_whatever_its_tone_became(gain):
    original = encode(printed_page())
    crop = np.clip(decoded(original)[60:900, 90:1500] * gain, 0, 255).astype(np.uint8)
    match = find(original, encode(crop))
    assert (match.verdict, match.box) == ("found", Box(90, 60, 1500, 900))


@pytest.mark.parametrize(("tone", "unsure_px"), [(255, 0), (246, 2)])  # of the paper's own tone nobody can see where it begins
def test_a_white_frame_round_a_page_is_left_out_though_paper_surrounds_the_crop(tone, unsure_px):
    original = encode(printed_page())
    page = decoded(original)[140:940, 250:1400]
    match = find(original, encode(cv2.copyMakeBorder(page, 50, 50, 50, 50, cv2.BORDER_CONSTANT, value=(tone,) * 3)))
    assert match.verdict == "found"
    assert max(abs(a - b) for a, b in zip(match.box, (250, 140, 1400, 940), strict=True)) <= unsure_px


def test_a_picture_without_a_border_has_no_frame(original):
    assert inside_frame(Picture(original, "original")) is None


@pytest.mark.parametrize("whose", ["original", "crop"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_cut_short_is_unreadable_and_named(pixels, whose, progressive):
    files = {
        "original": encode(pixels, progressive=progressive),
        "crop": encode(pixels[100:900, 200:1400], progressive=progressive),
    }
    files[whose] = files[whose][: len(files[whose]) * 2 // 3]
    match = find(files["original"], files["crop"])
    assert match.verdict == "unreadable"
    assert match.reason.startswith(whose)
    assert match.box is None


def test_bytes_that_are_no_picture_are_unreadable(original):
    assert find(original, b"no picture at all").verdict == "unreadable"


def test_a_missing_file_is_unreadable_and_named(original, tmp_path):
    match = find(tmp_path / "absent.jpg", original)
    assert match.verdict == "unreadable"
    assert "absent.jpg" in match.reason


def test_pixels_of_a_wrong_kind_are_the_callers_error(original):
    with pytest.raises(ValueError, match="wanted uint8 pixels"):
        find(np.zeros((10, 10, 3), np.float32), original)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 40))
def test_no_wrong_box_is_accepted_over_many_pictures_scales_and_qualities(seed):
    rng = np.random.default_rng(seed)
    original = encode(scene(seed), quality=int(rng.integers(80, 97)), subsampling=int(rng.choice([0, 2])))
    pixels = decoded(original)
    for other, scale in ((False, 1.0), (False, float(rng.uniform(0.2, 1.3))), (True, 1.0), (True, float(rng.uniform(0.3, 1.0)))):
        w, h = int(rng.integers(500, 1500)), int(rng.integers(400, 1000))
        x, y = int(rng.integers(0, 1813 - w)), int(rng.integers(0, 1211 - h))
        source = scene(seed + 1000) if other else pixels
        crop = cv2.resize(source[y : y + h, x : x + w], (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)
        match = find(original, encode(crop, quality=int(rng.integers(50, 96)), subsampling=2))
        if other:
            assert match.verdict == "no_match"
        else:
            assert match.verdict == "found"
            assert max(abs(a - b) for a, b in zip(match.box, (x, y, x + w, y + h), strict=True)) <= max(
                0, (scale != 1) * 0.7 / scale
            )


def test_where_few_windows_stand_for_a_place_their_slopes_must_tell_it_in_both_directions(original, pixels, monkeypatch):
    """However small the predicted error is: along parallel lines they fit anywhere."""
    soft = np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3), np.uint8)
    few, many = encode(soft[500:675, 800:1062]), encode(soft[200:1000, 400:1400])
    assert [find(original, crop).verdict for crop in (few, many)] == ["found", "found"]
    monkeypatch.setattr(judge, "shared_slope", lambda pair, place: 0.2)
    match = find(original, few)
    assert match.verdict == "doubtful" and match.reason is not None and "along one direction" in match.reason
    assert find(original, many).verdict == "found"


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_a_frame_of_a_burst_that_was_zoomed_by_a_hair_is_no_export(pixels, kind):
    """Its parts move as one; of a JPEG its noise tells, of other files that round nothing is known."""
    rng = np.random.default_rng(3)
    first, second = (np.clip(pixels + rng.normal(0, 2.5, pixels.shape), 0, 255).astype(np.uint8) for _ in range(2))
    h, w = second.shape[:2]
    zoom = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), 0.0, 1.0015)
    second = np.asarray(cv2.warpAffine(second, zoom, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))
    assert find(encode(first), encode(second[148:1001, 203:1403], kind, quality=90)).verdict == "no_match"


def test_a_place_with_other_noise_or_of_which_hardly_a_window_tells_may_be_a_mirage(original, pixels, monkeypatch):
    seen, settle = [], finding.settle
    monkeypatch.setattr(finding, "settle", lambda *a, **k: seen.append(settle(*a, **k)) or seen[-1])
    crop = cv2.resize(pixels[200:1000, 400:1400], None, fx=0.95, fy=0.95, interpolation=cv2.INTER_CUBIC)
    assert find(original, encode(np.asarray(crop, np.uint8))).verdict == "found"
    s, windows = MatcherSettings(), [replace(window, rest=0.01) for window in seen[0].windows]
    settled = replace(seen[0], windows=windows, tried=len(windows))
    assert windows and not settled.may_be_mirage(s)
    assert replace(settled, unexplained=s.another_picture).may_be_mirage(s)  # another row of a pattern
    assert not replace(settled, unexplained=s.another_picture, moved=2).may_be_mirage(s)  # a neighbouring frame
    assert replace(settled, moved=2, tried=4 * len(windows)).may_be_mirage(s)  # too few to tell one


def sheet(seed: int) -> Pixels:
    """A spreadsheet: the same lines and headings every time, and other numbers."""
    page, rng = np.full((1300, 1700, 3), 255, np.uint8), np.random.default_rng(seed)
    for y in range(40, 1300, 42):
        cv2.line(page, (0, y), (1699, y), (190, 190, 190), 1)
        for x in range(60, 1700, 130):
            cv2.line(page, (x, 0), (x, 1299), (190, 190, 190), 1)
            cv2.putText(
                page,
                str(rng.integers(10_000, 99_999)),
                (x + 12, y + 30),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.8,
                (20, 20, 20),
                2,
                cv2.LINE_AA,
            )
    return page


@pytest.mark.parametrize("scale", [1.0, 0.83])
def test_a_page_of_the_same_lines_with_other_numbers_is_another_one(scale):
    original = encode(sheet(1), quality=90)
    for seed, verdicts in ((1, ("found",)), (2, ("doubtful", "ambiguous", "no_match"))):
        crop = cv2.resize(sheet(seed)[200:1100, 300:1500], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        match = find(original, encode(crop, quality=85))
        assert match.verdict in verdicts and (match.verdict == "found" or match.probability < 0.6)


def test_another_frame_in_which_hardly_anything_changed_has_other_noise():
    picture = scene(5).astype(float)
    frames = [
        np.clip(picture + np.random.default_rng(seed).normal(0, 2.5, picture.shape), 0, 255).astype(np.uint8) for seed in (1, 2)
    ]
    for frame in frames:
        frame[300:420, 500:640] = 90  # a door that is open in both crops
    original = np.clip(picture + np.random.default_rng(1).normal(0, 2.5, picture.shape), 0, 255).astype(np.uint8)
    verdicts = [find(encode(original, quality=95), encode(frame[150:700, 250:1050], quality=92)).verdict for frame in frames]
    assert verdicts[0] == "found" and verdicts[1] != "found"


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_a_small_crop_of_the_next_frame_from_a_tripod_has_other_noise_but_one_of_what_the_original_was_saved_of_has_not(scale):
    still = scene(7).astype(float)
    frames = [np.clip(still + np.random.default_rng(seed).normal(0, 3.0, still.shape), 0, 255).astype(np.uint8) for seed in (1, 2)]
    crops = [cv2.resize(frame[200:620, 300:860], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
    for quality in (95, 85):
        verdicts = [find(encode(frames[0], quality=quality), encode(crop, quality=90)).verdict for crop in crops]
        assert verdicts[0] == "found" and (verdicts[1] == "doubtful") == (quality == 95)  # at 85 the original may have lost as much
