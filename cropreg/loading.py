"""The examples of one process among several, a batch at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from cropreg.cache import Cache
from cropreg.dataset import CropDataset, normalised_strips
from cropreg.errors import ClusterError, CropregError
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings
from cropreg.strips import cut_strips, extents_of

SIGNAL_WITHIN_S = 1.0  # after the end of a loading process's pipe, by which its death has been signalled


class Steps(Sampler[list[int]]):
    """This process's share of every step of an epoch.

    Order and steps depend on seed, epoch and settings alone: the steps of all processes together are the same for any number of them,
    also when that number changes in the middle of a run.  Every row comes once an epoch.  Steps are as large as each other, but for
    one row, as a short last one would be all noise; and so are the processes' shares of a step.

    Args:
        rows: of the split.
        batch_size: rows of a step over all processes together.
        least: rows that a step must have, so that BatchNorm has two in every process.
        rank, world: which process this is, and of how many.
        seed: of the order.
    """

    def __init__(self, rows: int, batch_size: int, least: int, rank: int, world: int, seed: int) -> None:
        self._rows, self._rank, self._world, self._seed, self._epoch = rows, rank, world, seed, 0
        self._steps = max(1, min(-(-rows // batch_size), rows // least))

    def set_epoch(self, epoch: int) -> None:
        """Makes the order that of ``epoch``."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._rows)
        return (part[self._rank :: self._world].tolist() for part in np.array_split(order, self._steps))

    def rows_of(self, step: int) -> int:
        """Rows of a step over all processes."""
        return self._rows // self._steps + (step < self._rows % self._steps)


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Says what it means when a loading process ends, which PyTorch's handler of SIGCHLD tells as a RuntimeError wherever this one is.

    Where this one was reading from that process, it sees the end of the pipe first.

    Raises:
        ClusterError: instead of that.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        told: Exception = error
        if not isinstance(error, RuntimeError):
            try:
                time.sleep(SIGNAL_WITHIN_S)  # ends with the signal
            except RuntimeError as late:
                told = late
        if not str(told).startswith("DataLoader worker"):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the end of the others would break into what closes on the way out
        raise ClusterError(
            f"A process that loads pictures is gone ({str(told).strip().rstrip('.')}). Most often memory is short: use fewer "
            "--loader-workers; with 0 the training process loads. Finished epochs are kept: run the same command with --resume."
        ) from error


class _Rows(Dataset[Any]):
    """Rows of a dataset, or why one cannot be had: raised in a loading process, a named error would lose its kind and its text."""

    def __init__(self, data: CropDataset, rows: range) -> None:
        self._data, self._rows = data, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._data[self._rows[index]]
        except CropregError as error:
            return error


def _collated(rows: list[Any]) -> Any:
    errors = [row for row in rows if isinstance(row, CropregError)]
    return errors[0] if errors else default_collate(rows)


class _Batches:
    """What a loader gives, an epoch at a time; raises the errors that come in the place of batches."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if isinstance(batch, CropregError):
                raise batch
            yield batch


class Loaders:
    """This process's data; ``share`` of the training groups is read, of the validation rows all."""

    def __init__(
        self, dataset: BoxDataset, settings: TrainSettings, device: torch.device, rank: int, world: int, share: float = 1.0
    ) -> None:
        cache = Cache(settings.cache_dir, settings.cache_gb)
        self.train_data = CropDataset(
            dataset, "train", settings.image_side, augment=True, flip=settings.flip, reframe=settings.reframe, color=settings.color,
            noise=settings.noise, turn=settings.turn, read_from=settings.from_, seed=settings.seed, strips=settings.refine, share=share,
            cache=cache,
        )  # fmt: skip
        self._val_data = val_data = CropDataset(dataset, "val", settings.image_side, read_from=settings.from_, cache=cache)
        workers = settings.loader_workers
        if workers is None:  # on a CPU the model takes all cores, and loading beside it gains nothing
            here = int(os.environ.get("LOCAL_WORLD_SIZE", world))  # training processes on this machine
            workers = min(8, max(1, (os.cpu_count() or 2) // here - 1)) if device.type == "cuda" else 0
        shared: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda", "persistent_workers": workers > 0}
        # Its own generator: a loader draws a number as its processes start, which in a resumed run would shift dropout's.
        shared |= {"collate_fn": _collated, "generator": torch.Generator()}
        least = 2 * max(settings.most_workers, 1)
        self._steps = Steps(len(self.train_data), settings.batch_size, least, rank, world, settings.seed)
        rows = range(len(self.train_data)), range(rank, len(val_data), world)
        self._train = _Batches(DataLoader(_Rows(self.train_data, rows[0]), batch_sampler=self._steps, **shared))
        self._val = _Batches(DataLoader(_Rows(val_data, rows[1]), -(-2 * settings.batch_size // world), **shared))

    def train(self, epoch: int) -> Iterable[Any]:
        """The batches of one epoch."""
        self._steps.set_epoch(epoch)
        self.train_data.set_epoch(epoch)
        return self._train

    def rows_of(self, step: int) -> int:
        """Rows of a training step over all processes."""
        return self._steps.rows_of(step)

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
