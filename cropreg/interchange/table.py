"""Crops from a CSV: ``predictions.csv``, or any table with the picture's name and x1, y1, x2, y2."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from cropreg.errors import InputError
from cropreg.interchange.listed import Listed

_NAMES = ("original", "image_uri", "file_name")
_EDGES = ("x1", "y1", "x2", "y2")


def read(data: bytes, name: str) -> list[Listed]:
    """The crops that a table lists, in pixels of the upright original, half-open.

    Columns: ``original``, ``image_uri`` or ``file_name``; ``x1, y1, x2, y2``; and if they are there ``angle_deg``, ``width``, ``height``.
    A row without edges is a picture without a crop; one that comes twice counts once.

    Raises:
        InputError: not such a table, or a row with some of its edges, or with a value that is no number.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: no CSV in UTF-8 ({error}).") from error
    columns = list(reader.fieldnames or [])
    column = next((word for word in _NAMES if word in columns), None)
    if column is None or not set(_EDGES) <= set(columns):
        raise InputError(
            f"{name}: needs the columns original (or image_uri or file_name), x1, y1, x2, y2; it has {', '.join(columns) or 'none'}."
        )
    if not rows:
        raise InputError(f"{name}: names no picture: below its header stands no row.")
    seen: dict[str, set[Listed]] = {}
    found = []
    for number, row in enumerate(rows, 2):
        empty = [key for key in _EDGES if not row[key]]
        if empty and len(empty) < len(_EDGES):
            raise InputError(
                f"{name}: row {number}: lacks {', '.join(empty)}. Give all of x1, y1, x2, y2, or none of them for a picture without a crop."
            )
        try:
            edges = None if empty else tuple(float(row[key]) for key in _EDGES)
            angle = float(row.get("angle_deg") or 0)
            size_wh = (int(row["width"]), int(row["height"])) if row.get("width") and row.get("height") else None
        except (ValueError, TypeError) as error:
            raise InputError(f"{name}: row {number}: {error}.") from error
        listed = Listed(row[column] or "", "", edges, angle, size_wh)  # type: ignore[arg-type]  # four of them
        of_picture = seen.setdefault(listed.name, set())
        if listed not in of_picture:
            of_picture.add(listed)
            found.append(replace(listed, key=str(len(of_picture))))
    return found
