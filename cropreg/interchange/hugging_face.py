"""The ``metadata.jsonl`` of Hugging Face's ``imagefolder``: laid beside the pictures, it makes their folder a data set with boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def write(rows: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """One line a picture: its name, and one box as x, y, width, height in pixels of the upright picture."""
    lines = []
    for name, row in rows:
        box = [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]]
        objects = {"bbox": [box], "categories": ["crop"], "score": [row["confidence"]], "rotation": [row["angle_deg"]]}
        lines.append(json.dumps({"file_name": name, "objects": objects}) + "\n")
    return "".join(lines).encode()
