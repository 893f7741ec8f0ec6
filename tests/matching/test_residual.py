"""Another scan of the same print: what is left of a crop once the original and the crop's own coding have explained what they can."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cropreg.matching import place as places
from cropreg.matching.find import find
from cropreg.matching.picture import Picture
from cropreg.matching.plane import Plane
from cropreg.matching.residual import coarser_steps, unexplained
from cropreg.matching.rounding import ASKED, MISFIT, ROUNDING, coefficients, excess

from .conftest import Pixels, decoded, encode, scene

WIDTH, HEIGHT = 560, 420
X, Y, W, H = 130, 100, 300, 220
EDITS = {
    "as it is": lambda part: part,
    "darker": lambda part: np.clip(part * 0.85 - 4, 0, 255),
    "sharper": lambda part: np.clip(part * 1.8 - cv2.GaussianBlur(part, (0, 0), 1.2) * 0.8, 0, 255),
    "with halos": lambda part: np.clip(part * 2.5 - cv2.GaussianBlur(part, (0, 0), 2.2) * 1.5, 0, 255),
    "softer": lambda part: cv2.GaussianBlur(part, (0, 0), 0.8),
}


def scanned(turn_deg: float, shift_xy: tuple[float, float], seed: int, noise: float = 1.8) -> Pixels:
    """A print textured everywhere (all scans of it show the same one) as it lay on the glass: turned, shifted, with noise of its own."""
    rng = np.random.default_rng(99)
    paper = (
        scene(31, WIDTH, HEIGHT).astype(np.float32)
        + cv2.GaussianBlur(rng.normal(0, 25, (HEIGHT, WIDTH, 1)), (0, 0), 0.8)[..., None]
    )
    matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), turn_deg, 1.0)
    matrix[:, 2] += shift_xy
    seen = cv2.warpAffine(paper, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
    seen = seen + np.random.default_rng([seed, 3]).normal(0, noise, seen.shape)
    return decoded(encode(np.clip(np.round(seen), 0, 255).astype(np.uint8), quality=90))


def straightened(picture: Pixels, turn_deg: float, kernel: int = cv2.INTER_CUBIC) -> NDArray[np.float32]:
    """A crop turned about its own middle, as editors do it."""
    matrix = cv2.getRotationMatrix2D((X + W / 2 - 0.5, Y + H / 2 - 0.5), turn_deg, 1.0)
    matrix[:, 2] -= X, Y
    return cv2.warpAffine(picture.astype(np.float32), matrix, (W, H), flags=kernel, borderMode=cv2.BORDER_REFLECT)


def crop_file(part: NDArray[np.float32], kind: str = "JPEG", quality: int = 90) -> bytes:
    whole = np.clip(np.round(part), 0, 255).astype(np.uint8)
    return encode(whole, kind) if kind == "PNG" else encode(whole, quality=quality)


def left_over(original: Pixels, crop: bytes, turn_deg: float = 0.0, shift_xy: tuple[float, float] = (0.0, 0.0)) -> float | None:
    """What :func:`unexplained` says of a crop that was cut by :func:`straightened`."""
    picture = Picture(crop, "crop")
    assert picture.rounding_steps is not None
    matrix = cv2.getRotationMatrix2D((X + W / 2 - 0.5, Y + H / 2 - 0.5), turn_deg, 1.0)
    inverse = cv2.invertAffineTransform(matrix)
    inverse[:, 2] += inverse[:, :2] @ (X, Y) + shift_xy
    corners = places.compose(np.array([[1, 0, 0.5], [0, 1, 0.5]]), places.compose(inverse, np.array([[1, 0, -0.5], [0, 1, -0.5]])))
    grey = cv2.cvtColor(original, cv2.COLOR_RGB2GRAY)
    return unexplained(Plane(np.asarray(grey, np.uint8)), Plane(picture.full()), corners, picture.rounding_steps)


@pytest.fixture(scope="module")
def first() -> Pixels:
    return scanned(0.0, (0.0, 0.0), 1)


@pytest.fixture(scope="module")
def second() -> Pixels:
    """The same print again, put down anew."""
    return scanned(0.8, (2.3, -1.6), 2)


@pytest.mark.parametrize("kernel", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
@pytest.mark.parametrize(("kind", "quality"), [("JPEG", 60), ("JPEG", 92), ("PNG", 0)])
def test_a_turned_crop_is_explained_by_its_original_and_its_own_file(first, kernel, kind, quality):
    value = left_over(first, crop_file(straightened(first, 1.3, kernel), kind, quality), 1.3)
    assert value is not None and value < 1.25


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_crop_is_explained_too(first, edit):
    value = left_over(first, crop_file(EDITS[edit](straightened(first, 1.3))), 1.3)
    assert value is not None and value < 1.8


def test_a_place_that_is_off_by_a_part_of_a_pixel_will_do(first):
    value = left_over(first, crop_file(straightened(first, 1.3)), 1.3, (0.2, -0.2))
    assert value is not None and value < 1.2


def test_what_jpeg_has_rounded_away_is_foretold_not_forgiven(first):
    """The same differences that a low quality explains are too many for a high one."""
    rounded = decoded(crop_file(straightened(first, 1.3), quality=60)).astype(np.float32)
    as_png = left_over(first, crop_file(rounded, "PNG"), 1.3)
    assert as_png is not None and as_png > 3


@pytest.mark.parametrize("edit", ["as it is", "darker", "sharper"])  # softened, too little noise is left
def test_another_scan_leaves_more_unexplained_however_it_is_edited(first, second, edit):
    crop = crop_file(EDITS[edit](straightened(second, 1.3)))
    assert find(encode(second, "PNG"), crop).verdict == "found"
    assert find(encode(first, "PNG"), crop).verdict == "no_match"


@pytest.mark.parametrize(("kind", "quality"), [("JPEG", 92), ("PNG", 0)])
@pytest.mark.parametrize("turn_deg", [0.0, -0.9])
def test_a_crop_of_another_scan_of_the_same_print_is_no_match(first, second, kind, quality, turn_deg):
    crop = crop_file(straightened(second, turn_deg), kind, quality)
    assert find(encode(second, "PNG"), crop).verdict == "found"
    match = find(encode(first, "PNG"), crop)
    assert match.verdict == "no_match" and match.reason is not None and "another scan" in match.reason


@pytest.mark.parametrize(("noise", "quality"), [(0.8, 60), (0.8, 75), (1.0, 85), (1.8, 40), (1.8, 75)])
def test_the_noise_of_another_scan_shows_though_jpeg_has_rounded_most_of_it_away(noise, quality):
    one, other = scanned(0.0, (0.0, 0.0), 1, noise), scanned(0.8, (2.3, -1.6), 2, noise)
    crop = crop_file(straightened(other, -0.9), quality=quality)
    assert find(encode(other, "PNG"), crop).verdict == "found"
    assert find(encode(one, "PNG"), crop).verdict == "no_match"


@pytest.mark.parametrize("scale", [0.95, 1.3, 1.7])
def test_an_enlarged_crop_of_another_scan_is_no_match(first, second, scale):
    part = straightened(second, 0.0)
    crop = crop_file(cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), quality=85)
    assert find(encode(second, "PNG"), crop).verdict == "found"
    assert find(encode(first, "PNG"), crop).verdict == "no_match"


def by_area(pixels: Pixels, size_wh: tuple[int, int]) -> Pixels:
    return np.asarray(cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA))


def by_hamming(pixels: Pixels, size_wh: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(size_wh, Image.Resampling.HAMMING))


@pytest.mark.parametrize("enlarge", [by_area, by_hamming])
@pytest.mark.parametrize("scale", [1.37, 1.66])  # at 1.3 OpenCV takes some pixels from beside their area
def test_a_crop_enlarged_by_averages_over_areas_is_explained_and_another_scan_is_not(first, second, enlarge, scale):
    """Such a kernel lies not between the linear one and Lanczos': most of what it makes are copies of one pixel."""
    part = decoded(crop_file(straightened(second, 0.0), "PNG"))
    crop = crop_file(enlarge(part, (round(part.shape[1] * scale), round(part.shape[0] * scale))), quality=92)
    assert find(encode(second, "PNG"), crop).verdict == "found"
    assert find(encode(first, "PNG"), crop).verdict == "no_match"


