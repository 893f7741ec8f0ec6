"""Walks over the parts that JPEG, PNG, WebP and TIFF files are made of, without decoding a pixel.

Each walk yields places in the file, checks every length against the file's end, and raises ``struct.error`` or ``IndexError`` where the
file is cut short.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# bytes per number of the TIFF types; 1 BYTE, 2 ASCII, 3 SHORT, 4 LONG, 5 RATIONAL (two numbers), 7 UNDEFINED, 13 IFD, 16 LONG8 ...
_NUMBER_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the segments before the first scan; ``data[start:end]`` is a segment's content."""
    at = 2
    while True:
        at = data.find(b"\xff", at) + 1  # like libjpeg, skip what lies between segments
        if at == 0:
            raise IndexError("no further marker")
        marker = data[at]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA):
            return
        end = at + 1 + struct.unpack_from(">H", data, at + 1)[0]
        if end > len(data):
            raise IndexError("a segment reaches beyond the end of the file")
        yield marker, at + 3, end
        at = end


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of every chunk up to and with IEND; ``data[start:end]`` is a chunk's content.

    A damaged length, which would make libpng allocate 2 GB, and a missing end show here.
    """
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if not kind.isalpha() or at + 12 + length > len(data):
            raise IndexError(f"the chunk at byte {at} does not fit")
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of the chunks of a WebP file; ``data[start:end]`` is a chunk's content."""
    file_end, at = 8 + struct.unpack_from("<I", data, 4)[0], 12
    if file_end > len(data):
        raise IndexError(f"{len(data):,} of {file_end:,} bytes")
    while at + 8 <= file_end:
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > file_end:
            raise IndexError(f"the chunk at byte {at} does not fit")
        yield kind, at + 8, at + 8 + length
        at += 8 + length + (length & 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a TIFF or EXIF directory: ``count`` numbers of type ``kind``, ``size`` bytes at ``start``; the entry itself at ``at``."""

    tag: int
    kind: int
    count: int
    at: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class TiffTree:
    """A TIFF file, or an EXIF block, which is a small one: knows its byte order and reads directories by their place."""

    data: bytes
    end: str
    is_big: bool

    @classmethod
    def of(cls, data: bytes) -> TiffTree:
        """Reads the byte order and the kind (TIFF or BigTIFF); struct.error if it is neither."""
        order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
        if order is None:
            raise struct.error("no byte-order mark")
        return cls(data, order, struct.unpack_from(order + "H", data, 2)[0] == 43)

    @property
    def first(self) -> int:
        """The place of the first directory."""
        return int(struct.unpack_from(*((self.end + "Q", self.data, 8) if self.is_big else (self.end + "I", self.data, 4)))[0])

    def directory(self, at: int) -> tuple[dict[int, Entry], int]:
        """The entries by tag of the directory at ``at``, and the place where the next directory's place is written."""
        count_code, entry_code, entry_bytes, inline = ("Q", "HHQ", 20, 8) if self.is_big else ("H", "HHI", 12, 4)
        (num_entries,) = struct.unpack_from(self.end + count_code, self.data, at)
        at += struct.calcsize(count_code)
        next_at = at + num_entries * entry_bytes
        if next_at > len(self.data):
            raise struct.error("a directory reaches beyond the end of the file")
        entries = {}
        for entry_at in range(at, next_at, entry_bytes):
            tag, kind, count = struct.unpack_from(self.end + entry_code, self.data, entry_at)
            size = _NUMBER_BYTES.get(kind, 1) * count * (2 if kind in (5, 10) else 1)
            start = entry_at + entry_bytes - inline
            if size > inline:
                (start,) = struct.unpack_from(self.end + ("Q" if self.is_big else "I"), self.data, start)
            entries[tag] = Entry(tag, kind, count, entry_at, start, size)
        return entries, next_at

    def directories(self) -> Iterator[dict[int, Entry]]:
        """Yields the chain of directories: the pages, in order."""
        at, seen = self.first, set[int]()
        while at and at not in seen and len(seen) < 10_000:
            seen.add(at)
            entries, next_at = self.directory(at)
            yield entries
            (at,) = struct.unpack_from(self.end + ("Q" if self.is_big else "I"), self.data, next_at)

    def numbers(self, entry: Entry | None, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of an entry; ``default`` where it is absent or of another type."""
        if entry is None or entry.kind not in _WHOLE_NUMBERS or not entry.count:
            return default
        return struct.unpack_from(f"{self.end}{entry.count}{_WHOLE_NUMBERS[entry.kind]}", self.data, entry.start)

    def number(self, entry: Entry | None, default: int = 0) -> int:
        """The first whole number of an entry."""
        return self.numbers(entry, (default,))[0]

    def value(self, entry: Entry) -> bytes:
        """The bytes of an entry, in the file's own byte order; struct.error where they lie outside."""
        if entry.start + entry.size > len(self.data):
            raise struct.error(f"tag {entry.tag} reaches beyond the end of the file")
        return bytes(self.data[entry.start : entry.start + entry.size])

    def swapped(self, entry: Entry, end: str) -> bytes:
        """The bytes of an entry in byte order ``end``."""
        value, width = self.value(entry), _NUMBER_BYTES.get(entry.kind, 1)
        if end == self.end or width == 1:
            return value
        return b"".join(value[i : i + width][::-1] for i in range(0, len(value), width))


def exif_orientation(block: bytes) -> int:
    """The orientation (1..8) in an EXIF block that starts at its byte-order mark; 1 where absent, invalid or damaged."""
    try:
        tree = TiffTree.of(block)
        entries, _ = tree.directory(tree.first)
        value = tree.number(entries.get(0x0112), 1)
    except struct.error:
        return 1  # a damaged EXIF block is no reason to refuse a sound picture
    return value if 1 <= value <= 8 else 1
