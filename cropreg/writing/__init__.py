"""Cuts a picture and encodes the piece as its original was: format, depth, colours, metadata; nothing of what was cut away survives."""

from cropreg.writing.cut import cut
from cropreg.writing.lossless import NotLossless, cut_lossless, require_jpegtran, snap
from cropreg.writing.streamed import cut_streamed

__all__ = ["NotLossless", "cut", "cut_lossless", "cut_streamed", "require_jpegtran", "snap"]