def test_a_crop_to_which_a_little_noise_was_added_is_doubtful(first):
    part = straightened(first, 1.3)
    match = find(encode(first, "PNG"), crop_file(part + np.random.default_rng(5).normal(0, 1.6, (H, W, 1)), quality=75))
    assert match.verdict == "doubtful" and match.reason is not None and "file format" in match.reason


def excess_of(noise: float, quality: int) -> tuple[float, float]:
    """What :func:`excess` says of a crop of which all is known but for noise, and the noise's variance over what is allowed for."""
    rng = np.random.default_rng(3)
    known = cv2.GaussianBlur(rng.normal(0, 300, (64, 64)), (0, 0), 3).astype(np.float32)
    pixels = np.clip(np.round(known + rng.normal(0, noise, known.shape) + 128), 0, 255).astype(np.uint8)
    ok, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    crop = Picture(data.tobytes(), "crop")
    assert ok and crop.rounding_steps is not None
    value = excess(known.reshape(1, -1) / known.std(), crop.full(), crop.rounding_steps, enough=0.0)
    assert value is not None
    return value, float((noise**2 / (ROUNDING + MISFIT * (coefficients(known) ** 2).mean(0)[ASKED.ravel()])).mean())


@pytest.mark.parametrize("noise", [1.0, 2.0, 4.0])
def test_the_excess_is_the_variance_of_what_is_not_known_over_what_is_allowed_for(noise):
    value, true = excess_of(noise, quality=95)
    assert value == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize("quality", [15, 40, 75])
