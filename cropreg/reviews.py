"""Decisions of a person about rows: kept beside the table they judge, one small file each, and applied by whoever reads the table.

The folder ``reviews/`` of a box dataset or of predictions only ever grows: to undo is to add a row that names what it undoes, so two
reviewers, a crash or a closed tab lose nothing, and what is in effect does not depend on the order in which files are read.  A review
holds for the files it was made of: where the row's ``stamp`` is another, it is kept but no longer counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cropreg import storage
from cropreg.errors import InputError, OutputError

FOLDER = "reviews"
ACCEPT, CORRECT, REJECT, UNDO = DECISIONS = ("accept", "correct", "reject", "undo")
REVIEWED = "reviewed"  # the method of a box that a person has confirmed or drawn
NEEDED = ("pair_id", "stamp", "crop_w")  # columns of pairs without which no review can be applied
_READERS = 8
_GATHER_ABOVE = 200  # files; opening each costs about a millisecond, on an object store a request

SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("pair_id", pa.string()),  # a row of pairs ...
        ("image_uri", pa.string()),  # ... or one of predictions
        ("decision", pa.string()),
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("angle_deg", pa.float32()),
        ("who", pa.string()),
        ("decided_at", pa.timestamp("us", tz="UTC")),
        ("stamp", pa.string()),  # that of the row when it was judged
        ("undoes", pa.string()),  # the review_id that an undo takes back
    ],
    metadata={"cropreg_schema_version": "1"},
)


@dataclass(frozen=True, slots=True)
class Review:
    """One decision about one row.

    Attributes:
        review_id: its own name, chosen by whoever decided, so that a request sent twice is one decision.
        pair_id, image_uri: the row it is about; one of them is None.
        decision: ``accept`` (the box is right as it stood), ``correct`` (it is right now), ``reject`` or ``undo``.
        x1, y1, x2, y2: pixels of the upright original, half-open; None for ``reject`` and ``undo``.
        angle_deg: clockwise, as in the tables.
        decided_at: an instant with its zone.
        undoes: the ``review_id`` that an ``undo`` takes back.
    """

    review_id: str
    pair_id: str | None
    image_uri: str | None
    decision: str
    x1: float | None
    y1: float | None
    x2: float | None
    y2: float | None
    angle_deg: float | None
    who: str
    decided_at: datetime
    stamp: str | None
    undoes: str | None = None

    @property
    def subject(self) -> str:
        """The key of the row it is about."""
        return self.pair_id or self.image_uri or ""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The box that was accepted or drawn."""
        if self.x1 is None or self.y1 is None or self.x2 is None or self.y2 is None:
            return None
        return self.x1, self.y1, self.x2, self.y2


def write(uri: str, reviews: Sequence[Review]) -> str:
    """Keeps a batch of decisions below ``uri`` as one new file; written again, it is the same file.

    Returns:
        the file's name within the folder.

    Raises:
        OutputError: the place cannot be written.
    """
    name = f"part-{hashlib.sha256(' '.join(r.review_id for r in reviews).encode()).hexdigest()[:24]}.parquet"
    storage.create_exclusive(storage.join(uri, FOLDER, name), _parquet(reviews))
    return name


def read(uri: str) -> list[Review]:
    """All decisions kept below ``uri``, oldest first.

    Raises:
        InputError: one of the files is something else.
    """
    return read_new(uri, ())[0]


def read_new(uri: str, known: Collection[str]) -> tuple[list[Review], list[str]]:
    """The decisions in files that are not ``known`` by name, oldest first, and the names of those files."""
    for attempt in range(5):
        names = [name for name in _names(uri) if name not in known]
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                tables = list(pool.map(lambda name: _table(storage.join(uri, FOLDER, name)), names))
        except FileNotFoundError:  # gathered into one by somebody else, between the listing and now
            if attempt == 4:
                raise
            continue
        rows = (row for table in tables for row in table.to_pylist())
        unique = {row["review_id"]: Review(**row) for row in rows}
        return sorted(unique.values(), key=_age), names
    raise AssertionError("unreachable")


def in_effect(reviews: Iterable[Review]) -> dict[str, Review]:
    """The decision that holds for each row: the latest that was not taken back; by key of the row."""
    reviews = sorted(reviews, key=_age)
    undone = {review.undoes for review in reviews if review.decision == UNDO}
    return {r.subject: r for r in reviews if r.decision != UNDO and r.review_id not in undone}


