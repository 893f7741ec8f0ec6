"""Rows of the predictions table on their way to a crop: their box made to fit, and cut out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropreg import constraints, storage, writing
from cropreg.boxes import EDGES, Box
from cropreg.constraints import Constraints
from cropreg.errors import CropregError, OutputError
from cropreg.images import read_header
from cropreg.images.streamed import is_streamed
from cropreg.interchange import exports
from cropreg.schema import FAILED, REVIEW
from cropreg.settings import PredictSettings

CORNERS = ("x1", "y1", "x2", "y2")
MOVED = tuple(f"{edge}_moved" for edge in EDGES)


class NotCut(Exception):
    """A picture that cannot be cut; ``is_only_read`` when that is because its format is read but not written."""

    def __init__(self, error: CropregError) -> None:
        super().__init__(str(error))
        self.is_only_read = isinstance(error, OutputError)


def box_of(row: Mapping[str, Any]) -> Box:
    """A row's box, whole px."""
    return Box(*(int(row[name]) for name in CORNERS))


def move(row: dict[str, Any], box: Box, note: str | None) -> None:
    """Puts a box in place of a row's, and says how far its edges went, and why."""
    by = constraints.outward(box_of(row), box)
    row.update(zip(CORNERS, map(float, box), strict=True))
    row.update({name: row[name] + px for name, px in zip(MOVED, by, strict=True)})
    if note and note not in (row["adjusted"] or ""):
        row["adjusted"] = f"{row['adjusted']}; {note}" if row["adjusted"] else note


def shape(row: dict[str, Any], limits_px: NDArray[np.float64], wanted: Constraints) -> None:
    """Makes a row's box meet the constraints; where it cannot, the picture goes to review with the reason."""
    shaped = constraints.shape(box_of(row), limits_px.tolist(), (row["width"], row["height"]), wanted)
    move(row, shaped.box, shaped.note)
    if shaped.problem:
        row.update(verdict=REVIEW, reason="; ".join(text for text in (row["reason"], shaped.problem) if text))


def read(uri: str) -> tuple[bytes, str | None]:
    """A picture's bytes; those of a TIFF on this machine only mapped, and then with the path of its file.

    Raises:
        OSError: it cannot be read.
    """
    if storage.is_remote(uri) or not storage.name_of(uri).lower().endswith((".tif", ".tiff")):
        return storage.read_bytes(uri), None
    data = storage.map_bytes(uri)
    return (data, storage.local_path(uri)) if data[:2] in (b"II", b"MM") else (data[:], None)


def write(row: dict[str, Any], data: bytes, uri: str, settings: PredictSettings) -> bool:
    """Writes a row's crop to ``uri``; returns whether it is there now, and not something else that was there before.

    Raises:
        NotCut: there is no crop to write. OutputError: the place cannot be written: the next crop could not be either.
    """
    name, here = row["image_uri"], not storage.is_remote(row["image_uri"]) and not storage.is_remote(uri)
    header = read_header(data, name, max_pixels=settings.max_pixels)
    if here and not row["angle_deg"] and is_streamed(data, header):
        path, box = storage.local_path(name), box_of(row)
        if settings.jpeg_lossless:
            move(row, box, "--jpeg-lossless is not for TIFF: written as usual")

        def fill(target: str) -> None:
            try:
                writing.cut_streamed(path, name, data, header, box, target, metadata=settings.metadata)
            except CropregError as error:
                raise NotCut(error) from error

        return storage.fill_file(uri, fill, overwrite=settings.overwrite)
    try:
        crop = cut(row, data[:], settings)
    except CropregError as error:
        raise NotCut(error) from error
    if settings.overwrite:
        storage.write_whole(uri, crop)
        return True
    return storage.create_exclusive(uri, crop) or storage.read_bytes(uri) == crop


def write_crop(row: dict[str, Any], data: bytes, relative: str, out: str, settings: PredictSettings) -> None:
    """Writes a row's crop below ``out`` and notes where; a picture that cannot be cut becomes ``failed`` with the reason.

    One of a kind that is read but not written has no crop, and is not ``failed`` where sidecars are written.

    Raises:
        OutputError: the place cannot be written: the next picture would fail too.
    """
    uri = storage.join(out, relative)
    try:
        written = write(row, data, uri, settings)
    except NotCut as error:
        if error.is_only_read and set(exports.parse_formats(settings.export_)) & set(exports.SIDECARS):
            row["reason"] = f"{error} Its crop stands in its sidecar alone."  # a RAW file: no crop of it was ever meant
        else:
            row.update(verdict=FAILED, reason=str(error))
        return
    if not written:
        reason = f"{uri} exists already and is another picture; it is kept. Use --overwrite or another --out."
        row.update(verdict=FAILED, reason=reason)
        return
    row["crop_uri"] = uri


def cut(row: dict[str, Any], data: bytes, settings: PredictSettings) -> bytes:
    """The encoded crop; without loss where that was asked for and can be, and then the row's box goes to the grid."""
    name, box, angle_deg = row["image_uri"], box_of(row), row["angle_deg"] or 0.0
    if settings.jpeg_lossless:
        try:
            if angle_deg:
                raise writing.NotLossless("a turned crop has pixels of its own")
            header = read_header(data, name, max_pixels=settings.max_pixels)
            snapped = writing.snap(data, header, box, _inner(row), inward=settings.jpeg_snap == "in")
            crop = writing.cut_lossless(data, name, header, snapped, metadata=settings.metadata)
        except writing.NotLossless as why:
            move(row, box, f"{why}: written as usual")
        else:
            move(row, snapped, None if tuple(snapped) == tuple(box) else constraints.told("grid of the JPEG", box, snapped))
            return crop
    return writing.cut(
        data, name, box, angle_deg, metadata=settings.metadata, quality=settings.quality, max_pixels=settings.max_pixels
    )


def _inner(row: Mapping[str, Any]) -> Box:
    """As far in as a row's edges may go: to the inner ends of their intervals, and nowhere if a person has set them."""
    left, top, right, bottom = box = box_of(row)
    if not row["reviewed_by"]:
        left, top = max(left, math.floor(row["left_hi"])), max(top, math.floor(row["top_hi"]))
        right, bottom = min(right, math.ceil(row["right_lo"])), min(bottom, math.ceil(row["bottom_lo"]))
    return Box(left, top, right, bottom) if left < right and top < bottom else box
