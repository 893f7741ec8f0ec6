"""One run writes an output at a time, and a run that died does not lock it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cropreg import storage
from cropreg.errors import LockedError
from cropreg.storage import lease as leases
from cropreg.storage.lease import LEASE_FILE, STALE_S, Lease


def stranger(folder: Path, **changes: object) -> None:
    """The lease of a process on another machine."""
    folder.mkdir(exist_ok=True)
    holder = {"id": "x", "verb": "match", "host": "node7", "boot": "b", "namespace": "n", "pid": 42, "started": "1"}
    (folder / LEASE_FILE).write_text(json.dumps({**holder, "heartbeat_at": 1000.0, **changes}))


def test_a_second_run_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with storage.held(out, "match"), pytest.raises(LockedError) as error, storage.held(out, "match"):
        pass
    assert f"process {os.getpid()}" in str(error.value)
    assert "cropreg match" in str(error.value)
    assert "heartbeat" in str(error.value)
    assert error.value.exit_code == 7


def test_looking_whether_a_folder_is_held_writes_nothing(tmp_path: Path) -> None:
    storage.refuse_if_held(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []
    with storage.held(str(tmp_path / "out"), "train"), pytest.raises(LockedError, match="cropreg train"):
        storage.refuse_if_held(str(tmp_path / "out"))


def test_a_lease_is_given_back_and_leaves_no_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with storage.held(str(out), "match"):
        assert (out / LEASE_FILE).exists()
    assert not out.exists()


def test_a_lease_is_given_back_after_an_error_and_what_was_written_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), storage.held(str(out), "match"):
        (out / "made").write_text("")
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["made"]


def test_the_lease_of_another_machine_holds_until_its_heartbeat_is_old(tmp_path: Path) -> None:
    stranger(tmp_path)
    with pytest.raises(LockedError, match=r"process 42 on node7, last heartbeat 59 s ago"):
        Lease(str(tmp_path), "match", clock=lambda: 1000.0 + STALE_S - 1).take()
    Lease(str(tmp_path), "match", clock=lambda: 1000.0 + STALE_S + 1).take()
    assert json.loads((tmp_path / LEASE_FILE).read_text())["pid"] == os.getpid()


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from cropreg import storage; storage.Lease(sys.argv[1], 'match').take(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / LEASE_FILE).exists()
    with storage.held(str(tmp_path), "match"):
        pass


def test_a_number_that_came_again_is_not_the_same_process(tmp_path: Path) -> None:
    stranger(tmp_path, **{**leases._process(), "started": "1"})
    with storage.held(str(tmp_path), "match"):
        pass


def test_a_run_that_lost_its_lease_may_not_commit(tmp_path: Path) -> None:
    with storage.held(str(tmp_path), "match") as lease:
        lease.check()
        stranger(tmp_path)
        lease.beat()
        with pytest.raises(LockedError, match="took this output over"):
            lease.check()
    assert json.loads((tmp_path / LEASE_FILE).read_text())["host"] == "node7"  # not ours to remove


def test_a_heartbeat_renews_the_time(tmp_path: Path) -> None:
    now = [1000.0]
    lease = Lease(str(tmp_path), "match", clock=lambda: now[0])
    lease.take()
    now[0] = 1011.0
    lease.beat()
    assert json.loads((tmp_path / LEASE_FILE).read_text())["heartbeat_at"] == 1011.0


def test_a_damaged_lease_is_replaced(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_text("{")
    with storage.held(str(tmp_path), "match"):
        pass
