"""From pairs to rows of the box dataset: reads each original once, matches all its crops, and keeps whatever became of them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropreg import faults, storage
from cropreg.errors import UnreadableImage
from cropreg.matching.find import Picture, find_in
from cropreg.matching.likeness import perceptual_hash
from cropreg.matching.match import Match
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair
from cropreg.schema import CRASHED, UNPAIRED, UNREADABLE

log = logging.getLogger(__name__)

Row = dict[str, Any]  # of the pairs table but for its split, or of the proxies table


@dataclass(frozen=True)
class Labelling:
    """What turns pairs into rows: everything here changes the table, nothing else does."""

    proxy_long_px: int
    proxy_quality: int
    max_pixels: int
    matcher: MatcherSettings


@dataclass(frozen=True)
class Opened:
    """The original was read, and decoded as far as the search needs."""

    original_id: str


@dataclass(frozen=True)
class Labelled:
    """A row of the pairs table; beside the first that an original shows in, that of the proxies table."""

    row: Row
    proxy: Row | None = None


Step = Opened | Labelled
"""What comes out while the crops of an original are looked at, in this order: so that one who watches knows where it broke."""

LabelOriginal = Callable[[str, Sequence[Any], Labelling], Iterator[Step]]
"""What makes steps of an original's URI and its pairs, one row a pair in their order: :func:`label_original`, or another like it."""


def by_original(pairs: Sequence[Pair]) -> tuple[list[Row], dict[str, list[Pair]]]:
    """Rows for the pairs that lack a side, and the others by their original."""
    members: dict[str, list[Pair]] = {}
    rows = []
    for pair in pairs:
        if pair.original_uri is None or pair.crop_uri is None:
            rows.append(_row(pair, None, None, Match(UNPAIRED, pair.reason), 0.0))
        else:
            members.setdefault(pair.original_uri, []).append(pair)
    return rows, members


def label_pairs(pairs: Sequence[Pair], how: Labelling, label: LabelOriginal | None = None) -> tuple[list[Row], list[Row]]:
    """Matches pairs that share their originals, in this process.

    Args:
        pairs: in any order; those of the same original are matched on one decode of it.
        how: what decides the result.
        label: what is done to an original and its pairs, :func:`label_original` if nothing else.

    Returns:
        rows of the pairs table, one a pair, and rows of the proxies table, one a distinct original.  Both sorted by their ids.
    """
    rows, members = by_original(pairs)
    proxies = []
    for uri, crops in members.items():
        steps = [step for step in (label or label_original)(uri, crops, how) if isinstance(step, Labelled)]
        rows += [step.row for step in steps]
        proxies += [step.proxy for step in steps if step.proxy]
    return in_order(rows, proxies)


