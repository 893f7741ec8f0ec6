"""Child: a process beside this one, for functions that may crash, hang or eat memory; what they yield comes back as it is yielded.

There are two of them.  A nursery imports what is needed and then only forks, so that a fresh child costs milliseconds instead of the half
second of its imports.  A child answers questions until it breaks, or is old.  It has a deadline for each step, a limit of memory, leaves
no core dumps, and dies with its parents.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

import cv2

from cropreg.errors import ClusterError

log = logging.getLogger(__name__)

T = TypeVar("T")

STEPS_A_CHILD = 4000  # then it is replaced: whatever a decoder leaks ends with it
TRIES = 2  # a second one in a fresh child tells a bad picture from an unlucky moment
NO_MEMORY = 86  # exit code of a child that ran out of memory
_START_S = 300  # for the imports, on a machine that is very busy: no picture's fault
_END_S = 5
_MOST_MS = 2**31 - 1  # that poll takes: 24 days
_NUMBER = struct.Struct("i")
_DONE = None  # what follows the last step; no step is None
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """What a step may take: seconds of waiting, and bytes of memory beyond what the child starts with."""

    seconds: float
    memory_bytes: int


class Died(Exception):
    """The child died, or was killed because a step took too long; the text says how."""


def ask(limits: Limits, function: Callable[..., Iterator[T]], *arguments: Any) -> Iterator[T]:
    """Yields what ``function(*arguments)`` yields in the child, step by step.

    The function must be one that can be imported, and yield no None.  Where it is not gone through to its end, the child ends.

    Raises:
        Died: the child died before all was done, or was killed because a step took too long; the next question finds a fresh one.
        ClusterError: no child could be started.
    """
    yield from _nursery(limits, function.__module__).ask(function, arguments)


def tried(limits: Limits, function: Callable[..., Iterator[T]], *arguments: Any) -> list[T]:
    """All that :func:`ask` yields, with a second try.

    Raises:
        Died: it died both times.
    """
    for attempt in range(TRIES):
        try:
            return list(ask(limits, function, *arguments))
        except Died as error:
            log.warning("died=%s try=%d on=%s", error, attempt + 1, arguments[:1])
            last = error
    raise Died(f"{last}, {TRIES} times") from last


def stop() -> None:
    """Ends this process's nursery and child, if there are any."""
    global _kept
    if _kept is not None:
        _kept.stop()
        _kept = None


def _nursery(limits: Limits, module: str) -> _Nursery:
    """This process's nursery, a fresh one if need be."""
    global _kept
    if _kept is None or not _kept.lives or _kept.limits != limits:
        stop()
        _kept = _Nursery(limits, module)
    return _kept