def gather(uri: str) -> int:
    """Joins the files below ``uri`` into one where there are many, and returns how many there were.

    Killed in between, decisions stand in two files, which counts once: they have names of their own.
    """
    names = _names(uri)
    if len(names) <= _GATHER_ABOVE:
        return 0
    try:
        everything, files = read_new(uri, ())
        kept = write(uri, everything)
        for name in files:
            if name != kept:
                storage.remove(storage.join(uri, FOLDER, name))
    except (FileNotFoundError, OutputError):  # somebody else is at it, or the place is read-only: many files are slow, not wrong
        return 0
    return len(names)


def applies(review: Review, stamp: str | None) -> bool:
    """Whether a review of a row still holds now that the row's stamp is ``stamp``.

    A pair's stamp is that of its two files.  A prediction's is ``model/picture``: a confirmed box is about the picture and outlives
    the model, a rejected one was that model's.
    """
    if review.image_uri is None or review.decision == REJECT:
        return (review.stamp or "") == (stamp or "")
    return (review.stamp or "").rpartition("/")[2] == (stamp or "").rpartition("/")[2]


def apply_to_pairs(table: pa.Table, effective: Mapping[str, Review], *, found: str, no_match: str) -> pa.Table:
    """The pairs table as a person has judged it, sorted by ``pair_id``.

    Args:
        table: rows of pairs, with at least the columns of ``NEEDED``.
        effective: as :func:`in_effect` returns it.
        found, no_match: the verdicts of what was confirmed, and of what was rejected.
    """
    if not effective:
        return table
    known = pc.is_in(table["pair_id"], pa.array(list(effective), pa.string()))
    judged = [_judged(row, effective[row["pair_id"]], found, no_match) for row in table.filter(known).to_pylist()]
    rows = pa.Table.from_pylist(judged, schema=table.schema)
    return pa.concat_tables([table.filter(pc.invert(known)), rows]).sort_by("pair_id")


def identity(effective: Mapping[str, Review]) -> list[list[Any]]:
    """What a fingerprint must hold of the decisions in effect: what they say, not who said it when."""
    return [[key, r.decision, r.box, r.angle_deg, r.stamp] for key, r in sorted(effective.items())]


def _judged(row: dict[str, Any], review: Review, found: str, no_match: str) -> dict[str, Any]:
    if not applies(review, row["stamp"]):
        return row
    if review.decision == REJECT:
        return {**row, **_known(row, {"verdict": no_match, "reason": f"rejected by {review.who}"})}
    assert review.box is not None, "only what has a box can be confirmed"
    x1, y1, x2, y2 = review.box
    news: dict[str, Any] = {"verdict": found, "reason": None, "method": REVIEWED, "probability": 1.0}
    news |= {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "angle_deg": review.angle_deg or 0.0}
    if review.decision == CORRECT:
        news |= {"error_px": None, "scale": row["crop_w"] / (x2 - x1) if row["crop_w"] else None}
    return {**row, **_known(row, news)}


def _known(row: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, Any]:
    """Of the new values those whose columns were asked for."""
    return {key: value for key, value in news.items() if key in row}


def _names(uri: str) -> list[str]:
    folder = storage.join(uri, FOLDER)
    if not storage.is_folder(folder):
        return []
    return sorted(entry.relative for entry in storage.list_files(folder, (".parquet",)))


def _table(uri: str) -> pa.Table:
    data = storage.read_bytes(uri)
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{uri}: no table of reviews that this cropreg reads ({error}). Move it out of that folder.") from error


def _parquet(reviews: Sequence[Review]) -> bytes:
    for review in reviews:
        values = [v for v in (*(review.box or ()), review.angle_deg) if v is not None]
        if review.decision not in DECISIONS or not all(map(math.isfinite, values)):
            raise ValueError(f"not a review: {json.dumps(asdict(review), default=str)}")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(r) for r in reviews], schema=SCHEMA), sink, write_page_checksum=True)
    return bytes(sink.getvalue())


def _age(review: Review) -> tuple[datetime, str]:
    return review.decided_at, review.review_id
