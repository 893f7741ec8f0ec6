"""The small copies of the originals that training and pages show: read one at a time, from where each lies in its file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg import storage
from cropreg.cache import Cache
from cropreg.errors import InputError
from cropreg.schema import BoxDataset, Part


class Proxies:
    """The small JPEG copies of a dataset: any one is read without its neighbours.

    Holds where each copy lies, 12 bytes a picture.  The files are not kept mapped: what has been read of a mapped file counts as this
    process's memory, and in an epoch that is all of it.  Parts on an object store are fetched once into ``cache``, a folder of this
    machine (by default the user's own).

    Raises:
        UsageError: the proxies are on an object store and more than the cache may hold.
    """

    def __init__(self, dataset: BoxDataset, cache: Cache | None = None) -> None:
        self._dataset = dataset
        self._parts = dataset.parts("proxies")
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])
        self._known: dict[int, _Where] = {}
        self._cache = None
        if storage.is_remote(dataset.uri):
            self._cache = cache or Cache()
            self._cache.check_room(self._parts)

    def locate(self, original_ids: pa.Array) -> NDArray[np.int64]:
        """Where the proxies of these originals stand: (N) positions over all parts; -1 where there is none."""
        every = [pa.array([], pa.string())]
        for index in range(len(self._parts)):
            ids, self._known[index] = self._looked_up(index)
            every.append(ids)
        found = pc.fill_null(pc.index_in(original_ids, pa.concat_arrays(every)), -1)
        del every
        pa.default_memory_pool().release_unused()  # or Arrow keeps the room of the ids for the whole training
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def jpeg(self, position: int) -> bytes:
        """The bytes of the proxy at a position that :meth:`locate` gave."""
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        if index not in self._known:
            _, self._known[index] = self._looked_up(index)
        where, row = self._known[index], int(position - self._starts[index])
        try:
            return _read(where, row)
        except FileNotFoundError:
            if self._cache is None:
                raise InputError(f"{where.path}: this file of proxies is gone. Restore it, or match again.") from None
        _, self._known[index] = self._looked_up(index)  # thrown out of the cache by another run: fetched again
        return _read(self._known[index], row)

    def _looked_up(self, index: int) -> tuple[pa.Array, _Where]:
        """The ids in a part, and where each one's picture lies in its file."""
        part = self._parts[index]
        uri = storage.join(self._dataset.uri, part.file)
        path = self._cache.path_of(part, lambda: self._dataset.read_part(part)) if self._cache else storage.local_path(uri)
        try:
            with pa.memory_map(path) as file:
                return _look_up(file.read_buffer(), path, part)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{uri}: this file of proxies cannot be read ({error}). Restore it, or match again.") from error


@dataclass(frozen=True)
class _Where:
    """Where the pictures of a part lie: ``starts`` (N) int64 and ``lengths`` (N) int32, bytes, in the file at ``path``."""

    path: str
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]


def _look_up(whole: pa.Buffer, path: str, part: Part) -> tuple[pa.Array, _Where]:
    """Reads an Arrow file of proxies that is mapped as ``whole``; its columns are not compressed, so they lie in it as they are."""
    table = pa.ipc.open_file(whole).read_all()
    starts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for chunk in table["jpeg"].chunks:
        _, offsets, data = chunk.buffers()
        edges = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        starts.append(edges[:-1] + np.int64((data.address if data is not None else whole.address) - whole.address))
        lengths.append(np.diff(edges))
    where = _Where(path, np.concatenate(starts), np.concatenate(lengths))
    ends = where.starts + where.lengths
    if len(ends) != part.rows or (where.starts < 0).any() or (ends > whole.size).any():
        raise ValueError("not the uncompressed Arrow file that cropreg writes")
    ids = pa.concat_arrays([pa.array([], pa.string()), *table["original_id"].chunks])  # a copy: the file does not stay mapped
    return ids, where


def _read(where: _Where, row: int) -> bytes:
    with open(where.path, "rb", buffering=0) as file:
        file.seek(int(where.starts[row]))
        return file.read(int(where.lengths[row]))
