"""The small copies of the originals that training and pages show: read one at a time, from a file that is mapped, not loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg import storage
from cropreg.cache import Cache
from cropreg.errors import InputError
from cropreg.schema import BoxDataset


class Proxies:
    """The small JPEG copies of a dataset, memory-mapped: any one is read without its neighbours.

    Parts on an object store are fetched once into ``cache``, a folder of this machine (by default the user's own), and mapped from there.

    Raises:
        UsageError: the proxies are on an object store and more than the cache may hold.
    """

    def __init__(self, dataset: BoxDataset, cache: Cache | None = None) -> None:
        self._dataset = dataset
        self._parts = dataset.parts("proxies")
        self._cache = None
        if storage.is_remote(dataset.uri):
            self._cache = cache or Cache()
            self._cache.check_room(self._parts)
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])
        self._open: dict[int, pa.Table] = {}

    def locate(self, original_ids: pa.Array) -> NDArray[np.int64]:
        """Where the proxies of these originals stand: (N) positions over all parts; -1 where there is none."""
        if not self._parts:
            return np.full(len(original_ids), -1, np.int64)
        ids = pa.concat_arrays([c for i in range(len(self._parts)) for c in self._table(i)["original_id"].chunks])
        return np.asarray(pc.fill_null(pc.index_in(original_ids, ids), -1).to_numpy(zero_copy_only=False), np.int64)

    def jpeg(self, position: int) -> bytes:
        """The bytes of the proxy at a position that :meth:`locate` gave."""
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        return bytes(self._table(part)["jpeg"][int(position - self._starts[part])].as_py())

    def _table(self, index: int) -> pa.Table:
        if index not in self._open:
            part = self._parts[index]
            uri = storage.join(self._dataset.uri, part.file)
            if self._cache is not None:
                path = self._cache.path_of(part, lambda: self._dataset.read_part(part))
            else:
                path = storage.local_path(uri)
            try:
                self._open[index] = pa.ipc.open_file(pa.memory_map(path)).read_all()
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{uri}: this file of proxies cannot be read ({error}). Restore it, or match again.") from error
        return self._open[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a memory map does not travel between processes; each opens its own
