"""What a person decided about predictions, brought into their rows and crops."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cropreg import cropping, reviews, storage
from cropreg.boxes import Box
from cropreg.cropping import CORNERS, MOVED
from cropreg.reviews import Review
from cropreg.schema import ACCEPT, FAILED, REVIEW
from cropreg.settings import PredictSettings


def holds(review: Review | None, row: Mapping[str, Any]) -> bool:
    """Whether a decision is about the picture and the model that a row of predictions is of."""
    return review is not None and reviews.applies(review, row["stamp"])


def apply(
    rows: Sequence[dict[str, Any]], judged: Mapping[str, Review], relative: Mapping[str, str], out: str, settings: PredictSettings
) -> int:
    """Brings rows and their crops in line with what a person decided; returns the number of rows decided about.

    In threads of this process: decoders and encoders run beside each other, and what a person looked at is not very much.
    """
    decided = [row for row in rows if row["width"] is not None and holds(judged.get(row["image_uri"]), row)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda row: review_crop(row, judged[row["image_uri"]], relative[row["image_uri"]], out, settings), decided))
    return len(decided)


def review_crop(row: dict[str, Any], review: Review, relative: str, out: str, settings: PredictSettings) -> None:
    """Makes a row of predictions what a person decided, and its crop with it: written, written anew, or taken away.

    Raises:
        OutputError: the place cannot be written.
    """
    earlier, row["reviewed_by"] = row["reviewed_by"], review.who
    if review.decision == reviews.REJECT:
        if row["crop_uri"] is not None:
            storage.remove(row["crop_uri"])
        row.update(verdict=REVIEW, reason=f"rejected by {review.who}", crop_uri=None)
        return
    assert review.box is not None, "only what has a box can be confirmed"
    angle_deg, box = review.angle_deg or 0.0, Box(*review.box)
    if angle_deg:  # turned, it may stick out of the picture
        whole = Box(*(float(round(v)) for v in box))
    else:
        whole = box.rounded((row["width"], row["height"]))
    shown = [row[name] for name in CORNERS]
    before_grid = [edge + sign * (row[name] or 0) for edge, name, sign in zip(shown, MOVED, (1, 1, -1, -1), strict=True)]
    kept = earlier is not None and [*whole] == before_grid  # an earlier run has applied this, and cut along the grid of the JPEG
    stands = (kept or [*whole] == shown) and abs((row["angle_deg"] or 0.0) - angle_deg) < 1e-6
    row.update(angle_deg=angle_deg, verdict=ACCEPT, reason=None)
    if not (stands and kept):  # the box is the person's now
        row.update(zip(CORNERS, map(float, whole), strict=True))
        row.update(dict.fromkeys(MOVED, 0), adjusted=None)
    if stands and row["crop_uri"] is not None and storage.exists(row["crop_uri"]):
        return
    try:
        data, _ = cropping.read(row["image_uri"])
    except OSError as error:
        row.update(verdict=FAILED, reason=f"{row['image_uri']}: cannot be read ({error}).")
        return
    ours = settings.model_copy(update={"overwrite": settings.overwrite or row["crop_uri"] is not None})
    cropping.write_crop(row, data, storage.local_path(storage.path_to_uri(relative)), out, ours)
