"""What the box dataset costs beside the matching itself: driver memory and pairs a second, with a matcher that does nothing.

    python benchmarks/scale.py [--pairs 10000 1000000] [--workers 2]
    python benchmarks/scale.py --poison [--pairs 200000] [--workers 2]

Each number of pairs is a table of names that do not exist, built in a process of its own.  The rate is that of everything else: reading
the table, joining, planning, Ray, rows to Parquet, checksums, manifest.

``--poison`` puts the matcher that does nothing into the child process that decodes, gives it half a millisecond of work a pair, and builds
twice: as it is, and with twenty pairs that crash it, hang, spin or eat memory.  Fails unless every pair has its row, and just those twenty
are ``crashed``; prints the ratio of the times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cropreg import faults, isolation
from cropreg.labels import Labelled, Opened


def label_nothing(pairs: Sequence[Any], how: Any, limits: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows as the matcher would give them, of which none is true."""
    row = {"crop_id": "0" * 64, "original_w": 4000, "original_h": 3000, "crop_w": 2000, "crop_h": 1500, "orientation": 1, "x1": 10.0,
           "y1": 20.0, "x2": 2010.0, "y2": 1520.0, "angle_deg": 0.0, "scale": 1.0, "score": 0.999, "gap": 0.5, "error_px": 0.05,
           "probability": 0.99, "method": "ncc", "verdict": "found", "reason": None, "elapsed_ms": 1.0}  # fmt: skip
    rows = [
        {"pair_id": p.pair_id, "original_uri": p.original_uri, "crop_uri": p.crop_uri, "original_id": p.pair_id, "group": p.pair_id}
        | row
        | {"stamp": p.stamp, "original_phash": int(p.pair_id[:16], 16)}
        for p in pairs
    ]
    return rows, []


POISON = ("crash", "hang", "spin", "memory")
NUM_POISON = 20
WORK_S, MEMORY_MB = 0.0005, 256


def label_after_some_work(uri: str, members: Sequence[Any], how: Any) -> Iterator[Any]:
    """In the child: the rows of :func:`label_nothing`, and a fault where one is asked for."""
    until_s = time.process_time() + WORK_S
    yield Opened(members[0].pair_id)
    for pair in members:
        if "poison" in pair.crop_uri:  # asked for these alone, for it costs as much as the work
            faults.trip("pair", pair.crop_uri)
        while time.process_time() < until_s:
            pass
        yield Labelled(label_nothing([pair], how, None)[0][0])


def label_in_the_child(pairs: Sequence[Any], how: Any, limits: Any) -> tuple[list[Any], list[Any]]:
    return isolation.label_pairs(pairs, how, limits, label_after_some_work)


