"""From pairs to rows of the box dataset: reads each original once, matches all its crops, and keeps whatever became of them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cropreg import storage
from cropreg.errors import UnreadableImage
from cropreg.matching.find import Picture, find_in
from cropreg.matching.match import Match
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair
from cropreg.schema import CRASHED, UNPAIRED, UNREADABLE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelling:
    """What turns pairs into rows: everything here changes the table, nothing else does."""

    proxy_long_px: int
    proxy_quality: int
    max_pixels: int
    matcher: MatcherSettings


def label_pairs(pairs: Sequence[Pair], how: Labelling) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Matches pairs that share their originals.

    Args:
        pairs: in any order; those of the same original are matched on one decode of it.
        how: what decides the result.

    Returns:
        rows of the pairs table, one a pair, and rows of the proxies table, one a distinct original.  Both sorted by their ids.
    """
    by_original: dict[str | None, list[Pair]] = {}
    for pair in pairs:
        alone = pair.original_uri is None or pair.crop_uri is None
        by_original.setdefault(None if alone else pair.original_uri, []).append(pair)
    rows = [_row(pair, None, None, Match(UNPAIRED, pair.reason), 0.0) for pair in by_original.pop(None, [])]
    proxies: dict[str, dict[str, Any]] = {}
    for uri, members in by_original.items():
        assert uri is not None
        rows.extend(_label_original(uri, members, how, proxies))
    return sorted(rows, key=lambda r: str(r["pair_id"])), [proxies[key] for key in sorted(proxies)]


def _label_original(uri: str, members: Sequence[Pair], how: Labelling, proxies: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    began_s = time.process_time()
    original: Picture | UnreadableImage
    original_id = None
    try:
        data = _read(uri)
        original_id = hashlib.sha256(data).hexdigest()
        original = Picture(data, uri, max_pixels=how.max_pixels, with_proxy=True)
    except UnreadableImage as error:
        original = error
    rows = []
    for pair in members:
        assert pair.crop_uri is not None
        crop_id = None
        try:
            crop_data = _read(pair.crop_uri)
            crop_id = hashlib.sha256(crop_data).hexdigest()
            if isinstance(original, UnreadableImage):
                raise original
            match = find_in(original, Picture(crop_data, pair.crop_uri, max_pixels=how.max_pixels), how.matcher)
        except UnreadableImage as error:
            match = Match(UNREADABLE, str(error))
        except Exception as error:  # a fault of ours on one pair among a million must not cost the others
            log.exception("pair=%s", pair.pair_id)
            match = Match(
                CRASHED, f"{pair.crop_uri}: the matcher itself failed on this pair ({type(error).__name__}: {error}). Report it."
            )
        rows.append(_row(pair, original_id, crop_id, match, (time.process_time() - began_s) * 1000))
        began_s = time.process_time()
    if isinstance(original, Picture) and original_id not in proxies and any(r["verdict"] != UNREADABLE for r in rows):
        try:
            jpeg, width, height = original.proxy(how.proxy_long_px, how.proxy_quality)
            proxies[str(original_id)] = {"original_id": original_id, "proxy_w": width, "proxy_h": height, "jpeg": jpeg}
        except UnreadableImage:
            pass  # only the crop was looked at; the pair's own verdict stands
    return rows


def _read(uri: str) -> bytes:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise UnreadableImage(uri, "is not there", "Was it moved after the folder was listed?") from error
    except PermissionError as error:
        raise UnreadableImage(uri, "may not be read", "Give this user the right to read it.") from error
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read ({error})") from error
    if not data:
        raise UnreadableImage(uri, "is empty (0 bytes)", "Copy it again.")
    return data


def _row(pair: Pair, original_id: str | None, crop_id: str | None, match: Match, elapsed_ms: float) -> dict[str, Any]:
    """One row of the pairs table but for its split; a box and its figures only where a place was found."""
    original_wh, crop_wh = match.original_wh or (None, None), match.crop_wh or (None, None)
    box = match.box
    return {
        "pair_id": pair.pair_id,
        "original_uri": pair.original_uri,
        "crop_uri": pair.crop_uri,
        "original_id": original_id,
        "crop_id": crop_id,
        "group": original_id or crop_id or pair.pair_id,
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
        "stamp": pair.stamp,
    }
