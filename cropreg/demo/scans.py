"""Makes scans of photo prints lying on a scanner bed, and the crops a person with a constant habit cuts from them.

All chance comes from the generator that is passed in: the same seed gives the same files.  The habit is what a model can learn from
the pairs: cut at the picture (not at the paper's white border), a little inside its edge, and a bit more at the bottom.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box
from cropreg.errors import InputError

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Canvas = NDArray[np.float32]  # (H, W, 3), RGB, levels 0 to 255

HABIT = (0.012, 0.012, 0.012, 0.030)  # shares of the picture's width and height cut away: left, top, right, bottom
HABIT_SPREAD = 0.003  # standard deviation of each: no hand is exact
PRINT_RATIOS = (3 / 2, 4 / 3, 5 / 4, 1.0)  # long side to short side of the usual paper sizes
PRINT_SHARES = (0.55, 0.95)  # how much of the bed, along the tighter side, a print takes
BORDERS = (0.02, 0.08)  # width of the paper's white border, as a share of the print's short side
LIDS = {"white": (238, 252), "grey": (110, 165), "black": (8, 26)}  # levels of the scanner's lid
MIN_CONTRAST = 35  # levels between the picture's rim and what lies around it, where a choice of lid allows it
SKEWED, MAX_SKEW_DEG = 0.3, 2.0  # the share of prints that do not lie straight, and by how much at most

JPEG_QUALITY = 92


def make_scan(photo: Picture, rng: np.random.Generator, long_px: int) -> tuple[Picture, Box]:
    """Lays a print of a photograph on a scanner bed, and says where a person would cut.

    Args:
        photo: (H, W, 3) uint8, RGB, at least 32 pixels on each side; the print shows a random region of it, perhaps mirrored.
        rng: all chance comes from here.
        long_px: the scan's long side in pixels, at least 64.

    Returns:
        The scan, (h, w, 3) uint8 RGB with max(h, w) = long_px, and the crop's box in its pixels, whole numbers.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or min(photo.shape[:2]) < 32:
        raise ValueError(f"photo must be (H, W, 3) uint8 and at least 32 x 32 px, got {photo.shape} {photo.dtype}")
    if long_px < 64:
        raise ValueError(f"long_px must be at least 64 px, got {long_px}")
    bed_wh = _bed_size(rng, long_px)
    picture = _developed(_region(photo, rng), rng)
    border = float(rng.uniform(*BORDERS)) * min(picture.shape[:2]) if rng.random() < 0.6 else 0.0
    skew_deg = float(rng.uniform(-MAX_SKEW_DEG, MAX_SKEW_DEG)) if rng.random() < SKEWED else 0.0
    size_wh = (picture.shape[1], picture.shape[0])
    to_bed = _placement(size_wh, border, skew_deg, bed_wh, rng)

    scan = _lid(_surround_level(picture, border, rng), bed_wh, rng)
    scan *= _shadow(_covered(size_wh, border, to_bed, bed_wh), rng)[..., None]
    if border:
        paper = np.zeros_like(picture) + rng.uniform((240, 238, 228), (252, 251, 248)).astype(np.float32)
        scan = _paste(scan, paper, border, to_bed)
    scan = _paste(scan, picture, 0.0, to_bed)
    _drop_specks(scan, rng)
    scan += rng.normal(0, rng.uniform(0.8, 2.5), scan.shape).astype(np.float32)
    return scan.clip(0, 255).round().astype(np.uint8), _cut(size_wh, to_bed, bed_wh, rng)


def write_scans(photos: Sequence[Path], folder: Path, count: int, seed: int, long_px: int = 384) -> None:
    """Writes ``count`` scans, the crops cut from them, and the truth.

    ``folder`` then holds ``originals/0000.jpg``, ``crops/0000.jpg`` (cut from the decoded original, so its own JPEG compression is
    all that differs) and, written last, ``truth.csv``: original, crop (relative to ``folder``), x1, y1, x2, y2 (pixels).
    Scan ``i`` depends on the photographs, ``seed`` and ``i`` alone, not on ``count``.

    Raises:
        InputError: there is no photograph, or one cannot be read.
    """
    if not photos:
        raise InputError("no photographs to make scans of: give at least one picture file")
    decoded = [_read(path) for path in photos]
    for name in ("originals", "crops"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str | int, ...]] = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scan, box = make_scan(decoded[int(rng.integers(len(decoded)))], rng, long_px)
        original, crop = f"originals/{i:04d}.jpg", f"crops/{i:04d}.jpg"
        encoded = _encode(scan)
        (folder / original).write_bytes(encoded)
        x1, y1, x2, y2 = (int(v) for v in box)
        (folder / crop).write_bytes(_encode(_decode(encoded)[y1:y2, x1:x2]))
        rows.append((original, crop, x1, y1, x2, y2))
    with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("original", "crop", "x1", "y1", "x2", "y2"))
        writer.writerows(rows)


