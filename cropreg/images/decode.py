"""Bytes to upright pixels: colour, grey, or reduced by 2, 4 or 8.

OpenCV decodes what it decodes right; Pillow takes AVIF, HEIC, TGA, GIF, PPM (OpenCV ignores its largest value), everything
transparent, and the TIFF kinds OpenCV gets wrong.  Whole JPEGs are decoded by the same library through simplejpeg, which fills the
array that it returns, where OpenCV hands out a copy: half the memory, 0.9 of the time, the same pixels.
``cv2.imdecode`` only, never ``imread``: given bytes it refuses a JPEG that is cut short, given a path it returns half a picture.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms

from cropreg.errors import UnreadableImage
from cropreg.images.header import (
    COPY_AGAIN,
    DEFAULT_MAX_PIXELS,
    TIFF_COMPRESSIONS_OF_OPENCV,
    Header,
    first_line,
    import_heif,
    import_rawpy,
    open_pillow,
    read_header,
    tiff_number,
)

# OpenCV reads this once, when it is imported.  The limit that matters is the header's (--max-pixels); this one backs it up where a
# decoder might see another size than the header reader.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 30))

import cv2

Pixels = NDArray[np.uint8]

STRIP_ROWS = 256  # rows that Pillow converts at a time
_REDUCED = {
    1: (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE),
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
}


@dataclass(frozen=True)
class Reduced:
    """A picture made of the means of ``factor`` x ``factor`` cells of the upright original.

    A corner (x, y) of ``pixels``, (h, w) or (h, w, 3) uint8, lies at ``shift_xy + factor * (x, y)`` in the original.
    """

    pixels: Pixels
    factor: int
    shift_xy: tuple[int, int]


def decode_color(data: bytes, name: str, *, header: Header | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """Decodes a picture to (H, W, 3) uint8 RGB, upright, 16-bit values scaled to 8, transparency laid on white.

    Raises:
        UnreadableImage: not a picture, cut short, damaged, larger than ``max_pixels``, or of a kind that is not read.
    """
    header = header or read_header(data, name, max_pixels=max_pixels)
    pixels = _whole(data, name, header, grey=False) if _is_opencvs(data, header) else _by_pillow(data, name, header)
    return _checked(turn(pixels, _remaining_turn(header)), name, header)


def decode_grey(data: bytes, name: str, *, header: Header | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """Decodes a picture to (H, W) uint8 luma, upright: within rounding the luma of :func:`decode_color`, at half its cost for JPEG.

    Raises:
        UnreadableImage: as :func:`decode_color`.
    """
    header = header or read_header(data, name, max_pixels=max_pixels)
    if _grey_is_direct(data, header):
        pixels = _whole(data, name, header, grey=True)
        return _checked(turn(pixels, _remaining_turn(header)), name, header)
    if _is_opencvs(data, header):
        return np.asarray(cv2.cvtColor(decode_color(data, name, header=header), cv2.COLOR_RGB2GRAY), np.uint8)
    return _checked(turn(_by_pillow(data, name, header, grey=True), _remaining_turn(header)), name, header)


def decode_reduced(
    data: bytes, name: str, factor: int, *, grey: bool, header: Header | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Reduced:
    """Decodes a picture reduced by ``factor`` (1, 2, 4 or 8), upright; only whole cells are kept.

    JPEG is reduced by libjpeg while decoding (24 MP by 8: about a third of the time of a full decode); other formats are decoded
    in full and averaged.  A side shorter than ``factor`` has no whole cell: the largest smaller factor that fits is used instead.

    Raises:
        UnreadableImage: as :func:`decode_color`.
    """
    if factor not in _REDUCED:
        raise ValueError(f"factor is 1, 2, 4 or 8, got {factor}")
    header = header or read_header(data, name, max_pixels=max_pixels)
    while factor > min(header.size_wh):
        factor //= 2
    if header.format != "JPEG" or factor == 1:
        full = (decode_grey if grey else decode_color)(data, name, header=header)
        w, h = header.width // factor, header.height // factor
        if factor > 1:
            full = cv2.resize(full[: h * factor, : w * factor], (w, h), interpolation=cv2.INTER_AREA)
        return Reduced(full, factor, (0, 0))
    direct_grey = grey and _grey_is_direct(data, header)
    pixels = _by_opencv(data, name, _REDUCED[factor][direct_grey])
    if not direct_grey:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    stored_w, stored_h = header.size_wh if header.orientation < 5 else header.size_wh[::-1]
    if pixels.shape[:2] != (-(-stored_h // factor), -(-stored_w // factor)):
        raise UnreadableImage(name, f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels at 1/{factor}", COPY_AGAIN)
    # libjpeg pads the last column and row of cells; in the stored frame they are on the right and at the bottom, upright anywhere
    pixels = turn(pixels[: stored_h // factor, : stored_w // factor], header.orientation)
    rest_x, rest_y = stored_w % factor, stored_h % factor
    left = {2: rest_x, 3: rest_x, 6: rest_y, 7: rest_y}.get(header.orientation, 0)
    top = {3: rest_y, 4: rest_y, 7: rest_x, 8: rest_x}.get(header.orientation, 0)
    if grey and not direct_grey:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    return Reduced(pixels, factor, (left, top))


def encode_jpeg(rgb: Pixels, quality: int) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as a baseline JPEG without metadata; ``quality`` 1..100."""
    done, buffer = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every uint8 array"
    return buffer.tobytes()


