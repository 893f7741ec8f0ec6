"""What matching in a child process costs beside matching in this one, on good pairs.

    python benchmarks/isolation.py [--photos DIR ...] [--megapixels 1 12] [--pairs 24] [--rounds 7]

Pairs are made of the photographs, or drawn: the crop is half of each side, saved again.  Both ways take turns, so that whatever else the
machine does hits both.  Printed: medians over the rounds, in ms a pair, of wall time and of CPU time (this process, and the child's
threads), and the ratio child / here.  Starting the child is not in it: that happens once a worker, and is printed alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from made_pairs import Pixels, drawn, encode

from cropreg import child, isolation, labels, pairs
from cropreg.matching.settings import MatcherSettings

HOW = labels.Labelling(512, 90, 400_000_000, MatcherSettings())
LIMITS = child.Limits(120, 4 * 2**30)


def pictures(folders: list[Path], pixels: float, count: int) -> Iterator[Pixels]:
    """Pictures of that many pixels."""
    rng = np.random.default_rng(1)
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for i in range(count):
        width = round((pixels * 4 / 3) ** 0.5)
        picture = cv2.imread(str(paths[i % len(paths)])) if paths else None
        if picture is None:
            yield drawn(rng, width, width * 3 // 4)
        else:
            yield np.asarray(cv2.resize(picture, (width, width * 3 // 4), interpolation=cv2.INTER_AREA)[..., ::-1])


def make_pairs(folder: Path, folders: list[Path], pixels: float, count: int) -> list[pairs.Pair]:
    for side in ("originals", "crops"):
        (folder / side).mkdir(parents=True)
    for i, picture in enumerate(pictures(folders, pixels, count)):
        h, w = picture.shape[:2]
        (folder / "originals" / f"{i:04d}.jpg").write_bytes(encode(picture, quality=92))
        crop = np.ascontiguousarray(picture[h // 5 : h // 5 + h // 2, w // 4 : w // 4 + w // 2])
        (folder / "crops" / f"{i:04d}.jpg").write_bytes(encode(crop, quality=90))
    return pairs.discover(str(folder / "originals"), str(folder / "crops"))


def both_cpu_s() -> float:
    """CPU time of this process and of its child so far."""
    assert child._kept is not None
    tasks = Path(f"/proc/{child._kept.child_pid}/task")
    return time.process_time() + sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def timed(work: Callable[[], Any], cpu_s: Callable[[], float]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_s()
    work()
    return time.perf_counter() - wall, cpu_s() - cpu


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, nargs="*", default=[])
    arguments.add_argument("--megapixels", type=float, nargs="+", default=[1, 12])
    arguments.add_argument("--pairs", type=int, default=24)
    arguments.add_argument("--rounds", type=int, default=7)
    o = arguments.parse_args()
    cv2.setNumThreads(1)  # as the child, and as a worker
    os.environ["OMP_NUM_THREADS"] = "1"
    for megapixels in o.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            some = make_pairs(Path(folder), o.photos, megapixels * 1e6, o.pairs)
            began_s = time.perf_counter()
            child.stop()
            isolation.label_pairs(some[:1], HOW, LIMITS)
            start_s = time.perf_counter() - began_s
            verdicts = [row["verdict"] for row in isolation.label_pairs(some, HOW, LIMITS)[0]]
            assert len(verdicts) == o.pairs and "crashed" not in verdicts, verdicts
            labels.label_pairs(some, HOW)
            here, there = [], []
            for _ in range(o.rounds):
                here.append(timed(partial(labels.label_pairs, some, HOW), time.process_time))
                there.append(timed(partial(isolation.label_pairs, some, HOW, LIMITS), both_cpu_s))
            ms = [[statistics.median(column) / o.pairs * 1000 for column in zip(*runs, strict=True)] for runs in (here, there)]
            print(
                f"{megapixels:g} MP: here {ms[0][0]:.2f} ms a pair, CPU {ms[0][1]:.2f}; in the child {ms[1][0]:.2f}, CPU {ms[1][1]:.2f}; "
                f"ratio {ms[1][0] / ms[0][0]:.3f}, CPU {ms[1][1] / ms[0][1]:.3f}; child and first pair {start_s:.2f} s; "
                f"{verdicts.count('found')} of {o.pairs} found",
                flush=True,
            )


if __name__ == "__main__":
    main()