def test_noise_shows_at_any_quality_by_what_falls_outside_the_steps(quality):
    values = [excess_of(noise, quality)[0] for noise in (0.0, 1.0, 2.0, 4.0)]
    assert values[0] < 0.3 and all(later > 2 * earlier for earlier, later in itertools.pairwise(values))


def test_a_file_that_leaves_everything_open_tells_nothing():
    assert excess(np.ones((1, 64), np.float32), np.zeros((8, 8), np.uint8), np.full((8, 8), np.inf), 1.0) is None


def test_two_scans_that_differ_by_a_part_of_a_pixel_are_told_apart(first):
    shifted = scanned(0.0, (0.4, 0.45), 2)
    match = find(encode(shifted, "PNG"), crop_file(straightened(first, 0.0), "PNG"))
    assert match.verdict == "no_match"


def test_a_crop_that_was_sampled_between_the_pixels_has_no_box_in_whole_ones(first):
    matrix = np.array([[1.0, 0.0, X + 0.4], [0.0, 1.0, Y - 0.35]])
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    match = find(encode(first, "PNG"), crop_file(cv2.warpAffine(first.astype(np.float32), matrix, (W, H), flags=flags), "PNG"))
    assert match.verdict == "found" and match.box is not None
    assert tuple(match.box) == pytest.approx((X + 0.4, Y - 0.35, X + W + 0.4, Y + H - 0.35), abs=0.03)


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "doubtful"), (1.8, "no_match")])
def test_what_moved_in_one_part_was_edited_or_another_exposure(noise, verdict):
    """A part that lies 6 px farther; the rest is the same file's, or the next frame's of a camera that stood still."""
    original = encode(scene(7))
    frame = decoded(original).astype(np.float32)
    frame[500:700, 706:906] = frame[500:700, 700:900]
    later = np.clip(frame + np.random.default_rng(8).normal(0, noise, frame.shape), 0, 255).astype(np.uint8)
    assert find(original, encode(later[60:1160, 100:1700], quality=95)).verdict == verdict


SAVED_TWICE = [(75, "PNG", 0), (90, "PNG", 0), (85, "JPEG", 95), (80, "JPEG", 90)]


def saved_twice(part: NDArray[np.float32], first_quality: int, kind: str, quality: int) -> bytes:
    return crop_file(decoded(crop_file(part, quality=first_quality)).astype(np.float32), kind, quality)


@pytest.mark.parametrize(("first_quality", "kind", "quality"), SAVED_TWICE)
def test_a_crop_that_was_saved_twice_is_explained_by_its_first_file(first, second, first_quality, kind, quality):
    part = straightened(first, 1.3)
    assert find(encode(first, "PNG"), saved_twice(part, first_quality, kind, quality)).verdict == "found"
    assert find(encode(second, "PNG"), saved_twice(part, first_quality, kind, quality)).verdict != "found"


@pytest.mark.parametrize(("first_quality", "kind", "quality"), SAVED_TWICE)
def test_steps_of_an_earlier_file_are_those_it_had(first, first_quality, kind, quality):
    part = straightened(first, 1.3)
    once, twice = (
        Picture(data, "crop") for data in (crop_file(part, quality=first_quality), saved_twice(part, first_quality, kind, quality))
    )
    assert once.rounding_steps is not None and twice.rounding_steps is not None
    found = coarser_steps(Plane(twice.full()), twice.rounding_steps)
    assert found is not None
    told = np.isfinite(found) & (found > twice.rounding_steps)
    assert told.sum() >= 8 and (np.abs(found - once.rounding_steps)[told] <= 1).mean() > 0.9


@pytest.mark.parametrize(("kind", "quality"), [("PNG", 0), ("JPEG", 60), ("JPEG", 95)])
def test_a_file_that_was_saved_once_has_no_earlier_steps(first, kind, quality):
    picture = Picture(crop_file(straightened(first, 1.3), kind, quality), "crop")
    assert picture.rounding_steps is not None and coarser_steps(Plane(picture.full()), picture.rounding_steps) is None


