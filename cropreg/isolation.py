"""Isolation: pictures are decoded and matched in a child process, so that one that kills its decoder costs one pair and no more.

One child a worker, which lives long: started anew after a crash, and after some thousand pairs.  It has a deadline for each step, a
limit of memory, leaves no core dumps, and dies with its parent.  What it sends is what :func:`cropreg.labels.label_original` yields,
step by step, so that the parent knows on which pair it broke.  That pair gets one more try in a fresh child, then its verdict is
``crashed``.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe

import cv2

from cropreg.labels import Labelled, Labelling, Opened, Row, Shrunk, Step, by_original, crashed, in_order, label_original
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair

log = logging.getLogger(__name__)

PAIRS_A_CHILD = 2000  # then it is replaced: whatever a decoder leaks ends with it
TRIES = 2  # a second one in a fresh child tells a bad picture from an unlucky moment
NO_MEMORY = 86  # exit code of a child that ran out of memory
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """What a pair may take: seconds of waiting, and bytes of memory beyond what the child starts with."""

    seconds: float
    memory_bytes: int


class Died(Exception):
    """The child died, or was killed because it took too long; the text says how."""


def label_pairs(pairs: Sequence[Pair], how: Labelling, limits: Limits) -> tuple[list[Row], list[Row]]:
    """:func:`cropreg.labels.label_pairs` in a child process: every pair has a row, whatever its pictures do to the decoder."""
    rows, members = by_original(pairs)
    proxies: list[Row] = []
    for uri, crops in members.items():
        done, proxy = _label(uri, crops, how, limits)
        rows += done
        proxies += [proxy] if proxy else []
    return in_order(rows, proxies)


def _label(uri: str, members: Sequence[Pair], how: Labelling, limits: Limits) -> tuple[list[Row], Row | None]:
    """The rows and the proxy of one original."""
    rows: list[Row] = []
    proxy: Row | None = None
    original_id: str | None = None
    left, failed_on, tries = list(members), None, 0
    while left:
        opened = False
        try:
            for step in _child(limits).ask(uri, left, how):
                if isinstance(step, Opened):
                    opened, original_id = True, step.original_id
                elif isinstance(step, Shrunk):
                    proxy = step.row
                else:
                    rows.append(step.row)
                    left.pop(0)
        except Died as error:
            blamed = left[0].pair_id if opened else uri
            tries = tries + 1 if blamed == failed_on else 1
            failed_on = blamed
            log.warning("died=%s try=%d on=%s", error, tries, blamed)
            if tries == TRIES:
                what = left[0].crop_uri if opened else f"{uri} (the original)"
                given_up = left[:1] if opened else left[:]
                rows += [
                    crashed(pair, original_id, f"{what}: {error}, {TRIES} times. The file may be damaged.") for pair in given_up
                ]
                del left[: len(given_up)]
    wants_proxy = any(row["verdict"] not in ("unreadable", "crashed") for row in rows)
    if wants_proxy and proxy is None:  # the pair that would have made it crashed
        with contextlib.suppress(Died):
            proxy = next((step.row for step in _child(limits).ask(uri, [], how) if isinstance(step, Shrunk)), None)
    return rows, proxy


class Child:
    """A process that matches; :func:`_child` keeps one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pairs = 0
        self._connection, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the child lives
        # Not a fork: the parent has threads.  It dies with the thread that starts it, so that must be one that stays.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cropreg.isolation", str(theirs.fileno()), str(os.getpid()), str(limits.memory_bytes)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()

    @property
    def is_spent(self) -> bool:
        """Whether it should be replaced before it is asked again."""
        return self._process.poll() is not None or self._pairs >= PAIRS_A_CHILD

    def ask(self, uri: str, members: Sequence[Pair], how: Labelling) -> Iterator[Step]:
        """Yields the steps of an original's crops as they are done.

        Raises:
            Died: the child died before all were done, or was killed because a step took too long.
        """
        terms = {**asdict(how), "matcher": how.matcher.model_dump()}
        question = {"uri": uri, "members": [asdict(pair) for pair in members], "how": terms}
        try:
            self._connection.send_bytes(json.dumps(question).encode())
            while True:
                if not self._connection.poll(self.limits.seconds):
                    self.kill()
                    raise Died(f"took longer than {self.limits.seconds:g} s (--pair-timeout-s)")
                kind, _, rest = self._connection.recv_bytes().partition(b"\n")
                if kind == b"done":
                    return
                if kind == b"opened":
                    yield Opened(rest.decode())
                elif kind == b"row":
                    self._pairs += 1
                    yield Labelled(json.loads(rest))
                else:
                    head, _, jpeg = rest.partition(b"\n")
                    yield Shrunk({**json.loads(head), "jpeg": jpeg})
        except (EOFError, OSError) as error:
            raise Died(self._epitaph()) from error

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._errors.close()

    def _epitaph(self) -> str:
        """How it died, in words."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        last = self._errors.read().decode(errors="replace").strip()
        log.debug("stderr=%s", last)
        self.kill()
        if code == NO_MEMORY:
            return f"needed more than {self.limits.memory_bytes / 2**20:.0f} MB of memory (--pair-memory-mb)"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process that decodes died ({name})"


_kept: Child | None = None


def _child(limits: Limits) -> Child:
    """This process's child, a fresh one if need be."""
    global _kept
    if _kept is None or _kept.is_spent or _kept.limits != limits:
        stop()
        _kept = Child(limits)
    return _kept


def stop() -> None:
    """Ends this process's child, if there is one."""
    global _kept
    if _kept is not None:
        _kept.kill()
        _kept = None


atexit.register(stop)


def main(descriptor: int, parent: int, memory_bytes: int) -> None:
    """The child: answers questions until its parent is gone."""
    _confine(parent, memory_bytes)
    cv2.setNumThreads(1)
    connection: Connection[bytes, bytes] = Connection(descriptor)
    try:
        while True:
            question = json.loads(connection.recv_bytes())
            how = question["how"]
            how["matcher"] = MatcherSettings(**how["matcher"])
            for step in label_original(question["uri"], [Pair(**pair) for pair in question["members"]], Labelling(**how)):
                connection.send_bytes(_encoded(step))
            connection.send_bytes(b"done\n")
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        os._exit(NO_MEMORY)  # without cleaning up, for which there is no memory either


def _encoded(step: Step) -> bytes:
    if isinstance(step, Opened):
        return b"opened\n" + step.original_id.encode()
    if isinstance(step, Labelled):
        return b"row\n" + json.dumps(step.row).encode()
    head = json.dumps({name: value for name, value in step.row.items() if name != "jpeg"})
    return b"proxy\n" + head.encode() + b"\n" + bytes(step.row["jpeg"])


def _confine(parent: int, memory_bytes: int) -> None:
    """No core dumps, no more memory than allowed, no life after the parent's, as far as this system can."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            with open("/proc/self/statm") as f:
                has = int(f.read().split()[0]) * resource.getpagesize()
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            limit = has + memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before that took effect
            os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
