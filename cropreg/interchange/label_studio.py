"""Label Studio's tasks with predictions, for looking through and correcting them there.

Values are percent of the upright picture; ``x, y`` is the corner that was top left, after the turn by ``rotation``, clockwise about it.
Pictures on a disk are named as its local file server wants them, below the folder that holds the folder of pictures: start Label Studio
with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to that, and the labelling interface

    <View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image" canRotate="true"><Label value="crop"/>
    </RectangleLabels></View>
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from cropreg import __version__, storage
from cropreg.boxes import Box
from cropreg.interchange.turned import corners


def write(rows: Iterable[tuple[str, dict[str, Any]]], images: str) -> bytes:
    """One task a picture that could be read; ``images`` is the URI of their folder."""
    return json.dumps([_task(row, images) for _, row in rows if row["x1"] is not None], indent=1).encode()


def _task(row: dict[str, Any], images: str) -> dict[str, Any]:
    box, (w, h) = Box(row["x1"], row["y1"], row["x2"], row["y2"]), (row["width"], row["height"])
    (x, y), (box_w, box_h) = corners(box, row["angle_deg"])[0], box.size_wh
    value = {
        "x": 100 * x / w,
        "y": 100 * y / h,
        "width": 100 * box_w / w,
        "height": 100 * box_h / h,
        "rotation": row["angle_deg"],
        "rectanglelabels": ["crop"],
    }
    result = {
        "id": "crop",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": w,
        "original_height": h,
        "image_rotation": 0,
        "value": value,
    }
    prediction: dict[str, Any] = {"model_version": f"cropreg {__version__}", "result": [result]}
    if row["confidence"] is not None:
        prediction["score"] = row["confidence"]
    about = {"image": _url(row["image_uri"], images), "verdict": row["verdict"], "reason": row["reason"] or ""}
    return {"data": about, "predictions": [prediction]}


def _url(uri: str, images: str) -> str:
    if storage.is_remote(uri):
        return uri
    relative = os.path.relpath(os.fsencode(storage.local_path(uri)), posixpath.dirname(os.fsencode(storage.local_path(images))))
    return f"/data/local-files/?d={quote(relative)}"
