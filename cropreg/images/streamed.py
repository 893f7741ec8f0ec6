"""TIFF files too large to be held in memory: read row by row with libvips, from the file itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box, to_stored
from cropreg.errors import UnreadableImage
from cropreg.images.containers import TiffTree
from cropreg.images.decode import turn
from cropreg.images.header import COPY_AGAIN, Header, first_line

LARGE_BYTES = 100_000_000  # of pixels; a whole decode and an encoded crop take some six times as much
_COMPRESSIONS = (1, 5, 8, 32946, 32773)
_PHOTOMETRIC = {"L": 1, "RGB": 2, "RGBA": 2, "CMYK": 5}


def import_pyvips() -> Any:
    """The pyvips module, told to use one thread (a cluster runs one worker a core) and to keep no cache."""
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


def is_streamed(data: bytes, header: Header) -> bool:
    """Whether a TIFF is large, and of a kind that is read and cut row by row: stored in one of the usual ways, alpha not premultiplied.

    ``data`` may be a file's bytes as mapped into memory: only its first directory is looked at.
    """
    if header.format != "TIFF" or header.mode not in _PHOTOMETRIC or header.bit_depth not in (8, 16):
        return False
    if header.width * header.height * len(header.mode) * header.bit_depth // 8 < LARGE_BYTES:
        return False
    tree = TiffTree.of(data)
    first, _ = tree.directory(tree.first)
    photometric, packing, planes, premultiplied = (tree.number(first.get(tag), 0) for tag in (262, 259, 284, 338))
    plain = planes != 2 and premultiplied != 1
    return photometric == _PHOTOMETRIC[header.mode] and (packing or 1) in _COMPRESSIONS and plain


def open_rows(descriptor: int) -> Any:
    """A picture as libvips reads it from an open file, from top to bottom once; it raises pyvips.Error where the file is damaged."""
    pyvips = import_pyvips()
    return pyvips.Image.new_from_source(pyvips.Source.new_from_descriptor(descriptor), "", access="sequential", fail_on="error")


def decode_streamed(path: str, name: str, header: Header, factor: int) -> NDArray[np.uint8]:
    """The means of ``factor`` x ``factor`` cells, (H // factor, W // factor, 3) uint8 RGB, of a file for which :func:`is_streamed` holds.

    Raises:
        UnreadableImage: it cannot be decoded whole.
    """
    w, h = header.width // factor, header.height // factor
    # the cells begin at the upright picture's corner, wherever that is stored
    x1, y1, x2, y2 = (int(edge) for edge in to_stored(Box(0, 0, w * factor, h * factor), header.size_wh, header.orientation))
    try:
        with open(path, "rb") as file:
            rows = open_rows(file.fileno()).crop(x1, y1, x2 - x1, y2 - y1)
            pixels = _plain(rows, header).shrink(factor, factor).numpy()
    except import_pyvips().Error as error:
        raise UnreadableImage(name, f"is cut short or damaged ({first_line(error)})", COPY_AGAIN) from error
    small = turn((pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8), header.orientation)
    return small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2)


def _plain(rows: Any, header: Header) -> Any:
    """Grey or RGB: transparency is laid on white, inks are turned into light as :mod:`cropreg.images.decode` does it."""
    if header.mode not in ("RGBA", "CMYK"):
        return rows
    if header.bit_depth == 16:
        rows = (rows >> 8).cast("uchar")
    if header.mode == "RGBA":
        return rows.flatten(background=255, max_alpha=255)
    light = rows.invert()
    return (light.extract_band(0, n=3) * light.extract_band(3) / 255).cast("uchar")
