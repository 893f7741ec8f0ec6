"""The old way, rebuilt as a yardstick, beside ours: set-up time, memory, seconds an epoch, and IoU on scans neither has seen.

    python benchmarks/script.py [--pairs 80] [--new 24] [--long-px 2400] [--epochs 12] [--side 128] [--weights FILE]

The old way is the script that cropreg replaces: its dataset reads every original and crop into memory at full size, finds each crop with
a full-size cv2.matchTemplate, and shrinks the picture anew whenever it is asked for it; its head pools the features.  Loss, optimiser,
learning rate, clipping, weights, pairs and their split are those of ours.  Each pair is matched once, which is kinder than the script was.
Both ways run in a process of their own; memory is the proportional share (PSS) of that process and of all that it has started, Ray too.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_iou

from cropreg.dataset import read_labels
from cropreg.demo.scans import write_scans
from cropreg.losses import crop_loss, to_boxes
from cropreg.metrics import fit_baselines
from cropreg.model import Architecture, CropRegressor, load_backbone
from cropreg.schema import BoxDataset
from cropreg.settings import MatchSettings, TrainSettings

NEW_PHOTOS = ("cat.jpg", "coffee.jpg", "portrait.jpg", "stairs.jpg")  # of which nothing is learned
SPLIT = "75/15/10/0"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


class Preloaded(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Everything in memory, every pair matched when the dataset is made."""

    def __init__(self, pairs: Iterable[tuple[Path, Path]], side: int) -> None:
        self.side = side
        self.originals, self.crops, self.boxes = [], [], []
        for original_path, crop_path in pairs:
            original, crop = cv2.imread(str(original_path)), cv2.imread(str(crop_path))
            self.originals.append(original)
            self.crops.append(crop)
            scores = cv2.matchTemplate(*(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY) for p in (original, crop)), cv2.TM_CCOEFF_NORMED)
            _, _, _, (x, y) = cv2.minMaxLoc(scores)
            height, width = original.shape[:2]
            self.boxes.append([x / width, y / height, (x + crop.shape[1]) / width, (y + crop.shape[0]) / height])

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return shrunk(self.originals[index], self.side), torch.tensor(self.boxes[index])


def shrunk(bgr: np.ndarray[Any, Any], side: int) -> torch.Tensor:
    rgb = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA)[..., ::-1].astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(((rgb - MEAN) / STD).transpose(2, 0, 1)))


