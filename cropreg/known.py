"""Known: what a dataset knows of each of its pairs, in a few bytes each, so that a driver can hold millions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cropreg.pairs import Pair
from cropreg.schema import VERDICTS, BoxDataset, pair_keys


class Known:
    """The pairs of a dataset, those whose files are gone too, and what the input at hand makes of them.

    17 bytes a pair of the dataset; ``dataset`` is None for a new one.
    """

    def __init__(self, dataset: BoxDataset | None) -> None:
        self._dataset = dataset and BoxDataset(dataset.uri, dataset.number, {**dataset.manifest, "removed": []})
        keys, stamps, verdicts = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.uint8)]
        for table in self._dataset.tables(["pair_id", "stamp", "verdict"]) if self._dataset else ():
            keys.append(pair_keys(table["pair_id"]))
            stamps.append(pair_keys(stamp or "" for stamp in table["stamp"].to_pylist()))
            verdicts.append(np.array([VERDICTS.index(v) for v in table["verdict"].to_pylist()], np.uint8))
        order = np.argsort(np.concatenate(keys), kind="stable")
        self._keys, self._stamps, self._verdicts = (np.concatenate(column)[order] for column in (keys, stamps, verdicts))
        self._seen, self._replaced = np.zeros(len(order), bool), np.zeros(len(order), bool)
        self.has_retried = False

    def todo(self, pairs: Sequence[Pair], retried: Iterable[str] = ()) -> list[Pair]:
        """Those of ``pairs`` that are new, have changed, or whose verdict is to be tried again.  Every pair is shown here once."""
        keys, stamps = pair_keys(p.pair_id for p in pairs), pair_keys(p.stamp for p in pairs)
        at, is_known = self._find(keys)
        self._seen[at[is_known]] = True
        again = np.zeros(len(pairs), bool)
        again[is_known] = np.isin(self._verdicts[at[is_known]], [VERDICTS.index(verdict) for verdict in retried])
        self.has_retried |= bool(again.any())
        wanted = ~is_known | again
        wanted[is_known] |= self._stamps[at[is_known]] != stamps[is_known]
        self._replaced[at[is_known & wanted]] = True
        return [pair for pair, is_wanted in zip(pairs, wanted, strict=True) if is_wanted]

    def counts(self) -> Counter[str]:
        """Counts by verdict of the rows that stay: seen again, and not replaced."""
        stay = self._verdicts[self._seen & ~self._replaced]
        return Counter(
            {verdict: int(n) for verdict, n in zip(VERDICTS, np.bincount(stay, minlength=len(VERDICTS)), strict=True) if n}
        )

    def removed(self) -> list[str]:
        """The ids of pairs that were not seen: their files are gone.  Reads the dataset again if there are any."""
        if self._dataset is None or self._seen.all():
            return []
        gone = self._keys[~self._seen]
        ids: list[str] = []
        for table in self._dataset.tables(["pair_id"]):
            names = table["pair_id"].to_pylist()
            ids += [names[i] for i in np.flatnonzero(np.isin(pair_keys(names), gone))]
        return sorted(ids)

    def _find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each key (N,) stands, and whether it does."""
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        is_known = self._keys[at] == keys if len(self._keys) else np.zeros(len(keys), bool)
        return at, is_known
