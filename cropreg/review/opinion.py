"""A trained model's opinion on what is to be judged: its box as a suggestion, and labels that it contradicts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg import boxes, schema, storage
from cropreg.errors import CropregError, UnreadableImage
from cropreg.images import decode_color
from cropreg.prediction import Predictor, SmallPicture, read_small
from cropreg.proxies import Proxies
from cropreg.review.queue import COLUMNS, MODEL, Item, Suggestion, far_from_model
from cropreg.review.session import Session
from cropreg.schema import BoxDataset

log = logging.getLogger(__name__)

_BATCH = 8


@dataclass(frozen=True)
class _Seen:
    """A picture as small as the model needs it; ``row`` is that of a label that nobody has doubted yet."""

    item: Item | None
    row: dict[str, Any] | None
    small: SmallPicture


def ask(session: Session, predictor: Predictor, dataset: BoxDataset | None, stop: threading.Event) -> int:
    """Asks the model about every item and, with a ``dataset``, about every label that is not in the list; meant for a thread of its own.

    Items come in the list's order, so that what is looked at first has its suggestion first.  Returns the number of labels added.
    """
    added = 0
    pictures = _labels(session, dataset, predictor.info.seen_px) if dataset else _of_items(session, predictor.info.seen_px)
    while not stop.is_set() and (batch := list(islice(pictures, _BATCH))):
        predictions = predictor.predict([seen.small.pixels for seen in batch])
        limits = predictor.intervals(predictions)
        new = []
        for seen, box_norm, limit in zip(batch, predictions.boxes_norm, limits, strict=True):
            if seen.item is not None:
                _suggest(seen.item, seen.small, box_norm, limit)
            elif seen.row is not None and (item := far_from_model(seen.row, box_norm, limit)) is not None:
                item.name = seen.row["original_uri"].rpartition("/")[2]
                item.bands = _bands(seen.small, limit)
                new.append(item)
        if new:
            session.add(new)
            added += len(new)
        else:
            session.changed()
    log.info("model asked: suspicious=%d", added)
    return added


def _suggest(item: Item, small: SmallPicture, box_norm: NDArray[np.float64], limits: NDArray[np.float64]) -> None:
    x1, y1, x2, y2 = (float(v) for v in small.to_original(box_norm).round())
    item.suggest(Suggestion(MODEL, (x1, y1, x2, y2)))
    if item.bands is None:
        item.bands = _bands(small, limits)


def _bands(small: SmallPicture, limits: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    low, high = (small.to_original(limits[:, end]) for end in (0, 1))
    return tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))


def _of_items(session: Session, long_px: int) -> Iterator[_Seen]:
    for item in list(session.items.values()):
        try:
            data = storage.read_bytes(item.original_uri)
            yield _Seen(item, None, read_small(data, item.original_uri, 2**62, long_px))
        except (UnreadableImage, OSError) as error:
            log.warning("picture=%s: %s", item.original_uri, error)


def _labels(session: Session, dataset: BoxDataset, long_px: int) -> Iterator[_Seen]:
    """Items first, then the labels that are not among them; from the proxies."""
    proxies = Proxies(dataset)
    listed = list(session.items.values())
    for chunk in _chunks(listed):
        positions = proxies.locate(pa.array([item.original_id for item in chunk], pa.string()))
        for item, position in zip(chunk, positions, strict=True):
            if position >= 0 and (small := _proxy(proxies, int(position), item.size_wh, item.name)) is not None:
                yield _Seen(item, None, small)
    raw = BoxDataset(dataset.uri, dataset.number, dataset.manifest)
    table = raw.pairs(COLUMNS)
    known = pc.is_in(table["pair_id"], pa.array([item.key for item in listed], pa.string()))
    table = table.filter(pc.and_(pc.equal(table["verdict"], schema.FOUND), pc.invert(known)))
    positions = proxies.locate(table["original_id"].combine_chunks())
    for n, position in enumerate(positions):
        if position >= 0:
            row = table.slice(n, 1).to_pylist()[0]
            small = _proxy(proxies, int(position), (row["original_w"], row["original_h"]), row["original_uri"])
            if small is not None:
                yield _Seen(None, row, small)


def _proxy(proxies: Proxies, position: int, size_wh: tuple[int, int], name: str) -> SmallPicture | None:
    try:
        pixels = decode_color(proxies.jpeg(position), name)
    except CropregError as error:
        log.warning("proxy of %s: %s", name, error)
        return None
    return SmallPicture(pixels, size_wh, 1, boxes.denormalise(np.array([0.0, 0.0, 1.0, 1.0]), size_wh))


def _chunks(items: Sequence[Item], size: int = 1000) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
