"""The tables cropreg writes, and the files of a box dataset: parts, proxies, groups and the manifest that makes them a dataset.

A part that no manifest lists does not exist.  Readers take the highest manifest, check each part against its checksum and read
nothing else.  Where the newest of two rows about the same pair counts (a changed input), parts later in the manifest are newer.
"""

from __future__ import annotations

import builtins
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cropreg import reviews, storage
from cropreg.errors import InputError
from cropreg.settings import VERDICT_NAMES

SCHEMA_VERSION = 1

FOUND, AMBIGUOUS, DOUBTFUL, FLAT, NO_MATCH, UNREADABLE, CRASHED, UNPAIRED = VERDICT_NAMES
VERDICTS = VERDICT_NAMES
SPLITS = ("train", "val", "calib", "test")
ACCEPT, REVIEW, FAILED = "accept", "review", "failed"


def _table_schema(fields: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(list(fields), metadata={"cropreg_schema_version": str(SCHEMA_VERSION)})


PAIRS = _table_schema(
    [
        ("pair_id", pa.string()),
        ("original_uri", pa.string()),
        ("crop_uri", pa.string()),
        ("original_id", pa.string()),
        ("crop_id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("original_w", pa.int32()),
        ("original_h", pa.int32()),
        ("crop_w", pa.int32()),
        ("crop_h", pa.int32()),
        ("orientation", pa.int8()),
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("angle_deg", pa.float32()),
        ("scale", pa.float32()),
        ("score", pa.float32()),
        ("gap", pa.float32()),
        ("error_px", pa.float32()),  # predicted standard error of an edge, px of the original
        ("probability", pa.float32()),  # that the box is right
        ("method", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("elapsed_ms", pa.float32()),
        ("stamp", pa.string()),  # size and modification time of both files when they were read
        # What the original shows, to find near-duplicates.  A number and not its hex text: it is compared bit by bit, a million at a time.
        ("original_phash", pa.uint64()),
    ]
)
# Originals whose group is not their own id, as other originals show nearly the same; stands above group and split of their pairs.
GROUPS = _table_schema([("original_id", pa.string()), ("group", pa.string()), ("split", pa.string())])
PROXIES = _table_schema([("original_id", pa.string()), ("proxy_w", pa.int32()), ("proxy_h", pa.int32()), ("jpeg", pa.binary())])
PREDICTIONS = _table_schema(
    [
        ("image_uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("angle_deg", pa.float32()),
        ("confidence", pa.float32()),
        *((f"{edge}_{end}", pa.float64()) for edge in ("left", "top", "right", "bottom") for end in ("lo", "hi")),
        # how far outward of where the model saw it doubt, constraints or the grid of a JPEG moved each edge, px; in words: by what
        *((f"{edge}_moved", pa.float64()) for edge in ("left", "top", "right", "bottom")),
        ("adjusted", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("crop_uri", pa.string()),
        ("reviewed_by", pa.string()),  # who confirmed, corrected or rejected the box, once that has been applied
        ("stamp", pa.string()),  # model, size and modification time of the picture when it was read
    ]
)
_ABSENT_BEFORE = ("orientation", "left_moved", "top_moved", "right_moved", "bottom_moved", "adjusted", "reviewed_by")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a dataset as its manifest lists it; ``file`` is relative to the dataset's folder."""

    table: str
    file: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, table: str, file: str, rows: int, data: builtins.bytes) -> Part:
        """The listing of a file that holds ``data``."""
        return cls(table, file, rows, len(data), hashlib.sha256(data).hexdigest())


def fingerprint(values: Any) -> str:
    """A short hash of anything JSON can hold, the same for the same values in any order of keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def parquet_bytes(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Encodes rows as one Parquet file with page checksums; missing keys become null."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def proxies_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Encodes proxies as one uncompressed Arrow IPC file, which can be memory-mapped."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, PROXIES) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=PROXIES))
    return sink.getvalue()


@dataclass(frozen=True)
class BoxDataset:
    """A box dataset as its newest manifest describes it, and as a person has judged it when it was opened."""

    uri: str
    number: int
    manifest: dict[str, Any]
    judged: dict[str, reviews.Review] = field(default_factory=dict)  # by pair_id; all processes of a run see the same

    @classmethod
    def open(cls, uri: str) -> BoxDataset:
        """Opens the dataset at ``uri``.

        Raises:
            InputError: there is none, or another version of cropreg wrote it.
        """
        uri = storage.absolute(uri)
        number = latest_manifest(uri)
        if number == 0:
            raise InputError(
                f"{uri}: no box dataset here (no manifests/*.json). Make one: cropreg match ORIGINALS CROPS --out {uri}"
            )
        name = storage.join(uri, manifest_file(number))
        try:
            manifest = json.loads(storage.read_bytes(name))
            version = manifest["schema_version"]
            if version == SCHEMA_VERSION:
                [Part(**part) for part in manifest["parts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name}: this manifest is damaged ({error}). Restore it, or build the dataset again.") from error
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{uri}: written with schema version {version}, this cropreg reads version {SCHEMA_VERSION}. "
                f"Use the cropreg that wrote it ({manifest.get('cropreg_version')}) or match again into another folder."
            )
        return cls(uri, number, manifest, reviews.in_effect(reviews.read(uri)))

    @property
    def fingerprint(self) -> str:
        """A hash of what the dataset holds: the same parts and the same decisions about them, the same value."""
        held = [[p["sha256"] for p in self.manifest["parts"]], self.manifest.get("removed", [])]
        return fingerprint([*held, reviews.identity(self.judged)] if self.judged else held)

    def parts(self, table: str) -> list[Part]:
        """The files of one table, oldest first."""
        return [Part(**p) for p in self.manifest["parts"] if p["table"] == table]

    def pairs(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The pairs table, sorted by ``pair_id``: the newest row of each pair whose files were there when it was last matched.

        What a person has decided about a row stands in place of what the matcher said.

        Args:
            columns: what is returned, in this order; everything by default.

        Raises:
            InputError: a part is missing or does not have the bytes that the manifest says.
        """
        wanted = None if columns is None else list(dict.fromkeys(["pair_id", *columns, *(reviews.NEEDED if self.judged else ())]))
        tables = [PAIRS.empty_table().select(wanted or PAIRS.names), *self.tables(wanted)]
        table = pa.concat_tables(tables).sort_by("pair_id")
        table = reviews.apply_to_pairs(table, self.judged, found=FOUND, no_match=NO_MATCH)
        return table if columns is None else table.select(list(columns))

    def groups(self) -> pa.Table:
        """The groups table: originals that share their group with others."""
        tables = [pq.read_table(pa.BufferReader(self.read_part(part)), schema=GROUPS) for part in self.parts("groups")]
        return pa.concat_tables([GROUPS.empty_table(), *tables])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The same rows part by part, unsorted, so that a large dataset need not be in memory at once."""
        columns = PAIRS.names if columns is None else list(columns)
        groups = self.groups() if {"group", "split"} & {*columns} else GROUPS.empty_table()
        read = [*dict.fromkeys(["pair_id", *columns, *(["original_id"] if groups.num_rows else [])])]
        parts = self.parts("pairs")
        newest = self._newest(parts)
        removed = pa.array(self.manifest.get("removed", []), pa.string())
        for part, mask in zip(parts, newest, strict=True):
            # The schema fills columns that an older part lacks with null.
            table = pq.read_table(pa.BufferReader(self.read_part(part)), columns=read, schema=PAIRS)
            if mask is not None:
                table = table.filter(pa.array(mask))
            if len(removed):
                table = table.filter(pc.invert(pc.is_in(table["pair_id"], removed)))
            yield _with_groups(table, groups).select(columns)

    def _newest(self, parts: Sequence[Part]) -> list[NDArray[np.bool_] | None]:
        """Which rows of each part are the newest of their pair; None for all of them."""
        if len(parts) < 2:
            return [None] * len(parts)
        keys = [pair_keys(pq.read_table(pa.BufferReader(self.read_part(p)), columns=["pair_id"])["pair_id"]) for p in parts]
        flat = np.concatenate(keys)
        _, last = np.unique(flat[::-1], return_index=True)
        mask = np.zeros(len(flat), bool)
        mask[len(flat) - 1 - last] = True
        return list(np.split(mask, np.cumsum([len(k) for k in keys])[:-1]))

    def read_part(self, part: Part) -> bytes:
        """The bytes of a part, checked against the manifest."""
        uri = storage.join(self.uri, part.file)
        try:
            data = storage.read_bytes(uri)
        except OSError as error:
            raise InputError(
                f"{uri}: the manifest lists this file but it cannot be read ({error}). Restore it, or match again."
            ) from error
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise InputError(f"{uri}: the file is not the one the manifest lists (checksum). Restore it, or match again.")
        return data


def _with_groups(table: pa.Table, groups: pa.Table) -> pa.Table:
    """Rows of the pairs table, with the group and split that the groups table gives their original."""
    if groups.num_rows:
        at = pc.index_in(table["original_id"], groups["original_id"].combine_chunks())
        for name in {"group", "split"} & {*table.column_names}:
            value = pc.coalesce(groups[name].combine_chunks().take(at), table[name])
            table = table.set_column(table.column_names.index(name), table.schema.field(name), value)
    return table


def pair_keys(ids: Iterable[Any]) -> NDArray[np.uint64]:
    """A 64-bit hash of each id (N,), to compare millions of them: two of a million are the same by chance once in 30 million datasets."""
    texts = ids.to_pylist() if hasattr(ids, "to_pylist") else ids
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def manifest_file(number: int) -> str:
    """Where a dataset keeps its manifest of that number."""
    return f"manifests/{number:06d}.json"


def latest_manifest(uri: str) -> int:
    """The number of the newest manifest at ``uri``; 0 when there is none."""
    folder = storage.join(uri, "manifests")
    if not storage.is_folder(folder):
        return 0
    names = (entry.relative.removesuffix(".json") for entry in storage.list_files(folder, (".json",)))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def commit_manifest(
    uri: str,
    parts: Sequence[Part],
    *,
    config: dict[str, Any],
    counts: dict[str, int],
    parent: int,
    version: str,
    removed: Sequence[str] = (),
) -> int | None:
    """Makes ``parts``, less the pairs in ``removed``, the dataset at ``uri`` by writing the next manifest.

    Returns:
        its number, or None when another run has just written that number.
    """
    number = parent + 1
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "cropreg_version": version,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "fingerprint": fingerprint(config),
        "counts": counts,
        "parent": parent or None,
        "removed": sorted(removed),
        "parts": [{"table": p.table, "file": p.file, "rows": p.rows, "bytes": p.bytes, "sha256": p.sha256} for p in parts],
    }
    written = storage.create_exclusive(storage.join(uri, manifest_file(number)), json.dumps(manifest, indent=1).encode())
    return number if written else None


def read_predictions(uri: str) -> list[dict[str, Any]]:
    """The rows of a predictions table.

    Raises:
        InputError: the file cannot be read, or is another table.
    """
    cure = "Restore it; or move it away, and run cropreg predict again with --overwrite."
    try:
        data = pa.BufferReader(storage.read_bytes(uri))
        lacking = {*PREDICTIONS.names} - {*_ABSENT_BEFORE, *pq.read_schema(data).names}
        rows: list[dict[str, Any]] = pq.read_table(data, schema=PREDICTIONS).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is not UTF-8
        raise InputError(f"{uri}: damaged, or no table of predictions ({str(error).rstrip('.')}). {cure}") from error
    if lacking:
        missing = ", ".join(name for name in PREDICTIONS.names if name in lacking)
        raise InputError(f"{uri}: no table of predictions, for it lacks the columns {missing}. {cure}")
    return rows


def top_reasons(rows: Iterable[dict[str, Any]], count: int = 3) -> list[tuple[str, int]]:
    """The commonest reasons, and how often each.

    The name of the row's own file is left out, and reasons that differ in numbers only count as one, of which the first is shown: or
    none would come twice.

    >>> top_reasons([{"verdict": "failed", "reason": f"{x}: {x} bytes.", "image_uri": str(x)} for x in (7, 8)])
    [('failed: 7 bytes. (and alike)', 2)]
    """
    reasons: dict[str, Counter[str]] = {}
    for row in rows:
        reason = str(row["reason"])
        for uri in (row.get("original_uri"), row.get("crop_uri"), row.get("image_uri")):
            reason = reason.removeprefix(f"{uri}: ")
        text = f"{row['verdict']}: {reason}"
        reasons.setdefault(re.sub(r"\d[\d,.]*", "0", text), Counter())[text] += 1
    alike = [(next(iter(texts)) + " (and alike)" * (len(texts) > 1), texts.total()) for texts in reasons.values()]
    return sorted(alike, key=lambda item: -item[1])[:count]


def plain_cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula."""
    return "'" + value if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def csv_bytes(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> bytes:
    """Encodes rows as CSV with a header; cells that look like formulas are made plain."""
    lines = [_csv_line(columns), *(_csv_line([plain_cell(row.get(name)) for name in columns]) for row in rows)]
    return "".join(lines).encode()


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # with "\n" a cell with "\r" would not be quoted
    return line.getvalue().removesuffix("\r\n") + "\n"
