"""Made pairs of an original and a crop with the true box, of many kinds: for the benchmark and for the matcher's many tests."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cropreg import images

Pixels = NDArray[np.uint8]
KEPT = (  # only cut out: the box is whole
    *("plain", "png", "jpeg40", "exif", "exif_of_crop", "progressive", "progressive_crop", "whole", "tiny", "least", "edited"),
    *("black_white", "webp", "tiff16", "cmyk", "alpha", "grey", "stamped", "framed", "text", "flat"),
)
OTHERWISE = (
    "resized",
    "resized_edited",
    "resized_framed",
    "shrunk",
    "enlarged",
    "tiny_resized",
    "turned",
    "turned_far",
    "turned_resized",
)
REJECT = ("wrong", "wrong_resized", "wrong_text", "burst", "mirrored", "blank", "rescan")
KINDS = (*KEPT, *OTHERWISE, *REJECT)
TEXT = "the archive holds thousands of originals and crops that somebody made by hand over many years of patient work"
SHARES = {
    "tiny": 0.15,
    "least": 0.065,
    "tiny_resized": 0.18,
    "whole": 1.0,
    "flat": 0.3,
}  # of each side; others take about two thirds


@dataclass
class Pair:
    """One made pair: two files, and the truth; ``box`` is None for a pair that must not be found."""

    kind: str
    size_mp: int
    original: bytes
    crop: bytes
    box: tuple[float, float, float, float] | None
    scale: float = 1.0
    angle_deg: float = 0.0


def drawn(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A drawn picture with detail of all sizes, for want of photographs."""
    picture = np.full((height, width, 3), 120, np.float32)
    for cells, strength in ((3, 30), (9, 25), (31, 18), (97, 14), (251, 9)):
        picture += cv2.resize(
            rng.normal(0, strength, (cells, cells, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    for _ in range(400):
        color = tuple(float(v) for v in rng.uniform(20, 230, 3))
        center, axes = (int(rng.integers(width)), int(rng.integers(height))), (int(rng.integers(5, 150)), int(rng.integers(5, 150)))
        cv2.ellipse(picture, center, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    return np.asarray(np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255), np.uint8)


def one_of_each(paths: list[Path]) -> list[Path]:
    """One file of every folder, or pair of folders, that holds one picture in several sizes (``1600x1200.jpg``), and all others."""
    best: dict[Path, Path] = {}
    for path in paths:
        key = path.parent.parent if re.fullmatch(r"\d+x\d+", path.stem) else path
        if key not in best or path.stat().st_size > best[key].stat().st_size:
            best[key] = path
    return sorted(best.values())


def photograph(paths: list[Path], rng: np.random.Generator, size_mp: int) -> Pixels:
    """A photograph of about ``size_mp``, its sides no multiples of 8; enlarged ones get a sensor's noise."""
    if not paths:
        height = int((size_mp * 1e6 / 1.5) ** 0.5) - int(rng.integers(8))
        return drawn(rng, int(height * 1.5) - int(rng.integers(8)), height)
    picture = np.asarray(Image.open(paths[int(rng.integers(len(paths)))]).convert("RGB"))
    ratio = (size_mp * 1e6 / picture.shape[0] / picture.shape[1]) ** 0.5
    kernel = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LANCZOS4
    picture = cv2.resize(picture, None, fx=ratio, fy=ratio, interpolation=kernel)
    if ratio > 1:
        picture = np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
    return np.asarray(picture[int(rng.integers(8)) :, int(rng.integers(8)) :])


def encode(pixels: Pixels, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 90, "subsampling": 2} | options if kind == "JPEG" else options))
    return buffer.getvalue()


def upright(data: bytes) -> Pixels:
    return images.decode_color(data, "made here")


def edited(crop: Pixels, rng: np.random.Generator) -> Pixels:
    """Tone, contrast, sharpening and a vignette."""
    f = (crop.astype(np.float32) / 255) ** rng.uniform(0.75, 1.35)
    f = (f - 0.5) * rng.uniform(0.85, 1.3) + 0.5 + rng.uniform(-0.06, 0.06)
    f = f + rng.uniform(0.3, 1.2) * (f - cv2.GaussianBlur(f, (0, 0), float(rng.uniform(0.8, 2.2))))
    y, x = np.mgrid[-1 : 1 : crop.shape[0] * 1j, -1 : 1 : crop.shape[1] * 1j].astype(np.float32)
    f *= (1 - rng.uniform(0, 0.5) * (x * x + y * y) / 2)[..., None]
    return np.asarray(np.clip(f * 255, 0, 255), np.uint8)


def burst(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A neighbouring frame: the scene has moved by some pixels, unevenly, and the noise is new."""
    h, w = picture.shape[:2]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    for axis in (x, y):
        axis += cv2.resize(rng.normal(0, max(2.0, w / 800), (7, 7)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    later = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(np.clip(later + rng.normal(0, 2, later.shape), 0, 255), np.uint8)


def rescan(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A print put on the glass: a little turned, a little softer, and with the noise of this scan."""
    h, w = picture.shape[:2]
    turn_deg = float(rng.uniform(0.3, 2.0)) * (1 if rng.random() < 0.5 else -1)
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), turn_deg, 1.0)
    matrix[:, 2] += rng.uniform(-9, 9, 2)
    again = cv2.warpAffine(picture.astype(np.float32), matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    again = cv2.GaussianBlur(again, (0, 0), 0.6) + rng.normal(0, rng.uniform(1.5, 3.5), again.shape)
    return np.asarray(np.clip(np.round(again), 0, 255), np.uint8)


def resized(crop: Pixels, scale: float, rng: np.random.Generator) -> Pixels:
    size = max(24, round(crop.shape[1] * scale)), max(24, round(crop.shape[0] * scale))
    if rng.random() < 0.4:
        return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA))
    kernel = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)[int(rng.integers(3))]
    return np.asarray(Image.fromarray(crop).resize(size, kernel))


