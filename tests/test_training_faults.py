"""Training that is killed goes on as if nothing had happened, and a cluster may give it more or fewer workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cropreg import runs
from cropreg.pipelines import train
from cropreg.settings import TrainSettings

ROOT = Path(__file__).parents[1]
FLAGS = ["--weights=none", "--image-side=64", "--batch-size=10", "--no-use-gpu", "--no-refine"]
TIMES = ("images_per_s", "elapsed_s")


def started(boxes: Path, run: Path, *flags: str, epochs: int = 4) -> subprocess.Popen[bytes]:
    """``cropreg train`` in a process group of its own; :func:`said` is what it says, a pipe nobody reads would stop it."""
    command = [sys.executable, "-m", "cropreg.cli", "train", str(boxes), f"--out={run}", f"--max-epochs={epochs}", *FLAGS, *flags]
    with open(run.with_suffix(".err"), "w") as errors:
        return subprocess.Popen(command, cwd=ROOT, stderr=errors, stdout=subprocess.DEVNULL, start_new_session=True)


def said(run: Path) -> str:
    return run.with_suffix(".err").read_text()


def finished(process: subprocess.Popen[bytes], run: Path, within_s: float = 240) -> None:
    """Waits for the end of a process that must end well."""
    assert process.wait(within_s) == 0, said(run)[-3000:]


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes], run: Path, within_s: float = 200) -> None:
    """Waits for what a process will do; fails when it ends before."""
    until = time.monotonic() + within_s
    while not what():
        assert process.poll() is None, f"it ended with {process.returncode}: {said(run)[-3000:]}"
        assert time.monotonic() < until, f"what was waited for did not come: {said(run)[-3000:]}"
        time.sleep(0.05)


def outcome(run: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The figures of a run without its times, and its best weights."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in runs.read_metrics(str(run))]
    return rows, safetensors.torch.load_file(run / "checkpoints/best/model.safetensors")


def same(one: Path, other: Path) -> None:
    """Asserts that two runs came to the same, to the last bit."""
    (rows, weights), (their_rows, their_weights) = outcome(one), outcome(other)
    assert rows == their_rows and weights.keys() == their_weights.keys()
    assert all(torch.equal(value, their_weights[name]) for name, value in weights.items())


@pytest.mark.slow
def test_driver_that_was_killed_twice_goes_on_as_if_it_had_not_been(made_boxes: Path, tmp_path: Path) -> None:
    finished(started(made_boxes, tmp_path / "whole", "--num-workers=0"), tmp_path / "whole")
    run = tmp_path / "killed"
    for epochs in (1, 2):
        process = started(made_boxes, run, "--num-workers=0", "--resume")
        wait_for(lambda epochs=epochs: len(runs.read_metrics(str(run))) >= epochs, process, run)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(runs.read_metrics(str(run))) < 4, "it was killed before its end"
    finished(started(made_boxes, run, "--num-workers=0", "--resume"), run)
    same(tmp_path / "whole", run)


@pytest.mark.slow
def test_interrupted_training_says_how_to_go_on_and_keeps_its_epochs(made_boxes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(made_boxes, run, "--num-workers=0")
    wait_for((run / "checkpoints/last/state.pt").exists, process, run)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert f"go on with: cropreg train {made_boxes} --out={run}" in said(run) and "--resume" in said(run)
    assert 1 <= len(runs.read_metrics(str(run))) < 4
    finished(started(made_boxes, run, "--num-workers=0", "--resume"), run)
    assert [row["epoch"] for row in runs.read_metrics(str(run))] == [0, 1, 2, 3]


@pytest.mark.slow
def test_training_whose_loading_process_is_killed_says_so_and_goes_on(made_boxes: Path, tmp_path: Path) -> None:
    finished(started(made_boxes, tmp_path / "whole", "--num-workers=0"), tmp_path / "whole")
    run = tmp_path / "run"
    process = started(made_boxes, run, "--num-workers=0", "--loader-workers=1")
    wait_for((run / "checkpoints/last/state.pt").exists, process, run)
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "cropreg.cli" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
    assert process.wait(60) == 5
    assert "A process that loads pictures is gone" in said(run) and "Traceback" not in said(run)
    finished(started(made_boxes, run, "--num-workers=0", "--loader-workers=1", "--resume"), run)
    same(tmp_path / "whole", run)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and one node with one, where ``ray.init`` finds it."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False, "dashboard_port": port}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def training_workers() -> list[int]:
    """The processes of Ray Train's workers on this machine, by the name that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_worker_that_was_killed_is_replaced_and_the_run_comes_to_the_same(
    made_boxes: Path, tmp_path: Path, ray_local: None
) -> None:
    settings = TrainSettings(
        weights="none", image_side=64, max_epochs=4, batch_size=10, use_gpu=False, refine=False, num_workers=2, resources="CPU=1"
    )
    before = set(training_workers())
    train.run(str(made_boxes), out=str(tmp_path / "whole"), settings=settings)
    killed: list[int] = []
    on_epoch = train.runs.Follower.tell

    def tell(self: Any) -> None:
        on_epoch(self)
        workers = set(training_workers()) - before
        if not killed and workers and runs.read_metrics(str(tmp_path / "killed")):
            killed.append(max(workers))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.runs.Follower, "tell", tell)
        train.run(str(made_boxes), out=str(tmp_path / "killed"), settings=settings)
    assert killed
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray Train looks for room every minute, and waits another for a machine that is lost
def test_training_takes_a_worker_more_when_a_machine_comes_and_goes_on_when_it_is_lost(
    made_boxes: Path, tmp_path: Path, cluster: Any
) -> None:
    run, others = tmp_path / "run", set(training_workers())
    process = started(made_boxes, run, "--num-workers=1:2", "--resources=CPU=1", "--patience=10000", epochs=10000)

    def workers() -> int:
        return len(set(training_workers()) - others)

    def learn(epochs: int) -> None:
        """Waits for epochs that begin after now, the one under way left out."""
        then = len(runs.read_metrics(str(run)))
        wait_for(lambda: len(runs.read_metrics(str(run))) > then + epochs, process, run)

    try:
        learn(1)
        assert workers() == 1, "as many as there is room for"
        added = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        wait_for(lambda: workers() == 2, process, run)
        learn(2)
        assert workers() == 2
        cluster.remove_node(added, allow_graceful=False)
        wait_for(lambda: workers() < 2, process, run)
        learn(2)
        assert workers() == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = runs.read_metrics(str(run))
    assert [row["epoch"] for row in rows] == list(range(len(rows))), "every epoch has one row"