def anonymous_mb() -> float:
    """Memory of this process that is its own, MB: what lies in Ray's store is not."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def write_table(path: Path, num_pairs: int) -> None:
    names = [f"{i % 997:03d}/roll-{i // 36:06d}/IMG_{i:08d}" for i in range(num_pairs)]
    columns = {"original": [f"originals/{n}.jpg" for n in names], "crop": [f"crops/{n}_edited.jpg" for n in names]}
    pq.write_table(pa.table(columns), path)


def write_poisoned_table(path: Path, num_pairs: int) -> None:
    write_table(path, num_pairs)
    table = pq.read_table(path)
    crops = table["crop"].to_pylist()
    for i in range(NUM_POISON):
        at = (2 * i + 1) * num_pairs // (2 * NUM_POISON)
        crops[at] = crops[at].replace("_edited", f"_poison_{POISON[i % len(POISON)]}_{i:02d}")
    pq.write_table(table.set_column(1, "crop", pa.array(crops)), path)


def build_poisoned(folder: Path, workers: int, deadline_s: float) -> None:
    """Builds the dataset of ``folder/pairs.parquet`` in this process and prints the seconds and the crashed crops, as JSON."""
    import ray
    import scale  # as a module that the child can import, which this one is not

    from cropreg.pipelines import cluster, match
    from cropreg.schema import BoxDataset
    from cropreg.settings import MatchSettings

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    cluster.connect()
    settings = MatchSettings(pairs_per_part=1000, pair_timeout_s=deadline_s, pair_memory_mb=MEMORY_MB)
    began_s = time.monotonic()
    match.run(
        None, None, out=f"{folder}/boxes", pairs=str(folder / "pairs.parquet"), settings=settings, label=scale.label_in_the_child
    )
    took_s = time.monotonic() - began_s
    table = BoxDataset.open(f"{folder}/boxes").pairs(["pair_id", "crop_uri", "verdict"])
    crashed = sorted(row["crop_uri"] for row in table.filter(pc.equal(table["verdict"], "crashed")).to_pylist())
    print(json.dumps({"seconds": took_s, "pairs": len(set(table["pair_id"].to_pylist())), "crashed": crashed}))
    ray.shutdown()


def poison(num_pairs: int, workers: int, deadline_s: float) -> None:
    faulty = ";".join(f"pair:{kind}:poison_{kind}:{2 * NUM_POISON}" for kind in POISON)
    seconds = []
    for wanted in ("", faulty):
        with tempfile.TemporaryDirectory() as folder:
            write_poisoned_table(Path(folder, "pairs.parquet"), num_pairs)
            marks = Path(folder, "marks")
            marks.mkdir()
            testing = {"CROPREG_TESTING": "1", "CROPREG_FAULT": wanted, "CROPREG_FAULT_DIR": str(marks)}
            command = [
                sys.executable,
                __file__,
                "--poison",
                "--one",
                folder,
                "--workers",
                str(workers),
                "--deadline-s",
                str(deadline_s),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **testing})
            result = json.loads(done.stdout.splitlines()[-1])
            fired, expected = len(list(marks.iterdir())), NUM_POISON if wanted else 0
        assert result["pairs"] == num_pairs, f"{num_pairs} pairs went in and {result['pairs']} rows came out"
        assert len(result["crashed"]) == expected and all("poison" in uri for uri in result["crashed"]), result["crashed"]
        assert fired == 2 * expected, f"each is tried twice, and {fired} faults happened"
        seconds.append(result["seconds"])
    print(
        f"{num_pairs:,} pairs: {seconds[0]:.1f} s; with {NUM_POISON} that break the process {seconds[1]:.1f} s, ratio "
        f"{seconds[1] / seconds[0]:.3f}; every pair has its row, and just those {NUM_POISON} are crashed (deadline {deadline_s:g} s)"
    )


def build(folder: Path, workers: int) -> None:
    """Builds the dataset of ``folder/pairs.parquet`` twice in this process and prints what it took, as JSON."""
    import ray

    from cropreg.pipelines import cluster, match
    from cropreg.settings import MatchSettings

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    cluster.connect()
    settings = MatchSettings(pairs_per_part=1000)
    before_mb, peak_mb, done = anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak_mb[0] = max(peak_mb[0], anonymous_mb())

    threading.Thread(target=watch, daemon=True).start()
    table, spans_s = str(folder / "pairs.parquet"), []
    for _ in range(2):
        began_s = time.monotonic()
        summary = match.run(None, None, out=f"{folder}/boxes", pairs=table, settings=settings, label=label_nothing)
        spans_s.append(time.monotonic() - began_s)
    done.set()
    sizes = [path.stat().st_size for path in (folder / "boxes").rglob("*") if path.is_file()]
    took = {"build_s": spans_s[0], "again_s": spans_s[1], "before_mb": before_mb, "peak_mb": peak_mb[0]}
    made = {
        "files": len(sizes),
        "dataset_mb": sum(sizes) / 2**20,
        "manifest_kb": (folder / "boxes/manifests/000001.json").stat().st_size / 1024,
    }
    assert summary["computed"] == 0, "a finished build computes nothing again"
    print(json.dumps(took | made))
    ray.shutdown()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, nargs="+", help="by default 10,000 and 1,000,000; with --poison 200,000")
    arguments.add_argument("--poison", action="store_true")
    arguments.add_argument(
        "--deadline-s", type=float, default=0.2, help="of a pair, with --poison; 400 times its work, a busy machine needs more"
    )
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    o = arguments.parse_args()
    if o.one:
        build_poisoned(o.one, o.workers, o.deadline_s) if o.poison else build(o.one, o.workers)
        return
    if o.poison:
        for num_pairs in o.pairs or [200_000]:
            poison(num_pairs, o.workers, o.deadline_s)
        return
    for num_pairs in o.pairs or [10_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder, "pairs.parquet"), num_pairs)
            command = [sys.executable, __file__, "--one", folder, "--workers", str(o.workers)]
            r = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
        print(
            f"{num_pairs:>9,} pairs: built in {r['build_s']:.1f} s, {num_pairs / r['build_s'] / o.workers:,.0f} pairs/s a core; again "
            f"{r['again_s']:.1f} s; driver's own memory {r['before_mb']:.0f} MB before, {r['peak_mb']:.0f} MB at the peak; "
            f"{r['files']} files, {r['dataset_mb']:.1f} MB, manifest {r['manifest_kb']:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