def flattest(picture: Pixels, w: int, h: int, rng: np.random.Generator) -> tuple[int, int]:
    """The corner of the evenest of 200 boxes."""
    small = cv2.resize(picture, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA).astype(np.float32)
    corners = [(int(rng.integers(picture.shape[1] - w)), int(rng.integers(picture.shape[0] - h))) for _ in range(200)]
    return min(corners, key=lambda c: float(small[c[1] // 16 : (c[1] + h) // 16, c[0] // 16 : (c[0] + w) // 16].std()))


def text_page(rng: np.random.Generator) -> Pixels:
    """A printed page, scanned."""
    page = Image.new("RGB", (2480, 1754), (250, 248, 240))
    draw = ImageDraw.Draw(page)
    words = re.findall(r"\w+", TEXT)
    for y in range(60, 1690, 44):
        x = 60
        while x < 2280:
            word = words[int(rng.integers(len(words)))]
            draw.text((x, y), word, fill=(30, 30, 30), font_size=28)
            x += len(word) * 15 + 14
    return np.asarray(np.clip(np.asarray(page) + rng.normal(0, 2, (1754, 2480, 3)), 0, 255), np.uint8)


def turned(pixels: Pixels, box: tuple[int, int, int, int], angle_deg: float, scale: float) -> Pixels:
    """What a straightening editor gives: the box turned about its centre, then resized."""
    x1, y1, x2, y2 = box
    w, h = round((x2 - x1) * scale), round((y2 - y1) * scale)
    t = np.deg2rad(angle_deg)
    linear = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) / scale
    shift = np.array([(x1 + x2 - 1) / 2, (y1 + y2 - 1) / 2]) - linear @ [(w - 1) / 2, (h - 1) / 2]
    source = pixels if scale >= 1 else cv2.GaussianBlur(pixels, (0, 0), 0.45 / scale)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(source, np.hstack([linear, shift[:, None]]), (w, h), flags=flags), np.uint8)


def painted_over(crop: Pixels, rng: np.random.Generator) -> Pixels:
    """A date stamp, and a small thing painted over."""
    h, w = crop.shape[:2]
    crop = crop.copy()
    cv2.putText(crop, "2019 07 14", (w // 2, h - h // 12), cv2.FONT_HERSHEY_SIMPLEX, w / 600, (255, 140, 0), max(2, w // 300))
    center = int(rng.integers(w // 8, w - w // 8)), int(rng.integers(h // 8, h - h // 8))
    cv2.circle(crop, center, w // 16, (120, 130, 90), -1)
    return crop


def framed(crop: Pixels, rng: np.random.Generator, tone: int) -> Pixels:
    border = int(rng.integers(10, 90))
    return np.asarray(cv2.copyMakeBorder(crop, border, border, border, border, cv2.BORDER_CONSTANT, value=(tone,) * 3), np.uint8)


def written(crop: Pixels, kind: str, rng: np.random.Generator) -> bytes:
    """The file of a crop: JPEG at quality 90 unless the kind is about another."""
    crop = np.ascontiguousarray(crop)
    match kind:
        case "png":
            return encode(crop, "PNG", compress_level=1)
        case "webp":
            return encode(crop, "WEBP", quality=85)
        case "tiff16":
            return cv2.imencode(".tiff", crop[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
        case "alpha":
            return encode(np.dstack([crop, np.full(crop.shape[:2], 255, np.uint8)]), "PNG", compress_level=1)
        case "cmyk" | "grey":
            buffer = io.BytesIO()
            Image.fromarray(crop).convert("CMYK" if kind == "cmyk" else "L").save(buffer, "JPEG", quality=90)
            return buffer.getvalue()
        case "exif_of_crop":
            exif = Image.Exif()
            exif[0x0112] = 8
            return encode(np.ascontiguousarray(np.rot90(crop, -1)), quality=92, exif=exif)
        case "progressive_crop":
            return encode(crop, quality=90, progressive=True)
        case "jpeg40":
            return encode(crop, quality=40)
    return encode(crop, quality=90, subsampling=int(rng.choice([0, 2])))


def original_of(kind: str, size_mp: int, paths: list[Path], rng: np.random.Generator) -> tuple[bytes, int]:
    """The file of an original, and the index of the photograph in it."""
    chosen = int(rng.integers(len(paths))) if paths else 0
    picture = text_page(rng) if kind in ("text", "wrong_text") else photograph(paths[chosen : chosen + 1], rng, size_mp)
    options: dict[str, object] = {"quality": int(rng.choice([88, 92, 95])), "progressive": kind == "progressive"}
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture, options["exif"] = np.ascontiguousarray(np.rot90(picture, 1)), exif
    return encode(picture, **options), chosen


def make(kind: str, size_mp: int, paths: list[Path], seed: int, index: int) -> Pair:
    """One pair; the same for the same seed."""
    rng = np.random.default_rng([seed, KINDS.index(kind), size_mp, index])
    original, chosen = original_of(kind, size_mp, paths, rng)
    pixels = upright(original)
    if kind == "rescan":
        original = encode(rescan(pixels, rng), quality=int(rng.choice([88, 92, 95])))
    height, width = pixels.shape[:2]
    share = SHARES.get(kind, float(rng.uniform(0.5, 0.92)))
    if kind.startswith("turned"):
        share = 0.5
    w, h = int(width * share), int(height * share * rng.uniform(0.85, 1.0)) if share < 1 else height
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    if kind.startswith("turned"):
        x, y = (width - w) // 2 + int(rng.integers(-20, 20)), (height - h) // 2 + int(rng.integers(-20, 20))
    if kind == "flat":
        x, y = flattest(pixels, w, h, rng)
    return cut(kind, original, pixels, (x, y, x + w, y + h), [*paths[:chosen], *paths[chosen + 1 :]], size_mp, rng)


def cut(
    kind: str,
    original: bytes,
    pixels: Pixels,
    box: tuple[int, int, int, int],
    others: list[Path],
    size_mp: int,
    rng: np.random.Generator,
) -> Pair:
    """The pair of an original and what ``kind`` says was made of a box of it; wrong kinds are cut from something else."""
    x1, y1, x2, y2 = box
    height, width = pixels.shape[:2]
    scale, angle_deg = 1.0, 0.0
    source = pixels
    if kind in ("wrong", "wrong_resized"):
        source = np.asarray(cv2.resize(photograph(others, rng, size_mp), (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    elif kind == "wrong_text":
        source = text_page(rng)
    elif kind == "burst":
        source = burst(pixels, rng)
    elif kind == "rescan":
        source = rescan(pixels, rng)
    elif kind == "blank":
        source = np.asarray(np.clip(rng.normal(249, 2, pixels.shape), 0, 255), np.uint8)
    crop = source[y1:y2, x1:x2]
    if kind.startswith("turned"):
        most = 3.0 if kind == "turned" else 15.0
        angle_deg = float(rng.uniform(1, most)) * (1 if rng.random() < 0.5 else -1)
        scale = float(rng.uniform(0.3, 0.9)) if kind == "turned_resized" else 1.0
        crop = turned(pixels, box, angle_deg, scale)
    if kind in ("edited", "resized_edited"):
        crop = edited(crop, rng)
    if kind == "black_white":
        crop = np.repeat((crop @ rng.dirichlet([2, 2, 2]))[..., None], 3, 2).astype(np.uint8)
    if kind == "stamped":
        crop = painted_over(crop, rng)
    if kind == "mirrored":
        crop = crop[:, ::-1]
    scales = {"shrunk": (0.15, 0.25), "enlarged": (1.1, 1.75), "tiny_resized": (0.35, 0.9)}
    if kind in ("resized", "resized_edited", "resized_framed", "wrong_resized", *scales):
        low, high = scales.get(kind, (0.2, 0.9))
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        crop = resized(crop, scale, rng)
    if kind in ("framed", "resized_framed"):
        crop = framed(crop, rng, 255 if kind == "framed" else 0)
    return Pair(kind, size_mp, original, written(crop, kind, rng), None if kind in REJECT else box, scale, angle_deg)
