"""Which near-duplicate originals the hash brings together, which different ones it confuses, and what linking a million costs.

    python benchmarks/groups.py [--photos DIR ...] [--different DIR ...] [--most 200] [--hashes 1000000] [--seed 1]

--photos holds photographs (any depth, one size of each is taken); without it drawn pictures are used.  Near-duplicates are made of each;
so are scans of prints, wherever on the bed (cropreg/demo/scans.py) and all in the same place on the same bed, which is harder.
--different holds pictures no two of which are near-duplicates, for example scans of as many photographs.

Printed: the share of near-duplicates within n bits; of all pairs of different pictures within n bits; and the largest group that linking
within n bits gives, alone ("chained") and, for the distance in use, as cropreg groups them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from made_pairs import Pixels, burst, drawn, edited, encode, one_of_each, text_page

from cropreg import groups
from cropreg.demo.scans import make_scan
from cropreg.errors import UnreadableImage
from cropreg.matching.likeness import perceptual_hash
from cropreg.matching.picture import Picture

DISTANCES = (2, 4, 6, 8, 10, 12)
LONG_PX = (2600, 1600, 1600)  # by turns: the first is decoded at 1/8, the others whole
PRINTS_LONG_PX = 640


def hash_of(data: bytes, name: str = "made here") -> int | None:
    """As matching hashes an original."""
    return perceptual_hash(np.asarray(Picture(data, name, with_proxy=True).search_plane.pixels, np.uint8))


def photographs(folders: list[Path], most: int, rng: np.random.Generator) -> Iterator[Pixels]:
    paths = {
        p.resolve() for folder in folders for p in folder.rglob("*") if p.suffix in (".jpg", ".png") and p.stat().st_size > 10_000
    }
    paths = one_of_each([p for p in paths if "dark" not in p.parent.name])  # of a wallpaper's two moods one
    if not folders:
        yield from (drawn(rng, LONG_PX[i % 3], LONG_PX[i % 3] * 2 // 3) for i in range(most))
        return
    for i, at in enumerate(rng.permutation(len(paths))[:most]):
        picture = cv2.imread(str(paths[int(at)]))
        if picture is None or min(picture.shape[:2]) < 100:
            continue
        shrink = min(1.0, LONG_PX[i % 3] / max(picture.shape[:2]))
        yield np.asarray(
            cv2.cvtColor(cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        )


def framed_part(picture: Pixels, shift: float, rng: np.random.Generator, keep: float = 0.96) -> Pixels:
    """What a camera sees that has moved by ``shift`` of the picture in any direction."""
    h, w = picture.shape[:2]
    turn = rng.uniform(0, 2 * np.pi)
    x, y = (round(n * ((1 - keep) / 2 + shift * d)) for n, d in ((w, np.cos(turn)), (h, np.sin(turn))))
    return picture[y : y + round(h * keep), x : x + round(w * keep)]


def turned(picture: Pixels, angle_deg: float) -> Pixels:
    h, w = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), angle_deg, 1)
    return np.asarray(cv2.warpAffine(picture, turn, (w, h), borderMode=cv2.BORDER_REFLECT))[
        h // 30 : -(h // 30), w // 30 : -(w // 30)
    ]


def with_moved_objects(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Two parts of a twelfth of the sides have gone on by a fortieth."""
    picture = picture.copy()
    h, w = picture.shape[:2]
    for _ in range(2):
        x, y = int(rng.integers(w * 8 // 10)), int(rng.integers(h * 8 // 10))
        part = picture[y : y + h // 12, x : x + w // 12].copy()
        picture[y + h // 60 :, x + w // 40 :][: part.shape[0], : part.shape[1]] = part
    return picture


def near_duplicates(picture: Pixels, rng: np.random.Generator) -> Iterator[tuple[str, Pixels, bytes]]:
    """Yields (kind, picture, its near-duplicate as a file)."""
    for quality in (40, 60, 80, 95):
        yield f"saved again at {quality}", picture, encode(picture, quality=quality)
    for scale in (0.25, 0.5, 0.75, 1.5):
        kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        yield f"resized by {scale}", picture, encode(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=kernel))
    for name, gamma in (("lighter", 0.8), ("darker", 1.25)):
        table = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
        yield name, picture, encode(np.asarray(cv2.LUT(picture, table)))
    yield "edited strongly", picture, encode(edited(picture, rng))
    here = framed_part(picture, 0, rng)
    for shift in (0.0025, 0.005, 0.01):
        yield f"shifted by {shift:.2%}", here, encode(framed_part(picture, shift, rng))
    yield "burst: moved objects", here, encode(with_moved_objects(framed_part(picture, 0.004, rng), rng))
    yield "burst: uneven motion", here, encode(burst(here, rng))
    for angle_deg in (0.3, 0.5, 1.0):
        yield f"turned by {angle_deg} deg", turned(picture, 0), encode(turned(picture, angle_deg * float(rng.choice([-1, 1]))))


def regions(picture: Pixels) -> Iterator[Pixels]:
    h, w = picture.shape[:2]
    for x, y in ((0, 0), (0.4, 0), (0, 0.4), (0.4, 0.4), (0.2, 0.2)):
        yield picture[int(y * h) : int((y + 0.6) * h), int(x * w) : int((x + 0.6) * w)]


def in_the_same_place(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A print that lies where all others lie, on a quarter of a white bed; a hand is exact to three pixels."""
    bed = 240 + rng.normal(0, 1.5, (880, 640, 3))
    x, y = (int(n) for n in rng.integers(27, 34, 2))
    bed[y : y + 300, x : x + 400] = cv2.resize(picture, (400, 300), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(bed, 0, 255), np.uint8)


def sky(rng: np.random.Generator) -> Pixels:
    down = np.linspace(rng.uniform(90, 200), rng.uniform(150, 250), 600)[:, None] + rng.uniform(-15, 15) * np.linspace(-1, 1, 900)
    return np.asarray(np.clip(down[..., None] + rng.normal(0, 2, (600, 900, 3)), 0, 255), np.uint8)


def blank_page(rng: np.random.Generator) -> Pixels:
    shade = (
        rng.uniform(225, 250) + rng.uniform(-4, 4) * np.linspace(-1, 1, 620) + rng.uniform(-4, 4) * np.linspace(-1, 1, 877)[:, None]
    )
    return np.asarray(np.clip(shade[..., None] + rng.normal(0, 1.5, (877, 620, 3)), 0, 255), np.uint8)


def show(name: str, cells: list[str]) -> None:
    print(f"{name:34}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def recall(photos: list[Pixels], rng: np.random.Generator) -> None:
    apart: dict[str, list[int]] = {}
    unhashed = 0
    for picture in photos:
        known: dict[int, int | None] = {}
        for kind, one, other in near_duplicates(picture, rng):
            key = hash(one.tobytes())
            if key not in known:
                known[key] = hash_of(encode(one, "JPEG", quality=92))
            a, b = known[key], hash_of(other)
            unhashed += a is None or b is None
            apart.setdefault(kind, []).append(64 if a is None or b is None else (a ^ b).bit_count())
    show("near-duplicates within n bits", [str(d) for d in DISTANCES])
    for kind, bits in [*apart.items(), ("all", list(itertools.chain(*apart.values())))]:
        show(f"  {kind} ({len(bits)})", [f"{np.mean(np.array(bits) <= d):.3f}" for d in DISTANCES])
    print(f"  of these without a hash, counted as missed: {unhashed}")


def confusion(name: str, found: list[int | None]) -> None:
    hashes = np.array([h for h in found if h is not None], np.uint64)
    close: Counter[int] = Counter()
    for i in range(len(hashes)):
        close.update(np.bitwise_count(hashes[i] ^ hashes[i + 1 :]).tolist())
    num_pairs = max(1, len(hashes) * (len(hashes) - 1) // 2)
    distinct, where = np.unique(hashes, return_inverse=True)
    chained = [np.bincount(groups._components(distinct, d)[where]).max() if len(distinct) else 0 for d in DISTANCES]
    largest = np.bincount(groups.linked(hashes)).max() if len(hashes) else 0
    show(
        f"  {name} ({len(hashes)} of {len(found)} hashed)",
        [f"{sum(close[b] for b in range(d + 1)) / num_pairs:.0e}/{n}" for d, n in zip(DISTANCES, chained, strict=True)]
        + [str(largest)],
    )


def million(count: int, rng: np.random.Generator) -> None:
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    twins = hashes[: count // 10].copy()
    for _ in range(4):
        twins ^= np.uint64(1) << rng.integers(0, 64, len(twins), dtype=np.uint64)
    hashes[-len(twins) :] = twins
    began_s = time.process_time()
    labels = groups.linked(hashes)
    print(
        f"{count:,} hashes, a tenth of them with a twin 4 bits away: linked in {time.process_time() - began_s:.1f} s of CPU, "
        f"{np.mean(labels[: len(twins)] == labels[-len(twins) :]):.4f} of the twins together, largest group {np.bincount(labels).max()}"
    )


def alike(count: int, rng: np.random.Generator) -> None:
    hashes = np.full(count, 0x9E3779B97F4A7C15, np.uint64)
    for _ in range(6):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    began_s = time.process_time()
    labels = groups.linked(hashes)
    took_s = time.process_time() - began_s
    print(f"{count:,} hashes within 6 bits of one: linked in {took_s:.1f} s of CPU, largest group {np.bincount(labels).max()}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, nargs="+", default=[])
    arguments.add_argument("--different", type=Path, nargs="+", default=[])
    arguments.add_argument("--most", type=int, default=200, help="photographs taken")
    arguments.add_argument("--hashes", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=1)
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(o.seed)
    photos = list(photographs(o.photos, o.most, rng))
    recall(photos, rng)
    show("different: share of pairs/chained", [str(d) for d in DISTANCES] + ["grouped"])
    confusion("photographs", [hash_of(encode(p)) for p in photos])
    confusion("regions of one", [hash_of(encode(r)) for p in photos[:60] for r in regions(p)])
    small = [cv2.resize(p, None, fx=(s := PRINTS_LONG_PX / max(p.shape[:2])), fy=s, interpolation=cv2.INTER_AREA) for p in photos]
    confusion("scans", [hash_of(encode(make_scan(p, rng, 512)[0])) for p in small])
    confusion("in the same place", [hash_of(encode(in_the_same_place(p, rng))) for p in small])
    confusion("pages of text", [hash_of(encode(text_page(rng))) for _ in range(100)])
    confusion("skies", [hash_of(encode(sky(rng), quality=85)) for _ in range(100)])
    confusion("blank pages", [hash_of(encode(blank_page(rng), quality=85)) for _ in range(100)])
    for folder in o.different:
        found = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            try:
                found.append(hash_of(path.read_bytes(), path.name))
            except UnreadableImage:
                continue
        confusion(folder.name, found)
    million(o.hashes, rng)
    alike(o.hashes // 20, rng)


if __name__ == "__main__":
    main()
