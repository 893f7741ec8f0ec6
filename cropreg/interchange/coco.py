"""COCO's JSON: what FiftyOne, CVAT, Roboflow and most training tools read.

``bbox`` is x, y, width, height in pixels; a turned box is the rectangle before the turn, with CVAT's ``attributes.rotation`` (degrees,
clockwise, about its centre).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from cropreg import __version__
from cropreg.errors import InputError
from cropreg.interchange.listed import Listed

_CATEGORY = "crop"


def write(rows: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """All predictions as one file: every picture that could be read, its box with confidence and verdict.

    Args:
        rows: name of the picture relative to its folder, and its row of the predictions table.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, row in rows:
        if row["x1"] is None:
            continue
        number = len(images) + 1
        images.append({"id": number, "file_name": name, "width": row["width"], "height": row["height"]})
        w, h = row["x2"] - row["x1"], row["y2"] - row["y1"]
        annotation = {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "bbox": [row["x1"], row["y1"], w, h],
            "area": w * h,
            "iscrowd": 0,
            "attributes": {"rotation": row["angle_deg"], "verdict": row["verdict"]},
        }
        if row["confidence"] is not None:
            annotation["score"] = row["confidence"]
        annotations.append(annotation)
    whole = {
        "info": {"description": f"crops by cropreg {__version__}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": _CATEGORY, "supercategory": ""}],
    }
    return json.dumps(whole, indent=1).encode()


def read(data: bytes, name: str) -> list[Listed]:
    """The crops that a file lists: the annotations of the category ``crop``, or of the only category there is.

    Raises:
        InputError: not such a file, one of several categories none of which is ``crop``, or an annotation of no image.
    """
    try:
        return list(_listed(json.loads(data), name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: not a COCO file of boxes ({type(error).__name__}: {error}).") from error


def _listed(whole: dict[str, Any], name: str) -> Iterator[Listed]:
    categories = {item["id"]: item["name"] for item in whole.get("categories", [])}
    wanted = {number for number, word in categories.items() if word == _CATEGORY} or set(categories)
    if len(wanted) != 1 and _CATEGORY not in categories.values():
        raise InputError(
            f"{name}: holds {len(categories)} categories and none is called {_CATEGORY!r}. Rename the one that is meant."
        )
    images = {item["id"]: item for item in whole["images"]}
    if len({item["id"] for item in whole["annotations"]}) < len(whole["annotations"]):
        raise InputError(f"{name}: two annotations have the same id. Number them anew.")
    bare = dict(images)
    for annotation in whole["annotations"]:
        if annotation["category_id"] not in wanted:
            continue
        image = images.get(annotation.get("image_id"))
        if image is None:
            raise InputError(
                f"{name}: annotation {annotation['id']} is of the image {annotation.get('image_id')}, which the file does not list. "
                f"Add that image, or take the annotation out."
            )
        bare.pop(annotation["image_id"], None)
        x, y, w, h = (float(value) for value in annotation["bbox"])
        angle = float(annotation.get("attributes", {}).get("rotation") or 0)
        yield Listed(image["file_name"], str(annotation["id"]), (x, y, x + w, y + h), angle, _size(image))
    for image in bare.values():
        yield Listed(image["file_name"], "", None, size_wh=_size(image))


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None
