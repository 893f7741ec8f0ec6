"""Large TIFFs cut from file to file, so that neither the original nor the crop is ever whole in memory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from typing import cast

from cropreg.boxes import Box
from cropreg.errors import UnreadableImage
from cropreg.images import Header
from cropreg.images.header import COPY_AGAIN, first_line, tiff_number
from cropreg.images.streamed import import_pyvips, open_rows
from cropreg.writing.cut import VIPS_COMPRESSIONS
from cropreg.writing.metadata import Metadata, tiff_directory

_LOW_BYTES = 2**22  # with less than this left, a disk is what stopped the writing


def cut_streamed(path: str, name: str, data: bytes, header: Header, box: Box, target: str, *, metadata: Metadata = "all") -> None:
    """Cuts a box out of a TIFF for which :func:`cropreg.images.streamed.is_streamed` holds, into the file ``target``.

    The same crop as :func:`cropreg.writing.cut` makes.  ``data`` are the original's bytes, mapped.

    Raises:
        UnreadableImage: the picture cannot be read whole. OSError: the disk is full.
    """
    pyvips = import_pyvips()
    x1, y1, w, h = int(box.x1), int(box.y1), int(box.size_wh[0]), int(box.size_wh[1])
    predictor = "horizontal" if tiff_number(data, 317, 1) == 2 else "none"
    big = w * h * len(header.mode) * header.bit_depth / 8 > 3.9e9
    more = {"compression": VIPS_COMPRESSIONS[tiff_number(data, 259, 1)], "predictor": predictor, "bigtiff": big}
    with open(path, "rb") as source, open(target, "w+b") as out:
        try:
            piece = open_rows(source.fileno()).crop(x1, y1, w, h)
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
