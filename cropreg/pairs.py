"""Which crop belongs to which original: by relative path, by a pattern, or from a table.  Nothing is decoded here.

Every file ends up in exactly one :class:`Pair`; one without a counterpart is a pair with one side missing and the reason why.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cropreg import storage
from cropreg.errors import InputError, UsageError
from cropreg.images import IMAGE_SUFFIXES
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


def find(originals: str | None, crops: str | None, table: str | None, *, pair_by: str | None = None) -> list[Pair]:
    """The pairs of two folders, or of a table; every file of theirs is in one.

    Raises:
        UsageError: neither two folders nor a table, or both. InputError: no pictures there.
    """
    if table is not None and originals is None and crops is None:
        found = from_table(storage.absolute(table))
    elif table is None and originals is not None and crops is not None:
        found = discover(storage.absolute(originals), storage.absolute(crops), pair_by=pair_by)
    else:
        raise UsageError("give the folders ORIGINALS and CROPS, or a table with --pairs FILE, not both and not half.")
    if not found:
        where = table or f"{originals} and {crops}"
        raise InputError(
            f"{where}: no pictures here. cropreg reads JPEG, PNG, WebP, TIFF, AVIF and others, by their usual endings."
        )
    return found


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
    pattern = _pattern(pair_by)
    if originals == crops:
        raise UsageError(f"{originals}: originals and crops are the same folder. Give two folders, or a table: --pairs FILE.")
    by_key: dict[str, list[Entry]] = defaultdict(list)
    for entry in storage.list_files(originals, IMAGE_SUFFIXES, skip=(crops,)):
        by_key[_key(entry.relative)].append(entry)
    paired: set[str] = set()
    pairs: list[Pair] = []
    for crop in storage.list_files(crops, IMAGE_SUFFIXES, skip=(originals,)):
        key = _crop_key(crop.relative, pattern)
        found = by_key.get(key, [])
        if len(found) == 1:
            pairs.append(_pair(found[0], crop))
            paired.add(key)
        elif found:
            names = " and ".join(sorted(storage.as_text(e.relative) for e in found))
            pairs.append(_alone(None, crop, f"the name fits {len(found)} originals: {names}"))
        else:
            pairs.append(_alone(None, crop, "no original has this name"))
    for key, entries in by_key.items():
        if key in paired:
            continue
        reason = (
            "no crop has this name"
            if len(entries) == 1
            else f"{len(entries)} originals have this name, so no crop can be given to it"
        )
        pairs.extend(_alone(entry, None, reason) for entry in entries)
    return sorted(pairs, key=lambda p: p.pair_id)


def from_table(table: str) -> list[Pair]:
    """Reads pairs from a CSV or Parquet file with the columns ``original`` and ``crop``; other columns are ignored.

    Paths are URIs, absolute, or relative to the file's own folder.  A row named twice counts once; a row with one side empty is kept
    as unpaired.

    Raises:
        InputError: the file cannot be read, or lacks a column.
        UsageError: a path has a scheme that cropreg does not read.
    """
    try:
        data = storage.read_bytes(table)
    except OSError as error:
        raise InputError(f"{table}: this table of pairs cannot be read ({error}).") from error
    try:
        if data[:4] == b"PAR1":
            rows = pq.read_table(pa.BufferReader(data), columns=["original", "crop"])
        else:
            types = {"original": pa.string(), "crop": pa.string()}
            options = pa_csv.ConvertOptions(include_columns=["original", "crop"], column_types=types)
            names_with_newlines = pa_csv.ParseOptions(newlines_in_values=True)
            rows = pa_csv.read_csv(io.BytesIO(data), parse_options=names_with_newlines, convert_options=options)
        originals, crops = (rows[name].cast(pa.string()).to_pylist() for name in ("original", "crop"))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InputError(f"{table}: needs the columns original and crop, as CSV with a header or Parquet ({error}).") from error
    unique = {(o or "", c or "") for o, c in zip(originals, crops, strict=True)}
    return sorted(_listed(posixpath.dirname(table), unique), key=lambda p: p.pair_id)


def _listed(root: str, rows: Iterable[tuple[str, str]]) -> Iterator[Pair]:
    for original, crop in rows:
        if not original and not crop:
            continue
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
