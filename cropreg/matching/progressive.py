"""Progressive JPEGs: their first scan alone is enough to search, and costs a fraction of the whole.

A progressive file (ITU-T T.81, annex G) sends its picture in scans; cameras and editors put the DC of all components first.  Libjpeg's
1/8 picture needs nothing else, yet decodes every scan.  So the stream is cut after its first scan and closed with an end marker.
"""

from __future__ import annotations

_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"


def first_scan(data: bytes) -> bytes | None:
    """The file up to the end of its first scan, if that holds the DC of all components and the file itself is closed; else None.

    A file without its end marker is cut short: decoding it whole will say so.
    """
    start = data.find(_START_OF_SCAN)
    if start < 0 or data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        return None
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    header = data[start + 4 : start + 2 + length]
    if len(header) < 4 or header[0] != _components(data[:start]) or header[-3:-1] != b"\x00\x00":  # spectral selection 0 to 0: DC
        return None
    end = start + 2 + length
    while True:  # within a scan, 0xff is followed by 0x00 or by a restart marker
        end = data.find(b"\xff", end)
        if end < 0 or end + 1 >= len(data):
            return None
        if data[end + 1] != 0 and not 0xD0 <= data[end + 1] <= 0xD7 and data[end + 1] != 0xFF:
            return data[:end] + _END_OF_IMAGE
        end += 1


def _components(head: bytes) -> int:
    """The number of components in the frame header, 0 if there is none."""
    at = head.rfind(b"\xff\xc2")  # SOF2; thumbnails in APP segments come before it
    return head[at + 9] if 0 <= at < len(head) - 9 else 0