def _bed_size(rng: np.random.Generator, long_px: int) -> tuple[int, int]:
    """Draws a bed's (width, height) in pixels, upright or lying."""
    short_px = round(long_px * rng.uniform(0.68, 0.95))
    return (long_px, short_px) if rng.random() < 0.5 else (short_px, long_px)


def _region(photo: Picture, rng: np.random.Generator) -> Picture:
    """Cuts a region with the proportions of a usual print out of a photograph, and mirrors half of them."""
    h, w = photo.shape[:2]
    ratio = float(rng.choice(PRINT_RATIOS))
    if rng.random() < 0.5:
        ratio = 1 / ratio
    zoom = rng.uniform(0.75, 1.0)
    width = zoom * min(w, h * ratio)
    rw, rh = max(round(width), 16), max(round(width / ratio), 16)
    rw, rh = min(rw, w), min(rh, h)
    x, y = int(rng.integers(w - rw + 1)), int(rng.integers(h - rh + 1))
    region = photo[y : y + rh, x : x + rw]
    return region[:, ::-1] if rng.random() < 0.5 else region


def _developed(region: Picture, rng: np.random.Generator) -> Canvas:
    """Gives a region the tones of a print: paper is neither as black as no light nor as white as the lid."""
    black, white = rng.uniform(28, 50), rng.uniform(205, 232)
    tint = rng.uniform(0.96, 1.0, 3)
    return ((black + region * ((white - black) / 255)) * tint).astype(np.float32)


def _placement(
    size_wh: tuple[int, int], border: float, skew_deg: float, bed_wh: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws where the print lies: a (2, 3) matrix from the picture's pixel corners to the bed's, the whole paper on the bed."""
    w, h = size_wh
    turn = np.deg2rad(skew_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])  # y points down: positive is clockwise
    paper_wh = np.array([w, h]) + 2 * border
    reach_wh = np.abs(rotation) @ paper_wh  # the turned paper's own bounding box
    scale = rng.uniform(*PRINT_SHARES) * float(np.min(np.array(bed_wh) / reach_wh))
    free_wh = np.array(bed_wh) - scale * reach_wh
    center = rng.uniform(size=2) * free_wh + scale * reach_wh / 2
    linear = scale * rotation
    return np.column_stack([linear, center - linear @ (np.array([w, h]) / 2)])


def _surround_level(picture: Canvas, border: float, rng: np.random.Generator) -> float:
    """Draws the lid's level; a picture without a border lies on a lid that its rim stands out from, as far as one does."""
    levels = [float(rng.uniform(*span)) for span in LIDS.values()]
    rng.shuffle(levels)
    if border:
        return levels[0]
    sides = [s.mean() for s in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:])]
    contrasts = [min(abs(side - level) for side in sides) for level in levels]
    return next((lv for lv, c in zip(levels, contrasts, strict=True) if c >= MIN_CONTRAST), levels[int(np.argmax(contrasts))])


def _lid(level: float, bed_wh: tuple[int, int], rng: np.random.Generator) -> Canvas:
    """The empty bed, (H, W, 3): the lid's level, a slight tint, and the lamp's slight fall-off in a random direction."""
    w, h = bed_wh
    slope_x, slope_y = rng.uniform(-0.04, 0.04, 2)
    y, x = np.mgrid[-0.5 : 0.5 : h * 1j, -0.5 : 0.5 : w * 1j]
    light = 1 + slope_x * x + slope_y * y
    tint = rng.uniform(0.97, 1.0, 3)
    return np.asarray(level * light[..., None] * tint, np.float32)


def _covered(size_wh: tuple[int, int], border: float, to_bed: NDArray[np.float64], bed_wh: tuple[int, int]) -> NDArray[np.float32]:
    """How much of each bed pixel (H, W) the paper covers, 0 to 1: its outline, drawn 16 times finer than a pixel."""
    corners = _corners(size_wh, border, to_bed)
    mask = np.zeros((bed_wh[1], bed_wh[0]), np.uint8)
    fixed = np.round((corners - 0.5) * 16).astype(np.int32)  # cv2 counts from pixel centres
    cv2.fillConvexPoly(mask, fixed, 255, lineType=cv2.LINE_AA, shift=4)
    return np.asarray(mask, np.float32) / np.float32(255)


