"""Metadata on its way from an original to its crop: corrected for the new size, and rid of every picture of what was cut away.

EXIF blocks are patched in place, not rebuilt: a camera's own notes hold places relative to the block and would break when moved.
What is copied is listed, not what is dropped, so that an unknown segment with a preview in it cannot slip through.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Literal

from cropreg.images.containers import Entry, TiffTree, jpeg_segments, png_chunks, riff_chunks
from cropreg.writing.private import PRIVATE_TAGS, is_private_text, strip_exif, strip_iptc, strip_xmp

Metadata = Literal["all", "safe", "none"]

_XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP_MARK = b"Photoshop 3.0\0"
_PHOTOSHOP_KEPT = (1005, 1028, 1034, 1035, 1061)  # resolution, IPTC, copyright flag, URL, caption digest; two others are thumbnails

_PNG_COLOURS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI", b"pHYs")
_PNG_TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_PNG_PICTURE = (b"PLTE", b"tRNS", b"IDAT", b"IEND")

_TIFF_RESOLUTION = {282, 283, 296}  # an encoder makes one up where it is told none
_TIFF_FROM_ORIGINAL = _TIFF_RESOLUTION | {
    338,
    34675,
}  # resolution, meaning of the extra channel, ICC: as it was, whatever the encoder wrote
_TIFF_LAYOUT = {  # how the pixels are stored: the encoder's business
    *(
        254,
        255,
        256,
        257,
        258,
        259,
        262,
        263,
        266,
        273,
        274,
        277,
        278,
        279,
        280,
        281,
        284,
        288,
        289,
        292,
        293,
        301,
        317,
        318,
        319,
        320,
    ),
    *range(321, 326),
    *range(330, 348),
    *range(512, 522),
    *range(529, 533),
}
_TIFF_UNWANTED = {33550, 33922, 34264, 37724}  # places on the globe, which a cut moves; Photoshop's layers
_TIFF_POINTERS = {34665, 34853, 40965}  # EXIF, GPS and interoperability directories


def scrub_exif(block: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """An EXIF block (from its byte-order mark) for an upright picture of ``size_wh`` pixels, its thumbnail and previews zeroed.

    With ``safe`` without what is private.  A block too damaged to be understood comes back empty.
    """
    out = bytearray(block)
    try:
        tree = TiffTree.of(block)
        main, next_at = tree.directory(tree.first)
        (thumbnail_at,) = struct.unpack_from(tree.end + "I", block, next_at)
        _set_numbers(out, tree, main, size_wh)
        if 0x8769 in main:
            _set_numbers(out, tree, tree.directory(tree.number(main[0x8769]))[0], size_wh)
        if thumbnail_at:
            thumbnail, thumbnail_end = tree.directory(thumbnail_at)
            for starts, sizes in ((0x0201, 0x0202), (0x0111, 0x0117)):  # a JPEG; or strips of pixels
                for start, size in zip(tree.numbers(thumbnail.get(starts)), tree.numbers(thumbnail.get(sizes)), strict=False):
                    out[start : start + size] = bytes(len(out[start : start + size]))
            out[thumbnail_at : thumbnail_end + 4] = bytes(len(out[thumbnail_at : thumbnail_end + 4]))
            struct.pack_into(tree.end + "I", out, next_at, 0)
            if not any(out[thumbnail_end:]):  # usual: the thumbnail is the end of the block
                del out[thumbnail_end:]
    except struct.error:
        return b""
    # previews inside a camera's own notes
    clean = re.sub(rb"\xff\xd8\xff.*?(\xff\xd9|\Z)", lambda found: bytes(len(found[0])), bytes(out), flags=re.DOTALL)
    return strip_exif(clean) if metadata == "safe" else clean


def _set_numbers(out: bytearray, tree: TiffTree, entries: dict[int, Entry], size_wh: tuple[int, int]) -> None:
    """Sets orientation, width and height where a directory has them."""
    w, h = size_wh
    for tag, value in ((0x0112, 1), (0x0100, w), (0x0101, h), (0xA002, w), (0xA003, h)):
        entry = entries.get(tag)
        if entry and entry.kind in (3, 4) and entry.count == 1:
            struct.pack_into(tree.end + ("H" if entry.kind == 3 else "I"), out, entry.start, value)


def exif_resolution(block: bytes) -> tuple[float, ...]:
    """Horizontal and vertical dots per inch in an EXIF block; () where it does not say."""
    try:
        tree = TiffTree.of(block)
        entries, _ = tree.directory(tree.first)
        per_inch = 2.54 if tree.number(entries.get(296), 2) == 3 else 1.0
        pairs = [struct.unpack(tree.end + "II", tree.value(entries[tag])) for tag in (282, 283)]
        return tuple(per_inch * above / below for above, below in pairs)
    except (struct.error, KeyError, ZeroDivisionError):
        return ()


def scrub_xmp(packet: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """An XMP packet for an upright picture of ``size_wh`` pixels, without thumbnails or other embedded pictures.

    With ``safe`` without what is private.  A packet in UTF-16, which nobody writes into a picture, comes back empty.
    """
    if b"\0" in packet:
        return b""
    packet = re.sub(rb"<([\w.-]+):Thumbnails\b.*?</\1:Thumbnails>", b"", packet, flags=re.DOTALL)
    packet = re.sub(
        rb"[A-Za-z0-9+/=]{60,}(?:(?:&#(?:x[aAdD]|1[03]);|\s)+[A-Za-z0-9+/=]+){3,}", b"", packet
    )  # pictures in base64, in lines
    packet = re.sub(rb"[A-Za-z0-9+/=]{240,}", b"", packet)
    packet = re.sub(rb"\s+xmpNote:HasExtendedXMP=([\"']).*?\1", b"", packet)  # its segments hold depth maps and second pictures
    # a crop that Adobe's programs have yet to make, of a frame that is no more
    packet = re.sub(rb"\s+crs:(?:HasCrop|Crop\w+)\s*=\s*([\"']).*?\1", b"", packet)
    packet = re.sub(rb"<(crs:(?:HasCrop|Crop\w+))>.*?</\1>", b"", packet)
    if metadata == "safe":
        packet = strip_xmp(packet)
    w, h = size_wh
    for word, value in (
        (b"tiff:Orientation", 1),
        (b"tiff:ImageWidth", w),
        (b"tiff:ImageLength", h),
        (b"exif:PixelXDimension", w),
        (b"exif:PixelYDimension", h),
    ):
        packet = re.sub(rb"(" + word + rb"\s*(?:=\s*[\"']|>)\s*)\d+", rb"\g<1>%d" % value, packet)
    return packet


def scrub_photoshop(resources: bytes, metadata: Metadata) -> bytes:
    """A list of Photoshop resources (8BIM) with IPTC, resolution and copyright only; with ``safe`` without what is private."""
    kept, at = b"", 0
    while at + 12 <= len(resources) and resources[at : at + 4] == b"8BIM":
        (number,) = struct.unpack_from(">H", resources, at + 4)
        size_at = at + 6 + (resources[at + 6] + 2) // 2 * 2  # the name: its length, itself, padded to an even number
        if size_at + 4 > len(resources):
            break
        end = size_at + 4 + struct.unpack_from(">I", resources, size_at)[0]
        end += end - size_at & 1
        if metadata == "safe" and number == 1028:
            records = strip_iptc(resources[size_at + 4 : end])
            kept += resources[at:size_at] + struct.pack(">I", len(records)) + records + bytes(len(records) & 1)
        elif number in _PHOTOSHOP_KEPT and not (metadata == "safe" and number == 1061):  # a digest of the IPTC as it was
            kept += resources[at:end]
        at = end
    return kept


def carry_jpeg(original: bytes, written: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """The JPEG ``written`` without metadata, with what ``original`` has of density, ICC, EXIF, XMP, IPTC and comments."""
    kept, density, jfif = b"", b"", b""
    for marker, start, end in jpeg_segments(original):
        body = original[start:end]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            density, jfif = body[7:12], _segment(marker, b"", body[:12] + b"\0\0")  # without the thumbnail that may follow
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            kept += _segment(marker, b"", body)
        elif metadata == "none":
            continue
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            kept += _segment(marker, b"Exif\0\0", scrub_exif(body[6:], size_wh, metadata))
        elif marker == 0xE1 and body.startswith(_XMP_MARK):
            kept += _segment(marker, _XMP_MARK, scrub_xmp(body[len(_XMP_MARK) :], size_wh, metadata))
        elif marker == 0xED and body.startswith(_PHOTOSHOP_MARK):
            kept += _segment(marker, _PHOTOSHOP_MARK, scrub_photoshop(body[len(_PHOTOSHOP_MARK) :], metadata))
        elif marker == 0xFE:
            kept += _segment(marker, b"", body)
    out, at = bytearray(written), 2
    marker, start, end = next(jpeg_segments(written))
    if marker == 0xE0:
        at = end
        if density:
            out[start + 7 : start + 12] = density
    else:  # encoders leave it out for CMYK and RGB
        out[at:at] = jfif
        at += len(jfif)
    out[at:at] = kept
    return bytes(out)


def _segment(marker: int, mark: bytes, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(mark) + len(body)) + mark + body if body else b""


def carry_png(original: bytes, written: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """The PNG ``written`` with what ``original`` has of colour description, density, EXIF, XMP, texts and time."""
    out = bytearray(written[:33])  # signature and IHDR
    for kind, start, end in png_chunks(original):
        body = original[start:end]
        if kind in _PNG_COLOURS:
            out += _chunk(kind, body)
        elif kind in _PNG_TEXTS and metadata != "none":
            is_exif = kind == b"eXIf"
            body = scrub_exif(body, size_wh, metadata) if is_exif else _scrub_png_text(kind, body, size_wh, metadata)
            out += _chunk(kind, body) if body else b""
    for kind, start, end in png_chunks(written):
        if kind in _PNG_PICTURE:
            out += written[start - 8 : end + 4]
    return bytes(out)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _scrub_png_text(kind: bytes, body: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """A text chunk's content; empty if it hides an EXIF block; its XMP and Photoshop resources corrected."""
    keyword, _, rest = body.partition(b"\0")
    if metadata == "safe" and kind != b"tIME" and is_private_text(keyword):
        return b""
    if keyword.startswith(b"Raw profile type"):
        return _scrub_raw_profile(kind, keyword, rest, size_wh, metadata)
    if kind != b"iTXt" or keyword != b"XML:com.adobe.xmp":
        return body
    language, translated, text = rest[2:].split(b"\0", 2)
    if rest[:1] == b"\1":
        text = zlib.decompressobj().decompress(text, 1 << 24)
    return keyword + b"\0\0\0" + language + b"\0" + translated + b"\0" + scrub_xmp(text, size_wh, metadata)


