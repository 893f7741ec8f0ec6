"""Drivers that are killed, workers that die and disks that fill: the same table in the end, nothing twice, nothing torn.

Each run is the command itself in a process of its own, with a Ray of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropreg.schema import BoxDataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
NUM_PAIRS = 120
MakePairs = Callable[[Path, int], dict[str, tuple[int, int, int, int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_pairs: MakePairs) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_pairs(folder, NUM_PAIRS)
    return folder


def start(folder: Path, out: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    return command(["match", str(folder / "originals"), str(folder / "crops"), "--out", str(out)], *flags, **environment)


def command(words: list[str], *flags: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cropreg.cli", *words, "--pairs-per-part", "4", *flags],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "RAY_ADDRESS": "local", **environment}, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=300)
    return process.returncode, told


def faulty(tmp_path: Path, wanted: str) -> dict[str, str]:
    marks = tmp_path / "marks"
    marks.mkdir(exist_ok=True)
    return {"CROPREG_TESTING": "1", "CROPREG_FAULT": wanted, "CROPREG_FAULT_DIR": str(marks)}


def table(out: Path) -> pa.Table:
    """All rows, without what differs from run to run; fails on a row that is there twice."""
    listed = BoxDataset.open(str(out))
    parts = [pq.read_table(out / part.file) for part in listed.parts("pairs")]
    assert sum(part.num_rows for part in parts) == NUM_PAIRS
    return listed.pairs().drop_columns(["elapsed_ms"])


def part_files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "pairs").glob("part-*")}


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> pa.Table:
    code, told = finish(start(folder, folder / "undisturbed"))
    assert code == 0, told
    return table(folder / "undisturbed")


def test_a_driver_killed_ten_times_ends_with_the_same_table_and_computes_no_part_twice(
    folder: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", dict[str, int]()
    kills = 0
    while kills < 10:
        process = start(folder, out, "--concurrency", "1")
        while process.poll() is None and len(part_files(out)) <= len(seen):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        kills += 1
        process.communicate()
        now = part_files(out)
        assert {name: now[name] for name in seen} == seen, "a part that was there was written again"
        seen = now
    code, told = finish(start(folder, out))
    assert code == 0, told
    now = part_files(out)
    assert {name: now[name] for name in seen} == seen
    assert table(out).equals(undisturbed)
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-") and path.stat().st_size == 0]


def test_a_driver_killed_before_its_commit_computes_nothing_again(folder: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _ = finish(start(folder, out, **faulty(tmp_path, "commit:kill:*")))
    assert code == -signal.SIGKILL
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert not (out / "manifests").exists()
    before = part_files(out)
    code, told = finish(start(folder, out))
    assert code == 0, told
    assert part_files(out) == before
    assert table(out).equals(undisturbed)


def test_workers_that_die_are_replaced_and_nothing_is_lost(folder: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, told = finish(start(folder, out, **faulty(tmp_path, "part:kill:*:3")))
    assert code == 0, told
    assert len(list((tmp_path / "marks").iterdir())) == 3
    assert table(out).equals(undisturbed)


def test_poisonous_pictures_cost_their_own_pairs_only_and_can_be_tried_again(
    folder: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fault = faulty(tmp_path, "pair:crash:0007:9;pair:hang:0033:9;pair:memory:0071:9;pair:kill:0090:9")
    code, told = finish(start(folder, out, "--pair-timeout-s", "5", "--pair-memory-mb", "512", **fault))
    assert code == 0, told
    assert len(list((tmp_path / "marks").iterdir())) == 8  # each once more in a fresh process
    rows = {row["crop_uri"][-8:-4]: row for row in table(out).to_pylist()}
    assert {name for name, row in rows.items() if row["verdict"] != "found"} == {"0007", "0033", "0071", "0090"}
    assert {rows[name]["verdict"] for name in ("0007", "0033", "0071", "0090")} == {"crashed"}
    assert json.loads((out / "result.json").read_text())["counts"]["crashed"] == 4
    code, told = finish(start(folder, out, "--retry-failed"))
    assert code == 0, told
    assert json.loads((out / "result.json").read_text())["computed"] == 4
    assert BoxDataset.open(str(out)).pairs().drop_columns(["elapsed_ms"]).equals(undisturbed)


def test_poisonous_pictures_are_named_when_pairs_are_found_by_content_and_when_crops_are_imported(
    folder: Path, tmp_path: Path
) -> None:
    for side in ("originals", "crops"):
        shutil.copytree(folder / side, tmp_path / side)
    for name in ("0005", "0006", "0007"):
        (tmp_path / "crops" / f"{name}.png").rename(tmp_path / "crops" / f"renamed {name}.png")
    out = tmp_path / "out"
    fault = faulty(tmp_path, "open:crash:originals/0005:9;open:hang:renamed 0006:9")
    code, told = finish(start(tmp_path, out, "--by-content", "--pair-timeout-s", "20", **fault))
    assert code == 0, told
    assert len(list((tmp_path / "marks").iterdir())) == 4
    rows = BoxDataset.open(str(out)).pairs().to_pylist()
    assert sum(row["verdict"] == "found" for row in rows) == NUM_PAIRS - 2
    reasons = {Path(row["crop_uri"] or row["original_uri"]).name: row["reason"] for row in rows if row["verdict"] != "found"}
    assert reasons.keys() == {"0005.jpg", "renamed 0005.png", "0006.jpg", "renamed 0006.png"}
    assert "originals/0005.jpg: the process that decodes died (SIGSEGV), 2 times" in reasons["0005.jpg"]
    assert "renamed 0006.png: took longer than 20 s (--pair-timeout-s), 2 times" in reasons["renamed 0006.png"]

    shutil.rmtree(tmp_path / "marks")
    listed = "\n".join(f"{path.name},10,10,100,100" for path in sorted((tmp_path / "originals").iterdir()))
    (tmp_path / "boxes.csv").write_text(f"original,x1,y1,x2,y2\n{listed}\n")
    words = ["match", str(tmp_path / "originals"), "--import", "csv", "--import-from", str(tmp_path / "boxes.csv")]
    fault = faulty(tmp_path, "open:kill:originals/0009:9;open:memory:originals/0100:9")
    code, told = finish(command([*words, "--out", str(tmp_path / "imported")], "--pair-memory-mb", "512", **fault))
    assert code == 0, told
    assert len(list((tmp_path / "marks").iterdir())) == 4
    verdicts = {
        Path(row["original_uri"]).stem: row["verdict"] for row in BoxDataset.open(str(tmp_path / "imported")).pairs().to_pylist()
    }
    assert {name for name, verdict in verdicts.items() if verdict != "found"} == {"0009", "0100"}
    assert verdicts["0009"] == verdicts["0100"] == "crashed" and len(verdicts) == NUM_PAIRS


@pytest.mark.parametrize("what", ["pairs/", "proxies/", "manifests/"])
def test_a_full_disk_ends_with_code_4_and_goes_on_when_there_is_room(
    what: str, folder: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, told = finish(start(folder, out, **faulty(tmp_path, f"write:full:{what}")))
    assert code == 4, told
    assert "No space left" in told
    assert "The above exception" not in told
    assert not (out / "manifests" / "000001.json").exists()
    assert not (out / ".lease.json").exists()
    code, told = finish(start(folder, out))
    assert code == 0, told
    assert table(out).equals(undisturbed)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs the right to mount a small disk")
def test_a_disk_that_is_really_full_leaves_no_torn_file(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        code, told = finish(start(folder, disk / "out"))
        assert code == 4, told
        assert not list((disk / "out" / "manifests").glob("*")) if (disk / "out" / "manifests").exists() else True
        for path in (disk / "out").rglob("part-*.parquet"):
            pq.read_table(path)  # whole
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_second_builder_ends_with_code_7_and_the_first_is_not_disturbed(
    folder: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = start(folder, out)
    while not (out / ".lease.json").exists() and first.poll() is None:
        time.sleep(0.02)
    code, told = finish(start(folder, out))
    assert code == 7, told
    assert f"process {first.pid}" in told
    code, told = finish(first)
    assert code == 0, told
    assert table(out).equals(undisturbed)
