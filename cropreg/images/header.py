"""What a picture file says about itself, read without decoding a pixel: format, upright size, orientation, pages.

JPEG, PNG, TIFF and WebP are parsed here: it costs some 20 us, allocates nothing, and sees a bomb or a damaged length before any decoder
does.  The rest is opened (not decoded) by Pillow.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from cropreg.errors import UnreadableImage
from cropreg.images.containers import TiffTree, exif_orientation, jpeg_segments, png_chunks, riff_chunks

RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".tga", *RAW_SUFFIXES),
)
DEFAULT_MAX_PIXELS = 400_000_000
COPY_AGAIN = "Copy it again from where it came, or leave it out."

# Pillow's readers are called by name, not through Image.open: nothing but the format we recognised is tried, and Pillow's own pixel
# limit, a global that belongs to the user's program, is neither needed nor changed.
PILLOW_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

TIFF_COMPRESSIONS_OF_OPENCV = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
TIFF_COMPRESSIONS_BY_JPEG = (6, 7)
TIFF_COMPRESSIONS = (*TIFF_COMPRESSIONS_OF_OPENCV, 34925, 50000)  # LZMA and Zstandard by Pillow

# The places of a block, row by row, in the order in which a JPEG file stores them: along diagonals, every other one upwards; and back.
_ZIGZAG = sorted(range(64), key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8))
_FROM_ZIGZAG = np.argsort(_ZIGZAG)

_FOREIGN = (  # what else turns up under a picture's name, by its first bytes
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"\x00\x00\x01\x00", "an icon"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself.

    ``width`` and ``height`` are upright pixels, ``orientation`` is the EXIF value (1..8; 1 if absent or invalid) that is applied
    to get there, ``pages`` counts pages or frames, of which the first is used.  ``mode`` is a Pillow-like word: ``1 L LA P PA RGB
    RGBA RGBX CMYK Lab``, where a final A means transparency of any kind; ``bit_depth`` counts the bits of one channel.
    ``luma_steps`` are the 64 quantisation steps of a JPEG's luma, row by row; empty for other formats.  ``lossless`` says that the file
    holds the very pixels that were saved.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    pages: int = 1
    mode: str = "RGB"
    progressive: bool = False
    bit_depth: int = 8
    luma_steps: tuple[int, ...] = ()
    lossless: bool = False

    @property
    def has_alpha(self) -> bool:
        """Whether any pixel may be transparent."""
        return self.mode.endswith("A")

    @property
    def size_wh(self) -> tuple[int, int]:
        """(width, height), upright."""
        return self.width, self.height


def read_header(data: bytes, name: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Reads a file's header from its bytes; ``name`` is used in messages and to know RAW and TGA files.

    Raises:
        UnreadableImage: not a picture, cut short in its header, of a kind that needs an extra, or larger than ``max_pixels``.
    """
    kind = _recognise(data, name)
    try:
        header = _READERS[kind](data, name)
    except UnreadableImage:
        raise
    except (IndexError, struct.error) as error:
        raise UnreadableImage(name, f"is a {kind} file cut short or damaged", COPY_AGAIN) from error
    except Exception as error:  # Pillow raises SyntaxError, ValueError, TypeError and more on damaged files
        raise UnreadableImage(name, f"is a damaged {kind} file ({first_line(error)})", COPY_AGAIN) from error
    if header.width < 1 or header.height < 1:
        raise UnreadableImage(name, f"is a {kind} file without pixels ({header.width} x {header.height})", COPY_AGAIN)
    if header.width * header.height > max_pixels:
        millions = header.width * header.height / 1e6
        raise UnreadableImage(
            name,
            f"unpacks to {header.width} x {header.height} pixels ({millions:,.0f} million), more than the limit of {max_pixels:,}",
            f"If it is genuine, raise the limit: --max-pixels {header.width * header.height}.",
        )
    return header


def open_pillow(data: bytes, kind: str) -> Image.Image:
    """Opens a file with the Pillow reader of its ``Header.format``; raises whatever Pillow raises."""
    image = PILLOW_READERS[kind](io.BytesIO(data))
    image.info.pop("xmp", None)  # or Pillow would turn a TIFF by what its XMP says, which no other reader does
    return image


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to stand inside a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".")[:120] or type(error).__name__


def import_rawpy(name: str) -> ModuleType:
    """The rawpy module; UnreadableImage with the cure where it is not installed."""
    try:
        import rawpy
    except ImportError as error:
        raise UnreadableImage(name, "is a RAW file", "Install the reader for those: pip install 'cropreg[raw]'") from error
    return rawpy


def import_heif(name: str) -> ModuleType:
    """The pi_heif module; UnreadableImage with the cure where it is not installed."""
    try:
        import pi_heif
    except ImportError as error:
        raise UnreadableImage(name, "is a HEIC file", "Install the reader for those: pip install 'cropreg[heif]'") from error
    return pi_heif


