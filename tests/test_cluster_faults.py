"""A cluster that loses workers, a node, its shared disk or its driver: the table that comes out is the same, or the error says why.

The drivers are processes of their own, as a user starts them; the cluster is made of real nodes on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from conftest import framed_print, save

from cropreg.schema import BoxDataset

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_PAIRS, PAIRS_PER_PART = 60, 2
STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs large enough that a run can be disturbed before it ends."""
    base = tmp_path_factory.mktemp("faults")
    for seed in range(NUM_PAIRS):
        original, (x1, y1, x2, y2) = framed_print(seed, 960, 720)
        save(original, base / "originals" / f"{seed:04d}.jpg")
        save(original[y1:y2, x1:x2], base / "crops" / f"{seed:04d}.jpg")
    return base


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two nodes of one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]  # Ray's own may be taken, and then Ray leaves a socket open, which is a warning
    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, "dashboard_port": port}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, cluster: Any) -> list[dict[str, Any]]:
    """The rows of a run to which nothing happened."""
    with driver(folder, folder / "undisturbed", cluster.address) as run:
        assert run.wait(240) == 0, said(run)
    return rows(folder / "undisturbed")


def driver(folder: Path, out: Path, address: str | None, **environment: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """``cropreg match`` in a process of its own, killed when the test ends before it."""
    words = ["match", str(folder / "originals"), str(folder / "crops"), "--out", str(out), "--pairs-per-part", str(PAIRS_PER_PART)]
    return verb(words, out.with_suffix(".err"), address, **environment)


@contextlib.contextmanager
def verb(words: list[str], log: Path, address: str | None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "cropreg.cli", *words, *(["--address", address] if address else [])]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
    with open(log, "a+") as errors:
        run = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, text=True, start_new_session=True
        )
        run.errors = errors  # type: ignore[attr-defined]
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()


def said(run: Any) -> str:
    """What a driver has written to standard error."""
    run.errors.seek(0)
    return str(run.errors.read())


def wait_for_parts(run: subprocess.Popen[str], out: Path, count: int) -> None:
    """Waits until a driver's run has written so many parts; fails when it ends before, since then it cannot be disturbed."""
    until = time.monotonic() + 120
    while len(list(out.glob("pairs/part-*"))) < count:
        assert run.poll() is None, f"the run ended with {run.returncode} before it was disturbed: {said(run)}"
        assert time.monotonic() < until, said(run)
        time.sleep(0.02)


def rows(out: Path) -> list[dict[str, Any]]:
    """The table without what differs from run to run; fails when a pair stands in it twice or not at all."""
    table = BoxDataset.open(str(out)).pairs()
    ids = table["pair_id"].to_pylist()
    assert len(ids) == len(set(ids)) == NUM_PAIRS
    return table.drop_columns(["elapsed_ms"]).to_pylist()