def _is_opencvs(data: bytes, header: Header) -> bool:
    """Whether OpenCV decodes this file, and right."""
    if header.format == "TIFF":
        if header.bit_depth == 8 and min(tiff_number(data, 322, 64), tiff_number(data, 323, 64)) < 64:
            return False  # it refuses tiles of 16 and 32 px that are not compressed
        plain = header.mode in ("1", "L", "P", "RGB") or (header.mode == "CMYK" and header.bit_depth == 8)
        return plain and header.bit_depth in (1, 8, 16) and tiff_number(data, 259, 1) in TIFF_COMPRESSIONS_OF_OPENCV
    return header.format in ("JPEG", "PNG", "WEBP", "BMP", "JPEG2000") and not header.has_alpha


def _grey_is_direct(data: bytes, header: Header) -> bool:
    """Whether OpenCV's grey decoding equals the luma of its colours: libjpeg's does, libpng's and that of CMYK do not."""
    modes = ("L", "RGB") if header.format == "JPEG" else ("1", "L")
    return header.mode in modes and _is_opencvs(data, header)


def _whole(data: bytes, name: str, header: Header, *, grey: bool) -> Pixels:
    """Decodes a file for which :func:`_is_opencvs` (or :func:`_grey_is_direct`) holds to (H, W, 3) RGB or (H, W), in the stored frame."""
    if header.format == "JPEG" and header.mode in ("L", "RGB"):
        # What it refuses OpenCV judges, which takes what is only a little damaged; so it is with more pixels than the header says.
        room = np.empty(header.width * header.height * (1 if grey else 3), np.uint8)
        with contextlib.suppress(ValueError):
            pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY" if grey else "RGB", buffer=room)
            return pixels[..., 0] if grey else pixels
    pixels = _by_opencv(data, name, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    if not grey:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _by_opencv(data: bytes, name: str, flags: int) -> Pixels:
    """Decodes with OpenCV, in the stored frame (TIFF excepted: see :func:`_remaining_turn`)."""
    level = cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # what it would print about a damaged file is said by our error
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise UnreadableImage(name, f"is refused by the decoder ({error.err or 'OpenCV error'})", COPY_AGAIN) from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None:
        raise UnreadableImage(name, "is cut short or damaged", COPY_AGAIN)
    return np.asarray(pixels, np.uint8)


def _by_pillow(data: bytes, name: str, header: Header, *, grey: bool = False) -> Pixels:
    """Decodes with Pillow, pi-heif or rawpy to (H, W, 3) or (H, W), in the stored frame (TIFF, HEIC and RAW excepted)."""
    try:
        if header.format == "RAW":
            with import_rawpy(name).imread(io.BytesIO(data)) as raw:
                pixels = np.asarray(raw.postprocess(use_camera_wb=True, output_bps=8), np.uint8)
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8) if grey else pixels
        if header.format == "HEIC":
            return _on_white(import_heif(name).open_heif(io.BytesIO(data)).to_pillow(), header, grey=grey)
        if header.format == "TIFF":
            _refuse_what_pillow_gets_wrong(data, name, header)
        with open_pillow(data, header.format) as image:
            image.load()
            return _on_white(image, header, grey=grey)
    except UnreadableImage:
        raise
    except Exception as error:  # SyntaxError, ValueError, TypeError, MemoryError, zlib.error ... from damaged files
        raise UnreadableImage(name, f"is cut short or damaged ({first_line(error)})", COPY_AGAIN) from error


