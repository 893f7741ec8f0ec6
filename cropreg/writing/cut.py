"""One picture, one box, one encoded crop.

JPEG, WebP and palette pictures go through Pillow, which can encode a JPEG with its original's own quantisation tables and leaves a palette
alone; PNG, TIFF and AVIF go through libvips, which keeps 16 bits and reads only the rows it needs.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from cropreg.boxes import Box, to_stored
from cropreg.errors import OutputError, UnreadableImage
from cropreg.images import DEFAULT_MAX_PIXELS, Header, read_header
from cropreg.images.containers import riff_chunks
from cropreg.images.header import COPY_AGAIN, first_line, open_pillow, tiff_number
from cropreg.images.streamed import import_pyvips
from cropreg.writing.metadata import (
    Metadata,
    carry_jpeg,
    carry_png,
    carry_tiff,
    exif_resolution,
    scrub_exif,
    scrub_xmp,
    webp_metadata,
)
from cropreg.writing.private import is_private_field

import cv2  # isort: skip  (after cropreg.images, which sets its limits)

if TYPE_CHECKING:
    from pyvips import Image as VipsImage

_PILLOW_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
VIPS_COMPRESSIONS = {1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32946: "deflate", 32773: "packbits"}
_WEBP_PIXELS = (b"VP8L", b"VP8 ", b"ANMF")
_PILLOW_COMPRESSIONS = {
    1: "raw",
    2: "tiff_ccitt",
    3: "group3",
    4: "group4",
    5: "tiff_lzw",
    7: "jpeg",
    8: "tiff_adobe_deflate",
    32773: "packbits",
    32946: "tiff_deflate",
    34925: "lzma",
    50000: "zstd",
}


def cut(
    data: bytes,
    name: str,
    box: Box,
    angle_deg: float = 0.0,
    *,
    metadata: Metadata = "all",
    quality: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bytes:
    """Cuts ``box`` out of a picture and encodes it in the picture's own format, bit depth and colour mode, upright.

    ``box`` is in whole pixels of the upright original and lies inside it; with ``angle_deg`` (clockwise) it is turned about its centre,
    may then stick out (the border's pixels are repeated) and is resampled; without, lossless formats keep their very pixels.

    Metadata: ICC and DPI always; EXIF, XMP, IPTC and texts with ``metadata="all"`` (JPEG, PNG, TIFF, WebP, AVIF; the other formats
    hardly have any), less what :mod:`cropreg.writing.private` takes out with ``"safe"``.  Orientation and sizes are corrected,
    thumbnails and previews removed.  Of several pages the first is cut.
    TIFF greys of 2 and 4 bits come out in 8, same values: libvips damages the last pixel of odd rows when it packs them.
    ``quality`` (1..100) is for lossy formats; by default a JPEG keeps its own quantisation tables, WebP and AVIF get 90.

    Raises:
        ValueError: the box is not whole, or lies outside.
        UnreadableImage: the picture cannot be decoded whole.
        OutputError: the format can be read but not written (RAW, HEIC, 16-bit colour in JPEG 2000, PPM or Zstandard TIFF).
    """
    header = read_header(data, name, max_pixels=max_pixels)
    region = _region(box, angle_deg, header)
    size_wh = int(box.x2) - int(box.x1), int(box.y2) - int(box.y1)
    if header.format in ("RAW", "HEIC"):
        raise OutputError(f"{name}: a {header.format} file can be read but not written. Export it as TIFF or JPEG first.")
    try:
        if _is_pillows(data, header):
            return _cut_by_pillow(data, name, header, region, box, angle_deg, size_wh, metadata, quality)
        return _cut_by_vips(data, header, region, box, angle_deg, size_wh, metadata, quality)
    except (OutputError, UnreadableImage, ImportError, MemoryError):
        raise
    except Exception as error:  # pyvips.Error; Pillow raises nearly anything on a damaged file
        raise UnreadableImage(name, f"cannot be cut ({first_line(error)})", COPY_AGAIN) from error


def _region(box: Box, angle_deg: float, header: Header) -> Box:
    """The upright whole-pixel rectangle that the crop's pixels are made of."""
    w, h = header.size_wh
    inside = box.x1 >= 0 and box.y1 >= 0 and box.x2 <= w and box.y2 <= h
    if not box.is_whole or not (inside or angle_deg):
        raise ValueError(f"the box must be whole pixels inside {w} x {h}, got {tuple(box)}")
    if not angle_deg:
        return box
    (box_w, box_h), (x, y), turn = box.size_wh, box.center_xy, math.radians(angle_deg)
    reach_x = (abs(box_w * math.cos(turn)) + abs(box_h * math.sin(turn))) / 2 + 3  # bicubic looks two pixels further
    reach_y = (abs(box_w * math.sin(turn)) + abs(box_h * math.cos(turn))) / 2 + 3
    return Box(math.floor(x - reach_x), math.floor(y - reach_y), math.ceil(x + reach_x), math.ceil(y + reach_y)).rounded((w, h))


def _stored(box: Box, header: Header, orientation: int) -> tuple[int, int, int, int]:
    """An upright box as x1, y1, x2, y2 in the frame as stored, before a turn by ``orientation``."""
    x1, y1, x2, y2 = (int(edge) for edge in to_stored(box, header.size_wh, orientation))
    return x1, y1, x2, y2


def _turned(pixels: NDArray[Any], region: Box, box: Box, angle_deg: float, *, smooth: bool) -> NDArray[Any]:
    """Resamples the turned ``box`` from the upright ``region`` (H, W[, C]) it lies in."""
    (w, h), (x, y), turn = box.size_wh, box.center_xy, math.radians(angle_deg)
    x, y = x - region.x1, y - region.y1
    cos, sin = math.cos(turn), math.sin(turn)
    # crop pixel (u, v) has its centre at (u + .5, v + .5); its place in the region is centre + turn * (that - half the crop) - .5
    to_region = np.array(
        [
            [cos, -sin, x + cos * (0.5 - w / 2) - sin * (0.5 - h / 2) - 0.5],
            [sin, cos, y + sin * (0.5 - w / 2) + cos * (0.5 - h / 2) - 0.5],
        ]
    )
    flags = (cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST) | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(np.ascontiguousarray(pixels), to_region, (int(w), int(h)), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out)


def _is_pillows(data: bytes, header: Header) -> bool:
    """Whether Pillow encodes this kind better than libvips, or libvips does not know it."""
    if header.format == "PNG":
        return header.mode in ("1", "P", "PA")
    if header.format == "TIFF":
        premultiplied = tiff_number(data, 338, 0) == 1  # what libvips does with it depends on its version
        return premultiplied or header.mode in ("1", "P", "Lab") or tiff_number(data, 259, 1) not in VIPS_COMPRESSIONS
    return header.format != "AVIF"


def _cut_by_pillow(
    data: bytes,
    name: str,
    header: Header,
    region: Box,
    box: Box,
    angle_deg: float,
    size_wh: tuple[int, int],
    metadata: Metadata,
    quality: int | None,
) -> bytes:
    kind = header.format
    with open_pillow(data, kind) as image:
        options = _pillow_options(data, header, image, size_wh, metadata, quality)
        image.load()
        if header.bit_depth > 8 and not image.mode.startswith("I"):
            raise OutputError(
                f"{name}: {kind} colours of 16 bits cannot be written without loss. Export it as PNG or plain TIFF first."
            )
        orientation = 1 if kind == "TIFF" else header.orientation  # Pillow turns TIFF when it loads it
        x1, y1, x2, y2 = _stored(region, header, orientation)
        # not Image.crop: that one warns above 179 million pixels, and only above them
        piece = image.transform((x2 - x1, y2 - y1), Image.Transform.EXTENT, (x1, y1, x2, y2), Image.Resampling.NEAREST)
        if orientation != 1:
            piece = piece.transpose(_PILLOW_TURNS[orientation])
        if angle_deg:
            piece = _turned_by_pillow(piece, region, box, angle_deg)
        piece.info = {key: value for key, value in image.info.items() if key in ("transparency", "background")}
        buffer = io.BytesIO()
        piece.save(buffer, kind, **options)
    if kind == "JPEG":
        return carry_jpeg(data, buffer.getvalue(), size_wh, metadata)
    if kind == "PNG":
        return carry_png(data, buffer.getvalue(), size_wh, metadata)
    return carry_tiff(data, buffer.getvalue(), size_wh, metadata) if kind == "TIFF" else buffer.getvalue()


def _turned_by_pillow(piece: Image.Image, region: Box, box: Box, angle_deg: float) -> Image.Image:
    if piece.mode in ("1", "P", "PA"):
        grey = piece.convert("L") if piece.mode == "1" else piece
        turned = Image.fromarray(_turned(np.asarray(grey), region, box, angle_deg, smooth=False))
        if piece.mode == "1":
            return turned.convert("1", dither=Image.Dither.NONE)
        turned.putpalette(piece.palette)  # type: ignore[arg-type]
        return turned
    premultiplied = piece.convert("RGBa") if piece.mode == "RGBA" else piece  # no fringe of hidden colours
    pixels = np.asarray(premultiplied)
    pixels = _turned(pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels, region, box, angle_deg, smooth=True)
    w, h = pixels.shape[1], pixels.shape[0]
    turned = Image.frombytes(premultiplied.mode, (w, h), pixels.astype(np.asarray(premultiplied).dtype).tobytes())
    return turned.convert(piece.mode)


def _pillow_options(
    data: bytes, header: Header, image: Image.Image, size_wh: tuple[int, int], metadata: Metadata, quality: int | None
) -> dict[str, Any]:
    """Pillow's arguments for saving as the original was saved."""
    match header.format:
        case "JPEG":
            tables = {"quality": quality} if quality else {"qtables": image.quantization}  # type: ignore[attr-defined]
            subsampling = JpegImagePlugin.get_sampling(image)
            if (subsampling == 1 and header.orientation >= 5) or subsampling < 0:  # 4:2:2 lying on its side has no name in Pillow
                subsampling = 0
            keep_rgb = image.mode == "RGB" and image.info.get("adobe_transform") == 0
            return {**tables, "subsampling": subsampling, "progressive": header.progressive, "keep_rgb": keep_rgb}
        case "WEBP":
            chunks = [(kind, at) for kind, at, _ in riff_chunks(data) if kind in _WEBP_PIXELS]
            kind, at = chunks[0] if chunks else (b"", 0)
            first = data[at + 16 : at + 20] if kind == b"ANMF" else kind  # a frame of an animation has its own chunks inside
            lossless = first == b"VP8L"
            options = {"lossless": lossless, "quality": quality or (75 if lossless else 90), "exact": True}  # lossless: effort
            return options | webp_metadata(data, size_wh, metadata)
        case "TIFF":
            return {"compression": _PILLOW_COMPRESSIONS[tiff_number(data, 259, 1)]}
        case "TGA":
            return {"compression": image.info.get("compression")}
        case "JPEG2000":
            return {"irreversible": False, "no_jp2": data.startswith(b"\xff\x4f")}
        case "BMP":
            return {"dpi": image.info["dpi"]} if "dpi" in image.info else {}
    return {}


def _cut_by_vips(
    data: bytes,
    header: Header,
    region: Box,
    box: Box,
    angle_deg: float,
    size_wh: tuple[int, int],
    metadata: Metadata,
    quality: int | None,
) -> bytes:
    pyvips = import_pyvips()
    orientation = 1 if header.format == "AVIF" else header.orientation  # libheif has turned it
    x1, y1, x2, y2 = _stored(region, header, orientation)
    original = pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="truncated")
    piece = original.crop(x1, y1, x2 - x1, y2 - y1).copy_memory()
    piece.set_type(pyvips.GValue.gint_type, "orientation", orientation)  # ours, so that all verbs agree
    piece = piece.autorot()
    if angle_deg:
        piece = _turned_by_vips(piece, region, box, angle_deg, header)
    match header.format:
        case "PNG":
            few_bits = {"bitdepth": header.bit_depth} if header.bit_depth in (2, 4) else {}  # not for TIFF: see cut
            written = piece.pngsave_buffer(keep="none", interlace=header.progressive, **few_bits)
            return carry_png(data, written, size_wh, metadata)
        case "TIFF":
            compression = VIPS_COMPRESSIONS[tiff_number(data, 259, 1)]
            predictor = "horizontal" if tiff_number(data, 317, 1) == 2 else "none"
            big = math.prod(size_wh) * piece.bands * header.bit_depth / 8 > 3.9e9
            more = {"Q": quality or 95, "predictor": predictor, "bigtiff": big}
            written = piece.tiffsave_buffer(keep="none", compression=compression, **more)
            return carry_tiff(data, written, size_wh, metadata)
    dots_per_mm = [dots / 25.4 for dots in exif_resolution(_exif_block(original))]  # or libvips would write one a millimetre
    piece = piece.copy(**dict(zip(("xres", "yres"), dots_per_mm, strict=False)))
    _scrub_fields(piece, original, size_wh, metadata)
    keep = "icc" if metadata == "none" else "all"
    return bytes(piece.heifsave_buffer(compression="av1", Q=quality or 90, bitdepth=max(header.bit_depth, 8), keep=keep))


