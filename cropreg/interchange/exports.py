"""Predictions written for other programs, from the table alone: no picture is decoded, no model asked."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cropreg import storage
from cropreg.boxes import Box
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.images import RAW_SUFFIXES, read_header
from cropreg.interchange import coco, hugging_face, label_studio, pp3, xmp
from cropreg.schema import ACCEPT

log = logging.getLogger(__name__)

FORMATS = ("csv", "coco", "label-studio", "xmp", "pp3", "hf")
SIDECARS = ("xmp", "pp3")
_AT_ONCE = 8  # sidecars; each is a few small files, and an object store answers slowly

Row = dict[str, Any]


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads a list of formats, separated by commas.

    >>> parse_formats("xmp, coco")
    ('xmp', 'coco')

    Raises:
        UsageError: a word is none of them.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    strange = [word for word in words if word not in FORMATS]
    if strange:
        raise UsageError(f"--export {text}: {strange[0]!r} is no format. There are {', '.join(FORMATS)}; separate them by commas.")
    return tuple(dict.fromkeys(words))


def write(
    formats: Sequence[str],
    rows: Mapping[str, Row],
    images: str,
    out: str,
    *,
    doubtful: bool,
    overwrite: bool,
    max_pixels: int,
    taken_back: Collection[str] = (),
) -> dict[str, int]:
    """Writes the predictions in these formats into ``out``.

    ``coco.json`` and ``label-studio.json`` hold every picture that could be read; ``hf/metadata.jsonl`` and the sidecars those whose crop
    was accepted.  A sidecar lies where the crop lies or would lie; it starts as the one that is there, else as the one beside the original.

    Args:
        formats: of :data:`FORMATS`.  ``csv`` is always there already.
        rows: of the predictions table, by the picture's path relative to ``images``.
        images, out: URIs of the folders.
        doubtful: sidecars for doubtful crops too.
        overwrite: start sidecars anew, and remove those of pictures that have no crop any more; a person's no always removes them.
        max_pixels: of a picture, where its header must be read.
        taken_back: pictures whose sidecars were made of a review that was taken back: removed, too, if they have no crop any more.

    Returns:
        how many pictures each format holds, and how many sidecars were left alone because nothing can be added to them, or no
        file can have their name.
    """
    named = [(storage.as_text(name), row) for name, row in sorted(rows.items(), key=lambda item: os.fsencode(item[0]))]
    unsure = {name for name, row in rows.items() if doubtful and row["x1"] is not None and not row["reviewed_by"]}
    cropped = {name: row for name, row in rows.items() if row["verdict"] == ACCEPT or name in unsure}
    kept = {storage.as_text(name) for name in cropped}
    readable = sum(row["x1"] is not None for _, row in named)
    counts: dict[str, int] = {}
    for kind in formats:
        counts[kind] = readable
        if kind == "csv":
            counts[kind] = len(rows)
        elif kind == "coco":
            storage.write_whole(storage.join(out, "coco.json"), coco.write(named))
        elif kind == "label-studio":
            storage.write_whole(storage.join(out, "label-studio.json"), label_studio.write(named, images))
        elif kind == "hf":
            counts[kind] = len(cropped)
            lines = hugging_face.write([item for item in named if item[0] in kept])
            storage.write_whole(storage.join(out, "hf", "metadata.jsonl"), lines)
        else:
            counts |= _write_sidecars(kind, rows, cropped, images, out, overwrite, max_pixels, taken_back)
    return counts


def sidecar_names(kind: str, pictures: Iterable[str]) -> dict[str, str]:
    """The relative path of each picture's sidecar: ``IMG.xmp``, as Adobe's programs name it, and ``IMG.jpg.pp3``.

    Pictures that differ by their ending alone keep it, so that each has a sidecar of its own: ``IMG.jpg.xmp``, as darktable names it.
    Of a RAW file and its JPEG, ``IMG.xmp`` is the RAW file's, for Adobe's programs too.  ``IMG.tif.jpg`` beside ``IMG.tif`` keeps its
    ending, for ``IMG.tif.xmp`` is darktable's name of the other's.
    """
    pictures = set(pictures)
    stems = Counter(os.path.splitext(picture)[0] for picture in pictures)
    raws = Counter(os.path.splitext(picture)[0] for picture in pictures if picture.lower().endswith(RAW_SUFFIXES))
    names = {}
    for picture in pictures:
        stem, is_raw = os.path.splitext(picture)[0], picture.lower().endswith(RAW_SUFFIXES)
        is_alone = stem not in pictures and (stems[stem] == 1 or (is_raw and raws[stem] == 1))
        names[picture] = f"{stem}.xmp" if kind == "xmp" and is_alone else f"{picture}.{kind}"
    return names


def _write_sidecars(
    kind: str,
    rows: Mapping[str, Row],
    cropped: Mapping[str, Row],
    images: str,
    out: str,
    overwrite: bool,
    max_pixels: int,
    taken_back: Collection[str],
) -> dict[str, int]:
    names = sidecar_names(kind, rows)
    candidates = {name for picture in cropped for name in (names[picture], f"{picture}.{kind}")}
    there, beside = (_standing(folder, candidates, kind) for folder in (out, images))

    def write_one(picture: str) -> bool:
        name, row = names[picture], cropped[picture]
        found = None if overwrite else there.get(name)
        found = found or next((beside[n] for n in (name, f"{picture}.{kind}") if n in beside), None)
        try:
            existing = storage.read_bytes(found) if found else None
            data = _sidecar(kind, row, existing, found or name, max_pixels)
        except (InputError, OSError) as error:
            log.warning("left alone: %s", error)
            return False
        try:
            storage.write_whole(storage.join(out, name), data)
        except OutputError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG):
                raise  # the place cannot be written: the next sidecar could not be either
            log.warning("left alone: %s: with .%s the name is too long for this disk. Shorten it.", row["image_uri"], kind)
            return False
        return True

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        written = list(pool.map(write_one, sorted(cropped)))
    for picture in rows.keys() - cropped.keys():
        if (
            overwrite or rows[picture]["reviewed_by"] or picture in taken_back
        ):  # else it would still be cropped where a person said no
            storage.remove(storage.join(out, names[picture]))
    counts = {kind: sum(written)}
    return counts | ({f"{kind}_left_alone": len(written) - sum(written)} if not all(written) else {})


def _standing(folder: str, names: Iterable[str], kind: str) -> dict[str, str]:
    """Those of the sidecars that are there, with their URIs; an object store is asked once, not for each."""
    if storage.is_remote(folder):
        return {entry.relative: entry.uri for entry in storage.list_files(folder, (f".{kind}",))}
    uris = {name: storage.join(folder, name) for name in names}
    return {name: uri for name, uri in uris.items() if storage.exists(uri)}


def _sidecar(kind: str, row: Row, existing: bytes | None, name: str, max_pixels: int) -> bytes:
    box, size_wh = Box(*(row[key] for key in ("x1", "y1", "x2", "y2"))), (row["width"], row["height"])
    if kind == "pp3":
        return pp3.write(box, row["angle_deg"], size_wh, existing, name)
    orientation = row["orientation"]
    if orientation is None:  # predicted before the table kept it
        orientation = read_header(storage.read_bytes(row["image_uri"]), row["image_uri"], max_pixels=max_pixels).orientation
    return xmp.write(box, row["angle_deg"], size_wh, orientation, existing, name)