def _corners(size_wh: tuple[int, int], border: float, to_bed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The four corners (4, 2) on the bed of the picture grown by ``border`` of its own pixels: clockwise from the top left."""
    w, h = size_wh
    rect = np.array([[-border, -border], [w + border, -border], [w + border, h + border], [-border, h + border]])
    return rect @ to_bed[:, :2].T + to_bed[:, 2]


def _shadow(covered: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """What share of the light (H, W) the lid still gets beside the paper's edge, which stands off the glass a little."""
    long_px = max(covered.shape)
    shift = np.eye(2, 3)
    shift[:, 2] = rng.uniform(-0.012, 0.012, 2) * long_px
    sigma = float(rng.uniform(0.004, 0.015)) * long_px
    moved = cv2.warpAffine(covered, shift, (covered.shape[1], covered.shape[0]))
    return np.asarray(1 - rng.uniform(0.1, 0.45) * cv2.GaussianBlur(moved, (0, 0), sigma), np.float32)


def _paste(scan: Canvas, sheet: Canvas, border: float, to_bed: NDArray[np.float64]) -> Canvas:
    """Lays a sheet, stretched over the picture grown by ``border``, on the scan."""
    h, w = sheet.shape[:2]
    bed_wh = (scan.shape[1], scan.shape[0])
    scale = float(np.hypot(to_bed[0, 0], to_bed[1, 0]))
    if scale < 1:  # reduce by areas first: sampling between four pixels alone would alias
        small_wh = (max(round(w * scale), 1), max(round(h * scale), 1))
        sheet = np.asarray(cv2.resize(sheet, small_wh, interpolation=cv2.INTER_AREA), np.float32)
    grow = np.array([(w + 2 * border) / sheet.shape[1], (h + 2 * border) / sheet.shape[0]])  # sheet pixels to picture pixels
    linear = to_bed[:, :2] * grow
    offset = to_bed[:, :2] @ np.array([-border, -border]) + to_bed[:, 2]
    offset = offset + linear @ np.array([0.5, 0.5]) - 0.5  # cv2 counts from pixel centres, our corners from pixel corners
    laid = cv2.warpAffine(sheet, np.column_stack([linear, offset]), bed_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = _covered((w, h), border, to_bed, bed_wh)[..., None]
    return np.asarray(scan * (1 - alpha) + laid * alpha, np.float32)


def _drop_specks(scan: Canvas, rng: np.random.Generator) -> None:
    """Drops a few grains of dust and a hair or two on the glass, in place."""
    h, w = scan.shape[:2]
    for _ in range(int(rng.poisson(5))):
        center = (int(rng.integers(w)), int(rng.integers(h)))
        axes = (int(rng.integers(1, 3)), int(rng.integers(1, 3)) * (5 if rng.random() < 0.15 else 1))
        level = float(rng.choice([rng.uniform(20, 70), rng.uniform(200, 255)]))
        cv2.ellipse(scan, center, axes, float(rng.uniform(0, 180)), 0, 360, (level, level, level), cv2.FILLED, cv2.LINE_AA)


def _cut(size_wh: tuple[int, int], to_bed: NDArray[np.float64], bed_wh: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box a person cuts: upright, inside the perhaps turned picture so that no lid shows, less the habit's shares."""
    top_left, top_right, bottom_right, bottom_left = _corners(size_wh, 0.0, to_bed)
    x1, y1 = max(top_left[0], bottom_left[0]), max(top_left[1], top_right[1])
    x2, y2 = min(top_right[0], bottom_right[0]), min(bottom_left[1], bottom_right[1])
    w, h = x2 - x1, y2 - y1
    left, top, right, bottom = (np.array(HABIT) + rng.normal(0, HABIT_SPREAD, 4)).clip(0)
    return Box(x1 + left * w, y1 + top * h, x2 - right * w, y2 - bottom * h).rounded(bed_wh)


def _read(path: Path) -> Picture:
    """Decodes one photograph as (H, W, 3) RGB."""
    try:
        return _decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a picture that can be read ({error}). The demo needs JPEG or PNG photographs.") from error


def _decode(data: bytes) -> Picture:
    """Decodes the bytes of a picture file as (H, W, 3) RGB."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise ValueError("no picture inside")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _encode(rgb: Picture) -> bytes:
    """A JPEG's bytes of an (H, W, 3) RGB picture."""
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    return data.tobytes()
