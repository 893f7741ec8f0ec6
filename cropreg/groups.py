"""Which originals must stay on one side of a split: those that show nearly the same, however their files differ.

Originals whose hashes (:mod:`cropreg.matching.likeness`) differ in at most ``DISTANCE_BITS`` are linked, and what is linked is a group.
Links make chains: a walk along a street, frame by frame, leads from its first house to its last.  So a group must also be narrow: where
a picture lies farther than ``RADIUS_BITS`` from what is common to its group, the group is linked again by smaller distances until
every part is narrow.  Groups then stay small even where thousands of pictures are somewhat alike, and of a chain the closest
neighbours stay together.

Who is in a group with whom depends on the pictures of the dataset alone: not on their order, on workers, or on the number of runs it
was built in.  The exception is a group's *name*, and with it its split: a group that a dataset has keeps its name when it is added to,
so that what was trained on stays trained on, while a dataset built in one run takes the smallest id of the group.  A picture that is
like two groups makes them one, under the smaller of their names; pictures that are removed or a chain that grows too wide may part a
group, and the part that holds the picture it is named after keeps the name.  What changes its split is logged.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg.matching.likeness import HASH
from cropreg.schema import BoxDataset, pair_keys
from cropreg.splits import split_of

log = logging.getLogger(__name__)

DISTANCE_BITS = 8  # of near-duplicates 98.7% lie within, of prints in the same place on a scanner bed 1 pair in 1,000
RADIUS_BITS = 12
RULE = {"hash": HASH, "distance_bits": DISTANCE_BITS, "radius_bits": RADIUS_BITS}  # groups by other rules must not mix

_NARROWER = 2  # bits less at which a wide group is linked again
_SHARED_BLOCKS = 3  # two hashes that differ in n bits share at least 3 of n + 3 blocks of bits
_MOST_COMPARED = 64  # with each hash, of those that share the same blocks: bounds the time where very many pictures are alike

Hashes = NDArray[np.uint64]
Labels = NDArray[np.int32]
Places = NDArray[np.intp]


def regrouped(dataset: BoxDataset, parent: BoxDataset | None, shares: Sequence[float]) -> list[dict[str, Any]]:
    """The rows of the groups table: every original of ``dataset`` whose group is not its own id.

    Memory: 16 bytes an original, and the ids of those that are in a group with others.

    Args:
        dataset: with all its parts but that of the groups.
        parent: what the dataset was before; its groups keep their names.
        shares: of the splits.
    """
    keys, hashes = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for table in dataset.tables(["original_id", "original_phash"]):
        table = table.filter(pc.is_valid(table["original_phash"]))
        keys.append(pair_keys(table["original_id"]))
        hashes.append(table["original_phash"].to_numpy())
    all_keys, first = np.unique(np.concatenate(keys), return_index=True)
    hash_of_each = np.concatenate(hashes)[first]
    del keys, hashes, first  # 8 bytes an original each, while linking takes most
    pa.default_memory_pool().release_unused()
    labels = linked(hash_of_each)
    del hash_of_each
    is_shared = np.bincount(labels, minlength=len(labels))[labels] > 1
    shared_keys, shared_labels = all_keys[is_shared], labels[is_shared]
    listed = parent.groups() if parent else None
    earlier = (
        pa.concat_arrays([*(c for n in ("original_id", "group") for c in listed[n].chunks)])
        if listed
        else pa.array([], pa.string())
    )
    if not len(shared_keys) and not len(earlier):
        return []
    clusters: dict[int | str, set[str]] = defaultdict(set)
    for table in dataset.tables(["original_id"]):
        ids = table["original_id"].drop_null().unique()
        own = pair_keys(ids)
        at = np.searchsorted(shared_keys, own).clip(max=max(len(shared_keys) - 1, 0))
        in_group = shared_keys[at] == own if len(shared_keys) else np.zeros(len(own), bool)
        for i in np.flatnonzero(in_group | pc.is_in(ids, earlier).to_numpy(zero_copy_only=False)):
            name = ids[int(i)].as_py()
            clusters[int(shared_labels[at[i]]) if in_group[i] else name].add(name)
    members = pa.array([name for cluster in clusters.values() for name in cluster], pa.string())
    rows = _rows_of(parent, members) if parent else []
    groups = named(clusters.values(), {row["original_id"]: row["group"] for row in rows})
    splits = {name: split_of(name, shares) for name in {*groups.values()}}
    if changed := sum(row["split"] != splits.get(groups.get(row["original_id"], ""), row["split"]) for row in rows):
        log.warning("resplit=%d rows: new pictures have joined groups that stood in different splits", changed)
    return [{"original_id": name, "group": groups[name], "split": splits[groups[name]]} for name in sorted(groups)]


def _rows_of(dataset: BoxDataset, original_ids: pa.Array) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for table in dataset.tables(["original_id", "group", "split"]):
        rows += table.filter(pc.is_in(table["original_id"], original_ids)).to_pylist()
    return rows


def named(clusters: Iterable[Iterable[str]], before: Mapping[str, str]) -> dict[str, str]:
    """The group of every original whose group is not its own id.

    Args:
        clusters: the original_ids of each group, in any order; those alone whose name may be another group's, too.
        before: the group each original had, for those that had one.

    >>> named([["b", "a"]], {})
    {'b': 'a'}
    >>> named([["b", "a"]], {"b": "b"})  # was there first
    {'a': 'b'}
    """
    ordered = sorted(sorted(cluster) for cluster in clusters)
    home = {name: i for i, cluster in enumerate(ordered) for name in cluster}  # which group may have a name
    for i, cluster in enumerate(ordered):
        for name in cluster:
            home.setdefault(before.get(name, name), i)
    groups = {}
    for i, cluster in enumerate(ordered):
        group = min((before[name] for name in cluster if name in before and home[before[name]] == i), default=cluster[0])
        groups.update({name: group for name in cluster if name != group})
    return groups


def linked(hashes: Hashes) -> Labels:
    """A number for each hash (N,): those of one group have the same.  Depends on the set of hashes alone.

    A million hashes take 30 s of CPU and 120 MB, 19 s where all are alike (benchmarks/groups.py).
    """
    distinct, where = np.unique(hashes, return_inverse=True)
    labels = np.arange(len(distinct), dtype=np.int32)
    todo = [(labels.copy(), DISTANCE_BITS)]
    while todo:
        members, distance = todo.pop()
        found = _components(distinct[members], distance)
        order = np.argsort(found, kind="stable")
        starts = np.flatnonzero(np.diff(found[order], prepend=-1))
        labels[members] = members[found]
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts[sizes > 3].tolist(), sizes[sizes > 3].tolist(), strict=True):  # three are always narrow
            part = members[order[start : start + size]]
            if _radius(distinct[part]) > RADIUS_BITS:
                labels[part] = part
                if distance > _NARROWER:
                    todo.append((part, distance - _NARROWER))
    return labels[where.ravel()]


def _radius(hashes: Hashes) -> int:
    """The most bits by which one of the hashes differs from their majority."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return int((bits != (2 * bits.sum(axis=0, dtype=np.int64) > len(bits))).sum(axis=1).max())


