"""Proxies of a bucket on this machine: fetched once, checked, bounded, and safe for several processes at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropreg import storage
from cropreg.cache import Cache
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.proxies import Proxies
from cropreg.schema import BoxDataset, Part

KB = 1e-6  # in GB


def made(number: int) -> tuple[Part, bytes]:
    """A part of 1,000 bytes, and what it holds."""
    data = np.random.default_rng(number).bytes(1000)
    return Part.of("proxies", f"proxies/part-{number}.arrow", 1, data), data


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def refuse() -> bytes:
    raise AssertionError("fetched again")


def test_part_is_fetched_once(tmp_path: Path) -> None:
    part, data = made(1)
    path = Cache(str(tmp_path), 1).path_of(part, lambda: data)
    assert Path(path).read_bytes() == data
    assert Cache(str(tmp_path), 1).path_of(part, refuse) == path


@pytest.mark.parametrize("damage", [b"", b"x" * 1000])
def test_copy_that_is_not_the_part_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    part, data = made(1)
    path = Path(Cache(str(tmp_path), 1).path_of(part, lambda: data))
    path.write_bytes(damage)
    assert Path(Cache(str(tmp_path), 1).path_of(part, lambda: data)).read_bytes() == data


def test_parts_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    cache, parts = Cache(str(tmp_path), 3 * KB), [made(i) for i in range(4)]
    for age, (part, data) in enumerate(parts[:3]):
        os.utime(cache.path_of(part, lambda data=data: data), (1000 + age, 1000 + age))
    cache.path_of(parts[0][0], refuse)  # used again
    (tmp_path / f"{storage.TEMPORARY_PREFIX}killed").write_bytes(b"half")
    cache.path_of(parts[3][0], lambda: parts[3][1])
    assert held(tmp_path) == {parts[i][0].sha256 for i in (0, 2, 3)}
    assert not list(tmp_path.glob(f"{storage.TEMPORARY_PREFIX}*"))


def test_fetch_that_fails_leaves_nothing_and_does_not_block_the_next(tmp_path: Path) -> None:
    part, data = made(1)
    cache = Cache(str(tmp_path), 1)

    def fail() -> bytes:
        raise InputError("the store is away")

    with pytest.raises(InputError, match="the store is away"):
        cache.path_of(part, fail)
    assert held(tmp_path) == set()
    assert Path(cache.path_of(part, lambda: data)).read_bytes() == data


def test_proxies_that_do_not_fit_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"take 2e-06 GB and this cache may hold 1e-06\. .*--cache-gb.*--cache-dir"):
        Cache(str(tmp_path), KB).check_room([made(1)[0], made(2)[0]])


def test_place_and_size_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROPREG_CACHE_DIR", str(tmp_path / "mine"))
    part, data = made(1)
    assert Path(Cache().path_of(part, lambda: data)).parent == tmp_path / "mine"
    monkeypatch.setenv("CROPREG_CACHE_GB", "much")
    with pytest.raises(UsageError, match="CROPREG_CACHE_GB is 'much'"):
        Cache()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    part, data = made(1)
    with pytest.raises(OutputError, match=r"file/cache: this cache cannot be written .*--cache-dir"):
        Cache(str(tmp_path / "file" / "cache"), 1).path_of(part, lambda: data)


def _ask(folder: Path, together: Any, fetched: Path) -> None:
    part, data = made(1)

    def fetch() -> bytes:
        with fetched.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)  # long enough that the others ask meanwhile
        return data

    together.wait()
    path = Cache(str(folder), 1).path_of(part, fetch)
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == part.sha256


def test_of_several_processes_at_once_one_fetches_and_the_others_wait_for_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, fetched = context.Barrier(4), tmp_path / "fetched"
    asking = [context.Process(target=_ask, args=(tmp_path / "cache", together, fetched)) for _ in range(4)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(60)
    assert [process.exitcode for process in asking] == [0] * 4
    assert len(fetched.read_text().splitlines()) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(moto|botocore|werkzeug|flask).*")
def test_proxies_of_a_bucket_are_fetched_once_a_machine(
    bucket: str, made_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(bucket, "boxes")
    for path in made_boxes.rglob("*"):
        if path.is_file():
            storage.write_whole(storage.join(uri, str(path.relative_to(made_boxes))), path.read_bytes())
    dataset, local = BoxDataset.open(uri), BoxDataset.open(str(made_boxes))
    ids = local.pairs(["original_id"])["original_id"].combine_chunks()
    read, asked = BoxDataset.read_part, list[str]()
    monkeypatch.setattr(BoxDataset, "read_part", lambda self, part: asked.append(part.file) or read(self, part))
    for _ in range(2):  # two training processes of one machine
        proxies = Proxies(dataset, Cache(str(tmp_path), 1))
        positions = proxies.locate(ids)
        assert proxies.jpeg(int(positions[5])) == Proxies(local).jpeg(int(positions[5]))
    assert asked == [part.file for part in dataset.parts("proxies")]
    with pytest.raises(UsageError, match="--cache-gb"):
        Proxies(dataset, Cache(str(tmp_path), 1e-9))
    monkeypatch.setattr("cropreg.schema.storage.read_bytes", lambda uri: b"damaged on the way")
    with pytest.raises(InputError, match="checksum"):
        Proxies(dataset, Cache(str(tmp_path / "other"), 1)).locate(ids)
    assert held(tmp_path / "other") == set()
