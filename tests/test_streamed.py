"""Large TIFFs, cut from file to file: the same crops as small ones, with every byte of their metadata."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prediction import predictor
from test_writing import ALPHA, BOX, CMYK, DEEP, RGB, H, W, full_tiff

from cropreg.boxes import Box
from cropreg.errors import UnreadableImage
from cropreg.images import decode_reduced, read_header, streamed
from cropreg.images.containers import TiffTree
from cropreg.images.streamed import decode_streamed, import_pyvips, is_streamed
from cropreg.pipelines.predict import crop_batch
from cropreg.prediction import Predictor
from cropreg.settings import PredictSettings
from cropreg.writing import cut, cut_streamed

pytestmark = pytest.mark.long
__all__ = ["predictor"]  # a fixture


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LARGE_BYTES", 1)


def tiff(pixels: np.ndarray, orientation: int = 1, **how: Any) -> bytes:
    kind = {(1, 3): "srgb", (2, 3): "rgb16", (1, 2): "b-w", (2, 2): "grey16"}[pixels.itemsize, pixels.ndim]
    image = import_pyvips().Image.new_from_array(pixels, interpretation=how.pop("interpretation", kind))
    image.set_type(import_pyvips().GValue.gint_type, "orientation", orientation)
    return bytes(image.tiffsave_buffer(**how))


RGBA = np.dstack([RGB, ALPHA])
KINDS = {
    "16 bit": tiff(DEEP["RGB"]),
    "16 bit grey, Deflate": tiff(DEEP["grey"], compression="deflate", predictor="horizontal"),
    "8 bit, LZW": tiff(RGB, compression="lzw"),
    "tiles": tiff(RGB, tile=True, tile_width=64, tile_height=64),
    "BigTIFF": tiff(DEEP["RGB"], bigtiff=True),
    "alpha": tiff(RGBA),
    "16 bit, alpha": tiff(DEEP["RGBA"], compression="deflate", predictor="horizontal"),
    "CMYK": tiff(np.asarray(CMYK), interpretation="cmyk", compression="lzw"),
    "16 bit CMYK": tiff(DEEP["CMYK"], interpretation="cmyk"),
    "every kind of metadata": full_tiff("<", "raw"),
    "Motorola's byte order": full_tiff(">", "raw"),
}


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    path.write_bytes(KINDS[request.param])
    return path


@pytest.mark.parametrize("metadata", ["all", "none"])
def test_crop_from_file_to_file_is_that_from_memory_byte_by_byte(source: Path, metadata: Any) -> None:
    data, target = source.read_bytes(), source.parent / "out.tif"
    header = read_header(data, "a.tif")
    assert is_streamed(data, header)
    cut_streamed(str(source), "a.tif", data, header, BOX, str(target), metadata=metadata)
    assert target.read_bytes() == cut(data, "a.tif", BOX, metadata=metadata)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["16 bit", "16 bit grey", "8 bit", "16 bit, alpha", "CMYK"])
def test_turned_file_is_read_and_cut_upright_as_in_memory(kind: str, orientation: int, tmp_path: Path) -> None:
    pixels = {
        "16 bit": DEEP["RGB"],
        "16 bit grey": DEEP["grey"],
        "8 bit": RGB,
        "16 bit, alpha": DEEP["RGBA"],
        "CMYK": np.asarray(CMYK),
    }
    path, target = tmp_path / "a.tif", tmp_path / "out.tif"
    inks = {"interpretation": "cmyk"} if kind == "CMYK" else {}
    path.write_bytes(data := tiff(pixels[kind], orientation=orientation, **inks))
    header = read_header(data, "a.tif")
    assert header.orientation == orientation and is_streamed(data, header)
    upright_w, upright_h = header.size_wh
    for factor in (1, 8):  # neither side is a multiple of 8
        rows = decode_streamed(str(path), "a.tif", header, factor)
        whole = decode_reduced(data, "a.tif", factor, grey=False).pixels
        assert rows.shape == whole.shape == (upright_h // factor, upright_w // factor, 3)
        assert np.abs(rows.astype(int) - whole).max() <= 1
    box = Box(3, 5, upright_w - 11, upright_h - 2)
    cut_streamed(str(path), "a.tif", data, header, box, str(target))
    assert target.read_bytes() == cut(data, "a.tif", box)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.tif", "out.tif"], "nothing temporary is left"


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reduced_row_by_row_a_picture_is_what_it_is_reduced_whole(source: Path, factor: int) -> None:
    data = source.read_bytes()
    rows = decode_streamed(str(source), "a.tif", read_header(data, "a.tif"), factor)
    whole = decode_reduced(data, "a.tif", factor, grey=False).pixels
    assert rows.shape == whole.shape == (H // factor, W // factor, 3)
    assert np.abs(rows.astype(int) - whole).max() <= 1


def test_what_is_premultiplied_or_small_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    premultiplied = bytearray(tiff(RGBA))
    tree = TiffTree.of(bytes(premultiplied))
    assert is_streamed(bytes(premultiplied), read_header(bytes(premultiplied), "a.tif"))
    entry = tree.directory(tree.first)[0][338]
    struct.pack_into(tree.end + "H", premultiplied, entry.start, 1)
    assert not is_streamed(bytes(premultiplied), read_header(bytes(premultiplied), "a.tif"))
    monkeypatch.setattr(streamed, "LARGE_BYTES", H * W * 3 + 1)
    for pixels, large in ((RGB, False), (DEEP["RGB"], True)):
        assert is_streamed(tiff(pixels), read_header(tiff(pixels), "a.tif")) == large


def test_file_damaged_behind_its_header_is_unreadable(tmp_path: Path) -> None:
    data = tiff(RGB, compression="deflate")
    damaged, path = bytearray(data), tmp_path / "a.tif"
    damaged[200:400] = bytes(200)
    path.write_bytes(damaged)
    with pytest.raises(UnreadableImage, match=r"^a\.tif: is cut short or damaged \("):
        decode_streamed(str(path), "a.tif", read_header(data, "a.tif"), 1)


def test_picture_is_predicted_and_cut_without_ever_being_whole_in_memory(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> bytes:
        raise AssertionError("decoded or cut in memory")

    path, out = tmp_path / "[1] ä.tif", tmp_path / "out"
    path.write_bytes(full_tiff("<", "raw"))
    monkeypatch.setattr("cropreg.writing.cut", never)
    monkeypatch.setattr("cropreg.prediction.decode_reduced", never)
    settings = PredictSettings(all=True)
    (row,) = crop_batch([(str(path), path.name)], predictor, str(out), settings)
    monkeypatch.undo()
    assert (row["width"], row["height"], row["crop_uri"]) == (W, H, str(out / path.name))
    crop = (out / path.name).read_bytes()
    assert read_header(crop, "a.tif").size_wh == (row["x2"] - row["x1"], row["y2"] - row["y1"])
    assert [item.name for item in out.iterdir()] == [path.name], "nothing temporary is left"


def test_crop_of_a_large_picture_is_never_put_in_the_place_of_something_else(predictor: Predictor, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out"
    path.write_bytes(tiff(DEEP["RGB"]))
    out.mkdir()
    (out / "a.tif").write_bytes(b"somebody's")
    items, settings = [(str(path), "a.tif")], PredictSettings(all=True)
    (row,) = crop_batch(items, predictor, str(out), settings)
    assert row["verdict"] == "failed" and "exists already and is another picture" in row["reason"]
    assert (out / "a.tif").read_bytes() == b"somebody's" and len(list(out.iterdir())) == 1
    for again in (settings.model_copy(update={"overwrite": True}), settings):  # and what is the same may stay
        (row,) = crop_batch(items, predictor, str(out), again)
        assert row["crop_uri"] == str(out / "a.tif") and read_header((out / "a.tif").read_bytes(), "").bit_depth == 16
