"""Files of an object store kept on this machine: fetched once a node, checked, and no more of them than there is room for."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cropreg import storage
from cropreg.errors import OutputError, UsageError
from cropreg.schema import Part

DEFAULT_GB = 50.0
_LOCK = ".lock"


class Cache:
    """A folder of this machine with copies of a dataset's parts, each under the name of its checksum.

    Several processes may use one at once: a part is fetched by one of them while the others wait for it, and appears whole.  When room
    is wanted, the parts that were not used for longest go; a process that has one mapped keeps what it sees.

    Args:
        folder: None means CROPREG_CACHE_DIR, else the user's own cache folder.
        max_gb: how much it may hold; None means CROPREG_CACHE_GB, else 50.

    Raises:
        UsageError: CROPREG_CACHE_GB is no number above nought.
    """

    def __init__(self, folder: str | None = None, max_gb: float | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self._folder = Path(folder or os.environ.get("CROPREG_CACHE_DIR") or os.path.join(home, "cropreg")).absolute()
        self._max_bytes = int((_gb_of_environment() if max_gb is None else max_gb) * 1e9)

    def check_room(self, parts: Sequence[Part]) -> None:
        """Looks whether parts that are wanted at the same time can all be here.

        Raises:
            UsageError: they cannot; names the cure.
        """
        total = sum(part.bytes for part in parts)
        if total > self._max_bytes:
            raise UsageError(
                f"{self._folder}: the proxies take {total / 1e9:.3g} GB and this cache may hold {self._max_bytes / 1e9:.3g}. Give it "
                f"more (--cache-gb or CROPREG_CACHE_GB), perhaps on a larger disk (--cache-dir or CROPREG_CACHE_DIR)."
            )

    def path_of(self, part: Part, fetch: Callable[[], bytes]) -> str:
        """The path of a part's copy, which is fetched if it is not there or not what it should be.

        Raises:
            OutputError: the folder cannot be written. Whatever ``fetch`` raises, which checks what it has got.
        """
        path = self._folder / part.sha256
        if not _holds(path, part):
            with self._alone():
                if not _holds(path, part):  # another process was quicker
                    self._make_room(part.bytes)
                    storage.write_whole(str(path), fetch())
        with contextlib.suppress(FileNotFoundError):  # thrown out already: too little room for all who use this
            os.utime(path)  # used just now
        return str(path)

    def _make_room(self, wanted: int) -> None:
        """Removes the parts that were not used for longest until ``wanted`` bytes more fit, and what a killed process left half written."""
        kept = []
        for item in os.scandir(self._folder):
            if item.name.startswith(storage.TEMPORARY_PREFIX):
                storage.remove(item.path)
            elif item.name != _LOCK:
                kept.append((item.stat().st_mtime_ns, item.stat().st_size, item.path))
        over = sum(size for _, size, _ in kept) + wanted - self._max_bytes
        for _, size, path in sorted(kept):
            if over <= 0:
                return
            storage.remove(path)
            over -= size

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Lets one process of this machine at a time write here; the system takes the lock back from one that dies."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = open(self._folder / _LOCK, "wb")  # noqa: SIM115  # closed below
        except OSError as error:
            raise OutputError(
                f"{self._folder}: this cache cannot be written ({error.strerror}). Give another: --cache-dir or CROPREG_CACHE_DIR."
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _holds(path: Path, part: Part) -> bool:
    """Whether a file is there and holds the bytes of a part: a failing disk, or a hand, may have left something else."""
    try:
        if path.stat().st_size != part.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
    except OSError:  # not there; or not to be read, and then not to be written either, which says so
        return False


def _gb_of_environment() -> float:
    text = os.environ.get("CROPREG_CACHE_GB", str(DEFAULT_GB))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise UsageError(f"CROPREG_CACHE_GB is {text!r}: it must be a number of gigabytes above 0.")
