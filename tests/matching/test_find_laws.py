"""Laws of the matcher: what is done to the crop is what it finds."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from cropreg.boxes import Box
from cropreg.matching.find import Match, Picture, find, find_in

from .conftest import decoded, encode, evening, hazy_shore, scene, turned, vignetted

pytestmark = pytest.mark.long

X1, Y1, X2, Y2 = 403, 217, 1406, 990
BOX = Box(float(X1), float(Y1), float(X2), float(Y2))


def edges_off(match: Match, box: Box) -> float:
    """The largest distance of an edge, original pixels."""
    assert match.verdict == "found", match
    assert match.box is not None
    return max(abs(a - b) for a, b in zip(match.box, box, strict=True))


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (3, 5), (7, 2), (397, 206)])
def test_a_shifted_crop_shifts_the_box_to_the_pixel_whatever_the_block_grid(original, pixels, shift):
    dx, dy = shift
    crop = encode(pixels[Y1 + dy : Y2 + dy, X1 + dx : X2 + dx], quality=85, subsampling=2)
    match = find(original, crop)
    assert match.verdict == "found"
    assert match.box == Box(X1 + dx, Y1 + dy, X2 + dx, Y2 + dy)
    assert (match.angle_deg, match.scale) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"quality": 85}),
        ("TIFF", {}),
        ("JPEG", {"quality": 40, "subsampling": 2}),
        ("JPEG", {"quality": 95, "progressive": True}),
    ],
)
def test_the_format_of_the_crop_does_not_matter(original, pixels, kind, options):
    assert find(original, encode(pixels[Y1:Y2, X1:X2], kind, **options)).box == BOX


def test_the_whole_picture_is_its_own_crop(original):
    match = find(original, original)
    assert (match.verdict, match.box) == ("found", Box(0.0, 0.0, 1813.0, 1211.0))


def test_a_progressive_original_is_found_from_its_first_scan(pixels):
    original = encode(pixels, progressive=True)
    picture = Picture(original, "original")
    match = find_in(picture, Picture(encode(decoded(original)[Y1:Y2, X1:X2]), "crop"))
    assert match.box == BOX


@pytest.mark.parametrize("scale", [0.2, 0.37, 0.5, 0.81, 1.3])
def test_a_resized_crop_scales_the_answer(original, pixels, resize, scale):
    match = find(original, encode(resize(pixels[Y1:Y2, X1:X2], scale)))
    assert edges_off(match, BOX) < 0.5 / scale + 0.2
    assert match.scale == pytest.approx(scale, rel=0.004)
    assert abs(match.angle_deg) < 0.05


@pytest.mark.parametrize("degrees", [-12.0, -2.0, 1.0, 7.0])
def test_a_turned_crop_turns_the_answer(original, pixels, degrees):
    match = find(original, encode(turned(pixels, (900, 600), (700, 500), degrees)))
    assert edges_off(match, Box(550, 350, 1250, 850)) < 0.5
    assert match.angle_deg == pytest.approx(degrees, abs=0.02)
    assert match.scale == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize(
    ("seed", "ground", "degrees", "scale"),
    [
        (1, 0.05, -14.0, 1.0),
        (2, 0.05, -14.0, 1.0),
        (2, 0.02, -4.0, 1.0),
        (1, 0.35, -3.0, 0.45),
        (3, 0.35, -3.0, 0.45),
        (5, 0.35, 3.0, 0.6),
    ],
)
def test_a_turned_crop_without_corners_is_found_by_its_tones(resize, seed, ground, degrees, scale):
    original = encode(evening(seed, ground))
    crop = turned(decoded(original), (750, 550), (900, 640), degrees)
    match = find(original, encode(resize(crop, scale) if scale < 1 else crop))
    assert edges_off(match, Box(300, 230, 1200, 870)) * scale < 1
    assert match.angle_deg == pytest.approx(degrees, abs=0.05)


def test_edits_of_tone_leave_the_box_alone(original, pixels):
    crop = pixels[Y1:Y2, X1:X2].astype(np.float32) / 255
    grey = crop.mean(2, keepdims=True)
    vignette = 1 - 0.5 * np.hypot(*np.mgrid[-1 : 1 : (Y2 - Y1) * 1j, -1 : 1 : (X2 - X1) * 1j])[..., None] ** 2 / 2
    edits = {
        "gamma": crop**1.3,
        "contrast": (crop - 0.5) * 1.3 + 0.55,
        "black and white": np.repeat(grey, 3, 2),
        "vignette": crop * vignette,
        "sharpened": crop + 0.8 * (crop - cv2.GaussianBlur(crop, (0, 0), 1.5)),
    }
    for name, edited in edits.items():
        data = encode(np.asarray(np.clip(edited, 0, 1) * 255, np.uint8))
        assert find(original, data).box == BOX, name


@pytest.mark.parametrize("blur_px", [0.0, 4.0])
@pytest.mark.parametrize("more_px", [-3, -2, -1, 1, 2, 3])
def test_a_crop_exported_a_pixel_larger_or_smaller_is_neither_taken_for_a_mere_cut_nor_for_another_frame(blur_px, more_px):
    picture = cv2.GaussianBlur(scene(2), (0, 0), blur_px) if blur_px else scene(2)
    original = encode(np.asarray(picture, np.uint8))
    crop = decoded(original)[Y1:Y2, X1:X2]
    size = X2 - X1 + more_px, round((Y2 - Y1) * (1 + more_px / (X2 - X1)))
    match = find(original, encode(np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.LANCZOS))))
    assert edges_off(match, BOX) < 0.3
    assert match.scale == pytest.approx(1 + more_px / (X2 - X1), abs=0.0005)


@pytest.mark.parametrize("scales", [(0.95, 0.93), (0.52, 0.5), (1.006, 0.994)])
def test_a_crop_that_was_stretched_is_found_by_its_own_two_scales(original, pixels, scales):
    x1, y1, x2, y2 = box = (300, 100, 1400, 900)
    size = round(1100 * scales[0]), round(800 * scales[1])
    crop = np.asarray(Image.fromarray(pixels[y1:y2, x1:x2]).resize(size, Image.Resampling.LANCZOS))
    match = find(original, encode(crop))
    assert match.verdict == "found" and match.box is not None
    assert max(abs(a - b) for a, b in zip(match.box, box, strict=True)) < 0.3


@pytest.mark.parametrize("box", [(150, 326, 568, 563), (59, 262, 501, 596), (900, 700, 1208, 920)])
@pytest.mark.parametrize("stretch", [0.984, 1.012])
def test_an_export_to_another_aspect_has_two_scales_though_few_windows_fit_it(original, pixels, box, stretch):
    x1, y1, x2, y2 = box
    size = round((x2 - x1) * 1.25), round((y2 - y1) * 1.25 * stretch)
    match = find(original, encode(np.asarray(Image.fromarray(pixels[y1:y2, x1:x2]).resize(size, Image.Resampling.LANCZOS))))
    assert edges_off(match, box) < 0.4


@pytest.mark.parametrize(("box", "size"), [
    ((100, 300, 1260, 443), (728, 90)), ((400, 90, 504, 1130), (60, 600)), ((700, 500, 1344, 583), (468, 60)),
])  # fmt: skip
def test_a_strip_that_was_resized_is_found(original, pixels, box, size):
    x1, y1, x2, y2 = box
    match = find(original, encode(np.asarray(Image.fromarray(pixels[y1:y2, x1:x2]).resize(size, Image.Resampling.LANCZOS))))
    assert edges_off(match, box) * match.scale < 1


@pytest.mark.parametrize("seed", [3, 4, 5, 6])
def test_a_horizon_alone_does_not_stretch_a_resized_crop(seed, resize):
    """It lies in one line, and the line has become thicker: that tells nothing of the scale across it."""
    chance, land = np.random.default_rng(seed), scene(seed, 1800, 1200).mean(2)
    hills = 600 + 90 * cv2.GaussianBlur(chance.normal(0, 1, (1, 1800)).astype(np.float32), (0, 0), 25)[0]
    rows = np.arange(1200)[:, None]
    there = cv2.GaussianBlur(((rows > hills) & (rows < 630)).astype(np.float32), (0, 0), 1.2)
    sky = (
        np.linspace(120, 200, 1200)[:, None] * (1 - there) + there * (60 + 0.3 * (land - 128)) + chance.normal(0, 1.2, there.shape)
    )
    file = encode(np.repeat(np.clip(sky, 0, 255).astype(np.uint8)[..., None], 3, 2))
    x1, y1, x2, y2 = box = (300 + 7 * seed, 120, 1400 + 7 * seed, 1000)
    match = find(file, encode(resize(decoded(file)[y1:y2, x1:x2], 0.617), quality=85))
    assert match.verdict == "found" and match.box is not None
    assert max(abs(a - b) for a, b in zip(match.box, box, strict=True)) < 1 / 0.617


@pytest.mark.parametrize(("seed", "scale"), [(1, 0.65), (3, 0.38), (5, 0.34), (1, 1.0)])
def test_a_vignette_over_a_sky_hides_neither_scale_nor_place_of_the_little_that_is_below_it(resize, seed, scale):
    shore = hazy_shore(seed)
    crop = shore[200:960, 180:1080]
    match = find(encode(shore), encode(vignetted(resize(crop, scale) if scale < 1 else crop), quality=88))
    assert edges_off(match, Box(180.0, 200.0, 1080.0, 960.0)) * scale < 1


def test_painted_objects_and_date_stamps_leave_the_box_alone(original, pixels):
    crop = pixels[Y1:Y2, X1:X2].copy()
    cv2.circle(crop, (300, 300), 70, (255, 0, 0), -1)
    cv2.putText(crop, "2011 04 23", (600, 740), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 160, 30), 4)
    assert find(original, encode(crop)).box == BOX


def test_a_patch_copied_over_from_beside_leaves_the_box_alone(original, pixels):
    crop = pixels[Y1:Y2, X1:X2].copy()
    crop[300:470, 320:490] = crop[290:460, 480:650]
    assert find(original, encode(crop)).box == BOX


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_title_in_large_letters_leaves_the_box_alone(original, pixels, resize, scale):
    crop = pixels[Y1:Y2, X1:X2].copy()
    cv2.putText(crop, "STUDIO LUX", (60, 500), cv2.FONT_HERSHEY_SIMPLEX, 4, (255, 255, 255), 12)
    match = find(original, encode(resize(crop, scale) if scale < 1 else crop))
    assert match.verdict == "found"
    assert edges_off(match, BOX) * scale < 1


def stored(upright: np.ndarray, orientation: int) -> bytes:
    """A file whose EXIF orientation turns it upright again."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(turned), exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_is_upright_for_every_exif_orientation_and_sides_that_are_no_multiples_of_8(pixels, orientation):
    original = stored(pixels, orientation)
    crop = stored(decoded(original)[Y1:Y2, X1:X2], 1 + (orientation + 3) % 8)
    match = find(original, crop)
    assert (match.verdict, match.box, match.orientation) == ("found", BOX, orientation)
    assert (match.original_wh, match.crop_wh) == ((1813, 1211), (X2 - X1, Y2 - Y1))


