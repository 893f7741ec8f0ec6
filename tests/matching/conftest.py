"""Pictures for the matcher's tests: seeded, large enough to be searched at 1/8, encoded as cameras and editors do."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@functools.lru_cache(maxsize=16)
def scene(seed: int, width: int = 1813, height: int = 1211) -> Pixels:
    """A picture (H, W, 3) RGB with soft and sharp things of all sizes and a sensor's noise; its sides are no multiples of 8."""
    rng = np.random.default_rng([seed, 42])
    picture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 30), (7, 25), (19, 18), (47, 14), (120, 9)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += 120
    for _ in range(160):
        center = int(rng.integers(width)), int(rng.integers(height))
        axes = int(rng.integers(4, 60)), int(rng.integers(4, 60))
        color = tuple(float(v) for v in rng.uniform(20, 230, 3))
        cv2.ellipse(picture, center, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.8) + rng.normal(0, 1.5, picture.shape).astype(np.float32)
    pixels = np.asarray(np.clip(picture, 0, 255), np.uint8)
    pixels.flags.writeable = False  # shared by the tests
    return pixels


def hazy_shore(seed: int, width: int = 1600, height: int = 1000) -> Pixels:
    """A picture (H, W, 3) that is nearly all sky, and a strip of land in haze."""
    rng = np.random.default_rng([seed, 43])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    sky = 90 + 120 * y / height + 15 * np.sin(2 * x / width + seed)
    hills = 0.82 * height + 260 * cv2.GaussianBlur(rng.normal(0, 1, (1, width)), (0, 0), 30)
    land = cv2.GaussianBlur(np.where((y > hills) & (y < 0.88 * height), 1.0, 0.0), (0, 0), 1.0)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 6)
    picture = sky * (1 - 0.12 * land) + 3 * land * texture / texture.std() + rng.normal(0, 0.5, (height, width))
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, 2)


def evening(seed: int, ground: float = 0.05, noise: float = 1.0, width: int = 1600, height: int = 1000) -> Pixels:
    """A picture (H, W, 3) of the glow of a sun over a ridge that is darker by the share ``ground``: slopes of tone, no corners."""
    rng = np.random.default_rng([seed, 44])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    sun = np.hypot(x - width * rng.uniform(0.3, 0.9), 1.5 * (y - 0.7 * height))
    sky = 70 + 90 * y / height + 110 * np.exp(-sun / 300)
    ridge = 0.75 * height + 400 * cv2.GaussianBlur(rng.normal(0, 1, (1, width)), (0, 0), 60)
    land = cv2.GaussianBlur(np.where(y > ridge, 1.0, 0.0), (0, 0), 2)
    picture = sky * (1 - ground * land) + rng.normal(0, noise, (height, width))
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, 2)


def starry(seed: int, width: int = 1600, height: int = 1000) -> Pixels:
    """A picture (H, W, 3) of stars on a black sky, and a faint cloud in its middle."""
    rng = np.random.default_rng([seed, 45])
    sky = np.zeros((height, width), np.float32)
    for _ in range(260):
        center = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(sky, center, int(rng.integers(1, 4)), float(rng.uniform(60, 250)), -1, cv2.LINE_AA)
    y, x = np.mgrid[:height, :width]
    middle = np.exp(-(((x / width - 0.5) / 0.22) ** 2) - ((y / height - 0.5) / 0.22) ** 2)
    cloud = cv2.resize(rng.normal(0, 1, (12, 18)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture = cv2.GaussianBlur(sky, (0, 0), 1.0) + 20 * np.maximum(cloud, 0) * middle + rng.normal(1, 1, sky.shape)
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, 2)


def vignetted(pixels: Pixels) -> Pixels:
    """The same with darker corners and brighter shadows, as editors make them."""
    h, w = pixels.shape[:2]
    from_middle = np.hypot(*np.meshgrid(np.linspace(-1, 1, w), np.linspace(-1, 1, h)))
    dark = pixels * (1 - 0.42 * np.minimum(from_middle, 1.5) ** 2)[..., None]
    return np.asarray(255 * (dark / 255) ** 0.85, np.uint8)


def encode(pixels: Pixels, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a file."""
    if kind == "JPEG":
        options = {"quality": 92, "subsampling": 0} | options
    if kind == "PNG":
        options = {"compress_level": 1} | options
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """The pixels (H, W, 3) of a file, upright."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(pixels[..., ::-1])


def turned(picture: Pixels, center_xy: tuple[float, float], size_wh: tuple[int, int], degrees: float) -> Pixels:
    """What an editor cuts out after it has turned the picture."""
    w, h = size_wh
    t = np.deg2rad(degrees)
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])  # clockwise on the screen: y points down
    matrix = np.hstack([turn, (np.array(center_xy) - 0.5 - turn @ [(w - 1) / 2, (h - 1) / 2])[:, None]])
    return np.asarray(cv2.warpAffine(picture, matrix, (w, h), flags=cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP))


@pytest.fixture(scope="session")
def original() -> bytes:
    """A JPEG of 1813 x 1211 pixels, searched at 1/8."""
    return encode(scene(1))


@pytest.fixture(scope="session")
def pixels(original: bytes) -> Pixels:
    """What an editor sees of the original."""
    return decoded(original)


@pytest.fixture(scope="session")
def resize() -> Callable[[Pixels, float], Pixels]:
    """Shrinks or enlarges as editors do."""

    def resized(picture: Pixels, scale: float) -> Pixels:
        size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))

    return resized
