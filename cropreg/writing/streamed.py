"""Large TIFFs cut from file to file, so that neither the original nor the crop is ever whole in memory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from tempfile import TemporaryFile
from typing import Any, cast

from cropreg.boxes import Box, to_stored
from cropreg.errors import UnreadableImage
from cropreg.images import Header
from cropreg.images.header import COPY_AGAIN, first_line, tiff_number
from cropreg.images.streamed import import_pyvips, open_rows
from cropreg.writing.cut import VIPS_COMPRESSIONS
from cropreg.writing.metadata import Metadata, tiff_directory

_LOW_BYTES = 2**22  # with less than this left, a disk is what stopped the writing


def cut_streamed(path: str, name: str, data: bytes, header: Header, box: Box, target: str, *, metadata: Metadata = "all") -> None:
    """Cuts a box out of a TIFF for which :func:`cropreg.images.streamed.is_streamed` holds, into the file ``target``.

    The same crop as :func:`cropreg.writing.cut` makes.  ``data`` are the original's bytes, mapped.  A crop that must be turned lies
    beside ``target`` meanwhile, in a file without a name: rows come from a TIFF in one order only.

    Raises:
        UnreadableImage: the picture cannot be read whole. OSError: the disk is full.
    """
    pyvips = import_pyvips()
    x1, y1, x2, y2 = (int(edge) for edge in to_stored(box, header.size_wh, header.orientation))
    w, h = int(box.size_wh[0]), int(box.size_wh[1])
    predictor = "horizontal" if tiff_number(data, 317, 1) == 2 else "none"
    big = w * h * len(header.mode) * header.bit_depth / 8 > 3.9e9
    more = {"compression": VIPS_COMPRESSIONS[tiff_number(data, 259, 1)], "predictor": predictor, "bigtiff": big}
    with open(path, "rb") as source, open(target, "w+b") as out, TemporaryFile(dir=os.path.dirname(target)) as tiles:
        try:
            piece = open_rows(source.fileno()).crop(x1, y1, x2 - x1, y2 - y1)
            if header.orientation != 1:
                piece = _turned(piece, tiles.fileno(), header.orientation)
            piece.tiffsave_target(pyvips.Target.new_to_descriptor(out.fileno()), keep="none", **more)
        except pyvips.Error as error:
            if shutil.disk_usage(os.path.dirname(target)).free < _LOW_BYTES:  # libvips says no more than that a write failed
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise UnreadableImage(name, f"cannot be cut ({first_line(error)})", COPY_AGAIN) from error
        with mmap.mmap(out.fileno(), 0, access=mmap.ACCESS_READ) as written:
            tail, at, place = tiff_directory(data, cast(bytes, written), (w, h), metadata)
        out.seek(0, os.SEEK_END)
        out.write(tail)
        out.seek(at)
        out.write(place)


def _turned(piece: Any, descriptor: int, orientation: int) -> Any:
    """A stored ``piece`` upright: it goes in tiles to an open file, from which they come in any order.

    Mapping bare pixels would be simpler, but then all of them count as this process's memory.
    """
    pyvips = import_pyvips()
    target = pyvips.Target.new_to_descriptor(descriptor)
    piece.tiffsave_target(target, keep="none", tile=True, tile_width=256, tile_height=256, bigtiff=True)
    stored = pyvips.Image.new_from_source(pyvips.Source.new_from_descriptor(descriptor), "").copy()
    stored.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return stored.autorot()