def _recognise(data: bytes, name: str) -> str:
    """The format word of these bytes."""
    suffix = os.path.splitext(name)[1].lower()
    start = bytes(data[:64])
    if not start:
        raise UnreadableImage(name, "is empty (0 bytes)", COPY_AGAIN)
    if suffix in RAW_SUFFIXES and not start.startswith(b"\xff\xd8\xff"):  # TIFF inside: its reader would take the small preview
        return "RAW"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[:4] == b"GIF8":
        return "GIF"
    if start[:2] == b"BM" and len(data) > 26:
        return "BMP"
    if start.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG2000"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
        return "PPM"
    if start[4:8] == b"ftyp":
        brands = bytes(data[8 : min(int.from_bytes(start[:4], "big"), 256)])
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")):
            return "HEIC"
        raise UnreadableImage(name, "is a video or an unknown ISO media file, not a picture", "Leave it out.")
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise UnreadableImage(name, f"is {what}, which cropreg does not read", "Export it as TIFF, PNG or JPEG first.")
    if suffix == ".tga":  # the one format without a magic number
        return "TGA"
    if not any(byte < 9 for byte in start):
        what = "a web page (HTML), perhaps a failed download" if b"<html" in start.lower() or b"<!doc" in start.lower() else "text"
        raise UnreadableImage(name, f"is {what}, not a picture", "Fetch the picture again, or leave it out.")
    raise UnreadableImage(name, "is not a picture in a known format", COPY_AGAIN)


def _upright(kind: str, stored_w: int, stored_h: int, orientation: int, **more: int | str | bool | tuple[int, ...]) -> Header:
    w, h = (stored_h, stored_w) if orientation >= 5 else (stored_w, stored_h)
    return Header(kind, w, h, orientation, **more)  # type: ignore[arg-type]


def _jpeg(data: bytes, name: str) -> Header:
    orientation, frame = 1, None
    luma_steps: tuple[int, ...] = ()
    for marker, start, end in jpeg_segments(data):
        if marker == 0xE1 and orientation == 1 and data[start : start + 6] == b"Exif\0\0":
            orientation = exif_orientation(data[start + 6 : end])
        elif marker == 0xDB:
            luma_steps = luma_steps or _luma_steps(data[start:end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = (marker, *struct.unpack_from(">BHHB", data, start))
    if frame is None:
        raise UnreadableImage(name, "is a JPEG file without a picture in it", COPY_AGAIN)
    marker, depth, height, width, components = frame
    mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(components, f"{components} channels")
    progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
    return _upright("JPEG", width, height, orientation, mode=mode, progressive=progressive, bit_depth=depth, luma_steps=luma_steps)


def _luma_steps(tables: bytes) -> tuple[int, ...]:
    """Table 0 of a DQT segment, which luma uses, row by row; empty if it is not there (ITU-T T.81, B.2.4.1 and figure A.6)."""
    at = 0
    while at < len(tables):
        wide, number = tables[at] >> 4, tables[at] & 15
        values = np.frombuffer(tables[at + 1 : at + 1 + 64 * (1 + wide)], ">u2" if wide else "u1")
        if number == 0 and len(values) == 64:
            return tuple(values[_FROM_ZIGZAG].tolist())
        at += 1 + 64 * (1 + wide)
    return ()


def _png(data: bytes, name: str) -> Header:
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    orientation, pages, transparent = 1, 1, colour >= 4
    for kind, start, end in png_chunks(data):
        if kind == b"eXIf":
            orientation = exif_orientation(data[start:end])
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"acTL":
            pages = max(1, struct.unpack_from(">I", data, start)[0])
    mode = {0: "L", 2: "RGB", 3: "P", 4: "L", 6: "RGB"}.get(colour, f"colour type {colour}")
    mode = "1" if (mode, depth, transparent) == ("L", 1, False) else mode + "A" * transparent
    more = {"progressive": bool(interlace), "bit_depth": depth, "lossless": colour != 3}
    return _upright("PNG", width, height, orientation, pages=pages, mode=mode, **more)


def _webp(data: bytes, name: str) -> Header:
    size_wh, alpha, orientation, frames = (0, 0), False, 1, 0
    for kind, start, end in riff_chunks(data):
        if kind == b"VP8X":
            alpha, canvas = bool(data[start] & 0x10), data[start + 4 : start + 10]
            size_wh = (1 + int.from_bytes(canvas[:3], "little"), 1 + int.from_bytes(canvas[3:], "little"))
        elif kind == b"VP8 " and size_wh == (0, 0):
            w, h = struct.unpack_from("<HH", data, start + 6)
            size_wh = (w & 0x3FFF, h & 0x3FFF)
        elif kind == b"VP8L" and size_wh == (0, 0):
            (bits,) = struct.unpack_from("<I", data, start + 1)
            size_wh, alpha = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), bool(bits >> 28 & 1)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[start:end].removeprefix(b"Exif\0\0"))
    return _upright("WEBP", *size_wh, orientation, pages=max(frames, 1), mode="RGBA" if alpha else "RGB")


