"""One encoded picture prepared for matching: decoded lazily, as small as will do, and at most once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg import images
from cropreg.errors import UnreadableImage
from cropreg.matching.features import Keypoints, keypoints
from cropreg.matching.plane import Plane
from cropreg.matching.progressive import first_scan
from cropreg.matching.search import Maps, maps_at_same_scale

SEARCH_LONG_SIDE_PX = 150  # below this a picture reduced by libjpeg is too small to search; see Picture.search_plane
PROXY_LONG_SIDE_PX = 300  # a reduced picture smaller than this would starve a model that looks at 224 px of a part of it
REDUCIBLE = ("JPEG",)  # the formats whose decoder can leave out detail
KEPT_PLANES = 16  # the pyramids of one pair need about ten
FULL_MAX_PX = 600_000  # smaller JPEGs are decoded whole at once: many are asked for their full size in the end, and 0.7 + 1 > 1
LARGE_CROP_LONG_SIDE_PX, LARGE_CROP_MAX_PX = 80, 250_000  # the same two for a large crop, see Picture.is_large
SMALL_CROP_LONG_SIDE_PX = 640  # 65% of smaller crops ask for their original at full size, and 0.7 + 0.65 > 1
STRIP_PX = 60  # short side at which corners are looked for at least, for they must keep away from the border
ROUNDED = 2  # grey levels by which the channels of a black and white picture may differ
TRANSPOSED, FLIPPED_X, FLIPPED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF orientations: what becomes of the stored picture
ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}  # by quarters anticlockwise
SEARCH_LEAST_PX = 200  # long side of a search plane made of a full picture: a power of two as small as this leaves


class Picture:
    """One encoded picture, decoded when it is looked at; keeps what it decoded, so that several crops share it.

    Args:
        data: the bytes of the file.
        name: the file, as the user knows it; named in errors.
        max_pixels: refuse pictures larger than this.
        with_proxy: decode the search plane in colour, since :meth:`proxy` will be asked for.

    Every property and method raises :class:`cropreg.errors.UnreadableImage` when the picture cannot be decoded whole.
    """

    def __init__(self, data: bytes, name: str, *, max_pixels: int = 400_000_000, with_proxy: bool = False) -> None:
        self.name = name
        self._data = data
        self._max_pixels = max_pixels
        self._with_proxy = with_proxy
        self._full: NDArray[np.uint8] | None = None
        self._color: NDArray[np.uint8] | None = None
        self._reduced_color: NDArray[np.uint8] | None = None
        self._halved: dict[float, Plane] = {}
        self._planes: dict[tuple[float, int], Plane] = {}  # by step and band, 0 for none
        self._keypoints: Keypoints | None = None
        self._maps: tuple[Plane, tuple[int, int], Maps | None] | None = None
        self.is_large = False
        """Whether a crop is at least half as long and as high as its original: it was hardly shrunk, and less of it will do."""
        self.num_trimmed = 0
        """How many borders were taken from round a crop."""
        self._decodes_whole = False
        self._whole: Picture | None = None
        self._source: Callable[[], NDArray[np.uint8]] = self._decoded

    @classmethod
    def of_pixels(cls, pixels: NDArray[np.uint8], name: str) -> Picture:
        """A picture that is decoded already: uint8, (H, W) grey or (H, W, 3) RGB."""
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
            raise ValueError(f"{name}: wanted uint8 pixels (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}")
        picture = cls(b"", name)
        picture._color = pixels if pixels.ndim == 3 else None
        picture._full = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        height, width = pixels.shape[:2]
        mode = "RGB" if pixels.ndim == 3 else "L"
        picture.header = images.Header("pixels", width, height, mode=mode, lossless=True)
        return picture

    @cached_property
    def header(self) -> images.Header:
        """What the file says about itself, without decoding it."""
        return images.read_header(self._data, self.name, max_pixels=self._max_pixels)

    @property
    def size_wh(self) -> tuple[int, int]:
        """(width, height), upright."""
        return self.header.width, self.header.height

    @cached_property
    def rounding_steps(self) -> NDArray[np.float64] | None:
        """What the file's coding has rounded the upright grey picture's DCT to (8, 8), nought if to nothing; None if not known."""
        if self.header.lossless:
            return np.zeros((8, 8))
        steps = self.header.luma_steps if self.header.mode in ("L", "RGB") else ()
        if not steps:
            return None
        stored = np.reshape(steps, (8, 8)).astype(np.float64)
        return stored.T if self.header.orientation in TRANSPOSED else stored

    @cached_property
    def block_corner_xy(self) -> tuple[int, int]:
        """Where the first whole block of the file's coding begins in the upright picture: those of a flipped one end at its border."""
        (w, h), orientation = self.size_wh, self.header.orientation
        return w % 8 if orientation in FLIPPED_X else 0, h % 8 if orientation in FLIPPED_Y else 0

    @property
    def factor(self) -> int:
        """By how much the decoder reduces the picture: 8 costs 0.7 of a full decode, 2 and 4 as much as a full decode."""
        most_px, least = (LARGE_CROP_MAX_PX, LARGE_CROP_LONG_SIDE_PX) if self.is_large else (FULL_MAX_PX, SEARCH_LONG_SIDE_PX)
        least = PROXY_LONG_SIDE_PX if self._with_proxy else least
        if self._decodes_whole or self.header.format not in REDUCIBLE or self.header.width * self.header.height <= most_px:
            return 1
        return 8 if max(self.size_wh) >= 8 * least and min(self.size_wh) >= 8 * 24 else 1

    @cached_property
    def search_plane(self) -> Plane:
        """The grey plane that the search looks at: libjpeg's 1/8 picture of large JPEGs, else the full picture, averaged down."""
        if self.factor == 1:
            halvings = min(3, max(0, int(math.log2(max(self.size_wh) / SEARCH_LEAST_PX))), int(math.log2(min(self.size_wh) / 24)))
            return Plane(self.full()).reduced(2 ** max(0, halvings))
        reduced = self._reduced(grey=not self._with_proxy)
        pixels = reduced.pixels
        if self._with_proxy:
            self._reduced_color = pixels
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
        shift_x, shift_y = reduced.shift_xy
        return Plane(pixels, (float(self.factor), float(self.factor)), (float(shift_x), float(shift_y)))

    def _reduced(self, grey: bool) -> images.Reduced:
        """The 1/8 picture; of a progressive file only its first scan is decoded."""
        if self.header.progressive:
            start = first_scan(self._data)
            if start is not None:
                with contextlib.suppress(UnreadableImage):
                    return images.decode_reduced(start, self.name, self.factor, grey=grey, header=self.header)
        return images.decode_reduced(self._data, self.name, self.factor, grey=grey, header=self.header)

    @property
    def finest_step(self) -> float:
        """Full-size pixels per pixel of the finest plane that costs no decoding."""
        return 1.0 if self._full is not None else self.search_plane.step

    def plane(self, step: float) -> Plane:
        """The picture at about ``step`` full-size pixels per pixel, without decoding; halvings are kept for the next crop."""
        if self.finest_step <= step < 0.98 * self.search_plane.step:
            return Plane(self.full()).resampled(step)
        halvings = math.log2(step / self.search_plane.step)
        if abs(halvings - round(halvings)) > 1e-6 or halvings < 0.5:
            return self.search_plane.resampled(step)
        if step not in self._halved:
            self._halved[step] = self.plane(step / 2).resampled(step)
        return self._halved[step]

    def smooth(self, step: float, sigma_px: float) -> Plane:
        """:meth:`plane`, float32, behind a Gaussian; the last few are kept."""
        return self._kept((step, 0), lambda: self.plane(step).smoothed(sigma_px))

    def band(self, step: float, sigma_px: float, band_px: int) -> Plane:
        """:meth:`smooth`, band-passed whole; the last few are kept."""
        return self._kept((step, band_px), lambda: self.smooth(step, sigma_px).band_passed(band_px))

    def _kept(self, key: tuple[float, int], make: Callable[[], Plane]) -> Plane:
        if key not in self._planes:
            if len(self._planes) >= KEPT_PLANES:
                self._planes.pop(next(iter(self._planes)))
            self._planes[key] = make()
        return self._planes[key]

    def texture(self, step_px: int) -> Plane:
        """The search plane at about ``step_px`` full-size pixels per pixel, as a map of where texture is; a small one stays as it is."""
        plane = self.search_plane
        return plane.reduced(max(1, min(round(step_px / plane.step), min(plane.size_wh) // 24)))

    def keypoints(self, long_side_px: int, num_features: int) -> Keypoints:
        """The corners of the search plane at about ``long_side_px``, of a strip at more; kept for the next crop, and for a mirrored one."""
        if self._keypoints is None:
            step = min(max(self.size_wh) / long_side_px, min(self.size_wh) / STRIP_PX)
            self._keypoints = keypoints(self.search_plane.resampled(max(step, self.search_plane.step)), num_features)
        return self._keypoints

    def maps_in(self, original: Picture, template_px: int, band_px: int) -> Maps | None:
        """This crop correlated with an original at the same scale; kept for the original that was asked last."""
        plane = original.search_plane
        if self._maps is None or self._maps[0] is not plane or self._maps[1] != (template_px, band_px):
            maps = maps_at_same_scale(plane, self.search_plane, template_px, band_px)
            self._maps = plane, (template_px, band_px), maps
        return self._maps[2]

    def full(self) -> NDArray[np.uint8]:
        """The grey picture at full size (H, W)."""
        if self._full is None:
            self._planes.clear()
            self._full = self._source()
        return self._full

    def colours(self) -> list[Plane]:
        """The two planes of colour (Cr, Cb), of JPEGs at half size; none where only grey pixels are at hand.  Cost: a decode."""
        reduced = self._in_colour()
        if reduced is None:
            return []
        step, (x, y) = float(reduced.factor), reduced.shift_xy
        _, *planes = cv2.split(cv2.cvtColor(reduced.pixels, cv2.COLOR_RGB2YCrCb))
        return [Plane(np.asarray(pixels, np.uint8), (step, step), (float(x), float(y))) for pixels in planes]

    @property
    def is_colourless(self) -> bool:
        """Whether it is known to be black and white.  Cost: a decode."""
        reduced = self._in_colour()
        if reduced is None:
            return False
        red, green, blue = cv2.split(reduced.pixels)
        return max(cv2.norm(red, green, cv2.NORM_INF), cv2.norm(green, blue, cv2.NORM_INF)) <= ROUNDED

    def _in_colour(self) -> images.Reduced | None:
        if self._color is not None:
            return images.Reduced(self._color, 1, (0, 0))
        factor = 2 if self.header.format in REDUCIBLE else 1  # a JPEG's colours are mostly no finer, other files are decoded whole
        return images.decode_reduced(self._data, self.name, factor, grey=False, header=self.header) if self._data else None

    def _decoded(self) -> NDArray[np.uint8]:
        if self._with_proxy and self.factor == 1:
            self._color = images.decode_color(self._data, self.name, header=self.header, max_pixels=self._max_pixels)
            return np.asarray(cv2.cvtColor(self._color, cv2.COLOR_RGB2GRAY), np.uint8)
        return images.decode_grey(self._data, self.name, header=self.header, max_pixels=self._max_pixels)

    def for_crop(self, crop_wh: tuple[int, int]) -> Picture:
        """This picture as it is best searched for a crop of that size: a small one asks for the full size in the end, so from the start.

        Shares what was decoded.  Where a proxy is made, the reduced decode is paid for anyway; of progressive files it is cheap.
        """
        if self._with_proxy or self.header.progressive or self.factor == 1 or max(crop_wh) >= SMALL_CROP_LONG_SIDE_PX:
            return self
        if self._whole is None:
            self._whole = Picture(self._data, self.name)
            self._whole.header, self._whole._source, self._whole._decodes_whole = self.header, self.full, True
        return self._whole

    def mirrored(self) -> Picture:
        """This picture with left and right exchanged; shares what was decoded."""
        twin = Picture(b"", self.name)
        twin.header, twin.rounding_steps = self.header, self.rounding_steps
        left, top = self.block_corner_xy
        twin.block_corner_xy = (self.size_wh[0] - left) % 8, top
        plane = self.search_plane
        right = plane.shift_xy[0] + plane.size_wh[0] * plane.step_xy[0]
        twin.search_plane = Plane(cv2.flip(plane.pixels, 1), plane.step_xy, (self.size_wh[0] - right, plane.shift_xy[1]))
        twin._source = lambda: np.asarray(cv2.flip(self.full(), 1), np.uint8)
        return twin

    def turned(self, quarters: int) -> Picture:
        """This picture turned anticlockwise by quarters; shares what was decoded, but knows nothing of what its file has rounded."""
        twin = Picture(b"", self.name)
        twin.rounding_steps = None
        plane, (w, h) = self.search_plane, self.size_wh
        (left, top), (step_x, step_y) = plane.shift_xy, plane.step_xy
        around = [left, top, w - left - plane.size_wh[0] * step_x, h - top - plane.size_wh[1] * step_y]
        left, top = (around[quarters:] + around[:quarters])[:2]  # what was above is at the left after a quarter
        if quarters % 2:
            (w, h), (step_x, step_y) = (h, w), (step_y, step_x)
        twin.header = replace(self.header, width=w, height=h)
        pixels = cv2.rotate(plane.pixels, ROTATIONS[quarters])
        twin.search_plane = Plane(pixels, (step_x, step_y), (left, top))
        twin._source = lambda: np.asarray(cv2.rotate(self.full(), ROTATIONS[quarters]), np.uint8)
        return twin

    def proxy(self, long_side: int, quality: int) -> tuple[bytes, int, int]:
        """The small JPEG copy that training reads, from the same decode as the search: (bytes, width, height).

        Upright, in colour, its long side at most ``long_side`` and never larger than the picture.
        """
        if self.factor > 1:
            self.search_plane  # noqa: B018  decodes
            color = self._reduced_color if self._reduced_color is not None else self._reduced(grey=False).pixels
        else:
            if self._color is None and self._data:
                self._color = images.decode_color(self._data, self.name, header=self.header, max_pixels=self._max_pixels)
            color = self._color if self._color is not None else cv2.cvtColor(self.full(), cv2.COLOR_GRAY2RGB)
        shrink = min(1.0, long_side / max(color.shape[:2]))
        w, h = (max(1, round(n * shrink)) for n in (color.shape[1], color.shape[0]))
        small = cv2.resize(color, (w, h), interpolation=cv2.INTER_AREA)
        return images.encode_jpeg(np.asarray(small, np.uint8), quality), w, h

    def forget(self) -> None:
        """Lets go of the pixels at full size; what is needed again is decoded again."""
        if self._data:
            self._full = self._color = self._whole = None
            if self.factor == 1:
                self.__dict__.pop("search_plane", None)
                self._halved.clear()
                self._planes.clear()
