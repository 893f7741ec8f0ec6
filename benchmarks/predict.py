"""What ``cropreg predict`` adds to decoding, model and encoding: pictures a second end to end, over the same functions in a bare loop.

    python benchmarks/predict.py RUN [--photos DIR] [--kinds jpeg png tiff16] [--pictures 48] [--megapixels 12] [--workers 2] [--rounds 3]

Scans are made of the photographs (by default those of the demo) and saved as JPEG (quality 92), PNG or 16-bit TIFF (no compression).
Both ways crop them with the same calls (cropreg.pipelines.predict.crop_batch: read, decode, model, cut, encode, write and sync) in as
many processes, one thread each; they take turns, ``rounds`` times, and each writes into a fresh folder.  The clock runs from the call of
``predict.run`` to its return, tables included; what is left out is Ray's start, and each process's first batch, which imports torch and
opens the model: both ways have cropped a few other pictures before.  "ratio" is of the wall clock; on a machine that others use, that is
chance, and "cpu ratio" says more: the CPU seconds of all processes of the bare loop over those of cropreg, driver and Ray included.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a task of one CPU

import cv2
import numpy as np

from cropreg.demo.scans import make_scan
from cropreg.images import decode_color
from cropreg.settings import PredictSettings

# every crop is written, doubtful or not, so that no rate depends on how good the run is
SETTINGS = PredictSettings(all=True)
Item = tuple[str, str]


def make_pictures(photos: Sequence[Path], folder: Path, kind: str, count: int, megapixels: float) -> None:
    folder.mkdir(parents=True)
    long_px = round((megapixels * 1e6 / 0.75) ** 0.5)
    for i in range(count):
        rng = np.random.default_rng([5, i])
        scan, _ = make_scan(decode_color(photos[i % len(photos)].read_bytes(), "photo"), rng, 1024)
        scan = cv2.resize(scan, (long_px, round(long_px * 0.75)), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 3, scan.shape[:2])  # an enlarged scan alone would be too easy to compress
        scan = np.clip(scan + grain[..., None], 0, 255).astype(np.uint8)
        suffix, options = {"jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92]), "png": (".png", [])}.get(
            kind, (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1])
        )
        pixels = scan.astype(np.uint16) * 257 if kind == "tiff16" else scan
        done, data = cv2.imencode(suffix, pixels, options)
        assert done
        (folder / f"{i:03d}{suffix}").write_bytes(data.tobytes())


_predictor: Any = None


def open_model(run: str) -> None:
    global _predictor
    from cropreg.prediction import Predictor

    cv2.setNumThreads(1)
    _predictor = Predictor.open(run)


def crop_bare(task: tuple[list[Item], str]) -> int:
    from cropreg.pipelines.predict import crop_batch

    items, out = task
    return sum(row["crop_uri"] is not None for row in crop_batch(items, _predictor, out, SETTINGS))


def cpu_s() -> float:
    """CPU seconds of this process and all below it, those that have ended included."""
    ticks, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(words[1]), sum(map(int, words[11:15]))
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(ticks[pid] for pid in below) / os.sysconf("SC_CLK_TCK")


Spans = tuple[float, float]  # wall and CPU seconds


def bare_s(pool: Any, folder: Path, out: Path, batch_size: int) -> Spans:
    items = [(str(path), path.name) for path in sorted(folder.iterdir())]
    batches = [(items[i : i + batch_size], str(out)) for i in range(0, len(items), batch_size)]
    began_s, used_s = time.monotonic(), cpu_s()
    written = sum(pool.imap_unordered(crop_bare, batches))
    spans = time.monotonic() - began_s, cpu_s() - used_s
    assert written == len(items)
    return spans


def whole_s(run: str, folder: Path, out: Path) -> Spans:
    from cropreg.pipelines import predict

    began_s, used_s = time.monotonic(), cpu_s()
    summary = predict.run(run, str(folder), out=str(out), settings=SETTINGS)
    spans = time.monotonic() - began_s, cpu_s() - used_s
    assert summary["code"] == 0, summary
    return spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a trained run; how good it is does not matter")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["jpeg", "png", "tiff16"], choices=["jpeg", "png", "tiff16"])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", help="where the pictures and crops go for the time being; default: the system's temporary folder"
    )
    args = parser.parse_args()
    logging.getLogger("cropreg").setLevel(logging.WARNING)
    import ray

    from cropreg.pipelines import cluster

    ray.init(address="local", num_cpus=args.workers, include_dashboard=False, log_to_driver=False)
    cluster.connect()
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as name,
        as_file(files("cropreg.demo") / "photos") as demo,
        multiprocessing.get_context("spawn").Pool(args.workers, open_model, (args.run,)) as pool,
    ):
        photos = sorted((args.photos or demo).glob("*.jpg"))
        make_pictures(photos, Path(name, "first"), "jpeg", 8 * args.workers, 1)
        bare_s(pool, Path(name, "first"), Path(name, "first-bare"), 1)
        whole_s(args.run, Path(name, "first"), Path(name, "first-whole"))
        for kind in args.kinds:
            folder = Path(name, kind)
            make_pictures(photos, folder, kind, args.pictures, args.megapixels)
            bare, whole = list[Spans](), list[Spans]()
            for _ in range(args.rounds):
                out = Path(name, "out")
                bare.append(bare_s(pool, folder, out, 1))
                shutil.rmtree(out)
                whole.append(whole_s(args.run, folder, out))
                shutil.rmtree(out)
            ratios, cpu_ratios = ([b[i] / w[i] for b, w in zip(bare, whole, strict=True)] for i in (0, 1))
            rates = {
                "kind": kind,
                "pictures": args.pictures,
                "megapixels": args.megapixels,
                "end to end, images/s": round(args.pictures / statistics.median(w for w, _ in whole), 2),
                "bare loop, images/s": round(args.pictures / statistics.median(b for b, _ in bare), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 2) for ratio in ratios],
                "cpu ratio": round(statistics.median(cpu_ratios), 3),
                "cpu ratios": [round(ratio, 3) for ratio in cpu_ratios],
                "cpu s an image": round(statistics.median(c for _, c in whole) / args.pictures, 3),
                "load": round(os.getloadavg()[0], 1),
            }
            print(json.dumps(rates), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
