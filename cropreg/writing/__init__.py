"""Cuts a picture and encodes the piece as its original was: format, depth, colours, metadata; nothing of what was cut away survives."""

from cropreg.writing.cut import cut

__all__ = ["cut"]
