"""What the training engine costs beside the model itself: loading, the loop, and memory as the dataset grows.

    python benchmarks/training.py [--only loader step memory] [--pictures 12] [--rounds 7] [--pairs 1000 100000]
                                  [--gpu] [--amp off] [--compile] [--batch-size 16] [--side 128] [--steps 3]

loader  pictures a second from proxies, over pictures a second from the 12 MP JPEGs they were made of, both lazily  (goal: 10)
step    our loop's time over that of a bare PyTorch loop of the same model, loss, optimiser, clipping and batch      (goal: 1.03)
memory  what a training process keeps in memory with the larger number of pairs, over the smaller                 (goal: 1.1)

Times are CPU time of one thread, taken in turns; medians of the ratios are what counts.  With ``--gpu`` steps are taken on the GPU, and
timed by the clock until it has done them; ``--amp`` and ``--compile`` hold for both loops, which share what was compiled.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cropreg import __version__
from cropreg.dataset import normalised_strips
from cropreg.demo.scans import write_scans
from cropreg.images import decode_color, encode_jpeg
from cropreg.loading import Loaders
from cropreg.losses import crop_loss
from cropreg.model import Architecture, CropRegressor
from cropreg.refiner import refine_loss
from cropreg.schema import PAIRS, BoxDataset, Part, commit_manifest, parquet_bytes, proxies_bytes
from cropreg.settings import TrainSettings
from cropreg.strips import ACROSS_PX, ALONG_PX, EXTENTS
from cropreg.training import Batch, Learner, train_one_epoch

PRIOR = (0.1, 0.1, 0.1, 0.1)
ROWS_A_PART = 1000


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU time of this process while it does some work, s."""
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def gpu_s(work: Callable[[], Any]) -> float:
    """Time on the clock until the GPU has done some work, s."""
    began_s = time.monotonic()
    work()
    torch.cuda.synchronize()
    return time.monotonic() - began_s


def write_dataset(folder: Path, rows: Sequence[dict[str, Any]], jpegs: Iterable[bytes]) -> str:
    """Writes found rows and their proxies as a box dataset, in parts, and returns its URI."""
    given, parts = iter(jpegs), []
    for start in range(0, len(rows), ROWS_A_PART):
        some = rows[start : start + ROWS_A_PART]
        proxies = [{"original_id": row["original_id"], "proxy_w": 0, "proxy_h": 0, "jpeg": next(given)} for row in some]
        for table, ending, data in (("pairs", "parquet", parquet_bytes(some, PAIRS)), ("proxies", "arrow", proxies_bytes(proxies))):
            file = f"{table}/part-{start:08d}.{ending}"
            (folder / table).mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
            parts.append(Part.of(table, file, len(some), data))
    assert commit_manifest(str(folder), parts, config={}, counts={"found": len(rows)}, parent=0, version=__version__) == 1
    return str(folder)


def found(number: int, uri: str, size_wh: tuple[int, int], box_px: Sequence[float], split: str) -> dict[str, Any]:
    name = hashlib.sha256(str(number).encode()).hexdigest()
    row = {
        "pair_id": name[:32],
        "original_uri": uri,
        "crop_uri": uri,
        "original_id": name,
        "crop_id": name,
        "group": name,
        "split": split,
    }
    place = dict(zip(("x1", "y1", "x2", "y2"), map(float, box_px), strict=True))
    return {**row, "original_w": size_wh[0], "original_h": size_wh[1], **place, "verdict": "found"}