def processes() -> Iterator[tuple[int, str, bytes]]:
    """Process id, command line and environment of every process that we may look at."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield (
                    int(entry.name),
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(),
                    (entry / "environ").read_bytes(),
                )


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def busy_workers(cluster: Any) -> list[int]:
    """The processes of this cluster that are matching just now."""
    raylets = {process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes.get("raylet", [])}
    return [pid for pid, line, _ in processes() if line.startswith("ray::") and "_build_part" in line and parent_of(pid) in raylets]


def test_table_is_the_same_when_workers_are_killed(
    folder: Path, cluster: Any, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, killed = tmp_path / "boxes", 0
    with driver(folder, out, cluster.address) as run:
        for parts in (3, 8, 13):
            wait_for_parts(run, out, parts)
            while not (busy := busy_workers(cluster)) and run.poll() is None:  # just between two parts
                time.sleep(0.02)
            for pid in busy[:1]:
                with contextlib.suppress(ProcessLookupError):  # done and gone in the meantime
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        assert run.wait(240) == 0, said(run)
    assert killed >= 2
    assert rows(out) == undisturbed


def test_table_is_the_same_when_a_node_is_lost(
    folder: Path, cluster: Any, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "boxes"
    with driver(folder, out, cluster.address) as run:
        wait_for_parts(run, out, 4)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        assert run.poll() is None, "the run was over before the node was lost"
        assert run.wait(240) == 0, said(run)
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    assert rows(out) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("own_ray", [True, False], ids=["own-ray", "on-a-cluster"])
def test_interrupted_run_says_how_to_go_on_leaves_no_process_and_goes_on(
    folder: Path, cluster: Any, undisturbed: list[dict[str, Any]], tmp_path: Path, number: int, code: int, own_ray: bool
) -> None:
    out, mark = tmp_path / "boxes", uuid.uuid4().hex
    address = None if own_ray else cluster.address
    with driver(folder, out, address, CROPREG_TEST_MARK=mark) as run:
        wait_for_parts(run, out, 4)
        run.send_signal(number)
        assert run.wait(60) == code, said(run)
        assert f"go on with: cropreg match {folder}/originals {folder}/crops --out {out}" in said(run)
        assert "Traceback" not in said(run)
    gone_by = time.monotonic() + 30
    while left := [(pid, line) for pid, line, environment in processes() if mark.encode() in environment]:
        assert time.monotonic() < gone_by, left
        time.sleep(0.2)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("pairs/part-*")}
    assert finished and not list(out.glob("manifests/*"))
    with driver(folder, out, address) as run:
        assert run.wait(240) == 0, said(run)
    assert rows(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what was finished is not computed again"


@pytest.mark.timeout(600)  # four starts of processes that import torch
def test_whole_way_goes_over_several_nodes(folder: Path, cluster: Any, undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    boxes, run_dir, cropped = str(folder / "undisturbed"), str(tmp_path / "run"), str(tmp_path / "cropped")
    training = ["--weights", "none", "--image-side", "64", "--max-epochs", "1", "--batch-size", "8", "--num-workers", "2"]
    for words in (
        ["train", boxes, "--out", run_dir, *training, "--resources", "CPU=1"],
        ["evaluate", run_dir, "--split", "all", "--bootstrap", "10"],
        ["predict", run_dir, str(folder / "originals"), "--out", cropped, "--all"],
    ):
        with verb(words, tmp_path / f"{words[0]}.err", cluster.address) as run:
            assert run.wait(200) == 0, said(run)
    assert len(list(Path(cropped).glob("*.jpg"))) == NUM_PAIRS


@pytest.fixture
def blind_node(cluster: Any, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Adds a node to the cluster to which a folder is an empty disk of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(hidden: Path) -> None:
        unshare = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c"]
        unshare += ['mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
        if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine does not let a process hide a folder from itself")
        command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={cluster.address}", "--num-cpus=1", "--block"]
        command += [f"--object-store-memory={STORE_BYTES}"]
        before = len(cluster.global_state._live_node_ids())
        with open(tmp_path / "node.log", "w") as log:
            started.append(subprocess.Popen([*unshare, *command], stdout=log, stderr=log, start_new_session=True))
        until = time.monotonic() + 60
        while len(cluster.global_state._live_node_ids()) == before:
            assert time.monotonic() < until, (tmp_path / "node.log").read_text()
            time.sleep(0.2)

    yield start
    for node in started:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(60)


@pytest.mark.parametrize(("hidden", "code", "place"), [("boxes", 4, "boxes: "), ("originals", 3, "originals/0000.jpg: ")])
def test_run_is_refused_before_it_starts_when_a_node_does_not_see_a_local_folder(
    folder: Path, tmp_path: Path, cluster: Any, blind_node: Callable[[Path], None], hidden: str, code: int, place: str
) -> None:
    shutil.copytree(folder / "originals", tmp_path / "originals")
    shutil.copytree(folder / "crops", tmp_path / "crops")
    (tmp_path / "boxes").mkdir()
    blind_node(tmp_path / hidden)
    with driver(tmp_path, tmp_path / "boxes", cluster.address) as run:
        assert run.wait(120) == code, said(run)
        error = said(run)
    assert re.search(rf"{tmp_path}/{place}the node [\d.]+ \([0-9a-f]{{8}}\) does not see this (folder|file)", error), error
    assert "use s3://, gs:// or abfs://" in error
    assert not (tmp_path / "boxes" / "pairs").exists() and not list((tmp_path / "boxes").glob(".tmp-*"))
