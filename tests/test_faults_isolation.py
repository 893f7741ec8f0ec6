"""Pictures that kill, hang or eat memory cost one pair and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import framed_print, save

from cropreg import child, faults, isolation, labels, pairs
from cropreg.errors import ClusterError
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair

pytestmark = pytest.mark.long  # every fault costs a fresh child

HOW = labels.Labelling(256, 90, 100_000_000, MatcherSettings())
LIMITS = child.Limits(seconds=30, memory_bytes=2**30)
NUM_ORIGINALS = 4


@pytest.fixture(scope="module")
def some_pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Four originals, the first with three crops."""
    folder = tmp_path_factory.mktemp("isolation")
    for i in range(NUM_ORIGINALS):
        original, (x1, y1, x2, y2) = framed_print(i)
        save(original, folder / "originals" / f"{i}.jpg")
        for k in range(3 if i == 0 else 1):
            save(original[y1 + 2 * k : y2, x1:x2], folder / "crops" / f"{i}_{k}.png")
    return pairs.discover(str(folder / "originals"), str(folder / "crops"), pair_by="(.+)_[0-9]")


def same(rows: list[labels.Row]) -> list[labels.Row]:
    """Rows without what differs from run to run."""
    return [{name: value for name, value in row.items() if name != "elapsed_ms"} for row in rows]


def test_a_child_finds_what_this_process_finds(some_pairs: list[Pair]) -> None:
    rows, proxies = isolation.label_pairs(some_pairs, HOW, LIMITS)
    expected_rows, expected_proxies = labels.label_pairs(some_pairs, HOW)
    assert same(rows) == same(expected_rows)
    assert proxies == expected_proxies
    assert [row["verdict"] for row in rows] == ["found"] * 6


@pytest.mark.parametrize("kind", ["crash", "kill", "hang", "spin", "memory"])
def test_a_picture_that_breaks_the_process_once_is_tried_again_and_found(
    kind: str, some_pairs: list[Pair], fault: Callable[[str], Callable[[], int]]
) -> None:
    fired = fault(f"pair:{kind}:2_0.png")
    rows, proxies = isolation.label_pairs(some_pairs, HOW, child.Limits(2.0, 2**29))
    assert fired() == 1
    assert [row["verdict"] for row in rows] == ["found"] * 6
    assert len(proxies) == NUM_ORIGINALS


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("crash", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("hang", "longer than 2 s"),
        ("spin", "longer than 2 s"),
        ("memory", "more than 512 MB of memory"),
    ],
)
def test_a_picture_that_breaks_it_twice_is_crashed_and_nothing_else_is_lost(
    kind: str, told: str, some_pairs: list[Pair], fault: Callable[[str], Callable[[], int]]
) -> None:
    fired = fault(f"pair:{kind}:0_1.png:9")
    rows, proxies = isolation.label_pairs(some_pairs, HOW, child.Limits(2.0, 2**29))
    assert fired() == 2
    bad = [row for row in rows if row["verdict"] != "found"]
    assert len(rows) == 6
    assert [row["verdict"] for row in bad] == ["crashed"]
    assert bad[0]["crop_uri"].endswith("0_1.png")
    assert "0_1.png" in bad[0]["reason"]
    assert told in bad[0]["reason"]
    assert len(proxies) == NUM_ORIGINALS


def test_an_exception_of_ours_is_a_verdict_and_the_child_lives_on(
    some_pairs: list[Pair], fault: Callable[[str], Callable[[], int]]
) -> None:
    fired = fault("pair:raise:3_0.png")
    rows, _ = isolation.label_pairs(some_pairs, HOW, LIMITS)
    assert fired() == 1
    assert sorted(row["verdict"] for row in rows) == ["crashed", *["found"] * 5]
    assert "a fault on purpose" in next(row["reason"] for row in rows if row["verdict"] == "crashed")


def test_an_original_that_breaks_it_costs_its_own_crops_after_two_tries(
    some_pairs: list[Pair], fault: Callable[[str], Callable[[], int]]
) -> None:
    fired = fault("open:crash:originals/0.jpg:9")
    rows, proxies = isolation.label_pairs(some_pairs, HOW, LIMITS)
    assert fired() == 2  # not twice for each of its three crops
    bad = [row for row in rows if row["verdict"] == "crashed"]
    assert len(bad) == 3
    assert all("0.jpg (the original)" in row["reason"] for row in bad)
    assert sum(row["verdict"] == "found" for row in rows) == 3
    assert len(proxies) == NUM_ORIGINALS - 1