def test_a_crop_of_a_crop_lies_where_the_two_boxes_say(original, pixels):
    first = encode(pixels[Y1:Y2, X1:X2], "PNG")
    second = encode(decoded(first)[100:600, 50:850])
    inner, outer = find(first, second).box, find(original, second).box
    assert inner is not None
    assert outer == Box(inner.x1 + X1, inner.y1 + Y1, inner.x2 + X1, inner.y2 + Y1)


def test_paths_bytes_and_pixels_give_the_same_answer(original, pixels, tmp_path):
    crop = encode(pixels[Y1:Y2, X1:X2], "PNG")
    (tmp_path / "o.jpg").write_bytes(original)
    (tmp_path / "c.png").write_bytes(crop)
    boxes = [
        find(tmp_path / "o.jpg", str(tmp_path / "c.png")).box,
        find(original, crop).box,
        find(pixels, decoded(crop)).box,
        find(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), crop).box,
    ]
    assert boxes == [BOX] * 4


def test_the_answer_is_the_same_for_any_number_of_threads_and_in_any_order(original, pixels, resize):
    crops = [
        encode(resize(pixels[100:1100, 300:1500], 0.43)),
        encode(pixels[Y1:Y2, X1:X2]),
        encode(resize(pixels[20:900, 30:900], 0.77)),
    ]
    alone = [find(original, crop) for crop in crops]
    shared = Picture(original, "original")
    assert [find_in(shared, Picture(c, "crop")) for c in crops[::-1]][::-1] == [
        find_in(Picture(original, "original"), Picture(c, "crop")) for c in crops
    ]
    before = cv2.getNumThreads()
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            assert [find(original, crop) for crop in crops] == alone
    finally:
        cv2.setNumThreads(before)
    answers: dict[int, Match] = {}
    workers = [threading.Thread(target=lambda i=i: answers.__setitem__(i, find(original, crops[i]))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [answers[i] for i in range(3)] == alone


def _counted_decodes(monkeypatch) -> list[str]:
    """The names of the JPEGs decoded from now on, whole or reduced, each as often as it is."""
    from cropreg.images import decode

    names: list[str] = []
    for how in ("_whole", "_by_opencv"):
        real = getattr(decode, how)
        monkeypatch.setattr(decode, how, lambda data, name, *a, real=real, **k: names.append(name) or real(data, name, *a, **k))
    return names


def test_several_crops_of_one_original_share_its_decode(original, pixels, monkeypatch):
    decodes = _counted_decodes(monkeypatch)
    picture = Picture(original, "original")
    for x in (300, 500):
        assert find_in(picture, Picture(encode(pixels[Y1:Y2, x : x + 900], "PNG"), "crop")).verdict == "found"
    assert decodes.count("original") == 1


def test_a_small_crop_costs_one_decode_and_finds_the_same_whoever_was_before_it(original, pixels, monkeypatch):
    decodes = _counted_decodes(monkeypatch)
    small = encode(cv2.resize(np.asarray(pixels[Y1:Y2, X1:X2]), (301, 232), interpolation=cv2.INTER_AREA))
    first = find_in(Picture(original, "original"), Picture(small, "small"))
    assert first.verdict == "found"
    assert decodes.count("original") == 1
    shared = Picture(original, "original")
    assert find_in(shared, Picture(encode(pixels[Y1:Y2, X1:X2]), "large")).box == BOX
    assert find_in(shared, Picture(small, "small")) == first


@pytest.mark.parametrize("size", [(1813, 1211), (500, 333)])
def test_the_proxy_comes_from_the_decode_of_the_search(size, monkeypatch):
    from cropreg import images

    data = encode(scene(3, *size))
    picture = Picture(data, "original", with_proxy=True)
    find_in(picture, Picture(encode(decoded(data)[40:300, 60:460]), "crop"))
    monkeypatch.setattr(images, "decode_color", lambda *a, **k: pytest.fail("decoded again"))
    jpeg, width, height = picture.proxy(512, 90)
    assert decoded(jpeg).shape == (height, width, 3)
    assert max(width, height) == min(512, max(size))
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_picture_that_forgot_its_pixels_finds_the_same(original, pixels):
    picture, crop = Picture(original, "original"), encode(pixels[Y1:Y2, X1:X2])
    first = find_in(picture, Picture(crop, "crop"))
    picture.forget()
    assert find_in(picture, Picture(crop, "crop")) == first


def test_a_crop_without_losses_predicts_a_small_error_and_a_high_probability(original, pixels):
    match = find(original, encode(pixels[Y1:Y2, X1:X2], "PNG"))
    assert match.error_px < 0.1
    assert match.probability > 0.95
    assert match.score > 0.99
    assert match.gap > 0.2
    assert match.method == "ncc"