def loader(pictures: int, rounds: int) -> None:
    """Epochs of the training loader, without a model, from either source in turns."""
    with tempfile.TemporaryDirectory() as folder, as_file(files("cropreg.demo") / "photos") as photos:
        write_scans(sorted(photos.glob("*.jpg")), Path(folder), pictures, 1, long_px=4000)
        rows, jpegs, megapixels = [], [], []
        for i, path in enumerate(sorted(Path(folder, "originals").iterdir())):
            picture = decode_color(path.read_bytes(), str(path))
            height, width = picture.shape[:2]
            rows.append(found(i, str(path), (width, height), (0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height), "train"))
            shrink = 512 / max(height, width)
            jpegs.append(encode_jpeg(cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), 90))
            megapixels.append(height * width / 1e6)
        dataset = BoxDataset.open(write_dataset(Path(folder, "boxes"), rows, jpegs))
        spent: dict[str, list[float]] = {"proxies": [], "originals": []}
        for number in range(rounds + 1):
            for source, spans_s in spent.items():
                settings = TrainSettings(from_=source, loader_workers=0, batch_size=min(8, pictures))
                batches = Loaders(dataset, settings, torch.device("cpu"), 0, 1)
                spans_s.append(cpu_s(lambda number=number, batches=batches: [None for _ in batches.train(number)]))
    ratios = [slow / quick for quick, slow in zip(*(spans_s[1:] for spans_s in spent.values()), strict=True)]  # the first warms up
    rates = {source: pictures / statistics.median(spans_s[1:]) for source, spans_s in spent.items()}
    print(
        f"loader: {rates['proxies']:.1f} pictures/s from proxies of 512 px, {rates['originals']:.2f} from JPEGs of "
        f"{statistics.mean(megapixels):.1f} MP: {statistics.median(ratios):.1f} times as many (goal 10)",
        flush=True,
    )


