"""Crops that other programs hold, as rows of the box dataset: no matching, and the same table as if they had been matched."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cropreg import storage
from cropreg.boxes import Box
from cropreg.errors import InputError, UnreadableImage, UsageError
from cropreg.images import IMAGE_SUFFIXES, RAW_SUFFIXES
from cropreg.interchange import coco, pp3, table, xmp
from cropreg.interchange.listed import Listed
from cropreg.interchange.turned import corners
from cropreg.labels import Labelled, Labelling, Opened, Step, named, opened, proxy_of
from cropreg.matching.picture import Picture
from cropreg.pairs import Pair, left_out, pair_id
from cropreg.schema import FOUND, UNPAIRED, UNREADABLE
from cropreg.storage import Entry

log = logging.getLogger(__name__)

Kind = Literal["xmp", "pp3", "coco", "csv"]
_OUTSIDE_PX = 1.0  # rounding in another program; what sticks out further is another picture's crop
_SMALLEST_PX = 2.0


@dataclass(frozen=True, slots=True)
class ImportedPair(Pair):
    """An original and the file that says how it is cropped: a sidecar, or a list.

    Attributes:
        kind: of that file.
        listed: what a list says; None: a sidecar, which is read when the original is.
    """

    kind: Kind = "xmp"
    listed: Listed | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> ImportedPair:
        """The pair again whose fields were written as plain values."""
        listed = values["listed"]
        if listed is not None:
            lists = {name: tuple(value) for name, value in listed.items() if isinstance(value, list)}  # JSON knows no tuples
            listed = Listed(**(listed | lists))
        return cls(**{**values, "listed": listed})


def find(kind: Kind, originals: str | None, place: str | None, out: str | None = None) -> list[ImportedPair]:
    """The originals of a folder and what says how they are cropped; every picture and every sidecar or listed crop is in a pair.

    Args:
        kind: ``xmp`` and ``pp3`` are sidecars, ``coco`` and ``csv`` lists.
        originals: URI of their folder.
        place: folder of the sidecars, which mirrors that of the originals, by default itself; or the file that lists crops.
        out: folder of the dataset; what lies in it is no original.

    Raises:
        UsageError: no folder of originals, or no list. InputError: no pictures, or a list that cannot be read.
    """
    if originals is None:
        raise UsageError(f"--import {kind}: give the folder ORIGINALS.")
    if place is None and kind in ("coco", "csv"):
        raise UsageError(f"--import {kind}: name the file that lists the crops: --import-from FILE.")
    originals, place = storage.absolute(originals), storage.absolute(originals if place is None else place)
    skip = ((place,) if place != originals else ()) + left_out(out, originals)
    entries = list(storage.list_files(originals, IMAGE_SUFFIXES, skip=skip))
    if not entries:
        raise InputError(
            f"{originals}: no pictures here. cropreg reads JPEG, PNG, WebP, TIFF, AVIF and others, by their usual endings."
        )
    found = _by_list(kind, entries, place) if kind in ("coco", "csv") else _by_sidecar(kind, entries, place)
    once = {pair.pair_id: pair for pair in found}  # a list may name a picture without a crop twice
    return [once[key] for key in sorted(once)]


def label_imported(uri: str, members: Sequence[ImportedPair], how: Labelling) -> Iterator[Step]:
    """Reads what the pairs of one original say, checks it against the original, and makes its proxy."""
    began_s = time.process_time()
    original_id = None
    try:
        original_id, original = opened(uri, how)
        proxy = proxy_of(original, original_id, how)
    except UnreadableImage as error:
        for pair in members:
            yield Labelled(_row(pair, original_id, verdict=UNREADABLE, reason=str(error)))
        return
    yield Opened(original_id)
    for pair in members:
        row = _imported(pair, original_id, original)
        yield Labelled({**row, "elapsed_ms": (time.process_time() - began_s) * 1000}, proxy if pair is members[0] else None)
        began_s = time.process_time()


def _by_sidecar(kind: Kind, entries: Sequence[Entry], place: str) -> Iterator[ImportedPair]:
    """Sidecars name their picture whole (``IMG.jpg.xmp``) or, in Adobe's way, without its ending (``IMG.xmp``)."""
    whole = {entry.relative: entry for entry in entries}
    stems: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        stems[os.path.splitext(entry.relative)[0]].append(entry)
    paired: set[str] = set()
    for sidecar in storage.list_files(place, (f".{kind}",)):
        stem = os.path.splitext(sidecar.relative)[0]
        fitting = [whole[stem]] if stem in whole else stems.get(stem, []) if kind == "xmp" else []
        raw = [entry for entry in fitting if entry.relative.lower().endswith(RAW_SUFFIXES)]
        fitting = raw if len(raw) == 1 else fitting  # beside a RAW file and its JPEG, Adobe's programs mean the RAW file
        if len(fitting) == 1:
            yield _pair(kind, fitting[0], sidecar.uri, sidecar.relative, sidecar.stamp)
            paired.add(fitting[0].relative)
        else:
            names = " and ".join(sorted(storage.as_text(entry.relative) for entry in fitting))
            reason = f"the name fits {len(fitting)} originals: {names}" if fitting else "no original has this name"
            yield ImportedPair(pair_id("", sidecar.relative), None, sidecar.uri, f"/{sidecar.stamp}", reason, kind)
    for entry in entries:
        if entry.relative not in paired:
            yield _alone(kind, entry, f"no .{kind} sidecar has its name")


