"""The matcher's quality and CPU time against one full decode of both files (L), beside other ways, on pictures made here.

    python benchmarks/matching.py --photos DIR [--seed 1] [--per 6] [--peers] [--plot matching.png] [--out matching.json]

DIR holds large photographs (any depth); without it drawn pictures are used, which are easier.  Peers that are not installed are left out
(``pip install scikit-image Multi-Template-Matching``).  Times are CPU time of one thread; ratios within one run are what counts.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cropreg import images
from cropreg.boxes import iou
from cropreg.matching.find import Picture, find_in

Pixels = NDArray[np.uint8]
SIZES_MP = (24, 12, 8, 2)
KINDS = (
    *("plain", "png", "jpeg40", "exif", "progressive", "whole", "tiny", "edited", "black_white", "resized", "resized_edited"),
    *("tiny_resized", "turned", "flat", "wrong", "wrong_resized", "burst"),
)
REJECT = ("wrong", "wrong_resized", "burst")
WHOLE = ("plain", "png", "jpeg40", "exif", "progressive", "whole", "tiny", "edited", "black_white", "flat")


@dataclass
class Pair:
    """One made pair: two files, and the truth."""

    kind: str
    size_mp: int
    original: bytes
    crop: bytes
    box: tuple[float, float, float, float]
    scale: float = 1.0
    angle_deg: float = 0.0


@dataclass
class Tally:
    """What became of the pairs of one kind and size."""

    pairs: int = 0
    right: int = 0
    exact: int = 0
    wrong: int = 0
    ratios: list[float] = field(default_factory=list)
    spent_s: float = 0.0
    decode_s: float = 0.0


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


def make(kind: str, size_mp: int, paths: list[Path], seed: int, index: int) -> Pair:
    """One pair; the same for the same seed."""
    key = [seed, KINDS.index(kind), size_mp, index]
    rng = np.random.default_rng(key)
    picture = photograph(paths, rng, size_mp)
    options: dict[str, object] = {"quality": int(rng.choice([88, 92, 95])), "progressive": kind == "progressive"}
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture, options["exif"] = np.ascontiguousarray(np.rot90(picture, 1)), exif
    original = encode(picture, **options)
    pixels = upright(original)
    height, width = pixels.shape[:2]
    share = {"tiny": 0.15, "tiny_resized": 0.18, "whole": 1.0, "flat": 0.3}.get(kind, float(rng.uniform(0.5, 0.92)))
    w, h = int(width * share), int(height * share * rng.uniform(0.85, 1.0)) if share < 1 else height
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    if kind == "flat":
        x, y = flattest(pixels, w, h, rng)
    scale = angle = 0.0
    source = pixels
    if kind in ("wrong", "wrong_resized"):
        chosen = int(np.random.default_rng(key).integers(len(paths))) if paths else 0  # the one photograph() took
        other = photograph(paths[:chosen] + paths[chosen + 1 :], np.random.default_rng([*key, 1]), size_mp)
        source = np.asarray(cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA))
    elif kind == "burst":
        source = burst(pixels, rng)
    crop = source[y : y + h, x : x + w]
    if kind == "turned":
        angle = float(rng.uniform(1, 3)) * (1 if rng.random() < 0.5 else -1)
        w, h = int(width * 0.6), int(height * 0.6)
        x, y = (width - w) // 2 + int(rng.integers(-20, 20)), (height - h) // 2 + int(rng.integers(-20, 20))
        t = np.deg2rad(angle)
        turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        shift = np.array([x + (w - 1) / 2, y + (h - 1) / 2]) - turn @ [(w - 1) / 2, (h - 1) / 2]
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(pixels, np.hstack([turn, shift[:, None]]), (w, h), flags=flags)
    if kind in ("edited", "resized_edited"):
        crop = edited(crop, rng)
    if kind == "black_white":
        crop = np.repeat((crop @ rng.dirichlet([2, 2, 2]))[..., None], 3, 2).astype(np.uint8)
    if kind in ("resized", "resized_edited", "tiny_resized", "wrong_resized"):
        scale = float(np.exp(rng.uniform(np.log(0.35 if kind == "tiny_resized" else 0.2), np.log(0.9))))
        crop = resized(crop, scale, rng)
    crop = np.ascontiguousarray(crop)
    data = encode(crop, "PNG", compress_level=1) if kind == "png" else encode(crop, quality=40 if kind == "jpeg40" else 90)
    return Pair(kind, size_mp, original, data, (x, y, x + w, y + h), scale or 1.0, angle)


def ours(original: bytes, crop: bytes) -> tuple[float, float, float, float] | None:
    match = find_in(Picture(original, "original"), Picture(crop, "crop"))
    return tuple(match.box) if match.verdict == "found" and match.box is not None else None  # type: ignore[return-value]


def plain_way(original: bytes, crop: bytes) -> tuple[float, float, float, float] | None:
    """What everybody writes first: full-size NCC, accepted above 0.5."""
    a, b = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_GRAYSCALE) for d in (original, crop))
    if b.shape[0] > a.shape[0] or b.shape[1] > a.shape[1]:
        return None
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED))
    return (x, y, x + b.shape[1], y + b.shape[0]) if best > 0.5 else None


def sift_ransac(original: bytes, crop: bytes) -> tuple[float, float, float, float] | None:
    """SIFT at 1600 px, ratio test, RANSAC, accepted with 15 inliers."""
    points, codes, ratios, sizes = [], [], [], []
    for data in (original, crop):
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        ratio = min(1.0, 1600 / max(grey.shape))
        found, code = cv2.SIFT_create(4000).detectAndCompute(
            cv2.resize(grey, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA), None
        )
        points.append(np.array([p.pt for p in found], np.float64).reshape(-1, 2))
        codes.append(code)
        ratios.append(ratio)
        sizes.append(grey.shape[::-1])
    if codes[0] is None or codes[1] is None or len(codes[0]) < 2 or len(codes[1]) < 2:
        return None
    good = [m for m, n in cv2.BFMatcher().knnMatch(codes[1], codes[0], k=2) if m.distance < 0.75 * n.distance]
    if len(good) < 4:
        return None
    a, b = points[1][[m.queryIdx for m in good]] / ratios[1], points[0][[m.trainIdx for m in good]] / ratios[0]
    matrix, inliers = cv2.estimateAffinePartial2D(a, b, ransacReprojThreshold=4)
    if matrix is None or inliers.sum() < 15:
        return None
    (x1, y1), (x2, y2) = matrix[:, :2] @ [0, 0] + matrix[:, 2], matrix[:, :2] @ sizes[1] + matrix[:, 2]
    return (x1, y1, x2, y2)


def peers() -> Iterator[tuple[str, Callable[[bytes, bytes], tuple[float, float, float, float] | None]]]:
    yield "plain way", plain_way
    yield "SIFT + RANSAC", sift_ransac
    try:
        from skimage.feature import match_template

        def by_skimage(original: bytes, crop: bytes) -> tuple[float, float, float, float] | None:
            a, b = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_GRAYSCALE) for d in (original, crop))
            if b.shape[0] > a.shape[0] or b.shape[1] > a.shape[1]:
                return None
            scores = match_template(a, b)
            y, x = np.unravel_index(scores.argmax(), scores.shape)
            return (float(x), float(y), float(x + b.shape[1]), float(y + b.shape[0])) if scores.max() > 0.5 else None

        yield "scikit-image", by_skimage
    except ImportError:
        print("scikit-image is not installed: left out")
    try:
        import MTM

        def by_mtm(original: bytes, crop: bytes) -> tuple[float, float, float, float] | None:
            a, b = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_GRAYSCALE) for d in (original, crop))
            if b.shape[0] > a.shape[0] or b.shape[1] > a.shape[1]:
                return None
            hits = MTM.matchTemplates([("crop", b)], a, N_object=1, score_threshold=0.5)
            if not len(hits):
                return None
            hit = hits[0] if isinstance(hits, list) else next(iter(hits.itertuples(index=False)))
            x, y, w, h = hit[1]
            return (x, y, x + w, y + h)

        yield "multi-template-matching", by_mtm
    except ImportError:
        print("multi-template-matching is not installed: left out")


def judge(tally: Tally, pair: Pair, box: tuple[float, float, float, float] | None, spent_s: float, decode_s: float) -> None:
    tally.pairs += 1
    tally.ratios.append(spent_s / decode_s)
    tally.spent_s += spent_s
    tally.decode_s += decode_s
    if pair.kind in REJECT:
        tally.right += box is None
        tally.wrong += box is not None
    elif box is not None:
        off = max(abs(a - b) for a, b in zip(box, pair.box, strict=True))
        near = float(iou(list(box), list(pair.box))) >= 0.99 if pair.kind == "turned" else off <= max(1.0, 1 / pair.scale)
        tally.right += near
        tally.exact += off == 0
        tally.wrong += float(iou(list(box), list(pair.box))) < 0.9


def measure(ways: list[tuple[str, Callable[[bytes, bytes], object]]], pairs: Iterator[Pair]) -> dict[tuple[str, str, int], Tally]:
    tallies: dict[tuple[str, str, int], Tally] = collections.defaultdict(Tally)
    for pair in pairs:
        began = time.process_time()
        for data in (pair.original, pair.crop):
            images.decode_grey(data, "L")
        decode_s = time.process_time() - began
        for name, way in ways:
            began = time.process_time()
            box = way(pair.original, pair.crop)
            judge(tallies[name, pair.kind, pair.size_mp], pair, box, time.process_time() - began, decode_s)  # type: ignore[arg-type]
    return tallies


def show(tallies: dict[tuple[str, str, int], Tally]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(f"{'way':24s} {'kind':15s} {'MP':>3s} {'pairs':>5s} {'right':>5s} {'exact':>5s} {'wrong':>5s} {'t/L median':>10s}")
    for (name, kind, size_mp), t in tallies.items():
        ratio = float(np.median(t.ratios))
        exact = str(t.exact) if kind in WHOLE else "-"
        print(f"{name:24s} {kind:15s} {size_mp:3d} {t.pairs:5d} {t.right:5d} {exact:>5s} {t.wrong:5d} {ratio:10.2f}")
        row = {"way": name, "kind": kind, "mp": size_mp, "pairs": t.pairs, "right": t.right, "exact": t.exact, "wrong": t.wrong}
        rows.append(row | {"t_over_l": round(ratio, 3)})
    for name in dict.fromkeys(k[0] for k in tallies):
        own = [t for k, t in tallies.items() if k[0] == name]
        total = sum(t.spent_s for t in own) / sum(t.decode_s for t in own)
        right, wrong, count = (sum(getattr(t, f) for t in own) for f in ("right", "wrong", "pairs"))
        print(f"{name}: {right} of {count} right, {wrong} wrong accepted, sum t / sum L = {total:.2f}")
        rows.append({"way": name, "kind": "all", "pairs": count, "right": right, "wrong": wrong, "t_over_l": round(total, 3)})
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Bars of t / L for our way by kind and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    own = [r for r in rows if r["way"] == "cropreg" and r["kind"] != "all"]
    kinds, sizes = list(dict.fromkeys(str(r["kind"]) for r in own)), sorted({int(str(r["mp"])) for r in own})
    figure, axes = plt.subplots(figsize=(12, 4.5))
    for i, size_mp in enumerate(sizes):
        heights = [next((float(str(r["t_over_l"])) for r in own if r["kind"] == k and r["mp"] == size_mp), 0.0) for k in kinds]
        axes.bar(np.arange(len(kinds)) + i * 0.8 / len(sizes), heights, 0.8 / len(sizes), label=f"{size_mp} MP")
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set_xticks(np.arange(len(kinds)) + 0.4, kinds, rotation=40, ha="right")
    axes.set_ylabel("CPU time / one full decode of both files")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, help="a folder of large photographs")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--per", type=int, default=1, help="pairs of each kind and size")
    arguments.add_argument("--kinds", default=",".join(KINDS))
    arguments.add_argument("--sizes", default=",".join(map(str, SIZES_MP)), help="megapixels")
    arguments.add_argument("--peers", action="store_true", help="other ways, too, at 8 MP and below")
    arguments.add_argument("--plot", type=Path, help="a PNG of the ratios")
    arguments.add_argument("--out", type=Path, help="the table as JSON")
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    found = o.photos.rglob("*") if o.photos else []
    paths = one_of_each([p for p in found if p.suffix.lower() in (".jpg", ".jpeg") and p.stat().st_size > 300_000])
    kinds, sizes = o.kinds.split(","), [int(v) for v in o.sizes.split(",")]
    pairs = (make(kind, size_mp, paths, o.seed, i) for size_mp in sizes for kind in kinds for i in range(o.per))
    rows = show(measure([("cropreg", ours)], pairs))
    if o.peers:
        some = (
            make(k, m, paths, o.seed, i)
            for m in sizes
            if m <= 8
            for k in ("plain", "resized", "wrong")
            for i in range(min(o.per, 3))
        )
        rows += show(measure([("cropreg", ours), *peers()], some))
    if o.plot:
        plot(rows, o.plot)
    if o.out:
        o.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