class _Nursery:
    """The parent's end of the nursery, and of the one child that it has at a time."""

    def __init__(self, limits: Limits, module: str) -> None:
        self.limits = limits
        self.child_pid = 0
        self._connection: Connection[Any, Any] | None = None
        self._steps = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the nursery lives
        self._control, theirs = socket.socketpair()
        # What this process can import the child can, too: a question names its function.  And what forks must have one thread only.
        one_thread = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # Not a fork: this process has threads.  It dies with the thread that starts it, so that must be one that stays.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cropreg.child", str(theirs.fileno()), str(os.getpid()), str(limits.memory_bytes), module],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors, pass_fds=[theirs.fileno()], env=environment,
        )  # fmt: skip
        theirs.close()

    @property
    def lives(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, function: Callable[..., Iterator[T]], arguments: tuple[Any, ...]) -> Iterator[T]:
        """As :func:`cropreg.child.ask`."""
        if self._connection is not None and self._steps >= STEPS_A_CHILD:
            self._bury()
        connection = self._connection or self._bear()
        # Not connection.poll, which takes a new selector each time: 0.1 ms.
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLIN)
        try:
            connection.send((function, arguments))
            while True:
                if not ready.poll(min(self.limits.seconds * 1000, _MOST_MS)):
                    self._bury()
                    raise Died(f"took longer than {self.limits.seconds:g} s (--pair-timeout-s)")
                step = connection.recv()
                if step is _DONE:
                    return
                self._steps += 1
                yield step
        except (EOFError, OSError) as error:
            raise Died(self._epitaph()) from error
        except Died:
            raise
        except BaseException:  # left early or interrupted: what it still has to say must not answer the next question
            if self._connection is not None:
                self._bury()
            raise

    def stop(self) -> None:
        """Ends it and its child at once."""
        if self._connection is not None:
            self._connection.close()
            _kill(self.child_pid)
            self._connection = None
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._errors.close()

    def _bear(self) -> Connection[Any, Any]:
        """Has a child forked."""
        self._errors.seek(0)  # the processes share the place in this file, too
        self._errors.truncate()
        ours, theirs = Pipe()
        try:
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            self.child_pid = self._told(_START_S)
        except OSError as error:
            ours.close()
            reason = self._last_words() or error
            self._process.kill()
            raise ClusterError(
                f"the process in which pictures are decoded does not start: {reason}. Is the machine out of memory or of processes?"
            ) from error
        finally:
            theirs.close()
        self._connection, self._steps = ours, 0
        return ours

    def _bury(self) -> int | None:
        """Ends the child, if it lives, and returns its exit code; None when the nursery is gone as well."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        try:
            return self._told(0)
        except OSError:
            pass
        _kill(self.child_pid)
        try:
            return self._told(_END_S)
        except OSError:
            self._process.kill()
            return None

    def _epitaph(self) -> str:
        """How the child died, in words."""
        with contextlib.suppress(OSError):
            code = self._told(_END_S)
            assert self._connection is not None
            self._connection.close()
            self._connection = None
            if code == NO_MEMORY:
                return f"needed more than {self.limits.memory_bytes / 2**20:.0f} MB of memory (--pair-memory-mb)"
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}: {self._last_words()}"
            return f"the process that decodes died ({how})"
        self._bury()
        return "the process that decodes died"

    def _told(self, seconds: float) -> int:
        """The next number from the nursery: a child's process id, then its exit code.

        Raises:
            OSError: it did not come in time, or the nursery is gone.
        """
        self._control.settimeout(seconds)
        data = self._control.recv(_NUMBER.size)
        if len(data) < _NUMBER.size:
            raise ConnectionResetError("the nursery is gone")
        number: int = _NUMBER.unpack(data)[0]
        return number

    def _last_words(self) -> str:
        """The last line on standard error."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        log.debug("stderr=%s", lines)
        return lines[-1] if lines else ""


_kept: _Nursery | None = None
atexit.register(stop)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main(descriptor: int, parent: int, memory_bytes: int, module: str) -> None:
    """The nursery: a child for each pipe that it is sent, one after the other, until its parent is gone."""
    importlib.import_module(module)
    cv2.setNumThreads(1)
    _limit(memory_bytes)
    _die_with(parent)
    gc.freeze()  # or the first collection in each child copies all pages
    nursery = os.getpid()
    control = socket.socket(fileno=descriptor)
    while True:
        message, pipes, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        child = os.fork()
        if child == 0:
            control.close()
            _answer(pipes[0], nursery)
        os.close(pipes[0])  # so that the parent sees its end when the child is gone
        control.sendall(_NUMBER.pack(child))
        _, status = os.waitpid(child, 0)
        control.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _answer(descriptor: int, nursery: int) -> NoReturn:
    """The child: answers questions until nobody asks."""
    code = 1
    try:
        _die_with(nursery)
        connection: Connection[Any, Any] = Connection(descriptor)
        while True:
            try:
                function, arguments = connection.recv()
            except EOFError:
                os._exit(0)
            for step in function(*arguments):
                connection.send(step)
            connection.send(_DONE)
    except MemoryError:
        code = NO_MEMORY  # and no cleaning up, for which there is no memory either
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _limit(memory_bytes: int) -> None:
    """No core dumps, and no more memory than allowed, as far as this system can."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            with open("/proc/self/statm") as f:
                has = int(f.read().split()[0]) * resource.getpagesize()
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            limit = has + memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _die_with(parent: int) -> None:
    """No life after the parent's, as far as this system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before that took effect
            os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
