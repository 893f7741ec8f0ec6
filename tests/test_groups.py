"""Near-duplicates never straddle a split, and who is in a group depends on the pictures alone."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import framed_print, textured
from hypothesis import given, settings
from hypothesis import strategies as st
from test_labels import HOW, by_crop

from cropreg import groups, storage
from cropreg.demo.scans import make_scan
from cropreg.groups import DISTANCE_BITS, RADIUS_BITS, linked, named, regrouped
from cropreg.labels import label_pairs
from cropreg.matching.likeness import perceptual_hash
from cropreg.pairs import discover
from cropreg.schema import GROUPS, PAIRS, BoxDataset, Part, commit_manifest, parquet_bytes
from cropreg.splits import split_of

SHARES = (0.5, 0.2, 0.2, 0.1)
hashes64 = st.integers(0, 2**64 - 1)


# the hash


def grey(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def scene(seed: int, width: int = 400, height: int = 300) -> np.ndarray:
    """A picture with large and small things, which :func:`textured` alone does not have: (H, W, 3)."""
    rng = np.random.default_rng([seed, 11])
    coarse = cv2.resize(rng.normal(0, 60, (6, 8, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(coarse + textured(seed, width, height), 0, 255).astype(np.uint8)
    for _ in range(12):
        center = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(picture, center, int(rng.integers(6, 60)), tuple(int(v) for v in rng.integers(0, 255, 3)), -1)
    return picture


def apart(one: np.ndarray, other: np.ndarray) -> int:
    a, b = perceptual_hash(grey(one)), perceptual_hash(grey(other))
    assert a is not None and b is not None
    return (a ^ b).bit_count()


def saved(picture: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR))


CHANGES = {
    "saved again": lambda p: saved(p, 40),
    "smaller": lambda p: cv2.resize(p, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA),
    "larger": lambda p: cv2.resize(p, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC),
    "lighter": lambda p: cv2.LUT(p, np.round(255 * (np.arange(256) / 255) ** 0.85).astype(np.uint8)),
    "softer": lambda p: np.round(p * 0.85 + 20).astype(np.uint8),
    "moved": lambda p: p[3:, :-4],
}


@pytest.mark.parametrize("change", CHANGES)
def test_nearly_all_near_duplicates_differ_in_few_bits(change):
    distances = [apart(scene(seed), CHANGES[change](scene(seed))) for seed in range(8)]
    assert sum(d <= DISTANCE_BITS for d in distances) >= 7


def test_different_pictures_differ_in_many_bits():
    pictures = [scene(seed) for seed in range(12)]
    assert min(apart(a, b) for a, b in itertools.combinations(pictures, 2)) > RADIUS_BITS


def test_prints_in_the_same_place_of_the_same_bed_are_different_pictures():
    beds = []
    for seed in range(12):
        bed = np.full((880, 640, 3), 240, np.uint8)
        bed[30:330, 30:430] = cv2.resize(scene(seed), (400, 300), interpolation=cv2.INTER_AREA)
        beds.append(bed)
    assert min(apart(a, b) for a, b in itertools.combinations(beds, 2)) > DISTANCE_BITS


def test_scans_of_different_photographs_are_no_group():
    scans = [make_scan(scene(seed, 300, 200), np.random.default_rng(seed), 256)[0] for seed in range(40)]
    hashes = [h for scan in scans if (h := perceptual_hash(grey(scan))) is not None]
    assert len(hashes) == 40
    assert len({*linked(np.array(hashes, np.uint64)).tolist()}) >= 39


@pytest.mark.parametrize(
    "picture",
    [
        np.full((300, 200), 250, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.full((3, 900), 128, np.uint8),
        np.linspace(90, 200, 300)[:, None].repeat(400, 1).astype(np.uint8),
        np.clip(np.random.default_rng(0).normal(246, 2, (800, 600)), 0, 255).astype(np.uint8),
    ],
    ids=["flat", "one pixel", "a line", "sky", "blank page"],
)
def test_picture_with_nothing_in_it_has_no_hash(picture):
    assert perceptual_hash(picture) is None


@pytest.mark.parametrize("size_wh", [(1, 2000), (2, 2), (9, 7), (63, 65)])
def test_picture_of_any_size_is_hashed_or_not_but_never_fails(size_wh):
    picture = np.random.default_rng(0).integers(0, 256, size_wh[::-1]).astype(np.uint8)
    assert perceptual_hash(picture) is None or perceptual_hash(picture) == perceptual_hash(picture.copy())


# who is linked with whom


def slowly_linked(hashes: Iterable[int], distance: int = DISTANCE_BITS) -> set[frozenset[int]]:
    """What :func:`linked` should say, compared one by one: groups of hashes."""
    left, parts = {*hashes}, set()
    while left:
        group, border = set(), {left.pop()}
        while border:
            one = border.pop()
            group.add(one)
            near = {other for other in left if (one ^ other).bit_count() <= distance}
            left -= near
            border |= near
        majority = sum(1 << b for b in range(64) if 2 * sum(h >> b & 1 for h in group) > len(group))
        is_wide = len(group) > 3 and max((h ^ majority).bit_count() for h in group) > RADIUS_BITS
        parts |= (
            {frozenset(group)}
            if not is_wide
            else slowly_linked(group, distance - 2)
            if distance > 2
            else {frozenset([h]) for h in group}
        )
    return parts


def partition(hashes: Sequence[int]) -> set[frozenset[int]]:
    groups = defaultdict(set)
    for label, value in zip(linked(np.array(hashes, np.uint64)).tolist(), hashes, strict=True):
        groups[label].add(value)
    return {frozenset(g) for g in groups.values()}


@st.composite
def neighbours(draw: st.DrawFn) -> list[int]:
    """A few hashes, and others that some bits lead to."""
    found = draw(st.lists(hashes64, min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 20))):
        one = draw(st.sampled_from(found))
        for bit in draw(st.lists(st.integers(0, 63), max_size=12)):
            one ^= 1 << bit
        found.append(one)
    return found


@settings(deadline=None)
@given(neighbours(), st.randoms())
def test_groups_are_those_found_by_comparing_one_by_one_in_any_order(hashes, rng):
    expected = slowly_linked(hashes)
    assert partition(hashes) == expected
    rng.shuffle(hashes)
    assert partition(hashes) == expected


def test_every_pair_within_the_distance_is_linked_among_thousands():
    rng = np.random.default_rng(1)
    many = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    twins = many.copy()
    for i, twin in enumerate(twins):
        for bit in rng.choice(64, i % (DISTANCE_BITS + 1), replace=False):
            twin ^= np.uint64(1) << np.uint64(bit)
        twins[i] = twin
    labels = linked(np.concatenate([many, twins]))
    assert (labels[:3000] == labels[3000:]).all()
    assert len({*labels.tolist()}) == 3000


def alike(count: int) -> np.ndarray:
    """Hashes that differ from one of them in six bits at most: pages with next to nothing on them."""
    rng = np.random.default_rng(2)
    hashes = np.full(count, 0x9E3779B97F4A7C15, np.uint64)
    for _ in range(6):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return np.unique(hashes)


def test_thousands_that_are_alike_need_no_more_comparisons_each_than_some(monkeypatch):
    compared, measure = [], groups._distances_bits
    monkeypatch.setattr(groups, "_distances_bits", lambda a, b: compared.append(len(a)) or measure(a, b))
    per_hash = []
    for count in (2_000, 20_000):
        hashes = alike(count)
        compared.clear()
        assert len({*linked(hashes).tolist()}) == 1
        per_hash.append(sum(compared) / len(hashes))
    assert 1 < per_hash[0] < 300 and 1 < per_hash[1] < 300  # and not 64 in each of 165 ways to choose blocks


def test_no_hashes_are_no_groups():
    assert linked(np.empty(0, np.uint64)).tolist() == []


def test_chain_of_neighbours_does_not_become_one_group():
    chain = [2**64 - 2**i for i in range(64)]  # each differs from the next in one bit, the first from the last in all
    groups = partition(chain)
    assert len(groups) > 2
    for group in groups:
        majority = sum(1 << b for b in range(64) if 2 * sum(h >> b & 1 for h in group) > len(group))
        assert len(group) <= 3 or max((h ^ majority).bit_count() for h in group) <= RADIUS_BITS


def test_chain_of_frames_keeps_its_closest_together():
    rng = np.random.default_rng(2)
    frames, one = [], int(rng.integers(2**63))
    for i in range(40):  # four exposures of each view, the next view some steps away
        frames.append(one)
        for bit in rng.choice(64, 1 if i % 4 != 3 else 7, replace=False):
            one ^= 1 << int(bit)
    groups = partition(frames)
    for i in range(0, 40, 4):
        assert any({*frames[i : i + 4]} <= group for group in groups)
    assert len(groups) > 1


# what a group is called

ids = st.text("abcdefgh", min_size=1, max_size=2)


@st.composite
def named_before(draw: st.DrawFn) -> tuple[list[list[str]], dict[str, str]]:
    names = draw(st.lists(ids, unique=True, max_size=10))
    groups = defaultdict(list)
    for name in names:
        groups[draw(st.integers(0, 4))].append(name)
    before = {name: draw(st.one_of(st.just(name), ids)) for name in names if draw(st.booleans())}
    return [*groups.values()], before


@given(named_before(), st.randoms())
def test_each_group_has_one_name_that_no_other_has_in_any_order(case, rng):
    clusters, before = case
    groups = named(clusters, before)
    names = [{groups.get(member, member) for member in cluster} for cluster in clusters]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(set(), *names)) == len(clusters)
    shuffled = [rng.sample(cluster, len(cluster)) for cluster in clusters]
    rng.shuffle(shuffled)
    assert named(shuffled, before) == groups


@given(named_before())
def test_name_a_group_was_given_is_the_name_it_keeps(case):
    clusters, before = case
    groups = named(clusters, before)
    now = {member: groups.get(member, member) for cluster in clusters for member in cluster}
    assert named(clusters, now) == groups


@pytest.mark.parametrize(
    ("clusters", "before", "expected"),
    [
        ([["a", "b"]], {}, {"b": "a"}),
        ([["a", "b"]], {"b": "b"}, {"a": "b"}),
        ([["a", "b", "c"]], {"b": "b", "c": "c"}, {"a": "b", "c": "b"}),  # a bridges two: the smaller of their names
        ([["c"]], {"c": "b"}, {"c": "b"}),  # the other one is gone: it stays where it was
        ([["a"], ["b"]], {"a": "b", "b": "b"}, {}),  # parted: b's own name is b's
        ([["a"], ["c"]], {"a": "b", "c": "b"}, {"a": "b"}),  # parted, and b is gone: the first one keeps it
        ([["c"], ["a", "d"]], {"c": "x", "d": "d"}, {"c": "x", "a": "d"}),
    ],
)
def test_group_is_called_as_before_or_by_its_smallest_id(clusters, before, expected):
    assert named(clusters, before) == expected


# in a dataset


def build(
    folder: Path, pictures: Mapping[str, int | None], parent: int = 0, size: int = 1000, removed: Sequence[str] = ()
) -> BoxDataset:
    """Adds originals of these hashes, two pairs each, to the dataset at ``folder``, as the pipeline does."""
    uri, before = str(folder), BoxDataset.open(str(folder)) if parent else None
    rows = [
        {"pair_id": f"{name}{i}", "original_id": name, "original_phash": value, "group": name, "split": split_of(name, SHARES)}
        for name, value in pictures.items()
        for i in range(2)
    ]
    listed = before.parts("pairs") if before else []
    for at in range(0, len(rows), size):
        data = parquet_bytes(rows[at : at + size], PAIRS)
        file = f"pairs/part-{parent}-{at}.parquet"
        storage.write_whole(storage.join(uri, file), data)
        listed.append(Part.of("pairs", file, len(rows[at : at + size]), data))
    coming = BoxDataset(uri, 0, {"parts": [{n: getattr(p, n) for n in Part.__slots__} for p in listed], "removed": [*removed]})
    if found := regrouped(coming, before, SHARES):
        data = parquet_bytes(found, GROUPS)
        storage.write_whole(storage.join(uri, f"groups/part-{parent}.parquet"), data)
        listed.append(Part.of("groups", f"groups/part-{parent}.parquet", len(found), data))
    commit_manifest(uri, listed, config={}, counts={}, parent=parent, version="0", removed=removed)
    return BoxDataset.open(uri)


def groups_of(dataset: BoxDataset) -> dict[str, str]:
    rows = dataset.pairs(["original_id", "group", "split"]).to_pylist()
    assert all(row["split"] == split_of(row["group"], SHARES) for row in rows)
    return {row["original_id"]: row["group"] for row in rows}


def together(groups: Mapping[str, str]) -> set[frozenset[str]]:
    found = defaultdict(set)
    for name, group in groups.items():
        found[group].add(name)
    return {frozenset(g) for g in found.values()}


FAR = 0xFFFF_FFFF  # 32 bits away from 0


def test_near_duplicates_share_group_and_split(tmp_path):
    dataset = build(tmp_path / "boxes", {"b": 0, "a": 0b111, "c": FAR, "d": None, "e": None})
    assert groups_of(dataset) == {"a": "a", "b": "a", "c": "c", "d": "d", "e": "e"}
    assert dataset.pairs().schema.names == PAIRS.names
    assert dataset.pairs(["split"]).num_rows == 10
    assert dataset.groups().to_pylist() == [{"original_id": "b", "group": "a", "split": split_of("a", SHARES)}]


def test_dataset_without_near_duplicates_has_no_groups_table(tmp_path):
    dataset = build(tmp_path / "boxes", {"a": 0, "b": FAR})
    assert dataset.parts("groups") == [] and dataset.groups().num_rows == 0


def test_newcomer_takes_the_group_that_is_there(tmp_path):
    build(tmp_path / "boxes", {"m": 0, "n": 1})
    assert groups_of(build(tmp_path / "boxes", {"a": 3}, parent=1)) == {"a": "m", "m": "m", "n": "m"}


def test_picture_like_two_groups_makes_them_one_and_the_log_says_how_many_rows_moved(tmp_path, caplog):
    names = [f"{i:03d}" for i in range(40)]
    far = next(name for name in names if split_of(name, SHARES) != split_of("m", SHARES))
    build(tmp_path / "boxes", {"m": 0, far: 0x7FFF})  # 15 bits apart
    with caplog.at_level(logging.WARNING):
        groups = groups_of(build(tmp_path / "boxes", {"z": 0x7F}, parent=1))
    assert groups == {"m": min("m", far), far: min("m", far), "z": min("m", far)}
    assert "resplit=2 rows" in caplog.text


def test_picture_that_lost_its_near_duplicate_stays_in_its_split(tmp_path):
    build(tmp_path / "boxes", {"a": 0, "b": 1})
    assert groups_of(build(tmp_path / "boxes", {"z": FAR}, parent=1, removed=["a0", "a1"])) == {"b": "a", "z": "z"}
    assert groups_of(build(tmp_path / "boxes", {}, parent=2)) == {"a": "a", "b": "a", "z": "z"}, "and is back when it is"


@pytest.mark.long
@settings(deadline=None, max_examples=20)
@given(neighbours(), st.integers(1, 7), st.integers(0, 20), st.randoms())
def test_who_is_in_a_group_does_not_depend_on_steps_parts_or_order(tmp_path_factory, hashes, size, first, rng):
    pictures = {f"{rng.randrange(16**6):06x}": h for h in hashes}
    items = [*pictures.items()]
    folder = tmp_path_factory.mktemp("groups")
    at_once = groups_of(build(folder / "once", pictures))
    assert groups_of(build(folder / "parts", dict(rng.sample(items, len(items))), size=size)) == at_once
    build(folder / "steps", dict(items[:first]))
    stepwise = groups_of(build(folder / "steps", dict(items[first:]), parent=1))
    assert together(stepwise) == together(at_once)
    assert together(at_once) == {frozenset(n for n, h in items if h in group) for group in slowly_linked(pictures.values())}


def test_part_of_an_earlier_version_has_no_hashes_and_is_read(tmp_path):
    old = pa.Table.from_pylist([{"pair_id": "a", "original_id": "a", "verdict": "found"}], PAIRS).drop_columns(["original_phash"])
    (tmp_path / "boxes" / "pairs").mkdir(parents=True)
    pq.write_table(old, tmp_path / "boxes" / "pairs" / "part-1.parquet")
    data = (tmp_path / "boxes" / "pairs" / "part-1.parquet").read_bytes()
    commit_manifest(
        str(tmp_path / "boxes"), [Part.of("pairs", "pairs/part-1.parquet", 1, data)], config={}, counts={}, parent=0, version="0"
    )
    assert BoxDataset.open(str(tmp_path / "boxes")).pairs()["original_phash"].to_pylist() == [None]


def test_hash_of_a_small_original_is_in_every_row_of_it(tmp_path):
    original, (x1, y1, x2, y2) = framed_print(1)
    for name, picture in {"originals/a.png": original, "crops/a.png": original[y1:y2, x1:x2], "crops/a_1.png": original}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / "crops" / "a_1.png").write_bytes(b"")
    rows = by_crop(label_pairs(discover(f"{tmp_path}/originals", f"{tmp_path}/crops", pair_by=r"(.+)_\d"), HOW)[0])
    assert rows["a.png"]["original_phash"] == rows["a_1.png"]["original_phash"] is not None
