"""Crops of a scan, and of another scan of the same print, held against the scan: what becomes of them, by how the crop was saved.

    python benchmarks/rescans.py --photos DIR [--prints 24] [--side 700] [--seed 7]

DIR holds photographs (any depth).  Each is a print that was put on the glass twice, turned by an angle and with noise of its own.  A
crop of either scan is straightened and saved; of the other scan none should be found.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from made_pairs import Pixels, encode
from numpy.typing import NDArray

from cropreg.matching.find import find

Part = NDArray[np.float32]
Save = Callable[[Part, np.random.Generator], bytes]


def pixels_of(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def whole(part: Part) -> Pixels:
    return np.asarray(np.clip(np.round(part), 0, 255), np.uint8)


def jpeg(part: Part, quality: int, **more: int) -> bytes:
    return encode(whole(part), quality=quality, **{"subsampling": 0, **more})


def again(data: bytes) -> Part:
    return pixels_of(data).astype(np.float32)


def without_colour(part: Part, rng: np.random.Generator) -> Part:
    return np.repeat((part @ rng.dirichlet([2, 2, 2]))[..., None], 3, 2).astype(np.float32)


WAYS: dict[str, Save] = {
    "JPEG 90": lambda part, rng: jpeg(part, 90),
    "JPEG 75": lambda part, rng: jpeg(part, 75),
    "JPEG 60": lambda part, rng: jpeg(part, 60),
    "JPEG 40": lambda part, rng: jpeg(part, 40),
    "sharpened, JPEG 75": lambda part, rng: jpeg(part * 1.6 - cv2.GaussianBlur(part, (0, 0), 1.2) * 0.6, 75),
    "enlarged 1.3 times, JPEG 75": lambda part, rng: jpeg(
        cv2.resize(part, None, fx=1.3, fy=1.3, interpolation=cv2.INTER_CUBIC), 75
    ),
    "PNG": lambda part, rng: encode(whole(part), "PNG"),
    "JPEG 90, then PNG": lambda part, rng: encode(whole(again(jpeg(part, 90))), "PNG"),
    "JPEG 75, then PNG": lambda part, rng: encode(whole(again(jpeg(part, 75))), "PNG"),
    "JPEG 90 4:2:0, then PNG": lambda part, rng: encode(whole(again(jpeg(part, 90, subsampling=2))), "PNG"),
    "JPEG 85, then 95": lambda part, rng: jpeg(again(jpeg(part, 85)), 95),
    "JPEG 80, then 90": lambda part, rng: jpeg(again(jpeg(part, 80)), 90),
    "JPEG 90, then 90": lambda part, rng: jpeg(again(jpeg(part, 90)), 90),
    "black and white, JPEG 90": lambda part, rng: jpeg(without_colour(part, rng), 90),
    "black and white, PNG": lambda part, rng: encode(whole(without_colour(part, rng)), "PNG"),
}


def scanned(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """The print as it lay on the glass."""
    h, w = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(0.2, 1.5) * rng.choice([-1, 1]), 1.0)
    matrix[:, 2] += rng.uniform(-5, 5, 2)
    seen = cv2.warpAffine(picture.astype(np.float32), matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    seen = cv2.GaussianBlur(seen, (0, 0), 0.6) + rng.normal(0, rng.uniform(1, 4), seen.shape)
    return pixels_of(jpeg(seen, 92))


def straightened(scan: Pixels, rng: np.random.Generator) -> Part:
    """Its middle, turned by some angle with some kernel."""
    h, w = scan.shape[:2]
    size = int(w * 0.6), int(h * 0.6)
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(0.4, 3) * rng.choice([-1, 1]), 1.0)
    matrix[:, 2] -= (w - size[0]) / 2, (h - size[1]) / 2
    kernel = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4]))
    return np.asarray(cv2.warpAffine(scan.astype(np.float32), matrix, size, flags=kernel), np.float32)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    arguments.add_argument("--prints", type=int, default=24)
    arguments.add_argument("--side", type=int, default=700, help="px; long side of a print")
    arguments.add_argument("--seed", type=int, default=7)
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(p for p in o.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    chosen = np.random.default_rng(o.seed).permutation(len(paths))[: o.prints]
    verdicts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number, index in enumerate(chosen):
        picture = pixels_of(paths[index].read_bytes())
        ratio = o.side / max(picture.shape[:2])
        kernel = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(picture, None, fx=ratio, fy=ratio, interpolation=kernel), np.uint8)
        rng = np.random.default_rng([o.seed, number])
        scans = scanned(picture, rng), scanned(picture, rng)
        original = encode(scans[0], "PNG")
        for whose, scan in zip(("same", "other"), scans, strict=True):
            part = straightened(scan, rng)
            for way, save in WAYS.items():
                verdicts[way, whose][find(original, save(part, np.random.default_rng([o.seed, number, 1]))).verdict] += 1
    print(f"{len(chosen)} prints: found / doubtful / no_match\n{'saved as':26s} {'same scan':>15s} {'other scan':>15s}")
    for way in WAYS:
        same, other = (" / ".join(str(verdicts[way, w][v]) for v in ("found", "doubtful", "no_match")) for w in ("same", "other"))
        print(f"{way:26s} {same:>15s} {other:>15s}")


if __name__ == "__main__":
    main()