def test_an_earlier_grid_that_lies_elsewhere_is_not_taken_for_one(first):
    shifted = decoded(crop_file(straightened(first, 1.3), quality=75))[3:, 5:].astype(np.float32)
    assert coarser_steps(Plane(Picture(crop_file(shifted, "PNG"), "crop").full()), np.zeros((8, 8))) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_crop_made_black_and_white_by_weights_of_its_own_is_explained_by_the_colours(first, second, kind):
    mixed = np.repeat((straightened(first, 1.3) @ np.float32([0.2, 0.5, 0.3]))[..., None], 3, 2)
    assert find(encode(first, "PNG"), crop_file(mixed, kind)).verdict == "found"
    assert find(encode(second, "PNG"), crop_file(mixed, kind)).verdict != "found"


def test_a_pictures_colours_are_at_hand_for_small_crops_too(original, pixels):
    for picture in (Picture(original, "a").for_crop((300, 200)), Picture.of_pixels(pixels, "a")):
        red, blue = picture.colours()
        assert not picture.is_colourless and red.size_wh == blue.size_wh and red.center_xy == pytest.approx((906, 605), abs=1)
    assert Picture(encode(np.full((64, 64, 3), 99, np.uint8)), "a").is_colourless
    assert Picture.of_pixels(pixels[..., 0], "a").colours() == []


Turn = Image.Transpose
STORED = {
    1: None, 2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE, 6: Turn.ROTATE_90, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_270,
}  # fmt: skip
"""How an upright picture is stored under each EXIF orientation."""


@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("orientation", STORED)
def test_the_blocks_of_a_turned_file_lie_where_it_has_put_them(first, second, orientation, quality):
    """Neither side of the crop is a multiple of 8, so blocks of a flipped file end at the border in the place of beginning there."""
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    picture = Image.fromarray(np.clip(np.round(straightened(first, 1.3)), 0, 255).astype(np.uint8))
    method = STORED[orientation]
    (picture if method is None else picture.transpose(method)).save(buffer, "JPEG", quality=quality, exif=exif)
    assert find(encode(first, "PNG"), buffer.getvalue()).verdict == "found"
    assert find(encode(second, "PNG"), buffer.getvalue()).verdict == "no_match"


@pytest.mark.parametrize("size_wh", [(W, H), (W - 3, H - 2)])
def test_a_mirrored_crop_is_explained_as_well(first, size_wh):
    part = straightened(first, 1.3)[: size_wh[1], : size_wh[0]]
    match = find(encode(first, "PNG"), crop_file(part[:, ::-1], quality=75))
    assert match.verdict == "doubtful" and match.reason is not None and "mirrored" in match.reason


@pytest.mark.parametrize("border_px", [20, 22])
def test_a_crop_in_a_frame_keeps_the_blocks_of_its_file(first, second, border_px):
    part = cv2.copyMakeBorder(straightened(first, 1.3), *[border_px] * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    assert find(encode(first, "PNG"), crop_file(part, quality=75)).verdict == "found"
    assert find(encode(second, "PNG"), crop_file(part, quality=75)).verdict != "found"


@pytest.mark.parametrize("amplitude", [60, 250])
def test_what_is_far_outside_the_steps_is_never_explained(amplitude):
    known = np.random.default_rng(1).normal(0, 1, (1, 64 * 64)).astype(np.float32)
    noise = np.random.default_rng(2).normal(0, amplitude, (64, 64))
    value = excess(known, np.clip(128 + noise, 0, 255).astype(np.uint8), np.full((8, 8), 60.0), enough=0.0)
    assert value is not None and value > 30


def test_an_object_painted_over_makes_no_other_scan_of_it(first):
    part = straightened(first, 1.3)
    part[20:90, 30:110] = 200
    value = left_over(first, crop_file(part), 1.3)
    assert value is not None and value < 1.25


def test_what_is_clipped_or_tiny_or_coded_otherwise_is_not_asked(first):
    assert left_over(first, crop_file(np.full((H, W, 3), 254, np.float32))) is None
    assert (
        unexplained(Plane(np.zeros((50, 50), np.uint8)), Plane(np.zeros((20, 20), np.uint8)), np.eye(2, 3), np.zeros((8, 8)))
        is None
    )
    assert Picture(encode(first, "WEBP"), "crop").rounding_steps is None


def test_steps_are_the_files_own():
    grey = np.full((16, 16), 99, np.uint8)
    ok, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 50])
    steps = Picture(data.tobytes(), "crop").rounding_steps
    assert ok and steps is not None and steps[0, :3].tolist() == [16, 11, 10]  # ITU-T T.81, table K.1
    assert not np.any(Picture(encode(scene(1, 64, 64), "PNG"), "crop").rounding_steps)
