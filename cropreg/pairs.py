"""Which crop belongs to which original: by relative path, by a pattern, or from a table.  Nothing is decoded here.

Every file ends up in exactly one :class:`Pair`; one without a counterpart is a pair with one side missing and the reason why.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cropreg import storage
from cropreg.errors import InputError, UsageError
from cropreg.images import IMAGE_SUFFIXES
from cropreg.spill import Spill
from cropreg.storage import Entry


@dataclass(frozen=True, slots=True)
class Pair:
    """An original and a crop that should have been cut from it; either is None when it has no counterpart.

    ``reason`` says why there is no counterpart.  ``stamp`` is that of the original, a slash, and that of the crop: it changes when one
    of the files changes.  The names are those that ``pair_id`` is made of.
    """

    pair_id: str
    original_uri: str | None
    crop_uri: str | None
    stamp: str
    reason: str | None = None
    original_name: str = ""
    crop_name: str = ""


def pair_id(original: str, crop: str) -> str:
    """The stable name of a pair: a hash of its two paths relative to their roots; an absent one is the empty string.

    >>> pair_id("a.jpg", "a.png") == pair_id("a.jpg", "a.png") != pair_id("", "a.png")
    True
    """
    return hashlib.sha256(os.fsencode(original) + b"\0" + os.fsencode(crop)).hexdigest()[:24]


def find(
    originals: str | None, crops: str | None, table: str | None, *, pair_by: str | None = None, out: str | None = None
) -> list[Pair]:
    """All pairs of :func:`streamed`, sorted by their id."""
    with streamed(originals, crops, table, pair_by=pair_by, out=out) as found:
        return sorted((pair for pairs in found for pair in pairs), key=lambda p: p.pair_id)


def discover(originals: str, crops: str, *, pair_by: str | None = None) -> list[Pair]:
    """Pairs the pictures of two folders by relative path without extension, letters' case ignored.

    Args:
        originals, crops: URIs of folders; either may lie inside the other.
        pair_by: a regular expression for the crop's relative path without extension; what its first group (or the group named
            ``key``) matches is the original's relative path.  A crop that it does not match is paired by its whole name.

    Raises:
        UsageError: ``pair_by`` is no regular expression with a group, or both folders are the same.
        InputError: a folder does not exist.
    """
    with Spill() as files:
        _list_files(files, originals, crops, _pattern(pair_by))
        return sorted((pair for entries in files for pair in _joined(entries)), key=lambda p: p.pair_id)


def from_table(table: str) -> list[Pair]:
    """Reads pairs from a CSV or Parquet file with the columns ``original`` and ``crop``; other columns are ignored.

    Paths are URIs, absolute, or relative to the file's own folder.  A row named twice counts once; a row with one side empty is kept
    as unpaired.

    Raises:
        InputError: the file cannot be read, or lacks a column.
        UsageError: a path has a scheme that cropreg does not read.
    """
    with Spill() as rows:
        _list_rows(rows, table)
        return sorted((pair for some in rows for pair in _listed(posixpath.dirname(table), some)), key=lambda p: p.pair_id)


@dataclass(frozen=True)
class Streamed:
    """Pairs that come as lists, so that a million need no more memory than some thousand; may be gone through again."""

    num_files: int  # files, or rows of a table: the pairs are no more than that
    _spill: Spill
    _join: Callable[[list[Any]], Iterable[Pair]]

    def __iter__(self) -> Iterator[list[Pair]]:
        for items in self._spill:
            yield list(self._join(items))


@contextlib.contextmanager
def streamed(
    originals: str | None, crops: str | None, table: str | None, *, pair_by: str | None = None, out: str | None = None
) -> Iterator[Streamed]:
    """The pairs of two folders, or of a table; every file of theirs is in one.  Many are put aside on disk meanwhile.

    What lies in ``out``, the folder of the dataset, is no picture of the two folders.

    Raises:
        UsageError: neither two folders nor a table, or both. InputError: no pictures there, or no pairs in it.
    """
    with Spill() as spill:
        if table is not None and originals is None and crops is None:
            table = storage.absolute(table)
            root = posixpath.dirname(table)
            _list_rows(spill, table)
            found = Streamed(spill.count, spill, lambda rows: _listed(root, rows))
        elif table is None and originals is not None and crops is not None:
            _list_files(spill, storage.absolute(originals), storage.absolute(crops), _pattern(pair_by), out)
            found = Streamed(spill.count, spill, _joined)
        else:
            raise UsageError("give the folders ORIGINALS and CROPS, or a table with --pairs FILE, not both and not half.")
        if not spill.count and table is not None:
            raise InputError(f"{table}: names no pairs: no row has an original or a crop. Write one pair a row, below the header.")
        if not spill.count:
            raise InputError(
                f"{originals} and {crops}: no pictures here. cropreg reads JPEG, PNG, WebP, TIFF, AVIF and others, by their usual endings."
            )
        yield found


_ORIGINAL, _CROP = 0, 1
_File = tuple[int, str, str, str, int, int]  # side, key, and the entry


def _list_files(spill: Spill, originals: str, crops: str, pattern: re.Pattern[str] | None, out: str | None = None) -> None:
    """Puts the files of both folders aside by the key that a crop shares with its original."""
    if originals == crops:
        raise UsageError(f"{originals}: originals and crops are the same folder. Give two folders, or a table: --pairs FILE.")
    for e in storage.list_files(originals, IMAGE_SUFFIXES, skip=(crops, *left_out(out, originals, crops))):
        key = _key(e.relative)
        spill.add(key, (_ORIGINAL, key, e.relative, e.uri, e.size, e.mtime_ns))
    for e in storage.list_files(crops, IMAGE_SUFFIXES, skip=(originals, *left_out(out, originals, crops))):
        key = _crop_key(e.relative, pattern)
        spill.add(key, (_CROP, key, e.relative, e.uri, e.size, e.mtime_ns))


def left_out(out: str | None, *folders: str) -> tuple[str, ...]:
    """The folder of the dataset as one not to enter when these are listed; not if one of them lies in it, or is it.

    >>> left_out("/photos/boxes", "/photos", "/crops"), left_out("/photos", "/photos/originals", "/crops")
    (('/photos/boxes',), ())
    """
    return () if out is None or any(f"{folder}/".startswith(f"{out}/") for folder in folders) else (out,)


def _joined(files: Sequence[_File]) -> Iterator[Pair]:
    """The pairs of files whose keys lie in no other list."""
    by_key: dict[str, list[Entry]] = defaultdict(list)
    crops: list[tuple[str, Entry]] = []
    for side, key, relative, uri, size, mtime_ns in files:
        entry = Entry(relative, uri, size, mtime_ns)
        if side == _ORIGINAL:
            by_key[key].append(entry)
        else:
            crops.append((key, entry))
    paired: set[str] = set()
    for key, crop in crops:
        found = by_key.get(key, [])
        if len(found) == 1:
            yield _pair(found[0], crop)
            paired.add(key)
        elif found:
            names = " and ".join(sorted(storage.as_text(e.relative) for e in found))
            yield _alone(None, crop, f"the name fits {len(found)} originals: {names}")
        else:
            yield _alone(None, crop, "no original has this name")
    for key, entries in by_key.items():
        if key in paired:
            continue
        reason = (
            "no crop has this name"
            if len(entries) == 1
            else f"{len(entries)} originals have this name, so no crop can be given to it"
        )
        yield from (_alone(entry, None, reason) for entry in entries)


def _list_rows(spill: Spill, table: str) -> None:
    """Puts the rows of a table aside by their id, so that equal ones come together."""
    try:
        data = storage.read_bytes(table)
    except OSError as error:
        raise InputError(f"{table}: this table of pairs cannot be read ({error}).") from error
    try:
        for batch in _batches(data):
            for original, crop in zip(*(batch.column(n).cast(pa.string()).to_pylist() for n in ("original", "crop")), strict=True):
                if original or crop:
                    spill.add(f"{original}\0{crop}", (original or "", crop or ""))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InputError(f"{table}: needs the columns original and crop, as CSV with a header or Parquet ({error}).") from error


def _batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """The columns original and crop of a CSV or Parquet file, some thousand rows at a time."""
    if data[:4] == b"PAR1":
        yield from pq.ParquetFile(pa.BufferReader(data)).iter_batches(columns=["original", "crop"])
        return
    types = {"original": pa.string(), "crop": pa.string()}
    options = pa_csv.ConvertOptions(include_columns=["original", "crop"], column_types=types)
    names_with_newlines = pa_csv.ParseOptions(newlines_in_values=True)
    yield from pa_csv.open_csv(io.BytesIO(data), parse_options=names_with_newlines, convert_options=options)


def _listed(root: str, rows: Iterable[Sequence[str]]) -> Iterator[Pair]:
    for original, crop in dict.fromkeys((original, crop) for original, crop in rows):
        sides = [_resolve(root, side) if side else None for side in (original, crop)]
        reason = None if all(sides) else f"the table names no {'crop' if original else 'original'} for it"
        stamp = "/".join(_stamp(side) if side else "" for side in sides)
        yield Pair(pair_id(original, crop), sides[0], sides[1], stamp, reason, original, crop)


def _resolve(root: str, name: str) -> str:
    return storage.absolute(name if "://" in name or os.path.isabs(name) else storage.join(root, name))


def _stamp(uri: str) -> str:
    """Size and time of a local file; nothing for an object store, where asking for each would cost a request."""
    if storage.is_remote(uri):
        return ""
    try:
        status = os.stat(storage.local_path(uri))
    except (OSError, ValueError):  # ValueError: a name with a zero byte in it
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


def _pattern(pair_by: str | None) -> re.Pattern[str] | None:
    if pair_by is None:
        return None
    try:
        pattern = re.compile(pair_by)
    except re.error as error:
        raise UsageError(f"--pair-by {pair_by!r} is no regular expression: {error}.") from error
    if pattern.groups == 0:
        raise UsageError(f"--pair-by {pair_by!r} has no group. Bracket what names the original, for example '(.+)_crop[0-9]+'.")
    return pattern


def _key(relative: str) -> str:
    """What two names must share: the path without extension, decomposed and case folded (Unicode's canonical caseless match, D145)."""
    name = os.path.splitext(relative)[0]
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _crop_key(relative: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is not None:
        found = pattern.fullmatch(os.path.splitext(relative)[0])
        if found:
            named = found.groupdict().get("key")
            return _key((named if named is not None else found.group(1) or "") + ".")
    return _key(relative)


def _pair(original: Entry, crop: Entry) -> Pair:
    stamp = f"{original.stamp}/{crop.stamp}"
    names = original.relative, crop.relative
    return Pair(pair_id(*names), original.uri, crop.uri, stamp, None, *names)


def _alone(original: Entry | None, crop: Entry | None, reason: str) -> Pair:
    names = [entry.relative if entry else "" for entry in (original, crop)]
    stamp = "/".join(entry.stamp if entry else "" for entry in (original, crop))
    return Pair(pair_id(*names), original.uri if original else None, crop.uri if crop else None, stamp, reason, *names)