def _tiff(data: bytes, name: str) -> Header:
    """Reads the directories; the first is the picture, further ones count as pages unless they are reduced copies of it."""
    tree = TiffTree.of(data)
    first, *others = tree.directories()
    depth, samples, numbers, packing = (tree.number(first.get(tag), 1) for tag in (258, 277, 339, 259))
    if numbers != 1 or depth > 16:
        kind = {1: "integer", 2: "signed", 3: "floating-point"}.get(numbers, "unusual")
        cure = "Only unsigned numbers of up to 16 bits have a defined black and white: export it as a 16-bit TIFF."
        raise UnreadableImage(name, f"is a TIFF file of {depth}-bit {kind} numbers", cure)
    if packing not in TIFF_COMPRESSIONS:
        cure = "Export it with LZW or Deflate compression, or none."
        raise UnreadableImage(name, f"is a TIFF file compressed by method {packing}, which is not read", cure)
    for offsets, byte_counts in ((273, 279), (324, 325)):  # strips, tiles; some decoders fill what is missing with grey
        places = zip(tree.numbers(first.get(offsets)), tree.numbers(first.get(byte_counts)), strict=False)
        if (last := max((offset + count for offset, count in places), default=0)) > len(data):
            raise UnreadableImage(name, f"is a TIFF file cut short ({len(data):,} of {last:,} bytes)", COPY_AGAIN)
    if 320 in first:
        tree.value(first[320])  # the palette: OpenCV makes up colours where it is cut short
    photometric = tree.number(first.get(262), 1)
    base, colours = {0: ("L", 1), 1: ("L", 1), 2: ("RGB", 3), 3: ("P", 1), 5: ("CMYK", 4), 6: ("RGB", 3), 8: ("Lab", 3)}.get(
        photometric, (f"photometric {photometric}", samples)
    )
    extra = "" if samples <= colours else "A" if tree.number(first.get(338)) in (1, 2) else "X"
    mode = "1" if (base, depth, extra) == ("L", 1, "") else base + extra
    pages = 1 + sum(not tree.number(entries.get(254)) & 1 for entries in others)
    orientation = tree.number(first.get(274), 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    size_wh = tree.number(first.get(256)), tree.number(first.get(257))
    lossless = packing not in TIFF_COMPRESSIONS_BY_JPEG and base != "P"
    return _upright("TIFF", *size_wh, orientation, pages=pages, mode=mode, bit_depth=depth, lossless=lossless)


def tiff_number(data: bytes, tag: int, default: int) -> int:
    """The first whole number of a tag in a TIFF file's first directory."""
    return TiffTree.of(data).number(next(TiffTree.of(data).directories()).get(tag), default)


def _by_pillow(kind: str) -> Callable[[bytes, str], Header]:
    def read(data: bytes, name: str) -> Header:
        with open_pillow(data, kind) as image:
            mode = image.mode + "A" * ("transparency" in image.info and not image.mode.endswith("A"))
            orientation = image.getexif().get(0x0112, 1) if kind == "AVIF" else 1  # Pillow puts an AVIF's own turns there
            pages = getattr(image, "n_frames", 1)
            width, height, depth = *image.size, {"1": 1, "I": 16}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
        if kind == "AVIF" and (at := data.find(b"av1C")) > 0:
            depth = 8 + 2 * (data[at + 6] >> 6 & 1) + 2 * (data[at + 6] >> 5 & 1)
        if kind == "JPEG2000":  # the code stream, not the box before it, rules what is allocated
            at = data.index(b"\xff\x4f\xff\x51") + 8
            right, bottom, left, top = struct.unpack_from(">4I", data, at)
            width, height, depth = right - left, bottom - top, 1 + (data[at + 34] & 0x7F)
        if kind == "PPM":
            depth = _ppm_depth(data)
        mode = "L" if mode.startswith("I") else mode
        return _upright(kind, width, height, orientation, pages=pages, mode=mode, bit_depth=depth)

    return read


def _ppm_depth(data: bytes) -> int:
    """The bits of a PPM, PGM or PBM file's numbers, from the largest value its header names."""
    if data[1:2] in b"14":
        return 1
    words = b" ".join(line.split(b"#")[0] for line in bytes(data[:2048]).split(b"\n")).split()
    return 16 if int(words[3]) > 255 else 8


def _raw(data: bytes, name: str) -> Header:
    with import_rawpy(name).imread(io.BytesIO(data)) as raw:
        sizes = raw.sizes
        w, h = (sizes.iheight, sizes.iwidth) if sizes.flip in (5, 6) else (sizes.iwidth, sizes.iheight)
    return Header("RAW", w, h, {3: 3, 5: 8, 6: 6}.get(sizes.flip, 1), bit_depth=16)


def _heic(data: bytes, name: str) -> Header:
    image = import_heif(name).open_heif(io.BytesIO(data))
    w, h = image.size  # libheif has turned it already
    return Header("HEIC", w, h, pages=len(image), mode=image.mode, bit_depth=image.info.get("bit_depth", 8))


_READERS: dict[str, Callable[[bytes, str], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "TIFF": _tiff,
    "RAW": _raw,
    "HEIC": _heic,
    **{kind: _by_pillow(kind) for kind in ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TGA")},
}
