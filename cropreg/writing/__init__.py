"""Cuts a picture and encodes the piece as its original was: format, depth, colours, metadata; nothing of what was cut away survives."""

from cropreg.writing.cut import cut
from cropreg.writing.lossless import NotLossless, cut_lossless, require_jpegtran, snap

__all__ = ["NotLossless", "cut", "cut_lossless", "require_jpegtran", "snap"]
