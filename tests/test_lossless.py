"""JPEGs cut without encoding them anew: the same blocks, upright, on the grid; and a word where that cannot be."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import textured
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_writing import full_jpeg, saved

from cropreg import cropping, writing
from cropreg.boxes import Box
from cropreg.errors import UsageError
from cropreg.images import decode_color, read_header
from cropreg.images.containers import jpeg_segments
from cropreg.settings import PredictSettings
from cropreg.writing import NotLossless, cut, cut_lossless, snap

needs_jpegtran = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="jpegtran is not installed (Debian: apt-get install libjpeg-turbo-progs)"
)
W, H = 160, 112
PICTURE = Image.fromarray(textured(3, W, H))


def jpeg(orientation: int = 1, image: Image.Image = PICTURE, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, "JPEG", exif=exif, **{"quality": 90, "subsampling": 0, **options})


def on_grid(data: bytes, box: Box, *, inward: bool = False, inner: Box | None = None) -> Box:
    return snap(data, read_header(data, "a.jpg"), box, inner or box, inward=inward)


def part(data: bytes, box: Box) -> np.ndarray:
    x1, y1, x2, y2 = map(int, box)
    return decode_color(data, "a.jpg")[y1:y2, x1:x2].astype(int)


@needs_jpegtran
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"image": PICTURE.convert("L")}, {"image": PICTURE.convert("CMYK")}]
)
def test_crop_has_the_very_pixels_and_is_upright(orientation: int, options: dict[str, Any]) -> None:
    data = jpeg(orientation, **options)
    header = read_header(data, "a.jpg")
    box = on_grid(data, Box(19, 25, 70, 83))
    crop = cut_lossless(data, "a.jpg", header, box)
    after = read_header(crop, "a.jpg")
    assert (after.size_wh, after.orientation, after.mode) == (box.size_wh, 1, header.mode)
    assert after.progressive == header.progressive
    off = np.abs(decode_color(crop, "a.jpg") - part(data, box))
    # turned blocks are the same numbers in another order, of which the decoder rounds some differently in the last bit
    assert off.max() <= (0 if orientation == 1 else 3) and off.mean() < 0.2


@needs_jpegtran
@pytest.mark.parametrize("orientation", range(1, 9))
def test_subsampled_jpeg_keeps_its_brightness_everywhere_and_its_colours_inside(orientation: int) -> None:
    data = jpeg(orientation, subsampling="4:2:0")
    box = on_grid(data, Box(19, 25, 70, 83))
    off = np.abs(decode_color(cut_lossless(data, "a.jpg", read_header(data, "a.jpg"), box), "a.jpg") - part(data, box))
    assert off[2:-2, 2:-2].max() <= 4 and off.mean() < 1  # at the border the decoder has no neighbour to smooth the colours with


@needs_jpegtran
def test_cut_twice_a_jpeg_is_as_good_as_cut_once() -> None:
    data = jpeg()
    first = cut_lossless(data, "a.jpg", read_header(data, "a.jpg"), Box(16, 16, 128, 96))
    second = cut_lossless(first, "a.jpg", read_header(first, "a.jpg"), Box(16, 8, 64, 72))
    assert second == cut_lossless(data, "a.jpg", read_header(data, "a.jpg"), Box(32, 24, 80, 88))


@needs_jpegtran
@pytest.mark.parametrize("metadata", ["all", "safe", "none"])
def test_metadata_are_those_of_an_encoded_crop_and_no_thumbnail_survives(metadata: Any) -> None:
    data = full_jpeg(5)  # a turn that mirrors neither of its incomplete ends
    header = read_header(data, "a.jpg")
    box = on_grid(data, Box(5, 7, 45, 77))
    crop, encoded = cut_lossless(data, "a.jpg", header, box, metadata=metadata), cut(data, "a.jpg", box, metadata=metadata)
    assert b"whole picture" not in crop
    assert crop.count(b"\xff\xd8\xff") == 1

    def carried(jpeg: bytes) -> list[bytes]:
        tables = (0xDB, 0xC4, 0xC0, 0xC2, 0xDD)
        return [jpeg[start:end] for marker, start, end in jpeg_segments(jpeg) if marker not in tables]

    assert carried(crop) == carried(encoded)


@pytest.mark.parametrize(
    ("orientation", "subsampling", "inward", "box"),
    [
        (1, 0, False, (16, 24, 70, 83)),  # right and bottom may lie anywhere
        (1, "4:2:0", False, (16, 16, 70, 83)),
        (1, 0, True, (24, 32, 70, 83)),
        (2, 0, False, (16, 24, 72, 83)),  # a mirror wants whole blocks at both ends
        (3, 0, False, (16, 24, 72, 88)),
        (3, 0, True, (24, 32, 64, 80)),
        (6, 0, False, (16, 24, 72, 83)),
    ],
)
def test_only_the_edges_that_must_lie_on_the_grid_go_there(
    orientation: int, subsampling: Any, inward: bool, box: tuple[int, ...]
) -> None:
    data = jpeg(orientation, subsampling=subsampling)
    got = on_grid(data, Box(19, 25, 70, 83), inward=inward, inner=Box(30, 40, 60, 70))
    assert tuple(got) == box


@given(
    st.integers(1, 8), st.sampled_from([0, "4:2:2", "4:2:0"]), st.booleans(),
    st.tuples(st.integers(0, 111), st.integers(0, 111), st.integers(1, 112), st.integers(1, 112)), st.floats(0, 0.5),
)  # fmt: skip
def test_edges_go_outward_or_as_far_inward_as_they_may_and_less_than_a_block(
    orientation: int, subsampling: Any, inward: bool, corners: tuple[int, int, int, int], give: float
) -> None:
    x1, y1, x2, y2 = min(corners[0], corners[2] - 1), min(corners[1], corners[3] - 1), max(corners[0] + 1, corners[2]), 0
    y2 = max(corners[1] + 1, corners[3])
    box = Box(x1, y1, x2, y2)
    inner = Box(x1 + give * (x2 - x1) * 0.9, y1 + give * (y2 - y1) * 0.9, x2 - give * (x2 - x1) * 0.9, y2 - give * (y2 - y1) * 0.9)
    data = GRIDS[orientation, subsampling]
    size_wh = read_header(data, "a.jpg").size_wh
    got = on_grid(data, box, inward=inward, inner=inner)
    assert got.x1 <= inner.x1 and got.y1 <= inner.y1 and got.x2 >= inner.x2 and got.y2 >= inner.y2
    assert got.x1 >= 0 and got.y1 >= 0 and got.x2 <= size_wh[0] and got.y2 <= size_wh[1]
    assert max(abs(a - b) for a, b in zip(got, box, strict=True)) < 16
    assert tuple(on_grid(data, got, inward=inward)) == tuple(got), "on the grid it stays"


GRIDS = {(o, s): jpeg(o, subsampling=s) for o, s in itertools.product(range(1, 9), (0, "4:2:2", "4:2:0"))}


def test_incomplete_last_blocks_cannot_be_mirrored_so_the_edge_goes_inward_or_it_is_said() -> None:
    data = jpeg(3, PICTURE.crop((0, 0, 157, 110)))  # upside down: the upright left and top are the incomplete ends
    assert tuple(on_grid(data, Box(2, 3, 53, 70), inner=Box(10, 12, 50, 60))) == (5, 6, 53, 70)
    with pytest.raises(NotLossless, match="the left edge lies in the incomplete last blocks of 8 px"):
        on_grid(data, Box(2, 3, 53, 70))


def test_only_jpegs_have_a_grid() -> None:
    data = saved(PICTURE, "PNG")
    with pytest.raises(NotLossless, match="not for PNG"):
        snap(data, read_header(data, "a.png"), Box(0, 0, 8, 8), Box(0, 0, 8, 8), inward=False)


def test_without_jpegtran_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="apt-get install libjpeg-turbo-progs"):
        writing.require_jpegtran()


def row_of(box: Box, **more: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    limits = {"left_lo": x1 - 9, "left_hi": x1 + 9, "right_lo": x2 - 9, "right_hi": x2 + 9, "top_lo": y1 - 9, "top_hi": y1 + 9}
    limits |= {"bottom_lo": y2 - 9, "bottom_hi": y2 + 9}
    moved = dict.fromkeys(cropping.MOVED, 0)
    corners = dict(zip(cropping.CORNERS, box, strict=True))
    return {"image_uri": "a.jpg", **corners, "angle_deg": 0.0, **limits, **moved, "adjusted": None, "reviewed_by": None, **more}


@needs_jpegtran
def test_row_says_how_far_the_grid_was() -> None:
    row, data = row_of(Box(19, 25, 70, 83)), jpeg()
    crop = cropping.cut(row, data, PredictSettings(jpeg_lossless=True))
    assert np.array_equal(decode_color(crop, "a.jpg"), part(data, Box(16, 24, 70, 83)))
    assert [row[name] for name in (*cropping.CORNERS, *cropping.MOVED)] == [16, 24, 70, 83, 3, 1, 0, 0]
    assert row["adjusted"] == "grid of the JPEG: left +3 px, top +1 px; area +7.7%"


@needs_jpegtran
def test_inward_goes_as_far_as_the_interval_and_never_into_what_a_person_drew() -> None:
    inward = PredictSettings(jpeg_lossless=True, jpeg_snap="in")
    row = row_of(Box(17, 25, 70, 83))
    cropping.cut(row, jpeg(), inward)
    assert [row[name] for name in cropping.CORNERS] == [24, 32, 70, 83]
    row = row_of(Box(17, 25, 70, 83), reviewed_by="Ann")
    cropping.cut(row, jpeg(), inward)
    assert [row[name] for name in cropping.CORNERS] == [16, 24, 70, 83]


@needs_jpegtran
@pytest.mark.parametrize(
    ("data", "angle_deg", "why"),
    [
        (saved(PICTURE, "PNG"), 0.0, "--jpeg-lossless is not for PNG: written as usual"),
        (jpeg(), 2.0, "a turned crop has pixels of its own: written as usual"),
    ],
)
def test_what_cannot_be_cut_without_loss_is_written_as_usual_and_the_row_says_so(data: bytes, angle_deg: float, why: str) -> None:
    box = Box(19, 25, 70, 83)
    row = row_of(box, angle_deg=angle_deg)
    assert cropping.cut(row, data, PredictSettings(jpeg_lossless=True)) == cut(data, "a.jpg", box, angle_deg)
    assert (row["adjusted"], row["left_moved"]) == (why, 0)


@needs_jpegtran
def test_jpeg_that_jpegtran_refuses_is_written_as_usual() -> None:
    data = jpeg()
    at = data.rindex(b"\xff\xda") + 40
    damaged = data[:at] + b"\xff\xd0" + data[at:]  # a marker where none belongs: decoders pass over it, with a warning
    row = row_of(Box(19, 25, 70, 83))
    crop = cropping.cut(row, damaged, PredictSettings(jpeg_lossless=True))
    assert read_header(crop, "a.jpg").size_wh == (51, 58)
    assert row["adjusted"].startswith("jpegtran: ") and row["adjusted"].endswith("written as usual")
