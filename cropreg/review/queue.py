"""What there is to judge, most useful first: the rows that were not settled, then labels and predictions that look out of line."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg import boxes, output, reviews, schema, storage
from cropreg.boxes import EDGES
from cropreg.errors import InputError
from cropreg.schema import BoxDataset

UNSETTLED = (schema.AMBIGUOUS, schema.DOUBTFUL, schema.FLAT, schema.NO_MATCH)
SUSPICIOUS = "suspicious"  # what the page calls a found label that is far from its neighbours, or from the model
_CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = (
    *("pair_id", "original_uri", "crop_uri", "original_id", "original_w", "original_h", "stamp"),
    *(*_CORNERS, "angle_deg", "probability", "verdict", "reason"),
)
_PLAUSIBLE = 0.05  # below it a box is more likely nonsense than nearly right, and looking at it gains little
_FAR_SD = 4.0  # robust standard deviations from the neighbours; as in `cropreg check`
_REACH = 8  # neighbours on either side, in the order of names
_LEAST_NEIGHBOURS = 5
_CHUNK = 50_000  # rows whose windows are in memory at a time
_LEAST_SD = 0.01  # shares of the side: a habit more even than this would make every label suspicious
_SAME_IOU = 0.995
_MAX_SUGGESTIONS = 3
MATCHER, DECIDED, ELSEWHERE, MODEL, NEIGHBOURS, MEDIAN = SOURCES = (  # of boxes to choose from, the most telling first
    *("the matcher's place", "the box as decided", "another place that fits"),
    *("the model's box", "its neighbours' box", "the median box"),
)

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Suggestion:
    """A box to choose with one key, px of the upright original, and where it comes from: one of ``SOURCES``."""

    source: str
    box: Corners
    angle_deg: float = 0.0


@dataclass
class Item:
    """One row to judge.

    Attributes:
        key: ``pair_id`` or ``image_uri``.
        id: a short hash of the key, fit for an address.
        name: of the original, below the folder that all have in common.
        verdict: as in the table, or ``suspicious``.
        tier: 0 before 1 before 2; within a tier the greatest ``benefit`` (0..1) comes first.
        box, angle_deg: None where there is no place; px of the upright original.
        bands: lowest and highest place of left, top, right, bottom, px; None where unknown.
        looked: whether other places of an ambiguous crop have been looked for.
    """

    key: str
    name: str
    original_uri: str
    crop_uri: str | None
    original_id: str | None
    size_wh: tuple[int, int]
    box: Corners | None
    angle_deg: float
    verdict: str
    why: str
    tier: int
    benefit: float
    stamp: str | None
    bands: tuple[tuple[float, float], ...] | None = None
    suggestions: list[Suggestion] = field(default_factory=list)
    looked: bool = False
    id: str = ""

    def __post_init__(self) -> None:
        self.id = hashlib.sha256(self.key.encode()).hexdigest()[:16]

    def suggest(self, suggestion: Suggestion) -> None:
        """Adds a box to choose from, in the order of ``SOURCES``; of those that are alike, and when keys run out, the first stay."""
        x1, y1, x2, y2 = suggestion.box
        width, height = self.size_wh
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            return
        ranked = sorted(
            [*self.suggestions, Suggestion(suggestion.source, box, suggestion.angle_deg)], key=lambda s: SOURCES.index(s.source)
        )
        distinct = [s for n, s in enumerate(ranked) if not any(_overlap(s.box, known.box) > _SAME_IOU for known in ranked[:n])]
        self.suggestions = distinct[:_MAX_SUGGESTIONS]


def of_labels(dataset: BoxDataset) -> list[Item]:
    """The rows of a box dataset worth a look: what the matcher did not settle, and labels far from their neighbours."""
    raw = BoxDataset(dataset.uri, dataset.number, dataset.manifest)  # as matched: what is decided stays in the list, marked
    table = raw.pairs(COLUMNS)
    found = table.filter(pc.equal(table["verdict"], schema.FOUND))
    labels = _Neighbours(found["original_uri"].to_pylist(), _margins(found, "original_w", "original_h"))
    items = []
    unsettled = table.filter(pc.is_in(table["verdict"], pa.array(UNSETTLED)))
    usable = pc.and_(pc.is_valid(unsettled["original_w"]), pc.is_valid(unsettled["crop_uri"]))
    for row in unsettled.filter(usable).to_pylist():
        item = _label(row, row["verdict"], row["reason"] or "The matcher did not settle this pair.")
        item.tier, item.benefit = _benefit(item.box is not None, row["probability"])
        if item.box is None:
            item.why += " There is no place yet: choose or draw one, or reject."
        items.append((item, labels.around(row["original_uri"])))
    middles = labels.middles()
    oddness, edges = labels.oddness(middles)
    for n in np.flatnonzero(oddness > _FAR_SD):
        row, middle, edge = found.slice(int(n), 1).to_pylist()[0], middles[n], int(edges[n])
        off = float(labels.margins[n, edge] - middle[edge])
        item = _label(row, SUSPICIOUS, _far_sentence(edge, off, float(oddness[n])))
        item.tier, item.benefit = 1, 1 - _FAR_SD / (2 * float(oddness[n]))
        items.append((item, middle))
    for item, middle in items:
        if item.box is not None:
            item.suggest(Suggestion(MATCHER, item.box, item.angle_deg))
        if labels.count:
            item.suggest(Suggestion(NEIGHBOURS, _to_px(middle, item.size_wh)))
            item.suggest(Suggestion(MEDIAN, _to_px(labels.median, item.size_wh)))
    return _named([item for item, _ in items])


def of_predictions(rows: Sequence[dict[str, Any]]) -> list[Item]:
    """All predictions, those left for review first."""
    sure = [row for row in rows if row["verdict"] == schema.ACCEPT and row["x1"] is not None]
    margins = _margins(pa.Table.from_pylist(sure, schema=schema.PREDICTIONS), "width", "height")
    kept = _Neighbours([row["image_uri"] for row in sure], margins)
    items = []
    for row in rows:
        if row["width"] is None or row["x1"] is None:
            continue  # nothing was decoded, so there is nothing to look at
        confidence = row["confidence"]
        reason = row["reason"] or f"Written with confidence {confidence or 0:.2f}."
        if row["reviewed_by"]:
            reason = f"Decided by {row['reviewed_by']}, and applied."
        bounds = [(row[f"{edge}_lo"], row[f"{edge}_hi"]) for edge in EDGES]
        tier, benefit = _benefit(True, 0.3 if confidence is None else confidence)
        item = Item(
            key=row["image_uri"], name=row["image_uri"], original_uri=row["image_uri"], crop_uri=None, original_id=None,
            size_wh=(row["width"], row["height"]), box=_corners(row), angle_deg=row["angle_deg"] or 0.0, verdict=row["verdict"],
            why=_sentence(reason), tier=tier if row["verdict"] == schema.REVIEW else 2, benefit=benefit, stamp=row["stamp"],
            bands=None if any(v is None for pair in bounds for v in pair) else tuple(bounds),
        )  # fmt: skip
        assert item.box is not None
        item.suggest(Suggestion(DECIDED if row["reviewed_by"] else MODEL, item.box, item.angle_deg))
        if kept.count:
            item.suggest(Suggestion(NEIGHBOURS, _to_px(kept.around(row["image_uri"]), item.size_wh)))
            item.suggest(Suggestion(MEDIAN, _to_px(kept.median, item.size_wh)))
        items.append(item)
    return _named(items)


def ordered(items: Iterable[Item]) -> list[Item]:
    """The items by expected benefit, the same order for the same items."""
    return sorted(items, key=lambda item: (item.tier, -item.benefit, item.name, item.key))


def far_from_model(row: dict[str, Any], predicted_norm: NDArray[np.float64], limits_norm: NDArray[np.float64]) -> Item | None:
    """A found label that a trained model contradicts, or None when it does not.

    Args:
        row: of pairs.
        predicted_norm, limits_norm: (4,) box and (4, 2) lowest and highest place of each edge, shares of the picture.

    The label is suspicious where an edge is as far outside the interval again as the interval reaches from the prediction.
    """
    size_wh = row["original_w"], row["original_h"]
    label = boxes.normalise([row[c] for c in _CORNERS], size_wh)
    off = label - predicted_norm
    reach = np.maximum((limits_norm[:, 1] - limits_norm[:, 0]) / 2, _LEAST_SD)
    times = np.abs(off) / np.minimum(reach, 0.25)  # an interval that promises nothing must not excuse everything
    edge = int(np.argmax(times))
    if times[edge] < 2:
        return None
    overlap = float(boxes.iou(label, predicted_norm))
    why = f"The model puts the {EDGES[edge]} edge {_share(-float(off[edge]), edge)} (overlap {overlap:.2f})."
    item = _label(row, SUSPICIOUS, why)
    item.tier, item.benefit = 1, 1 - 1 / float(times[edge])
    assert item.box is not None
    item.suggest(Suggestion(MATCHER, item.box, item.angle_deg))
    item.suggest(Suggestion(MODEL, _to_px(predicted_norm, size_wh)))
    return item


class _Neighbours:
    """Boxes in the order of their pictures' names, folder by folder: what lies beside each other was cropped at one sitting."""

    def __init__(self, uris: Sequence[str], margins: NDArray[np.float64]) -> None:
        self.margins = margins  # (N, 4) as x1, y1, x2, y2 in shares of the picture
        self.count = len(uris)
        self.median = np.median(margins, axis=0) if len(uris) else np.zeros(4)
        places = [_place_of(uri) for uri in uris]
        self._rank = sorted(range(len(uris)), key=places.__getitem__)
        self._places = [places[i] for i in self._rank]
        self._sorted = margins[self._rank]

    def around(self, uri: str) -> NDArray[np.float64]:
        """The median box (4,) of the pictures whose names stand around that of ``uri``."""
        place = _place_of(uri)
        low, high = self._bounds(place[0])
        if high - low < _LEAST_NEIGHBOURS:
            return self.median
        start, size = self._window(np.array(bisect_left(self._places, place)), low, high)
        return np.asarray(np.median(self._sorted[int(start) : int(start) + size], axis=0))

    def middles(self) -> NDArray[np.float64]:
        """The median box of the neighbours of every row, itself among them: (N, 4)."""
        middles = np.tile(self.median, (self.count, 1))
        low = 0
        while low < self.count:
            low, high = self._bounds(self._places[low][0])
            if high - low >= _LEAST_NEIGHBOURS:
                for first in range(low, high, _CHUNK):
                    at = np.arange(first, min(first + _CHUNK, high))
                    start, size = self._window(at, low, high)
                    middles[[self._rank[i] for i in at]] = np.median(self._sorted[start[:, None] + np.arange(size)], axis=1)
            low = high
        return middles

    def oddness(self, middles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """How far each row lies from its neighbours, in robust standard deviations at its farthest edge (N,), and which edge (N,)."""
        if self.count < 2 * _LEAST_NEIGHBOURS:
            return np.zeros(self.count), np.zeros(self.count, np.int64)
        off = np.abs(self.margins - middles)
        spread = np.maximum(1.4826 * np.median(off, axis=0), _LEAST_SD)  # of a normal distribution, the standard deviation
        times = off / spread
        return times.max(axis=1), times.argmax(axis=1)

    def _bounds(self, folder: str) -> tuple[int, int]:
        """Where the pictures of a folder stand among all."""
        return bisect_left(self._places, (folder, "")), bisect_left(self._places, (folder + "\0", ""))

    def _window(self, at: NDArray[np.int64], low: int, high: int) -> tuple[NDArray[np.int64], int]:
        """First place and number of the neighbours of the places ``at`` within ``low..high``."""
        size = min(2 * _REACH + 1, high - low)
        return np.clip(at - _REACH, low, high - size), size


def _overlap(a: Corners, b: Corners) -> float:
    """IoU of two boxes; thirty times faster for one pair than :func:`cropreg.boxes.iou`, and lists are long."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common) if common else 0.0


def _place_of(uri: str) -> tuple[str, str]:
    folder, _, name = uri.rpartition("/")
    return folder, name


def _label(row: dict[str, Any], verdict: str, why: str) -> Item:
    return Item(
        key=row["pair_id"], name=row["original_uri"], original_uri=row["original_uri"], crop_uri=row["crop_uri"],
        original_id=row["original_id"], size_wh=(row["original_w"], row["original_h"]), box=_corners(row),
        angle_deg=row["angle_deg"] or 0.0, verdict=verdict, why=_sentence(why), tier=0, benefit=0.0, stamp=row["stamp"],
    )  # fmt: skip


def _benefit(has_place: bool, probability: float | None) -> tuple[int, float]:
    """Tier and benefit of an unsettled row: the least probable place that is still plausible first, hopeless ones last."""
    if not has_place:
        return 2, 0.0
    p = 0.5 if probability is None else float(probability)
    return (0, 1 - p) if p >= _PLAUSIBLE else (2, p)


def _corners(row: dict[str, Any]) -> Corners | None:
    return None if row["x1"] is None else (row["x1"], row["y1"], row["x2"], row["y2"])


def _margins(table: pa.Table, width: str, height: str) -> NDArray[np.float64]:
    """The boxes of rows as shares of their pictures (N, 4)."""
    corners = np.stack([table[c].to_numpy() for c in _CORNERS], 1).astype(np.float64)
    return boxes.normalise(corners, np.stack([table[c].to_numpy() for c in (width, height)], 1))


def _to_px(box_norm: NDArray[np.float64], size_wh: tuple[int, int]) -> Corners:
    (x1, y1, x2, y2), (w, h) = box_norm.tolist(), size_wh
    return float(round(x1 * w)), float(round(y1 * h)), float(round(x2 * w)), float(round(y2 * h))


def _far_sentence(edge: int, off_norm: float, times: float) -> str:
    return f"Its {EDGES[edge]} edge lies {_share(off_norm, edge)} than its neighbours', {times:.1f} times the usual spread."


def _share(off_norm: float, edge: int) -> str:
    """``12% of the width further right``."""
    where = ("further right" if off_norm > 0 else "further left") if edge % 2 == 0 else ("lower" if off_norm > 0 else "higher")
    return f"{100 * abs(off_norm):.0f}% of the {'width' if edge % 2 == 0 else 'height'} {where}"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else text + "."


def _named(items: list[Item]) -> list[Item]:
    """Names below the longest folder that all originals share."""
    folders = [item.original_uri.rpartition("/")[0] for item in items]
    if folders:
        low, high = min(folders).split("/"), max(folders).split("/")
        shared = 0
        while shared < min(len(low), len(high)) and low[shared] == high[shared]:
            shared += 1
        for item in items:
            item.name = "/".join(item.original_uri.split("/")[shared:])
    return ordered(items)


def state_of(item: Item, review: reviews.Review | None) -> str:
    """What was decided about an item: ``open``, ``accept``, ``correct`` or ``reject``."""
    return review.decision if review is not None and reviews.applies(review, item.stamp) else "open"


def open_predictions(uri: str) -> list[dict[str, Any]]:
    """The rows of the predictions in a folder.

    Raises:
        InputError: there are none.
    """
    table = storage.join(uri, output.TABLE)
    if not storage.exists(table):
        raise InputError(f"{uri}: neither a box dataset nor predictions. Give the --out of cropreg match or of cropreg predict.")
    return schema.read_predictions(table)
