"""How real matching gains by a second core, and what Ray costs beside plain multiprocessing.

    python benchmarks/cluster.py [--photos DIR ...] [--pairs 1000] [--megapixels 3] [--rounds 3]

Over the same pairs, ``cropreg match`` on a Ray of two cores takes turns with a multiprocessing.Pool of two that calls the same function on
the same parts; before them it runs on a Ray of one core, to which all its processes are bound.  All of them match in child processes and
write the same files; only Ray's way commits, too.  Not in the figures: starting Ray, starting the pool, and the first pairs, on which all
start the processes that decode.  Medians over the rounds; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import ray
from isolation import HOW, LIMITS, make_pairs

from cropreg import isolation
from cropreg.pairs import Pair
from cropreg.pipelines import cluster, match
from cropreg.schema import BoxDataset
from cropreg.settings import MatchSettings
from cropreg.splits import parse_shares

DIFFERENT = 48  # pairs that are made; more are links to them
FEW = 160  # pairs that are matched beforehand


def linked_pairs(folder: Path, photos: list[Path], pixels: float, count: int) -> None:
    """Folders of as many pairs as asked for, of which DIFFERENT are made."""
    made = make_pairs(folder / "made", photos, pixels, min(count, DIFFERENT))
    for place, number in ((folder, count), (folder / "few", min(count, FEW))):
        for side in ("originals", "crops"):
            (place / side).mkdir(parents=True)
            for i in range(number):
                os.link(folder / "made" / side / f"{i % len(made):04d}.jpg", place / side / f"{i:05d}.jpg")


def by_ray(folder: Path, out: Path) -> float:
    """Seconds of ``cropreg match``."""
    began_s = time.perf_counter()
    match.run(f"{folder}/originals", f"{folder}/crops", out=str(out), settings=MatchSettings(max_bad_share=1))
    return time.perf_counter() - began_s


@contextlib.contextmanager
def started(cores: set[int]) -> Iterator[None]:
    """Ray on these cores alone."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what is started from here inherits it
    ray.init(address="local", num_cpus=len(cores), include_dashboard=False, log_to_driver=False)
    cluster.connect()
    yield
    ray.shutdown()
    os.sched_setaffinity(0, all_cores)


def by_pool(pool: Any, pairs: Sequence[Pair], out: Path) -> float:
    """Seconds of the same parts on a pool of processes."""
    build = partial(
        match._build_part, out=str(out), how=HOW, limits=LIMITS, shares=parse_shares("70/10/10/10"), label=isolation.label_pairs
    )
    began_s = time.perf_counter()
    rows = [
        {"name": f"{i:04d}", "pairs": json.dumps([asdict(p) for p in part])} for i, part in enumerate(match.cut_parts(pairs, 0))
    ]
    done = list(pool.imap_unordered(build, rows))
    took_s = time.perf_counter() - began_s
    assert sum(sum(json.loads(row["counts"]).values()) for row in done) == len(pairs)
    return took_s


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, nargs="*", default=[])
    arguments.add_argument("--pairs", type=int, default=1000)
    arguments.add_argument("--megapixels", type=float, default=3)
    arguments.add_argument("--rounds", type=int, default=3)
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) >= 2, "this takes two cores"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked_pairs(folder, o.photos, o.megapixels * 1e6, o.pairs)
        pairs = match.pairing.discover(f"{folder}/originals", f"{folder}/crops")
        took: dict[str, list[float]] = {}
        with started({cores[0]}):
            by_ray(folder / "few", folder / "warm-one")
            took["one"] = [by_ray(folder, folder / f"one-{number}") for number in range(o.rounds)]
        with started(set(cores[:2])), multiprocessing.get_context("spawn").Pool(2, cv2.setNumThreads, (1,)) as pool:
            took |= {"two": [], "pool": []}
            by_pool(pool, pairs[:FEW], folder / "warm-pool")
            by_ray(folder / "few", folder / "warm-two")
            for number in range(o.rounds):
                took["pool"].append(by_pool(pool, pairs, folder / f"pool-{number}"))
                took["two"].append(by_ray(folder, folder / f"two-{number}"))
        counts = BoxDataset.open(str(folder / "two-0")).manifest["counts"]
    s = {way: statistics.median(spans) for way, spans in took.items()}
    print(f"{o.pairs} pairs of {o.megapixels:g} MP, {counts['found']} found")
    print(f"Ray, 1 core {s['one']:.2f} s; 2 cores {s['two']:.2f} s; multiprocessing of 2 {s['pool']:.2f} s")
    print(
        f"2 cores / 1: {s['one'] / s['two']:.2f} times as fast (goal 1.9); Ray / multiprocessing: {s['pool'] / s['two']:.2f} (goal 0.9)"
    )


if __name__ == "__main__":
    main()
