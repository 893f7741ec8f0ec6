"""The one image reader for every verb: any supported file's bytes in, one upright RGB or grey picture out.

A file is recognised by its content, never by its name (RAW files excepted, which look like TIFF).  "Upright" means that the EXIF
orientation, or the turn an AVIF or HEIC file asks for, has been applied.  What cannot be decoded whole is an ``UnreadableImage``.
Everything else that needs OpenCV imports it after this package, which sets OpenCV's own pixel limit first.
"""

from cropreg.images.decode import Reduced, decode_color, decode_grey, decode_reduced, encode_jpeg
from cropreg.images.header import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, RAW_SUFFIXES, Header, read_header

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "Header",
    "Reduced",
    "decode_color",
    "decode_grey",
    "decode_reduced",
    "encode_jpeg",
    "read_header",
]