def test_an_original_whose_last_crop_breaks_still_gets_its_proxy(
    some_pairs: list[Pair], fault: Callable[[str], Callable[[], int]]
) -> None:
    first = [pair for pair in some_pairs if pair.original_uri is not None and pair.original_uri.endswith("0.jpg")]
    for pair in first:
        child.stop()
        fault(f"pair:kill:{pair.crop_uri}:9")
        rows, proxies = isolation.label_pairs(first, HOW, LIMITS)
        assert sorted(row["verdict"] for row in rows) == ["crashed", "found", "found"]
        assert len(proxies) == 1


@pytest.mark.parametrize("who", ["child", "nursery"])
def test_a_process_that_dies_between_two_questions_is_replaced(who: str, some_pairs: list[Pair]) -> None:
    isolation.label_pairs(some_pairs[:1], HOW, LIMITS)
    nursery = child._nursery(LIMITS, "cropreg.isolation")
    os.kill(nursery.child_pid if who == "child" else nursery._process.pid, signal.SIGKILL)
    rows, _ = isolation.label_pairs(some_pairs, HOW, LIMITS)
    assert [row["verdict"] for row in rows] == ["found"] * 6


def test_a_child_is_replaced_after_many_steps_and_after_a_question_that_was_not_heard_to_its_end() -> None:
    children = set()
    for _ in range(3):
        children.add(next(child.ask(LIMITS, _numbers, 5))[0])
    assert len(children) == 3
    for _ in range(4):
        steps = list(child.ask(LIMITS, _numbers, child.STEPS_A_CHILD // 2))
        assert [n for _, n in steps] == list(range(child.STEPS_A_CHILD // 2))
        children.add(steps[0][0])
    assert len(children) == 3 + 2


def test_what_an_interrupted_question_left_unread_answers_no_other() -> None:
    list(child.ask(LIMITS, _numbers, 1))

    def interrupt(*_: object) -> None:  # Ray ends the tasks beside one that failed so
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(child.ask(LIMITS, _slow_numbers, 3))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [n for _, n in child.ask(LIMITS, _numbers, 2)] == [0, 1]


def _slow_numbers(count: int) -> Iterator[tuple[int, int]]:
    for n in range(count):
        time.sleep(0.5)  # a picture that takes longer than the interrupt waits
        yield os.getpid(), 100 + n


def _numbers(count: int) -> Iterator[tuple[int, int]]:
    return ((os.getpid(), n) for n in range(count))


def _number_then(kind: str) -> Iterator[int]:
    yield os.getpid()
    faults._KINDS[kind]()


def test_a_process_that_cannot_start_is_no_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    child.stop()
    monkeypatch.setattr(_numbers, "__module__", "gone")
    with pytest.raises(ClusterError, match=r"does not start: ModuleNotFoundError: No module named 'gone'"):
        next(child.ask(LIMITS, _numbers, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("kind", ["spin", "hang"])
def test_a_child_dies_with_its_parent(kind: str) -> None:
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_faults_isolation import LIMITS, child, _number_then
        steps = child.ask(LIMITS, _number_then, {kind!r})
        pid = next(steps)
        print(child._kept._process.pid, pid, flush=True)
        list(steps)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert len(pids) == 2
    until = time.monotonic() + 20
    while any(map(_lives, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_faults_need_testing_to_be_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROPREG_FAULT", "pair:raise:*")
    monkeypatch.setenv("CROPREG_FAULT_DIR", str(tmp_path))
    monkeypatch.delenv("CROPREG_TESTING", raising=False)
    faults.trip("pair", "x")
    monkeypatch.setenv("CROPREG_TESTING", "1")
    with pytest.raises(RuntimeError, match="on purpose"):
        faults.trip("pair", "x")
    faults.trip("pair", "x")  # once is enough
    assert os.listdir(tmp_path) == ["0-0"]


def test_a_fault_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROPREG_TESTING", "1")
    monkeypatch.setenv("CROPREG_FAULT", "pear:raise:*")
    with pytest.raises(ValueError, match="pear"):
        faults.trip("pair", "x")
