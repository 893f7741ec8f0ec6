"""Index: all originals' features behind hash tables of some of their bits; names the few originals that a crop may be cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.content.describe import BYTES_PER_FEATURE, Description
from cropreg.matching.features import similarities

SEED = 20241  # which bits make a key: the same in every process
TABLES, KEY_BITS = 6, 16
NEAR_BITS = 64  # of 256: true features differ by 25 to 50 in a toned and resized crop, others by 128 +- 12
NEAR_TURN = 18  # of 256: crops are turned by 15 degrees at most, and the direction itself is uncertain by 10
SHORTLIST = 12  # originals handed to the matcher at most: a burst or a picture saved many times is among them whole
LOOKED_AT = 40  # originals with the most votes whose features are laid over the crop's
LEAST_AGREEING = 5  # features that one similarity explains; chance mostly stays below, and reaches 11 in soft pictures
BUCKET_MOST = 4096  # features; fuller buckets hold what every picture has, and only cost time
_PROBES = np.array([0, *(1 << bit for bit in range(KEY_BITS))], np.int64)  # the key itself and its neighbours, one bit away


@dataclass(frozen=True)
class Likely:
    """An original that may show a crop: ``agreeing`` features lie as in the crop, ``votes`` look like one of the crop's."""

    name: str
    agreeing: int
    votes: int


class Index:
    """Finds originals by their features: locality-sensitive hashing of binary codes (Gionis et al., VLDB 1999), one bit multi-probe.

    The same for any order of the descriptions.  Takes 61 bytes a feature, 30 KB an original of 500, and 3 MB for the tables.  A look-up
    costs 0.17 s of one core among 500 originals, most of it for the geometry, whose cost does not grow; that of the votes does.
    """

    def __init__(self, descriptions: Mapping[str, Description]) -> None:
        self.names = sorted(name for name, description in descriptions.items() if len(description))
        rows = [descriptions[name] for name in self.names]
        self._steps = np.array([d.step for d in rows], np.float64)
        self._first = np.cumsum([0, *(len(d) for d in rows)])  # where each original's features start
        self._codes = np.concatenate([d.codes for d in rows]) if rows else np.zeros((0, 32), np.uint8)
        self._points = np.concatenate([d.points_xy for d in rows]) if rows else np.zeros((0, 2), np.uint16)
        self._turns = np.concatenate([d.turns for d in rows]) if rows else np.zeros(0, np.uint8)
        rng = np.random.default_rng(SEED)
        self._bits = np.stack([rng.choice(256, KEY_BITS, replace=False) for _ in range(TABLES)])  # (tables, bits)
        keys = self._keys(self._codes)
        self._order = np.stack([np.argsort(column, kind="stable").astype(np.int32) for column in keys.T])  # (tables, n)
        counts = np.stack([np.bincount(column, minlength=1 << KEY_BITS) for column in keys.T])
        self._starts = np.concatenate([np.zeros((TABLES, 1), np.int64), counts.cumsum(1)], 1)  # (tables, keys + 1)

    @property
    def num_bytes(self) -> int:
        """The memory that grows with the originals, bytes."""
        return len(self._codes) * (BYTES_PER_FEATURE + 4 * TABLES)

    def _keys(self, codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """(n, tables): the chosen bits of each code as a number."""
        byte, bit = np.divmod(self._bits, 8)
        keys = np.zeros((len(codes), TABLES), np.uint16)
        for i in range(KEY_BITS):
            keys |= ((codes[:, byte[:, i]] >> bit[:, i]) & 1).astype(np.uint16) << i
        return keys

    def shortlist(self, crop: Description, count: int) -> list[Likely]:
        """At most ``count`` originals, the likeliest first; all of them that the geometry supports before those that have votes only."""
        if not len(crop) or not self.names:
            return []
        votes = self._votes(crop)
        best = np.lexsort((np.arange(len(votes)), -votes))[:LOOKED_AT]
        likely = [Likely(self.names[i], self._agreeing(crop, int(i)), int(votes[i])) for i in best if votes[i]]
        return sorted(likely, key=lambda c: (-c.agreeing if c.agreeing >= LEAST_AGREEING else 0, -c.votes, c.name))[:count]

    def _votes(self, crop: Description) -> NDArray[np.int64]:
        """(originals,): how many of the crop's features look like one of the original's, from the same direction."""
        probed = self._keys(crop.codes)[:, :, None].astype(np.int64) ^ _PROBES  # (features, tables, probes)
        seen = np.zeros((len(crop), len(self.names)), bool)
        queries = np.broadcast_to(np.arange(len(crop))[:, None], (len(crop), len(_PROBES))).ravel()
        for table in range(TABLES):
            key = probed[:, table].ravel()
            start, end = self._starts[table, key], self._starts[table, key + 1]
            length = np.where(end - start > BUCKET_MOST, 0, end - start)
            query = np.repeat(queries, length)
            offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            feature = self._order[table, np.repeat(start, length) + offset]
            turned = (crop.turns[query] - self._turns[feature]).astype(np.int8)  # uint8 wraps round as angles do
            alike = np.abs(turned.astype(np.int16)) <= NEAR_TURN
            query, feature = query[alike], feature[alike]
            alike = _distance_bits(crop.codes[query], self._codes[feature]) < NEAR_BITS
            seen[query[alike], np.searchsorted(self._first, feature[alike], "right") - 1] = True
        return np.asarray(seen.sum(0), np.int64)

    def _agreeing(self, crop: Description, i: int) -> int:
        """How many features of the i-th original lie as in the crop, after one shift, scale and small turn."""
        own = slice(self._first[i], self._first[i + 1])
        matches = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(crop.codes, self._codes[own], k=2)
        good = [m[0] for m in matches if len(m) == 2 and m[0].distance < NEAR_BITS and m[0].distance < 0.9 * m[1].distance]
        if len(good) < LEAST_AGREEING:
            return 0
        a = crop.points_xy[[m.queryIdx for m in good]].astype(np.float64) / 16
        b = self._points[own][[m.trainIdx for m in good]].astype(np.float64) / 16
        per_plane = crop.step / self._steps[i]  # a crop's plane pixel is this many of the original's at scale 1
        found = similarities(a, b, (per_plane / 2.0, per_plane / 0.1), 20.0, 1)
        return found[0][2] if found else 0


def _distance_bits(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(n,): how many of the 256 bits of two codes (n, 32) differ."""
    return np.asarray(np.bitwise_count(a.view(np.uint64) ^ b.view(np.uint64)).sum(1), np.int64)