def _turned_by_vips(piece: VipsImage, region: Box, box: Box, angle_deg: float, header: Header) -> VipsImage:
    premultiply = piece.hasalpha() and header.has_alpha
    white = 65535 if header.bit_depth == 16 else 2**header.bit_depth - 1
    smooth = piece.premultiply(max_alpha=white) if premultiply else piece
    pixels = _turned(smooth.numpy(), region, box, angle_deg, smooth=True)
    turned = import_pyvips().Image.new_from_array(pixels, interpretation=piece.interpretation)
    if premultiply:
        turned = turned.unpremultiply(max_alpha=white)
    return turned.rint().cast(piece.format).copy(interpretation=piece.interpretation)


def _exif_block(image: VipsImage) -> bytes:
    return image.get("exif-data").removeprefix(b"Exif\0\0") if "exif-data" in image.get_fields() else b""


def _scrub_fields(image: Any, original: VipsImage, size_wh: tuple[int, int], metadata: Metadata) -> None:
    """Puts the original's metadata, without its thumbnail, into libvips' own fields; libvips itself sets the sizes."""
    blob = import_pyvips().GValue.blob_type
    for field in original.get_fields():
        private = metadata == "safe" and is_private_field(field)
        if private or field.startswith("exif-ifd1-") or field == "jpeg-thumbnail-data":
            if field in image.get_fields():
                image.remove(field)
        elif field == "exif-data":
            image.set_type(blob, field, b"Exif\0\0" + scrub_exif(_exif_block(original), size_wh, metadata))
        elif field == "xmp-data":
            image.set_type(blob, field, scrub_xmp(original.get(field), size_wh, metadata))
        elif field.startswith(("exif-", "icc-")) and field not in image.get_fields():
            image.set(field, original.get(field))
