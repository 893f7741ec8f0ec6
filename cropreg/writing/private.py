"""What ``--metadata safe`` takes out: where a picture was taken, serial numbers, and the names of its owner and author.

Everything else stays, the copyright notice too, which is meant to be read.  A camera's own notes hold serial numbers and owners' names in
forms that differ from model to model, so they go whole.
"""

from __future__ import annotations

import re
import struct

from cropreg.images.containers import TiffTree

_GPS, _EXIF = 0x8825, 0x8769
PRIVATE_TAGS = {  # TIFF and EXIF
    _GPS,
    0x013B,  # Artist
    0x013C,  # HostComputer, which bears its owner's name
    0x9C9D,  # XPAuthor
    0x927C,  # MakerNote
    0xA420,  # ImageUniqueID, which some cameras make of their serial number
    0xA430,  # CameraOwnerName
    0xA431,  # BodySerialNumber
    0xA435,  # LensSerialNumber
    0xA437,  # Photographer
    0xA438,  # ImageEditor
    0xC62F,  # CameraSerialNumber
    0xC634,  # DNGPrivateData: a camera's own notes again
}
_IPTC_PRIVATE = {80, 85, 118, 122}  # by-line, its title, contact, writer; of record 2

_XMP_NAMES = (
    r"GPS\w*|\w*SerialNumber|\w*OwnerName|SerialNumbers|creator|Artist|Author|Authors|AuthorsPosition|CaptionWriter|Photographer|"
    r"ImageEditor|ImageUniqueID|ImageCreator\w*|CopyrightOwner\w*|CreatorContactInfo|LocationCreated|LocationShown|HostComputer"
)
_ATTRIBUTE = rf"""\s+(?!xmlns:)[\w.-]+:(?:{_XMP_NAMES})\s*=\s*(?:"[^"]*"|'[^']*')"""
_ELEMENT = rf"""<([\w.-]+:(?:{_XMP_NAMES}))(?=[\s/>])(?:[^>"']|"[^"]*"|'[^']*')*?(?:/>|>.*?</\1\s*>)"""
_TEXT = re.compile(rb"author|artist|creator|owner|serial|gps|raw profile", re.IGNORECASE)
_FIELD = re.compile(
    r"exif-ifd3-|exif-ifd\d-(GPS\w*|\w*SerialNumber|\w*OwnerName|Artist|HostComputer|XPAuthor|MakerNote|ImageUniqueID|Photographer|"
    r"ImageEditor)$"
)


def strip_exif(block: bytes) -> bytes:
    """An EXIF block (from its byte-order mark) without the private tags: entries removed, what they pointed at zeroed.

    A block too damaged to be understood comes back empty.
    """
    out = bytearray(block)
    try:
        tree = TiffTree.of(block)
        main, _ = tree.directory(tree.first)
        if _EXIF in main:
            _strip_directory(out, tree.number(main[_EXIF]))
        _strip_directory(out, tree.first)
    except struct.error:
        return b""
    return bytes(out)


def _strip_directory(out: bytearray, at: int) -> None:
    while True:  # once a round for every tag, since a tag may stand there twice
        tree = TiffTree.of(bytes(out))
        entries, next_at = tree.directory(at)
        entry = next((entries[tag] for tag in entries if tag in PRIVATE_TAGS), None)
        if entry is None:
            return
        if entry.tag == _GPS:
            _blank_directory(out, tree, tree.number(entry))
        if entry.size > 4:
            _blank(out, entry.start, entry.size)
        following = out[entry.at + 12 : next_at + 4]  # the other entries, and the next directory's place
        out[entry.at : next_at + 4] = following + bytes(12)
        (count,) = struct.unpack_from(tree.end + "H", out, at)
        struct.pack_into(tree.end + "H", out, at, count - 1)


def _blank_directory(out: bytearray, tree: TiffTree, at: int) -> None:
    entries, next_at = tree.directory(at)
    for entry in entries.values():
        _blank(out, entry.start, entry.size)
    _blank(out, at, next_at + 4 - at)


def _blank(out: bytearray, start: int, size: int) -> None:
    out[start : start + size] = bytes(len(out[start : start + size]))


def strip_xmp(packet: bytes) -> bytes:
    """An XMP packet without the private properties, whichever prefix they have."""
    packet = re.sub(_ELEMENT.encode(), b"", packet, flags=re.DOTALL)
    return re.sub(_ATTRIBUTE.encode(), b"", packet)


def strip_iptc(records: bytes) -> bytes:
    """IPTC records without those that name somebody; what follows a damaged one is dropped."""
    kept, at = b"", 0
    while at + 5 <= len(records) and records[at] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", records, at + 1)
        start = at + 5
        if size & 0x8000:  # longer than 32 KB: the size of the size, then the size
            width = size & 0x7FFF
            size, start = int.from_bytes(records[start : start + width], "big"), start + width
        end = start + size
        if end > len(records):
            break
        if (record, number) not in {(2, private) for private in _IPTC_PRIVATE}:
            kept += records[at:end]
        at = end
    return kept


def is_private_text(keyword: bytes) -> bool:
    """Whether a PNG text of that keyword names somebody or something, or hides a block that may."""
    return _TEXT.search(keyword) is not None


def is_private_field(name: str) -> bool:
    """Whether libvips keeps something private in a field of that name."""
    return _FIELD.match(name) is not None