def _scrub_raw_profile(kind: bytes, keyword: bytes, rest: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """A text chunk in which ImageMagick keeps XMP or IPTC as hexadecimal digits; empty if it is of another kind, or damaged."""
    name = keyword[17:].strip()
    if name not in (b"iptc", b"xmp") or kind not in (b"tEXt", b"zTXt"):
        return b""
    try:
        text = zlib.decompressobj().decompress(rest[1:], 1 << 24) if kind == b"zTXt" else rest
        block = bytes.fromhex(b"".join(text.split()[2:]).decode())  # behind its name and its length
    except (ValueError, zlib.error):
        return b""
    if name == b"xmp":
        block = scrub_xmp(block, size_wh, metadata)
    elif block.startswith(b"8BIM"):
        block = scrub_photoshop(block, metadata)
    digits = block.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = b"\n%s\n%8d\n%s\n" % (name, len(block), lines.encode())
    return keyword + b"\0" + (b"\0" + zlib.compress(text) if kind == b"zTXt" else text)


def webp_metadata(original: bytes, size_wh: tuple[int, int], metadata: Metadata) -> dict[str, bytes]:
    """What a WebP ``original`` has of ICC, EXIF and XMP, as Pillow's arguments for saving."""
    found = {}
    for kind, start, end in riff_chunks(original):
        body = original[start:end]
        if kind == b"ICCP":
            found["icc_profile"] = body
        elif kind == b"EXIF" and metadata != "none":
            found["exif"] = scrub_exif(body.removeprefix(b"Exif\0\0"), size_wh, metadata)
        elif kind == b"XMP " and metadata != "none":
            found["xmp"] = scrub_xmp(body, size_wh, metadata)
    return {name: value for name, value in found.items() if value}


def carry_tiff(original: bytes, written: bytes, size_wh: tuple[int, int], metadata: Metadata) -> bytes:
    """The TIFF ``written`` with every tag of ``original`` that does not describe how its pixels were stored.

    A new first directory is appended that points at the encoder's pixels and at copies of the original's values.
    """
    tail, at, place = tiff_directory(original, written, size_wh, metadata)
    return b"".join((written[:at], place, written[at + len(place) :], tail))


def tiff_directory(original: bytes, written: bytes, size_wh: tuple[int, int], metadata: Metadata) -> tuple[bytes, int, bytes]:
    """What makes a TIFF of :func:`carry_tiff`: the bytes to append to ``written``, where its header is to be changed, and into what."""
    source, target = TiffTree.of(original), TiffTree.of(written)
    entries, _ = target.directory(target.first)
    out, base = bytearray(), len(written)
    fields = {tag: (entry.kind, entry.count, target.value(entry)) for tag, entry in entries.items() if tag not in _TIFF_RESOLUTION}
    for tag, entry in source.directory(source.first)[0].items():
        wanted = tag in _TIFF_FROM_ORIGINAL or (metadata != "none" and tag not in _TIFF_LAYOUT)
        if tag == 338 and (338 not in fields or source.number(entry) == 1):
            continue  # premultiplied colours were divided by their alpha when they were read
        if wanted:
            fields |= _carried(source, entry, target, out, base, size_wh, metadata)
    place = _append_directory(out, fields, target, base)
    return bytes(out), 8 if target.is_big else 4, struct.pack(target.end + ("Q" if target.is_big else "I"), place)


def _carried(
    source: TiffTree,
    entry: Entry,
    target: TiffTree,
    out: bytearray,
    base: int,
    size_wh: tuple[int, int],
    metadata: Metadata,
    depth: int = 0,
) -> dict[int, tuple[int, int, bytes]]:
    """One tag as {tag: (type, count, bytes in the target's order)}, or {} if it must not or cannot be carried.

    The directory that a pointer leads to is appended to ``out``, which will stand in the file from ``base`` on.
    """
    if metadata == "safe" and entry.tag in PRIVATE_TAGS:
        return {}
    try:
        value = source.swapped(entry, target.end)
        if entry.tag in _TIFF_POINTERS and depth < 3:
            inner: dict[int, tuple[int, int, bytes]] = {}
            for inner_entry in source.directory(source.number(entry))[0].values():
                inner |= _carried(source, inner_entry, target, out, base, size_wh, metadata, depth + 1)
            for tag, pixels in ((0xA002, size_wh[0]), (0xA003, size_wh[1])):
                if tag in inner:
                    inner[tag] = (4, 1, struct.pack(target.end + "I", pixels))
            return {entry.tag: (4, 1, struct.pack(target.end + "I", _append_directory(out, inner, target, base)))}
        if entry.tag in (700, 34377):
            value = scrub_xmp(value, size_wh, metadata) if entry.tag == 700 else scrub_photoshop(value, metadata)
            return {entry.tag: (1, len(value), value)}
        if entry.tag == 33723 and metadata == "safe":
            records = strip_iptc(source.value(entry))  # bytes, though some programs call them LONG
            return {entry.tag: (7, len(records), records)}
        if entry.kind <= 13 and entry.tag not in _TIFF_UNWANTED and b"\xff\xd8\xff" not in value:  # no camera notes with previews
            return {entry.tag: (entry.kind, entry.count, value)}
    except struct.error:  # one damaged tag; libtiff, too, passes over those
        pass
    return {}


def _append_directory(out: bytearray, fields: dict[int, tuple[int, int, bytes]], target: TiffTree, base: int = 0) -> int:
    """Appends values and directory to ``out``, which will stand in the file from ``base`` on; gives the directory's place there."""
    inline, entry_code, place_code, count_code = (8, "HHQ", "Q", "Q") if target.is_big else (4, "HHI", "I", "H")
    rows = b""
    for tag, (kind, count, value) in sorted(fields.items()):
        if not count:
            continue
        if len(value) > inline:
            out += bytes(base + len(out) & 1)  # values begin at even places
            place = struct.pack(target.end + place_code, base + len(out))
            out += value
            value = place
        rows += struct.pack(target.end + entry_code, tag, kind, count) + value.ljust(inline, b"\0")
    out += bytes(base + len(out) & 1)
    at = base + len(out)
    out += struct.pack(target.end + count_code, len(rows) // (struct.calcsize("=" + entry_code) + inline)) + rows
    out += bytes(inline)  # no next directory
    return at
