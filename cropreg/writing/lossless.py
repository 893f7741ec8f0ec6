"""A JPEG cut without encoding it anew, by ``jpegtran``: its blocks are taken as they are, and turned upright.

Blocks begin at a grid of 8 or 16 px, so the edges that become the crop's left and top, and those that a turn mirrors, must lie on it.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass

from cropreg.boxes import EDGES, Box, from_stored, to_stored
from cropreg.errors import UsageError
from cropreg.images import Header, read_header
from cropreg.images.containers import jpeg_segments
from cropreg.writing.metadata import Metadata, carry_jpeg

_TURNS = {  # what stands a picture of that EXIF orientation upright
    2: ("-flip", "horizontal"),
    3: ("-rotate", "180"),
    4: ("-flip", "vertical"),
    5: ("-transpose",),
    6: ("-rotate", "90"),
    7: ("-transverse",),
    8: ("-rotate", "270"),
}
_MIRRORS_X, _MIRRORS_Y = (2, 3, 7, 8), (3, 4, 6, 7)  # of the frame as stored


class NotLossless(Exception):
    """This picture or this box cannot be cut without loss; the text says why, without a full stop."""


@dataclass(frozen=True)
class _Grid:
    """The size of a JPEG's blocks, px, in the frame as stored, and which of its four edges must lie on their borders."""

    step_wh: tuple[int, int]
    on_grid: tuple[bool, bool, bool, bool]


def require_jpegtran() -> str:
    """The path of jpegtran.

    Raises:
        UsageError: it is not installed; the cure is named.
    """
    path = shutil.which("jpegtran")
    if path is None:
        raise UsageError(
            "--jpeg-lossless needs the program jpegtran, which is not here. Install it (Debian and Ubuntu: apt-get install "
            "libjpeg-turbo-progs; Fedora: libjpeg-turbo-utils; macOS: brew install jpeg-turbo), on every machine of a cluster, "
            "or leave the flag out."
        )
    return path


def snap(data: bytes, header: Header, box: Box, inner: Box, *, inward: bool) -> Box:
    """The box with the edges on the grid that must lie there: outward, or with ``inward`` inward where that does not pass ``inner``.

    Where a grid line outward would lie outside of the picture, whose last blocks may be incomplete, the edge goes inward, if it may.

    Args:
        data, header: the picture.
        box: whole px of the upright picture, inside it.
        inner: as far as content may be cut.
        inward: which way is tried first.

    Raises:
        NotLossless: the picture is no JPEG, or no grid line is near enough.
    """
    if header.format != "JPEG":
        raise NotLossless(f"--jpeg-lossless is not for {header.format}")
    upright_wh = header.size_wh
    stored_wh = upright_wh if header.orientation < 5 else upright_wh[::-1]
    grid = _grid(data, header)
    edges, least = list(to_stored(box, upright_wh, header.orientation)), list(to_stored(inner, upright_wh, header.orientation))
    for i, edge in enumerate(edges):
        step, end, is_low = grid.step_wh[i % 2], stored_wh[i % 2], i < 2
        if not grid.on_grid[i] or edge % step == 0:
            continue
        below, above = edge // step * step, -(-edge // step) * step
        out, into = (below, above) if is_low else (above, below)
        may_in = into <= least[i] if is_low else into >= least[i]
        if out > end and not may_in:
            raise NotLossless(
                f"the {_upright_edge(i, header.orientation)} edge lies in the incomplete last blocks of {step} px, which cannot be turned"
            )
        edges[i] = into if may_in and (inward or out > end) else out
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise NotLossless("the crop is smaller than a block")
    return from_stored(Box(*edges), stored_wh, header.orientation)


def cut_lossless(data: bytes, name: str, header: Header, box: Box, *, metadata: Metadata = "all") -> bytes:
    """Cuts a box from :func:`snap` out of a JPEG without loss, upright, with metadata as :func:`cropreg.writing.cut` keeps it.

    Raises:
        UsageError: jpegtran is not installed. NotLossless: jpegtran refuses the picture.
    """
    stored = to_stored(box, header.size_wh, header.orientation)
    x1, y1 = int(stored.x1), int(stored.y1)
    w, h = (int(side) for side in stored.size_wh)
    piece = _jpegtran(data, header, "-crop", f"{w}x{h}+{x1}+{y1}")
    if header.orientation != 1:
        piece = _jpegtran(piece, header, "-perfect", *_TURNS[header.orientation])
    size_wh = int(box.size_wh[0]), int(box.size_wh[1])
    if read_header(piece, name).size_wh != size_wh:  # a jpegtran that moves edges by itself
        raise NotLossless(f"jpegtran gave {read_header(piece, name).size_wh} px where {size_wh} were asked for")
    return carry_jpeg(data, piece, size_wh, metadata)


def _jpegtran(data: bytes, header: Header, *arguments: str) -> bytes:
    progressive = ("-progressive",) if header.progressive else ()
    command = [require_jpegtran(), "-copy", "none", "-optimize", *progressive, *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:  # 2: warned, and perhaps filled what is missing with grey
        message = done.stderr.decode(errors="replace").strip().split("\n")[0][:120]
        raise NotLossless(f"jpegtran: {message or f'exit code {done.returncode}'}")
    return done.stdout


def _grid(data: bytes, header: Header) -> _Grid:
    """What the frame header says of the blocks (ITU-T T.81, B.2.2): 8 px times the largest sampling factors; 8 px for one channel."""
    sampling: list[tuple[int, int]] = []
    for marker, start, _ in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            (channels,) = struct.unpack_from(">B", data, start + 5)
            sampling = [(data[start + 7 + 3 * i] >> 4, data[start + 7 + 3 * i] & 15) for i in range(channels)]
    factors = (1, 1) if len(sampling) == 1 else (max(h for h, _ in sampling), max(v for _, v in sampling))
    mirrors = header.orientation in _MIRRORS_X, header.orientation in _MIRRORS_Y
    return _Grid((8 * factors[0], 8 * factors[1]), (True, True, *mirrors))


def _upright_edge(stored: int, orientation: int) -> str:
    """The name, in the upright picture, of an edge of the frame as stored."""
    moved = [5.0, 5.0, 6.0, 6.0]
    moved[stored] += -1 if stored < 2 else 1
    before, after = from_stored(Box(5, 5, 6, 6), (11, 11), orientation), from_stored(Box(*moved), (11, 11), orientation)
    return next(name for name, a, b in zip(EDGES, before, after, strict=True) if a != b)