def in_order(rows: Sequence[Row], proxies: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows by pair_id, and one proxy for each original_id, in its order."""
    distinct = {str(proxy["original_id"]): proxy for proxy in reversed(proxies)}
    return sorted(rows, key=lambda r: str(r["pair_id"])), [distinct[key] for key in sorted(distinct)]


def label_original(uri: str, members: Sequence[Pair], how: Labelling) -> Iterator[Step]:
    """Matches the crops of one original.  Its proxy comes beside the first row whose crop can be read."""
    began_s = time.process_time()
    original: Picture | UnreadableImage
    original_id = phash = None
    try:
        original_id, original = opened(uri, how)
        phash = perceptual_hash(np.asarray(original.search_plane.pixels, np.uint8))  # decodes; the proxy wants it anyway
    except UnreadableImage as error:
        original = error
    if original_id is not None:
        yield Opened(original_id)
    proxy: Row | None = None
    for pair in members:
        row = _labelled(pair, original, original_id, how)
        row["original_phash"] = phash
        row["elapsed_ms"] = (time.process_time() - began_s) * 1000
        made: Row | None = None
        if proxy is None and row["verdict"] != UNREADABLE and not isinstance(original, UnreadableImage):
            with contextlib.suppress(UnreadableImage):  # only the crop was looked at; the pair's own verdict stands
                made = proxy = proxy_of(original, original_id, how)
        yield Labelled(row, made)
        began_s = time.process_time()


def shrink(uri: str, how: Labelling) -> Iterator[Row]:
    """Yields the row of the proxies table alone, if the original can be read."""
    with contextlib.suppress(UnreadableImage):
        original_id, original = opened(uri, how)
        yield proxy_of(original, original_id, how)


def _labelled(pair: Pair, original: Picture | UnreadableImage, original_id: str | None, how: Labelling) -> Row:
    assert pair.crop_uri is not None
    crop_id = None
    try:
        crop_data = _read(pair.crop_uri)
        crop_id = hashlib.sha256(crop_data).hexdigest()
        if isinstance(original, UnreadableImage):
            raise original
        faults.trip("pair", f"{pair.original_uri} {pair.crop_uri}")
        match = find_in(original, Picture(crop_data, pair.crop_uri, max_pixels=how.max_pixels), how.matcher)
    except UnreadableImage as error:
        match = Match(UNREADABLE, str(error))
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours on one pair among a million must not cost the others
        log.exception("pair=%s", pair.pair_id)
        match = Match(
            CRASHED, f"{pair.crop_uri}: the matcher itself failed on this pair ({type(error).__name__}: {error}). Report it."
        )
    return _row(pair, original_id, crop_id, match, 0.0)


def opened(uri: str, how: Labelling) -> tuple[str, Picture]:
    """An original's id, and the picture, of which nothing is decoded yet.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    faults.trip("open", uri)
    data = _read(uri)
    return hashlib.sha256(data).hexdigest(), Picture(data, uri, max_pixels=how.max_pixels, with_proxy=True)


def proxy_of(original: Picture, original_id: str | None, how: Labelling) -> Row:
    """The row of the proxies table.

    Raises:
        UnreadableImage: the original cannot be decoded whole.
    """
    jpeg, width, height = original.proxy(how.proxy_long_px, how.proxy_quality)
    return {"original_id": original_id, "proxy_w": width, "proxy_h": height, "jpeg": jpeg}


def crashed(pair: Pair, original_id: str | None, reason: str) -> Row:
    """The row of a pair on which a process died."""
    return _row(pair, original_id, None, Match(CRASHED, reason), None)


def _read(uri: str) -> bytes:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise UnreadableImage(
            uri, "is not there", "Was it moved after the folder was listed, or is it a link that leads nowhere?"
        ) from error
    except PermissionError as error:
        raise UnreadableImage(uri, "may not be read", "Give this user the right to read it.") from error
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read ({error})") from error
    if not data:
        raise UnreadableImage(uri, "is empty (0 bytes)", "Copy it again.")
    return data


def _row(pair: Pair, original_id: str | None, crop_id: str | None, match: Match, elapsed_ms: float | None) -> Row:
    """One row of the pairs table but for its split; a box and its figures only where a place was found."""
    original_wh, crop_wh = match.original_wh or (None, None), match.crop_wh or (None, None)
    box = match.box
    return {
        **named(pair, original_id, crop_id),
        "original_w": original_wh[0],
        "original_h": original_wh[1],
        "crop_w": crop_wh[0],
        "crop_h": crop_wh[1],
        "orientation": match.orientation,
        **dict(zip(("x1", "y1", "x2", "y2"), map(float, box) if box else (None,) * 4, strict=True)),
        "angle_deg": match.angle_deg if box else None,
        "scale": match.scale if box else None,
        "score": match.score if box else None,
        "gap": match.gap if box else None,
        "error_px": match.error_px if box else None,
        "probability": match.probability,
        "method": match.method if box else None,
        "verdict": match.verdict,
        "reason": match.reason,
        "elapsed_ms": elapsed_ms,
    }


def named(pair: Pair, original_id: str | None, crop_id: str | None) -> Row:
    """What names a row of the pairs table, whoever found its box."""
    return {
        "pair_id": pair.pair_id,
        "original_uri": pair.original_uri,
        "crop_uri": pair.crop_uri,
        "original_id": original_id,
        "crop_id": crop_id,
        "group": original_id or crop_id or pair.pair_id,
        "stamp": pair.stamp,
    }