def old_way(folder: Path, o: argparse.Namespace) -> dict[str, Any]:
    """Preloads, matches and trains on the pairs of the file that says which are whose."""
    shares = json.loads((folder / "shares.json").read_text())
    settings = training(o)
    began_s = time.monotonic()
    data = {
        name: Preloaded([(folder / "originals" / n, folder / "crops" / n) for n in shares[name]], o.side)
        for name in ("train", "val")
    }
    set_up_s = time.monotonic() - began_s
    torch.manual_seed(0)
    model = CropRegressor(
        Architecture(head="pooled", image_side=o.side), fit_baselines(np.array(data["train"].boxes))["median_box"]
    )
    load_backbone(model, o.weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    train = DataLoader(data["train"], settings.batch_size, shuffle=True, drop_last=len(data["train"]) % settings.batch_size == 1)
    weights = settings.overlap, settings.iou_weight, settings.margin_weight
    epochs_s, best, kept = [], float("inf"), copy.deepcopy(model)
    for _ in range(o.epochs):
        began_s = time.monotonic()
        model.train()
        for images, boxes in train:
            loss = crop_loss(model(images), boxes, *weights).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            losses = [crop_loss(model(i), b, *weights) for i, b in DataLoader(data["val"], 32)]
        epochs_s.append(time.monotonic() - began_s)
        if (loss := float(torch.cat(losses).mean())) < best:
            best, kept = loss, copy.deepcopy(model)
    kept.eval()
    images = torch.stack([shrunk(cv2.imread(str(path)), o.side) for path in new_scans(folder)])
    with torch.no_grad():
        found = to_boxes(kept(images).clamp(0, 1))
    return {"set_up_s": set_up_s, "epochs_s": epochs_s, "iou": iou_with_truth(folder, found)}


def our_way(folder: Path, o: argparse.Namespace) -> dict[str, Any]:
    """Matches once with Ray, then trains from proxies in this process."""
    import ray

    from cropreg import runs
    from cropreg.images import decode_color
    from cropreg.pipelines import match, train
    from cropreg.prediction import Predictor

    began_s = time.monotonic()
    match.run(str(folder / "originals"), str(folder / "crops"), out=f"{folder}/boxes", settings=MatchSettings(split=SPLIT))
    set_up_s = time.monotonic() - began_s
    ray.shutdown()
    train.run(f"{folder}/boxes", out=f"{folder}/run", settings=training(o))
    rows = runs.read_metrics(f"{folder}/run")
    pictures = (decode_color(path.read_bytes(), str(path)) for path in new_scans(folder))
    found = Predictor.open(f"{folder}/run").predict_all(pictures, 8)
    dataset = BoxDataset.open(f"{folder}/boxes")
    shares = {
        split: [Path(uri).name for uri in read_labels(dataset, split).original_uris.to_pylist()]
        for split in ("train", "val", "calib")
    }
    (folder / "shares.json").write_text(json.dumps(shares))
    iou = iou_with_truth(folder, torch.from_numpy(found.boxes_norm))
    return {"set_up_s": set_up_s, "epochs_s": [row["elapsed_s"] for row in rows], "iou": iou}


def training(o: argparse.Namespace) -> TrainSettings:
    return TrainSettings(
        weights=o.weights, image_side=o.side, max_epochs=o.epochs, batch_size=16, num_workers=0, use_gpu=False, patience=o.epochs
    )


def new_scans(folder: Path) -> list[Path]:
    return sorted((folder / "new" / "originals").iterdir())


def iou_with_truth(folder: Path, boxes_norm: torch.Tensor) -> float:
    """Mean IoU of boxes (N, 4) in shares with what the made hand cut from the scans that are for judging."""
    truth = []
    for row in csv.DictReader((folder / "new" / "truth.csv").open()):
        height, width = cv2.imread(str(folder / "new" / row["original"]), cv2.IMREAD_UNCHANGED).shape[:2]
        truth.append([int(row["x1"]) / width, int(row["y1"]) / height, int(row["x2"]) / width, int(row["y2"]) / height])
    return float(box_iou(boxes_norm.double(), torch.tensor(truth, dtype=torch.float64)).diagonal().mean())


def tree_of(root: int) -> set[int]:
    """A process and all that it has started, directly or not."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # has just ended
                continue
    tree = {root}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def pss_mb(root: int) -> float:
    total_kb = 0
    for process in tree_of(root):
        try:
            line = next(line for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
        total_kb += int(line.split()[1])
    return total_kb / 1024


def measured(way: str, folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """One way in a process of its own, and the most memory it had while somebody looked, four times a second."""
    with subprocess.Popen(
        [sys.executable, __file__, *flags, "--way", way, str(folder)], stdout=subprocess.PIPE, text=True
    ) as child:
        done, peak_mb = threading.Event(), [0.0]

        def watch() -> None:
            while not done.wait(0.25):
                peak_mb[0] = max(peak_mb[0], pss_mb(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
        done.set()
        watcher.join()
    assert child.returncode == 0, f"the {way} way ended with {child.returncode}"
    result: dict[str, Any] = json.loads(lines[-1])
    result |= {"peak_mb": peak_mb[0], "epoch_s": float(np.median(result["epochs_s"]))}
    print(
        f"{way:4s} ready to train after {result['set_up_s']:.1f} s; peak {peak_mb[0]:.0f} MB; {result['epoch_s']:.2f} s an epoch; "
        f"IoU {result['iou']:.3f}",
        flush=True,
    )
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 80), ("new", 24), ("long-px", 2400), ("epochs", 12), ("side", 128)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--weights", default="none")
    arguments.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    o = arguments.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if o.way:
        print(json.dumps((our_way if o.way[0] == "ours" else old_way)(Path(o.way[1]), o)))
        return
    with tempfile.TemporaryDirectory() as name, as_file(files("cropreg.demo") / "photos") as photos:
        folder = Path(name)
        write_scans(sorted(p for p in photos.glob("*.jpg") if p.name not in NEW_PHOTOS), folder, o.pairs, 1, long_px=o.long_px)
        write_scans([photos / p for p in NEW_PHOTOS], folder / "new", o.new, 2, long_px=o.long_px)
        flags = sys.argv[1:]
        ours, old = measured("ours", folder, flags), measured("old", folder, flags)  # ours first: it says which pairs are whose
    print(
        f"{o.pairs} pairs of {o.long_px} px: set-up {old['set_up_s'] / ours['set_up_s']:.2f} times as quick as the old way, memory "
        f"{ours['peak_mb'] / old['peak_mb']:.2f} of its, an epoch {ours['epoch_s'] / old['epoch_s']:.2f} of its (ours looks twice), "
        f"IoU {ours['iou']:.3f} against {old['iou']:.3f}"
    )


if __name__ == "__main__":
    main()
