"""Faults on purpose: one injector for all tests of what happens when something breaks.

``CROPREG_FAULT="stage:kind:selector[:count]"`` (several joined by ``;``) breaks the first ``count`` (1) subjects of a stage whose name
holds the selector; ``*`` is any.  Honoured only with ``CROPREG_TESTING=1``.  Each firing leaves a file in ``CROPREG_FAULT_DIR``: that is
how processes count together, and how a test sees that the fault happened.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import time
from pathlib import Path

log = logging.getLogger(__name__)

STAGES = ("open", "pair", "part", "commit", "write")
"""Before an original is read, a pair is matched, a part of a dataset is written, its manifest is committed, any local file is written."""


def trip(stage: str, subject: str) -> None:
    """Breaks this process here if a fault was asked for; costs a look into the environment otherwise."""
    wanted = os.environ.get("CROPREG_FAULT")
    if not wanted or os.environ.get("CROPREG_TESTING") != "1":
        return
    for number, fault in enumerate(wanted.split(";")):
        at, kind, selector, *count = fault.split(":")
        if at not in STAGES or kind not in _KINDS:
            raise ValueError(f"CROPREG_FAULT: {fault!r} is no stage:kind:selector[:count] of {STAGES} and {tuple(_KINDS)}")
        if (at == stage and selector in ("*", "")) or (at == stage and selector in subject):
            for n in range(int(count[0]) if count else 1):
                if _first(Path(os.environ["CROPREG_FAULT_DIR"]) / f"{number}-{n}", subject):
                    log.warning("fault=%s subject=%s", fault, subject)
                    _KINDS[kind]()
                    break


def _first(mark: Path, subject: str) -> bool:
    """Whether this process is the first to leave this mark."""
    try:
        descriptor = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(descriptor, subject.encode(errors="replace"))
    os.close(descriptor)
    return True


def _raise() -> None:
    raise RuntimeError("a fault on purpose")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash() -> None:
    ctypes.string_at(0)  # SIGSEGV


def _hang() -> None:
    time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(64 * 2**20))


def _fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_KINDS = {"raise": _raise, "kill": _kill, "crash": _crash, "hang": _hang, "spin": _spin, "memory": _eat_memory, "full": _fill_disk}
