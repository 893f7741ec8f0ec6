"""The matcher's quality and CPU time against one full grey decode of both files (L), beside other ways, on pictures made here.

    python benchmarks/matching.py --photos DIR [--seed 1] [--per 6] [--peers] [--plot matching.png] [--out matching.json]

DIR holds large photographs (any depth); without it drawn pictures are used, which are easier.  Peers that are not installed are left out
(``pip install scikit-image Multi-Template-Matching``).  Times are CPU time of one thread, the median of ``--rounds``; ratios within
one run are what counts.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from made_pairs import KEPT, KINDS, REJECT, Pair, make, one_of_each

from cropreg import images
from cropreg.boxes import iou
from cropreg.matching.find import Picture, find_in

SIZES_MP = (24, 12, 8, 2)


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
    elif box is not None and pair.box is not None:
        off = max(abs(a - b) for a, b in zip(box, pair.box, strict=True))
        near = float(iou(list(box), list(pair.box))) >= 0.99 if pair.kind.startswith("turned") else off <= max(1.0, 1 / pair.scale)
        tally.right += near
        tally.exact += off == 0
        tally.wrong += float(iou(list(box), list(pair.box))) < 0.9


def measure(
    ways: list[tuple[str, Callable[[bytes, bytes], object]]], pairs: Iterator[Pair], rounds: int
) -> dict[tuple[str, str, int], Tally]:
    tallies: dict[tuple[str, str, int], Tally] = collections.defaultdict(Tally)
    for pair in pairs:
        decode_s, _ = median_s(decode_both, pair, rounds)
        for name, way in ways:
            spent_s, box = median_s(way, pair, rounds)
            judge(tallies[name, pair.kind, pair.size_mp], pair, box, spent_s, decode_s)  # type: ignore[arg-type]
    return tallies


def decode_both(original: bytes, crop: bytes) -> None:
    """L: JPEGs as OpenCV decodes them, which the goals are given in; our own way is quicker."""
    for data in (original, crop):
        if data[:2] == b"\xff\xd8":
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        else:
            images.decode_grey(data, "L")


def median_s(way: Callable[[bytes, bytes], object], pair: Pair, rounds: int) -> tuple[float, object]:
    """CPU seconds, the median of ``rounds``, and what came of it: in the first round caches still hold what made the pair."""
    spans = []
    for _ in range(rounds):
        began = time.process_time()
        found = way(pair.original, pair.crop)
        spans.append(time.process_time() - began)
    return statistics.median(spans), found


def show(tallies: dict[tuple[str, str, int], Tally]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(f"{'way':24s} {'kind':15s} {'MP':>3s} {'pairs':>5s} {'right':>5s} {'exact':>5s} {'wrong':>5s} {'t/L median':>10s}")
    for (name, kind, size_mp), t in tallies.items():
        ratio = float(np.median(t.ratios))
        exact = str(t.exact) if kind in KEPT else "-"
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


def extra_memory_mb(pair: Pair, what: str) -> float:
    """How much more memory it takes at its peak to ``match`` a pair, or only to ``decode`` both files to grey, in MB.

    In a process of its own; the two files are in memory already.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, name) for name in ("original", "crop")]
        for name, data in zip(names, (pair.original, pair.crop), strict=True):
            name.write_bytes(data)
        done = subprocess.run([sys.executable, "-c", MEMORY, what, *map(str, names)], capture_output=True, text=True, check=True)
    return float(done.stdout)


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from cropreg.images import decode_grey
from cropreg.matching.find import find

def status_mb(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024

original, crop = (Path(name).read_bytes() for name in sys.argv[2:])
noise = np.random.default_rng(0).integers(0, 255, (400, 600), np.uint8)
find(noise, np.ascontiguousarray(noise[50:300, 70:400]))  # what is loaded once
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status_mb("VmRSS")
done = find(original, crop) if sys.argv[1] == "match" else [decode_grey(data, "picture") for data in (original, crop)]
print(status_mb("VmHWM") - before)
"""


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
    arguments.add_argument("--rounds", type=int, default=3, help="times each pair is matched; the others' ways once")
    arguments.add_argument("--kinds", default=",".join(KINDS))
    arguments.add_argument("--sizes", default=",".join(map(str, SIZES_MP)), help="megapixels")
    arguments.add_argument("--peers", action="store_true", help="other ways, too, at 8 MP and below")
    arguments.add_argument("--memory", action="store_true", help="the peak of extra memory at 24 MP, on Linux, instead of all else")
    arguments.add_argument("--plot", type=Path, help="a PNG of the ratios")
    arguments.add_argument("--out", type=Path, help="the table as JSON")
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    found = o.photos.rglob("*") if o.photos else []
    paths = one_of_each([p for p in found if p.suffix.lower() in (".jpg", ".jpeg") and p.stat().st_size > 300_000])
    if o.memory:
        for kind in (
            "plain",
            "edited",
            "resized",
            "turned",
            "enlarged",
            "flat",
            "stamped",
            "framed",
            "alpha",
            "progressive",
            "wrong",
        ):
            pair = make(kind, 24, paths, o.seed, 0)
            match_mb, decode_mb = (extra_memory_mb(pair, what) for what in ("match", "decode"))
            print(f"{kind:12s} 24 MP: {match_mb:.0f} MB more at the peak; decoding both files takes {decode_mb:.0f}")
        return
    kinds, sizes = o.kinds.split(","), [int(v) for v in o.sizes.split(",")]
    pairs = (make(kind, size_mp, paths, o.seed, i) for size_mp in sizes for kind in kinds for i in range(o.per))
    rows = show(measure([("cropreg", ours)], pairs, o.rounds))
    if o.peers:
        some = (
            make(k, m, paths, o.seed, i)
            for m in sizes
            if m <= 8
            for k in ("plain", "resized", "wrong")
            for i in range(min(o.per, 3))
        )
        rows += show(measure([("cropreg", ours), *peers()], some, 1))
    if o.plot:
        plot(rows, o.plot)
    if o.out:
        o.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
