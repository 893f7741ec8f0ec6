"""Spill: more items than memory should hold, put aside on disk by a hash of their key, so that items of one key come back together."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

IN_MEMORY = 50_000  # items up to which nothing is written
PARTITIONS = 64


class Spill:
    """Items that JSON can hold, each with a key; comes back as lists, all items of one key in the same one, in the order they came.

    A few items stay in memory and come back as one list.  Use it as a context manager: the files end with it.

    >>> with Spill() as spill:
    ...     spill.add("a", [1])
    ...     [list(part) for part in spill]
    [[[1]]]
    """

    def __init__(self, most_in_memory: int = IN_MEMORY) -> None:
        self._most = most_in_memory
        self._kept: list[tuple[str, Any]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[Any] = []
        self._stack = contextlib.ExitStack()
        self.count = 0

    def add(self, key: str, item: Any) -> None:
        """Puts an item aside."""
        self.count += 1
        if self._folder is None:
            self._kept.append((key, item))
            if len(self._kept) > self._most:
                self._start()
            return
        self._write(key, item)

    def __iter__(self) -> Iterator[list[Any]]:
        if self._folder is None:
            if self._kept:
                yield [item for _, item in self._kept]
            return
        for file in self._files:
            file.flush()
        for path in sorted(Path(self._folder.name).iterdir()):
            with open(path, encoding="ascii") as lines:
                items = [json.loads(line) for line in lines]
            if items:
                yield items

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cropreg-")
        for number in range(PARTITIONS):
            path = Path(self._folder.name, f"{number:03d}")
            self._files.append(self._stack.enter_context(path.open("w", encoding="ascii", buffering=2**16)))
        for key, item in self._kept:
            self._write(key, item)
        self._kept.clear()

    def _write(self, key: str, item: Any) -> None:
        file = self._files[zlib.crc32(key.encode(errors="surrogatepass")) % PARTITIONS]
        file.write(json.dumps(item))
        file.write("\n")

    def close(self) -> None:
        """Removes what was written."""
        self._stack.close()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