class Given:
    """Batches that are in memory, so that nothing but the loop is timed."""

    def __init__(self, steps: int, size: int, side: int) -> None:
        generator = torch.Generator().manual_seed(1)
        strips = normalised_strips(np.zeros((size, 4, ALONG_PX, ACROSS_PX, 3), np.uint8))
        self.size = size
        self.batches: list[Batch] = [
            (
                torch.randn(size, 3, side, side, generator=generator),
                torch.tensor([0.1, 0.1, 0.9, 0.9]) + 0.1 * torch.rand(size, 4, generator=generator),
                torch.arange(size),
                strips + torch.randn(strips.shape, generator=generator),
                torch.randn(size, 4, EXTENTS, generator=generator),
                torch.randn(size, 4, generator=generator) * 0.1,
            )
            for _ in range(steps)
        ]

    def train(self, epoch: int) -> Sequence[Batch]:
        return self.batches

    def rows_of(self, step: int) -> int:
        return self.size

    def val(self) -> Iterable[Batch]:
        return []

    def val_strips(self, rows: torch.Tensor, boxes_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError("nothing is validated here")

    def names(self, rows: torch.Tensor) -> list[str]:
        return [str(int(row)) for row in rows]


def bare(
    core: CropRegressor, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Given, settings: TrainSettings,
    device: torch.device, amp: torch.dtype | None, scaler: torch.amp.GradScaler,
) -> None:  # fmt: skip
    """What one writes when nothing can go wrong."""
    assert core.refiner is not None
    model.train()
    for images, boxes_norm, _, *more in batches.batches:
        strips, extents, offsets = (part.to(device, non_blocking=True) for part in more)
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            said, logits = model(images, strips, extents)
        how = settings.overlap, settings.iou_weight, settings.margin_weight, settings.edges
        losses = crop_loss(said.float(), boxes_norm.to(device, non_blocking=True), *how)
        loss = (losses + refine_loss(core.refiner, logits.float(), offsets)).mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(core.parameters(), settings.clip_norm)
        scaler.step(optimizer)
        scaler.update()


def step(rounds: int, steps: int, settings: TrainSettings, device: torch.device) -> None:
    """The same steps by our loop and by the bare one, in turns."""
    size, side = settings.batch_size, settings.image_side
    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.amp)
    torch.manual_seed(0)
    core = CropRegressor(Architecture(head=settings.head, image_side=side, refine=True), PRIOR)
    core = core.to(device).to(memory_format=torch.channels_last)
    other = copy.deepcopy(core)
    model, other_model = (torch.compile(part) if settings.compile else part for part in (core, other))
    learner, batches = Learner(core, model, settings, amp), Given(steps, size, side)
    optimizer = torch.optim.AdamW(other.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    spent = gpu_s if device.type == "cuda" else cpu_s
    ours_s, bare_s = [], []
    for number in range(rounds + 1):
        ours_s.append(spent(lambda number=number: train_one_epoch(learner, batches, number, settings, lambda *_: None)))
        bare_s.append(spent(lambda: bare(other, other_model, optimizer, batches, settings, device, amp, scaler)))
    ratio = statistics.median(a / b for a, b in zip(ours_s[1:], bare_s[1:], strict=True))
    each_ms = [1000 * statistics.median(spans_s[1:]) / steps for spans_s in (ours_s, bare_s)]
    print(
        f"step: {each_ms[0]:.1f} ms for {size} pictures of {side} px, a bare loop {each_ms[1]:.1f} ms: {ratio:.3f} (goal 1.03); "
        f"our first {steps} took {ours_s[0]:.1f} s",
        flush=True,
    )


class _Enough(Exception):
    """The steps that were wanted are done."""


def memory_mb(name: str) -> float:
    """A figure of this process from the system: VmRSS what is resident, RssAnon its own part, VmHWM the most there ever was; MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024


def train_some(uri: str, steps: int) -> None:
    """Trains for some steps in this process and prints what it then holds, as JSON."""
    settings = TrainSettings(image_side=64, batch_size=16, loader_workers=0, num_workers=0)
    began_s = time.monotonic()
    batches = Loaders(BoxDataset.open(uri), settings, torch.device("cpu"), 0, 1)
    set_up_s = time.monotonic() - began_s
    core = CropRegressor(Architecture(head=settings.head, image_side=64, refine=True), PRIOR).to(memory_format=torch.channels_last)

    def stop(epoch: int, done: int, of: int) -> None:
        if done == steps:
            raise _Enough

    try:
        train_one_epoch(Learner(core, core, settings, None), batches, 0, settings, stop)
    except _Enough:
        names = ("VmRSS", "RssAnon", "VmHWM")
        print(json.dumps({**{name: memory_mb(name) for name in names}, "set_up_s": set_up_s, "rows": len(batches.train_data)}))


def memory(sizes: Sequence[int]) -> None:
    """The same few steps in a process of its own for each size of dataset."""
    seen: list[dict[str, float]] = []
    jpegs = [encode_jpeg(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8), 90) for i in range(64)]
    for pairs in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows = [
                found(i, f"/scans/{i:08d}.jpg", (6400, 4800), (640, 480, 5760, 4320), "val" if i % 8 == 0 else "train")
                for i in range(pairs)
            ]
            uri = write_dataset(Path(folder), rows, (jpegs[i % 64] for i in range(pairs)))
            del rows
            command = [sys.executable, __file__, "--one", uri]
            seen.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]))
        print(
            f"memory: {pairs:>7,} pairs: {seen[-1]['VmRSS']:.0f} MB resident after some steps, {seen[-1]['RssAnon']:.0f} of them its own, "
            f"{seen[-1]['VmHWM']:.0f} at the most; ready in {seen[-1]['set_up_s']:.1f} s",
            flush=True,
        )
    first, last = seen[0], seen[-1]
    print(
        f"memory: {sizes[-1]:,} over {sizes[0]:,} pairs: resident {last['VmRSS'] / first['VmRSS']:.3f}, its own "
        f"{last['RssAnon'] / first['RssAnon']:.3f}, at the most {last['VmHWM'] / first['VmHWM']:.3f} (goal 1.1)"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["loader", "step", "memory"]
    arguments.add_argument("--only", nargs="+", choices=parts, default=parts)
    arguments.add_argument("--pictures", type=int, default=12)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--pairs", type=int, nargs="+", default=[1000, 100_000])
    arguments.add_argument("--gpu", action="store_true")
    arguments.add_argument("--amp", choices=["bf16", "fp16", "off"], default="off")
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=3)
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    o = arguments.parse_args()
    torch.set_num_threads(1)
    if o.one:
        train_some(o.one, steps=20)
        return
    if "loader" in o.only:
        loader(o.pictures, o.rounds)
    if "step" in o.only:
        settings = TrainSettings(image_side=o.side, batch_size=o.batch_size, amp=o.amp, compile=o.compile)
        step(o.rounds, o.steps, settings, torch.device("cuda" if o.gpu else "cpu"))
    if "memory" in o.only:
        memory(o.pairs)


if __name__ == "__main__":
    main()