def _refuse_what_pillow_gets_wrong(data: bytes, name: str, header: Header) -> None:
    """Raises UnreadableImage for a TIFF file that Pillow cannot open, or opens but decodes to noise."""
    what = f"is a TIFF file of a kind that is not read ({header.mode}, {header.bit_depth} bit"
    cure = "Export it without transparency, or with 8 bits per channel."
    if header.bit_depth == 16 and tiff_number(data, 284, 1) == 2:
        raise UnreadableImage(name, what + ", separate planes)", cure)
    try:
        open_pillow(data, "TIFF").close()
    except Exception as error:
        raise UnreadableImage(name, f"{what}: {first_line(error)})", cure) from error


def _on_white(image: Image.Image, header: Header, *, grey: bool) -> Pixels:
    """A loaded Pillow image of any mode as (H, W, 3) RGB, or as its luma (H, W)."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it, not scale it
        values = np.asarray(image)
        luma = (values >> 8).astype(np.uint8)
        if key is not None:
            luma[values == key] = 255
        return luma if grey else np.repeat(luma[..., None], 3, axis=2)
    if header.bit_depth == 16 and isinstance(key, tuple):  # Pillow has scaled the pixels to 8 bit, but not the transparent colour
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode == "LAB":
        to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_srgb) or image
    w, h = image.size
    pixels = np.empty((h, w) if grey else (h, w, 3), np.uint8)
    for y in range(0, h, STRIP_ROWS):  # a conversion of the whole takes several times the memory
        part = image.crop((0, y, w, min(y + STRIP_ROWS, h)))
        if header.has_alpha:
            rgba = part.convert("RGBA")
            part = Image.new("RGB", part.size, "white")
            part.paste(rgba, mask=rgba.getchannel("A"))
        rgb = np.asarray(part.convert("RGB"))
        pixels[y : y + STRIP_ROWS] = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if grey else rgb
    return pixels


def _remaining_turn(header: Header) -> int:
    """The orientation still to be applied to decoded pixels: OpenCV and Pillow turn TIFF themselves, libheif HEIC, LibRaw RAW."""
    return 1 if header.format in ("TIFF", "HEIC", "RAW") else header.orientation


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Turns stored pixels (H, W[, 3]) upright by their EXIF orientation."""
    if orientation in (5, 7):
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    match orientation:
        case 2 | 3 | 4:
            turned = cv2.flip(pixels, {2: 1, 3: -1, 4: 0}[orientation])
        case 6:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.flip(pixels, -1)
        case 8:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            turned = pixels
    return np.ascontiguousarray(turned, np.uint8)


def _checked(pixels: Pixels, name: str, header: Header) -> Pixels:
    """The pixels, if they have the size the header promised."""
    if pixels.shape[:2] != (header.height, header.width):
        got = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise UnreadableImage(name, f"decodes to {got} pixels where its header says {header.width} x {header.height}", COPY_AGAIN)
    return pixels
