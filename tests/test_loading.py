"""What the training loop is told when a picture cannot be loaded, in this process or in another."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from cropreg import loading
from cropreg.errors import ClusterError, InputError
from cropreg.loading import Loaders, naming_lost_processes
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

JPEG_BEGINS = b"\xff\xd8\xff"


def loaders(boxes: Path, workers: int) -> Loaders:
    settings = TrainSettings(image_side=64, batch_size=8, loader_workers=workers)
    return Loaders(BoxDataset.open(str(boxes)), settings, torch.device("cpu"), 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_proxy_is_named_as_what_it_is(made_boxes: Path, tmp_path: Path, workers: int) -> None:
    boxes = tmp_path / "boxes"
    shutil.copytree(made_boxes, boxes)
    for file in (boxes / "proxies").iterdir():
        file.write_bytes(file.read_bytes().replace(JPEG_BEGINS, b"\0\0\0"))
    batches = loaders(boxes, workers)
    for epoch in (batches.train(0), batches.val()):
        with pytest.raises(InputError) as raised:
            list(epoch)
        text = str(raised.value)
        assert text.startswith(f"{boxes}: the proxy of ")
        assert text.endswith("is not a picture in a known format. Match again with --overwrite, or read --from originals.")


def test_other_processes_load_the_same(made_boxes: Path) -> None:
    here, beside = (list(loaders(made_boxes, workers).train(1)) for workers in (0, 2))
    assert len(here) == len(beside) > 1
    for one, other in zip(here, beside, strict=True):
        for part, same in zip(one, other, strict=True):
            assert torch.equal(part, same)


@pytest.mark.parametrize(
    "told", ["DataLoader worker (pid 7) is killed by signal: Killed. ", "DataLoader worker (pid(s) 7) exited unexpectedly"]
)
def test_a_loading_process_that_is_gone_is_named_with_a_cure(told: str) -> None:
    said = r"process that loads pictures is gone \(DataLoader worker .*[a-z]\)\. .*fewer --loader-workers.*--resume"
    with pytest.raises(ClusterError, match=said), naming_lost_processes():
        raise RuntimeError(told)


def test_the_end_of_a_pipe_is_told_by_the_signal_that_follows() -> None:
    def die(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, die)
    try:
        with pytest.raises(ClusterError, match="is killed by signal: Killed"), naming_lost_processes():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGCHLD)).start()
            raise ConnectionResetError
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL, "others that end cannot break in"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_pipe_that_ended_for_another_reason_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SIGNAL_WITHIN_S", 0.01)
    with pytest.raises(EOFError), naming_lost_processes():
        raise EOFError


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of paper"), naming_lost_processes():
        raise RuntimeError("out of paper")
