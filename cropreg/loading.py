"""The examples of one process among several, a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset

from cropreg.dataset import CropDataset, normalised_strips
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings
from cropreg.strips import cut_strips, extents_of


class Loaders:
    """This process's data.  Order depends on seed and epoch alone; the global batches are the same for any number of processes."""

    def __init__(self, dataset: BoxDataset, settings: TrainSettings, device: torch.device, rank: int, world: int) -> None:
        self.train_data = CropDataset(
            dataset, "train", settings.image_side, augment=True, flip=settings.flip, reframe=settings.reframe, color=settings.color,
            read_from=settings.from_, seed=settings.seed, strips=settings.refine,
        )  # fmt: skip
        self._val_data = val_data = CropDataset(dataset, "val", settings.image_side, read_from=settings.from_)
        workers = settings.loader_workers
        if workers is None:  # on a CPU the model takes all cores, and loading beside it gains nothing
            workers = min(8, max(1, (os.cpu_count() or 2) // max(world, 1) - 1)) if device.type == "cuda" else 0
        shared: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda", "persistent_workers": workers > 0}
        each = settings.batch_size // world
        self._sampler: DistributedSampler[Any] = DistributedSampler(self.train_data, world, rank, shuffle=True, seed=settings.seed)
        # A last batch of one picture has no variance for BatchNorm to divide by.
        drop_last = len(self._sampler) >= each and len(self._sampler) % each == 1
        self._train = DataLoader(self.train_data, each, sampler=self._sampler, drop_last=drop_last, **shared)
        self._val = DataLoader(Subset(val_data, range(rank, len(val_data), world)), 2 * each, **shared)

    def train(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch."""
        self._sampler.set_epoch(epoch)
        self.train_data.set_epoch(epoch)
        return self._train

    def val(self) -> Iterable[Any]:
        """This process's share of the validation rows."""
        return self._val

    def val_strips(self, rows: torch.Tensor, boxes_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Strips (B, 4, 3, along, across) of validation rows about boxes (B, 4), and their extents (B, 4, EXTENTS), on the CPU."""
        strips, extents = [], []
        for row, box in zip(rows, boxes_norm.double().cpu().numpy(), strict=True):
            pixels = self._val_data.picture(int(row))
            strips.append(cut_strips(pixels, box))
            extents.append(extents_of(box, (pixels.shape[1], pixels.shape[0])))
        return normalised_strips(np.stack(strips)), torch.from_numpy(np.stack(extents))

    def names(self, rows: torch.Tensor) -> list[str]:
        """The pair ids of rows of a batch."""
        return [str(self.train_data.labels.pair_ids[int(row)]) for row in rows]
