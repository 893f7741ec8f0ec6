"""Crops from a CSV: ``predictions.csv``, or any table with the picture's name and x1, y1, x2, y2."""

from __future__ import annotations

import csv
import io

from cropreg.errors import InputError
from cropreg.interchange.listed import Listed

_NAMES = ("original", "image_uri", "file_name")
_EDGES = ("x1", "y1", "x2", "y2")


def read(data: bytes, name: str) -> list[Listed]:
    """The crops that a table lists, in pixels of the upright original, half-open.

    Columns: ``original``, ``image_uri`` or ``file_name``; ``x1, y1, x2, y2``; and if they are there ``angle_deg``, ``width``, ``height``.
    A row without edges is a picture without a crop.

    Raises:
        InputError: not such a table, or a value that is no number.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: no CSV in UTF-8 ({error}).") from error
    columns = list(rows[0]) if rows else []
    column = next((word for word in _NAMES if word in columns), None)
    if column is None or not set(_EDGES) <= set(columns):
        raise InputError(
            f"{name}: needs the columns original (or image_uri or file_name), x1, y1, x2, y2; it has {', '.join(columns)}."
        )
    seen: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows, 2):
        try:
            edges = tuple(float(row[key]) for key in _EDGES) if row["x1"] else None
            angle = float(row.get("angle_deg") or 0)
            size_wh = (int(row["width"]), int(row["height"])) if row.get("width") and row.get("height") else None
        except (ValueError, TypeError) as error:
            raise InputError(f"{name}: row {number}: {error}.") from error
        picture = row[column] or ""
        seen[picture] = seen.get(picture, 0) + 1
        found.append(Listed(picture, str(seen[picture]), edges, angle, size_wh))  # type: ignore[arg-type]  # four of them
    return found
