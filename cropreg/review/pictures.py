"""Pictures as the page shows them: a small copy at once, one that fits the window next, and a piece at full size on demand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cropreg import storage
from cropreg.errors import UnreadableImage
from cropreg.images import DEFAULT_MAX_PIXELS, decode_color, decode_reduced, encode_jpeg, read_header
from cropreg.proxies import Proxies
from cropreg.review import places
from cropreg.review.queue import Item
from cropreg.schema import AMBIGUOUS

import cv2  # isort: skip  (after cropreg.images, which sets its limits)

SMALL_PX, MAX_SCREEN_PX, MAX_REGION_PX = 512, 4096, 2048
_ENCODED_BYTES = 64 * 2**20  # about 200 pictures of a window's size
_DECODED_BYTES = 80 * 2**20  # two of 12 MP: the piece at each of four edges comes from one decode
DECODERS = 2  # at a time: more would only make the picture that is waited for slower, and hold more of them in memory

Pixels = NDArray[np.uint8]
Value = TypeVar("Value")


class Pictures:
    """Reads, shrinks and encodes what the page asks for; memory is bounded, whatever the number of pictures.

    Methods raise :class:`~cropreg.errors.UnreadableImage` for what cannot be read.
    """

    def __init__(self, proxies: Proxies | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._proxies, self._max_pixels = proxies, max_pixels
        self._positions: dict[str, int] = {}
        self._encoded: _Kept[bytes] = _Kept(_ENCODED_BYTES, len)
        self._decoded: _Kept[Pixels] = _Kept(_DECODED_BYTES, lambda pixels: pixels.nbytes)
        self._decoders = threading.BoundedSemaphore(DECODERS)

    def locate(self, items: Sequence[Item]) -> None:
        """Finds out where the small copies of these items' originals stand."""
        ids = sorted({item.original_id for item in items if item.original_id} - set(self._positions))
        if self._proxies is not None and ids:
            self._positions.update(zip(ids, self._proxies.locate(pa.array(ids)).tolist(), strict=True))

    def small(self, item: Item) -> bytes:
        """The dataset's own copy of the original, or one made now: JPEG, long side about ``SMALL_PX``."""
        position = self._positions.get(item.original_id or "", -1)
        if self._proxies is not None and position >= 0:
            return self._proxies.jpeg(position)
        return self.screen(item, SMALL_PX)

    def screen(self, item: Item, long_px: int) -> bytes:
        """The original with a long side of at most ``long_px``, JPEG."""
        return self._encoded.get(("screen", item.id, long_px), lambda: self._shrunk(item.original_uri, long_px, 88))

    def crop(self, item: Item, long_px: int) -> bytes:
        """The crop that a person made, with a long side of at most ``long_px``, JPEG."""
        if item.crop_uri is None:
            raise UnreadableImage(item.original_uri, "has no crop made by a person")
        uri = item.crop_uri
        return self._encoded.get(("crop", item.id, long_px), lambda: self._shrunk(uri, long_px, 90))

    def region(self, item: Item, x: int, y: int, width: int, height: int) -> bytes:
        """A piece of the original, one pixel for one, JPEG; what sticks out of the picture is left out.

        Raises:
            ValueError: nothing of it lies inside.
        """
        pixels = self._decoded.get(item.id, lambda: self._full(item.original_uri))
        piece = pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        if not piece.size:
            raise ValueError("this region lies outside the picture")
        return encode_jpeg(np.ascontiguousarray(piece), 92)

    def look_elsewhere(self, item: Item) -> None:
        """Adds the other places where an ambiguous crop fits to what there is to choose from, once."""
        if item.verdict == AMBIGUOUS and not item.looked:
            with self._decoders:
                found = places.elsewhere(item, self._max_pixels)
            item.looked = True
            for suggestion in found:
                item.suggest(suggestion)

    def _full(self, uri: str) -> Pixels:
        with self._decoders:
            return decode_color(_read(uri), uri, max_pixels=self._max_pixels)

    def _shrunk(self, uri: str, long_px: int, quality: int) -> bytes:
        with self._decoders:
            data = _read(uri)
            header = read_header(data, uri, max_pixels=self._max_pixels)
            factor = next((f for f in (8, 4, 2) if max(header.size_wh) >= f * long_px), 1)
            reduced = decode_reduced(data, uri, factor, grey=False, header=header, max_pixels=self._max_pixels)
            height, width = reduced.pixels.shape[:2]
            # The rest that makes no whole cell is filled up, so that the picture's corners stay its corners to within a cell.
            left, top = (int(v > 0) for v in reduced.shift_xy)
            right = int(header.width - reduced.shift_xy[0] - factor * width > 0)
            bottom = int(header.height - reduced.shift_xy[1] - factor * height > 0)
            pixels = cv2.copyMakeBorder(reduced.pixels, top, bottom, left, right, cv2.BORDER_REPLICATE)
            height, width = pixels.shape[:2]
            scale = long_px / max(width, height)
            if scale < 1:
                size_wh = max(1, round(width * scale)), max(1, round(height * scale))
                pixels = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
            return encode_jpeg(np.asarray(pixels, np.uint8), quality)


class _Kept(Generic[Value]):
    """The values that were asked for last, up to a number of bytes; asked for twice at once, a value is made once."""

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self._max_bytes, self._size, self._bytes = max_bytes, size, 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._coming: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            coming = self._coming.get(key)
            ours = coming is None
            if coming is None:
                coming = self._coming[key] = Future()
        if not ours:
            return coming.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            coming.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._values[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._max_bytes and len(self._values) > 1:
                self._bytes -= self._size(self._values.popitem(last=False)[1])
        coming.set_result(value)
        return value


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read any more ({error})") from error
