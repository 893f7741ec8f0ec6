"""A lease on an output folder: one run writes it at a time, and a run that died does not lock it for ever.

The lease is a hidden file that names its holder and is written anew every few seconds.  One whose heartbeat is old, or whose process
is gone from this machine, is taken over.  It saves work and confusion; what keeps the data right is that files appear whole and a
manifest is created exclusively, lease or not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cropreg.errors import CropregError, LockedError
from cropreg.storage.files import create_exclusive, make_folder, read_bytes, remove, write_whole
from cropreg.storage.uris import is_remote, join, local_path

log = logging.getLogger(__name__)

LEASE_FILE = ".lease.json"  # hidden: no listing shows it
HEARTBEAT_S, STALE_S = 10.0, 60.0


class Lease:
    """The right to write a folder; made by :func:`held`."""

    def __init__(self, folder: str, verb: str, clock: Callable[[], float] = time.time) -> None:
        self._uri = join(folder, LEASE_FILE)
        self._folder = folder
        self._clock = clock
        self._lost = False
        self._me = {"id": uuid.uuid4().hex, "verb": verb, **_process()}

    def take(self) -> None:
        """Takes the lease, from a dead run if need be.

        Raises:
            LockedError: another run holds it.  OutputError: the folder cannot be written.
        """
        make_folder(self._folder)  # says so of a bucket that is missing or may not be written
        for _ in range(3):
            if create_exclusive(self._uri, self._content()):
                return
            self.refuse_holder()
            log.warning("lease=%s taken over from a run that died", self._folder)
            remove(self._uri)
        raise LockedError(f"{self._folder}: other runs want to write this output, too. Run one at a time.")

    def refuse_holder(self) -> None:
        """Raises LockedError when a run that lives holds the lease, this process's own included."""
        holder = self._holder()
        if holder is not None and not self._is_dead(holder):
            raise LockedError(_told(self._folder, holder, self._clock()))

    def beat(self) -> None:
        """Says that this run lives; notices when another has taken the lease over, as after a long sleep of this machine."""
        holder = self._holder()
        if holder is not None and holder.get("id") != self._me["id"]:
            self._lost = True
            return
        with contextlib.suppress(CropregError):  # a full disk for a moment; the next one may succeed
            write_whole(self._uri, self._content())

    def check(self) -> None:
        """Raises LockedError when the lease was lost: nothing may be committed then."""
        if not self._lost:
            holder = self._holder()
            self._lost = holder is not None and holder.get("id") != self._me["id"]
        if self._lost:
            raise LockedError(
                f"{self._folder}: another run took this output over while this one stood still. What was finished is kept; "
                f"run the same command again when the other is done."
            )

    def give_back(self) -> None:
        """Removes the lease if it is still ours."""
        holder = self._holder()
        if holder is not None and holder.get("id") == self._me["id"]:
            with contextlib.suppress(CropregError):
                remove(self._uri)
        if not is_remote(self._folder):
            with contextlib.suppress(OSError):
                os.rmdir(local_path(self._folder))  # a run that failed before it wrote anything leaves nothing behind

    def _content(self) -> bytes:
        return json.dumps({**self._me, "heartbeat_at": self._clock()}).encode()

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(read_bytes(self._uri))
        except (OSError, ValueError):
            return None
        return holder if isinstance(holder, dict) else None

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        mine = _process()
        if all(holder.get(name) == mine[name] for name in ("host", "boot", "namespace")):
            return _started(int(holder.get("pid", 0))) != holder.get("started")
        return bool(self._clock() - float(holder.get("heartbeat_at", 0)) > STALE_S)


def refuse_if_held(folder: str) -> None:
    """Raises LockedError when another run is writing the folder; writes nothing itself."""
    Lease(folder, "").refuse_holder()


@contextlib.contextmanager
def held(folder: str, verb: str) -> Iterator[Lease]:
    """Holds the lease on a folder, which is made if need be, and keeps its heartbeat going.

    Raises:
        LockedError: another run is writing there; its host, process and last heartbeat are named.
    """
    lease = Lease(folder, verb)
    lease.take()
    done = threading.Event()

    def live() -> None:
        while not done.wait(HEARTBEAT_S):
            lease.beat()

    beating = threading.Thread(target=live, name="lease", daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        done.set()
        beating.join()
        lease.give_back()


def _told(folder: str, holder: dict[str, Any], now: float) -> str:
    ago_s = max(0, round(now - float(holder.get("heartbeat_at", 0))))
    return (
        f"{folder}: another run (cropreg {holder.get('verb')}) is writing this output: process {holder.get('pid')} on "
        f"{holder.get('host')}, last heartbeat {ago_s} s ago. Wait for it, or stop it; a run that died is replaced after {STALE_S:.0f} s."
    )


def _process() -> dict[str, Any]:
    """What tells this process from all others: machine, boot, number, and when it started, since numbers come again."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "namespace": os.readlink(namespace) if os.path.lexists(namespace) else "",  # containers number their processes anew
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since the boot; None when there is none."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc: a process that answers may be the one
        os.kill(pid, 0)
    except OSError:
        return None
    return ""
