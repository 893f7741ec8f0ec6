"""Every kind of file that turns up in folders of pictures gets one row, and a reason that a person understands where it is of no use."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import framed_print
from numpy.typing import NDArray
from PIL import Image

from cropreg import storage
from cropreg.labels import Labelling, Row, label_pairs
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import discover
from cropreg.schema import PAIRS, csv_bytes, parquet_bytes

pytestmark = pytest.mark.long

HOW = Labelling(proxy_long_px=128, proxy_quality=90, max_pixels=10**6, matcher=MatcherSettings())
PICTURE, BOX = framed_print(1, 320, 240)
X1, Y1, X2, Y2 = BOX
CROP = PICTURE[Y1:Y2, X1:X2]


def encoded(kind: str, pixels: NDArray[Any] = CROP, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(ending: str, pixels: NDArray[Any], *options: int) -> bytes:
    done, data = cv2.imencode(ending, pixels, options)
    assert done
    return bytes(data.tobytes())


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def animated(kind: str, **options: Any) -> bytes:
    """The crop, then another frame."""
    return encoded(kind, save_all=True, append_images=[Image.fromarray(255 - CROP)], **options)


def with_damaged_length(png: bytes) -> bytes:
    at = png.index(b"IDAT") - 4
    return png[:at] + struct.pack(">I", 2**31 - 1) + png[at + 4 :]


def bomb(side: int) -> bytes:
    """A PNG of some bytes that says it unpacks to a square of ``side``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def wide(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return pixels.astype(np.uint16) * 257


OPAQUE = np.dstack([CROP, np.full(CROP.shape[:2], 255, np.uint8)])

# what cannot be used, and what its reason says
UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: half(encoded("JPEG")), "cut short or damaged"),
    "cut.png": (lambda: half(encoded("PNG")), "cut short or damaged"),
    "cut.tif": (lambda: half(encoded("TIFF")), "cut short"),
    "cut.webp": (lambda: half(encoded("WEBP")), "cut short or damaged"),
    "cut.gif": (lambda: half(encoded("GIF")), "cut short or damaged"),
    "cut.bmp": (lambda: half(encoded("BMP")), "cut short or damaged"),
    "cut within the header.jpg": (lambda: encoded("JPEG")[:40], "cut short or damaged"),
    "empty.jpg": (lambda: b"", "is empty (0 bytes)"),
    "zeros.jpg": (lambda: bytes(5000), "not a picture in a known format"),
    "note.jpg": (lambda: b"The picture is in the other folder.\n", "is text, not a picture"),
    "failed download.png": (lambda: b"<!DOCTYPE html><html>404</html>", "a web page (HTML), perhaps a failed download"),
    "document.jpg": (lambda: b"%PDF-1.7\n" + bytes(100), "is a PDF document"),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(100), "is a ZIP archive"),
    "film.jpg": (lambda: b"\0\0\0\x18ftypisom" + bytes(100), "is a video"),
    "damaged length.png": (lambda: with_damaged_length(encoded("PNG")), "cut short or damaged"),
    "bomb.png": (lambda: bomb(60_000), "--max-pixels 3600000000"),
    "just too large.png": (lambda: encoded("PNG", np.zeros((1001, 1000, 3), np.uint8)), "more than the limit of 1,000,000"),
    "floating point.tif": (lambda: by_opencv(".tif", CROP.astype(np.float32)), "32-bit floating-point numbers"),
    "floating point grey.tif": (lambda: encoded("TIFF", CROP[..., 0].astype(np.float32)), "32-bit floating-point numbers"),
    "no pixels.png": (lambda: bomb(0), "without pixels"),
}
# what is found though it is unusual
READABLE: dict[str, Callable[[], bytes]] = {
    "a png called.jpg": lambda: encoded("PNG"),
    "a jpeg called.png": lambda: encoded("JPEG", quality=95),
    "a tiff called.webp": lambda: encoded("TIFF"),
    "a webp called.tif": lambda: encoded("WEBP", lossless=True),
    "UPPER CASE.JPG": lambda: encoded("JPEG", quality=95),
    "16 bit.png": lambda: by_opencv(".png", wide(CROP[..., ::-1])),
    "16 bit.tif": lambda: by_opencv(".tif", wide(CROP[..., ::-1])),
    "16 bit grey.png": lambda: by_opencv(".png", wide(cv2.cvtColor(CROP, cv2.COLOR_RGB2GRAY))),
    "cmyk.jpg": lambda: encoded("JPEG", mode="CMYK", quality=95),
    "cmyk.tif": lambda: encoded("TIFF", mode="CMYK"),
    "grey.jpg": lambda: encoded("JPEG", mode="L", quality=95),
    "alpha.png": lambda: encoded("PNG", OPAQUE),
    "alpha.webp": lambda: encoded("WEBP", OPAQUE, lossless=True),
    "alpha.tif": lambda: encoded("TIFF", OPAQUE),
    "palette.png": lambda: encoded("PNG", mode="P"),
    "progressive.jpg": lambda: encoded("JPEG", progressive=True, quality=95),
    "animated.gif": lambda: animated("GIF", duration=100),
    "animated.webp": lambda: animated("WEBP", lossless=True, duration=100),
    "pages.tif": lambda: animated("TIFF"),
    "rubbish behind.jpg": lambda: encoded("JPEG", quality=95) + bytes(1000),
}
LONG = "n" * 200
NAMES = {
    "composed": unicodedata.normalize("NFC", "Zürich é.png"),
    "decomposed": unicodedata.normalize("NFD", "Café ö.png"),
    "newline": "two\nlines.png",
    "not UTF-8": os.fsdecode(b"\xff\xfe photo.png"),
    "very long": f"{LONG}.png",
    "dash": "-rf.png",
    "spaces": "  a  b .png",
    "quotes": 'it\'s "this" `one`.png',
    "formula": "=cmd().png",
    "percent": "50%20.png",
    "star": "*?[a].png",
    "backslash": "a\\b.png",
    "dots": "a.b..c.png",
    "emoji": "📷.png",
    "right to left": "\u202egnp.png",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Originals that are sound with a crop of each kind, and the other way round; neither has a name twice."""
    root = tmp_path_factory.mktemp("corpus")
    sound = encoded("PNG", PICTURE), encoded("PNG")
    for folder in ("bad crops", "bad originals", "unusual crops", "names"):
        for side in ("originals", "crops"):
            (root / side / folder).mkdir(parents=True)

    def stem(name: str) -> str:
        return name.replace(".", " ")  # "cut.jpg" and "cut.png" are two pictures here

    for name, (make, _) in UNREADABLE.items():
        ending = Path(name).suffix
        (root / "crops/bad crops" / f"{stem(name)}{ending}").write_bytes(make())
        (root / "originals/bad crops" / f"{stem(name)}.png").write_bytes(sound[0])
        (root / "originals/bad originals" / f"{stem(name)}{ending}").write_bytes(make())
        (root / "crops/bad originals" / f"{stem(name)}.png").write_bytes(sound[1])
    for name, make in READABLE.items():
        (root / "crops/unusual crops" / f"{stem(name)}{Path(name).suffix}").write_bytes(make())
        (root / "originals/unusual crops" / f"{stem(name)}.png").write_bytes(sound[0])
    for name in NAMES.values():
        (root / "originals/names" / name).write_bytes(sound[0])
        (root / "crops/names" / name).write_bytes(sound[1])
    return root


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[Row]:
    return label_pairs(discover(f"{corpus}/originals", f"{corpus}/crops"), HOW)[0]


def row_of(rows: list[Row], folder: str, name: str) -> Row:
    """The row whose crop lies in that folder under that name, with the endings it has on disk."""
    stem = f"/{folder}/{name.replace('.', ' ') if folder != 'names' else Path(name).stem}"
    [row] = [r for r in rows if os.path.splitext(storage.local_path(r["crop_uri"] or r["original_uri"]))[0].endswith(stem)]
    return row


def test_every_file_is_in_exactly_one_row(corpus: Path, rows: list[Row]) -> None:
    seen = Counter(storage.local_path(row[side]) for row in rows for side in ("original_uri", "crop_uri") if row[side])
    assert seen == Counter(str(path) for path in corpus.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("folder", ["bad crops", "bad originals"])
def test_file_of_no_use_is_unreadable_and_named_with_what_it_is(rows: list[Row], folder: str, name: str) -> None:
    row = row_of(rows, folder, name)
    assert row["verdict"] == "unreadable"
    faulty = row["crop_uri" if folder == "bad crops" else "original_uri"]
    assert row["reason"].startswith(f"{faulty}: "), "the reason names the file that is at fault"
    assert UNREADABLE[name][1] in row["reason"]
    assert row["reason"].endswith(".") and "\n" not in row["reason"] and "Traceback" not in row["reason"]


@pytest.mark.parametrize("name", READABLE)
def test_unusual_file_is_read_and_found(rows: list[Row], name: str) -> None:
    row = row_of(rows, "unusual crops", name)
    assert (row["verdict"], row["reason"]) == ("found", None)
    assert np.abs(np.subtract([row[k] for k in ("x1", "y1", "x2", "y2")], BOX)).max() <= 1


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_file_of_any_name_is_found_and_its_name_comes_back(corpus: Path, rows: list[Row], name: str) -> None:
    row = row_of(rows, "names", name)
    assert row["verdict"] == "found"
    assert storage.local_path(row["original_uri"]) == f"{corpus}/originals/names/{name}"
    row["original_uri"].encode()  # a table can hold it


def test_all_rows_fit_into_the_table_and_the_list_of_problems(rows: list[Row]) -> None:
    parquet_bytes(rows, PAIRS)
    lines = csv_bytes(rows, ["original_uri", "crop_uri", "verdict", "reason"]).decode()
    assert lines.count("\n") >= len(rows)


@pytest.fixture
def one(tmp_path: Path) -> Callable[[], Row]:
    """A sound original without its crop; gives the row of the pair once the test has made something of the crop."""
    for side in ("originals", "crops"):
        (tmp_path / side).mkdir()
    (tmp_path / "originals" / "a.png").write_bytes(encoded("PNG", PICTURE))

    def row() -> Row:
        [row] = label_pairs(discover(f"{tmp_path}/originals", f"{tmp_path}/crops"), HOW)[0]
        return row

    return row


def test_folder_called_like_a_picture_is_a_folder(one: Callable[[], Row], tmp_path: Path) -> None:
    (tmp_path / "crops" / "a.jpg").mkdir()
    assert (one()["verdict"], one()["reason"]) == ("unpaired", "no crop has this name")
    (tmp_path / "originals" / "a.png").unlink()
    (tmp_path / "originals" / "a.jpg").mkdir()
    (tmp_path / "originals" / "a.jpg" / "b.png").write_bytes(encoded("PNG", PICTURE))
    (tmp_path / "crops" / "a.jpg" / "b.png").write_bytes(encoded("PNG"))
    assert one()["verdict"] == "found"


@pytest.mark.parametrize("target", ["nowhere.jpg", "a.jpg", os.fsdecode(b"\xff.jpg")], ids=["nowhere", "itself", "not UTF-8"])
def test_link_that_leads_nowhere_or_in_a_circle_is_unreadable(one: Callable[[], Row], tmp_path: Path, target: str) -> None:
    (tmp_path / "crops" / "a.jpg").symlink_to(target)
    assert one()["verdict"] == "unreadable"
    assert "crops/a.jpg: is not there. " in one()["reason"] and "a link that leads nowhere" in one()["reason"]


def test_link_to_the_folder_above_is_not_followed_for_ever(one: Callable[[], Row], tmp_path: Path) -> None:
    (tmp_path / "crops" / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "crops" / "above").symlink_to(tmp_path / "crops")
    assert one()["verdict"] == "found"


def test_pipe_called_like_a_picture_is_unreadable_and_not_waited_for(one: Callable[[], Row], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "crops" / "a.jpg")
    assert one()["verdict"] == "unreadable"
    assert "crops/a.jpg: cannot be read" in one()["reason"] and "is not a regular file" in one()["reason"]


def test_file_that_may_not_be_read_says_so(one: Callable[[], Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crops" / "a.jpg").write_bytes(encoded("JPEG"))
    read_bytes = storage.read_bytes

    def locked(uri: str) -> bytes:  # for root, who runs tests in containers, no file is locked
        if uri.endswith("crops/a.jpg"):
            raise PermissionError(13, "Permission denied", uri)
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", locked)
    row = one()
    assert row["verdict"] == "unreadable"
    assert "crops/a.jpg: may not be read. Give this user the right to read it" in row["reason"]


@pytest.mark.parametrize("twin", ["A.PNG", "a.tif", "a.JPG"])
def test_crop_whose_name_fits_two_originals_is_given_to_neither(tmp_path: Path, twin: str) -> None:
    for side in ("originals", "crops"):
        (tmp_path / side).mkdir()
    for name in ("a.png", twin):
        (tmp_path / "originals" / name).write_bytes(encoded("PNG", PICTURE))
    (tmp_path / "crops" / "a.png").write_bytes(encoded("PNG"))
    rows = label_pairs(discover(f"{tmp_path}/originals", f"{tmp_path}/crops"), HOW)[0]
    assert [row["verdict"] for row in rows] == ["unpaired"] * 3
    [reason] = [row["reason"] for row in rows if row["crop_uri"]]
    assert reason == f"the name fits 2 originals: {' and '.join(sorted(['a.png', twin]))}"


def test_limit_of_pixels_holds_for_originals_too(one: Callable[[], Row], tmp_path: Path) -> None:
    (tmp_path / "crops" / "a.png").write_bytes(encoded("PNG"))
    pairs = discover(f"{tmp_path}/originals", f"{tmp_path}/crops")
    [row] = label_pairs(pairs, dataclasses.replace(HOW, max_pixels=PICTURE.shape[0] * PICTURE.shape[1] - 1))[0]
    assert row["verdict"] == "unreadable"
    assert "originals/a.png: unpacks to 320 x 240 pixels" in row["reason"] and "--max-pixels 76800" in row["reason"]