def _by_list(kind: Kind, entries: Sequence[Entry], file: str) -> Iterator[ImportedPair]:
    """A list names its pictures by their path in the folder of originals, or by their URI."""
    known = {storage.as_text(entry.relative): entry for entry in entries} | {entry.uri: entry for entry in entries}
    named: set[str] = set()
    for item in _read_list(kind, file):
        name = item.name.removeprefix("./")
        entry = known.get(name) or (known.get(name[1:]) if name.startswith("'") else None)  # as csv_bytes makes cells plain
        key = f"{file}#{item.name}#{item.key}"
        if entry is None:
            reason = f"{storage.name_of(file)} names {item.name!r}, which is not among the originals"
            yield ImportedPair(pair_id("", key), None, file, "", reason, kind)
            continue
        named.add(entry.uri)
        if item.edges is None:
            yield _alone(kind, entry, f"{storage.name_of(file)} holds no crop of it")
        else:
            stamp = hashlib.sha256(repr(item).encode()).hexdigest()[:16]
            yield _pair(kind, entry, file, f"{storage.name_of(file)}#{item.key}", stamp, item)
    for entry in entries:
        if entry.uri not in named:
            yield _alone(kind, entry, f"{storage.name_of(file)} does not name it")


def _read_list(kind: Kind, file: str) -> list[Listed]:
    try:
        data = storage.read_bytes(file)
    except OSError as error:
        raise InputError(f"{file}: this list of crops cannot be read ({error}).") from error
    return coco.read(data, file) if kind == "coco" else table.read(data, file)


def _pair(kind: Kind, entry: Entry, uri: str, name: str, stamp: str, listed: Listed | None = None) -> ImportedPair:
    return ImportedPair(pair_id(entry.relative, name), entry.uri, uri, f"{entry.stamp}/{stamp}", kind=kind, listed=listed)


def _alone(kind: Kind, entry: Entry, reason: str) -> ImportedPair:
    return ImportedPair(pair_id(entry.relative, ""), entry.uri, None, f"{entry.stamp}/", reason, kind=kind)


def _imported(pair: ImportedPair, original_id: str, original: Picture) -> dict[str, Any]:
    """The row of a pair whose original can be read."""
    size = {"original_w": original.size_wh[0], "original_h": original.size_wh[1], "orientation": original.header.orientation}
    crop_id = None
    try:
        if pair.listed is None:
            assert pair.crop_uri is not None
            try:
                data = storage.read_bytes(pair.crop_uri)
            except OSError as error:
                raise InputError(f"{pair.crop_uri}: this sidecar cannot be read ({error}).") from error
            crop_id = hashlib.sha256(data).hexdigest()
            if pair.kind == "xmp":
                box, angle = xmp.read(data, original.size_wh, original.header.orientation, pair.crop_uri)
            else:
                box, angle = pp3.read(data, original.size_wh, pair.crop_uri)
        else:
            box, angle = _listed_box(pair.listed, original.size_wh, str(pair.crop_uri))
        box = _inside(box, angle, original.size_wh, str(pair.crop_uri))
    except InputError as error:
        return _row(pair, original_id, crop_id, verdict=UNPAIRED, reason=str(error), **size)
    edges = dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))
    crop_w, crop_h = (max(1, round(edge)) for edge in box.size_wh)
    place = {**edges, "angle_deg": angle, "scale": 1.0, "crop_w": crop_w, "crop_h": crop_h, "method": "imported"}
    return _row(pair, original_id, crop_id, verdict=FOUND, reason=None, **size, **place)


def _listed_box(listed: Listed, size_wh: tuple[int, int], file: str) -> tuple[Box, float]:
    if listed.size_wh not in (None, size_wh):
        theirs, ours = (f"{w} x {h}" for w, h in (listed.size_wh or (0, 0), size_wh))
        raise InputError(f"{file}: knows this picture as {theirs} px, upright it has {ours}, so its crop means another place.")
    try:
        assert listed.edges is not None
        return Box(*listed.edges), listed.angle_deg
    except ValueError as error:
        raise InputError(f"{file}: {error}.") from error


def _inside(box: Box, angle_deg: float, size_wh: tuple[int, int], file: str) -> Box:
    """The box, its edges on those of the picture where they were rounded past them.

    Raises:
        InputError: it is not in the picture, or hardly has an area.
    """
    (w, h), edges = size_wh, tuple(box)
    if not all(map(math.isfinite, (*edges, angle_deg))):
        raise InputError(f"{file}: the crop is no rectangle ({edges}, {angle_deg} degrees).")
    points = corners(box, angle_deg)
    beyond = max(max(-x, -y, x - w, y - h) for x, y in points)
    if beyond > _OUTSIDE_PX:
        raise InputError(f"{file}: the crop reaches {beyond:.0f} px out of the picture, so it belongs to another one.")
    if min(box.size_wh) < _SMALLEST_PX:
        raise InputError(f"{file}: the crop is only {box.size_wh[0]:.3g} x {box.size_wh[1]:.3g} px large.")
    if angle_deg:
        return box
    return Box(max(box.x1, 0), max(box.y1, 0), min(box.x2, w), min(box.y2, h))


def _row(pair: ImportedPair, original_id: str | None = None, crop_id: str | None = None, **rest: Any) -> dict[str, Any]:
    """One row of the pairs table but for its split; columns that are not named are null."""
    return {**named(pair, original_id, crop_id), **rest}