def _components(hashes: Hashes, distance: int) -> Labels:
    """The smallest index that each of the hashes (N,), sorted and distinct, is linked to by steps of at most ``distance`` bits.

    Two hashes that near share some blocks of bits whole: sorted by each choice of blocks, they stand together.
    """
    num_blocks = distance + _SHARED_BLOCKS
    edges = np.linspace(0, 64, num_blocks + 1).astype(int)
    blocks = [(int(low), int(high - low)) for low, high in pairwise(edges)]
    labels = np.arange(len(hashes), dtype=np.int32)
    for chosen in combinations(range(num_blocks), _SHARED_BLOCKS):
        moved = _permuted(hashes, [blocks[i] for i in sorted(range(num_blocks), key=lambda i: (i not in chosen, i))])
        order = np.argsort(moved)
        moved = moved[order]
        keys = moved >> np.uint64(64 - sum(blocks[i][1] for i in chosen))
        at = _in_mixed_runs(keys, labels[order])
        for step in range(1, _MOST_COMPARED + 1):
            at = at[: np.searchsorted(at, len(moved) - step)]
            at = at[keys[at] == keys[at + step]]
            if not len(at):
                break
            near = at[_distances_bits(moved[at], moved[at + step]) <= distance]
            if len(near):
                _link(labels, order[near], order[near + step])
    return labels


def _in_mixed_runs(keys: Hashes, labels: Labels) -> Places:
    """The places (n,) of those of the sorted keys (N,) that are shared by some with different labels.

    Others are linked already, and need not be compared: in a heap of pictures that are all alike nearly all are, after a few choices.
    """
    if not len(keys):
        return np.arange(0)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    mixed = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    return np.flatnonzero(np.repeat(mixed, np.diff(starts, append=len(keys))))


def _distances_bits(a: Hashes, b: Hashes) -> NDArray[np.uint8]:
    """By how many bits each of the hashes (N,) differs from the other (N,) at its place."""
    return np.bitwise_count(a ^ b)


def _permuted(hashes: Hashes, blocks: Sequence[tuple[int, int]]) -> Hashes:
    """The hashes with their blocks (first bit, number of bits) in this order, the first one highest."""
    moved = np.zeros_like(hashes)
    for low, width in blocks:
        moved <<= np.uint64(width)
        moved |= (hashes >> np.uint64(low)) & np.uint64(2**width - 1)
    return moved


def _link(labels: Labels, a: Places, b: Places) -> None:
    """Makes ``labels``, the smallest index each is linked to, those after linking a[i] with b[i], in place."""
    while True:
        one, other = labels[a], labels[b]
        apart = one != other
        if not apart.any():
            return
        a, b, one, other = a[apart], b[apart], one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(labels, lower := labels[labels]):
            labels[:] = lower
