"""Pairing by content: the list of pairs again, with an original for every crop that was alone and could be found in just one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cropreg import storage
from cropreg.content.decide import Decision, decide
from cropreg.content.describe import NUM_CROP, Description, describe
from cropreg.content.index import SHORTLIST, Index
from cropreg.errors import UnreadableImage
from cropreg.matching.picture import Picture
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair, pair_id
from cropreg.schema import FOUND, UNPAIRED

log = logging.getLogger(__name__)

KNOWN_COLUMNS = ("original_uri", "crop_uri", "stamp", "verdict", "reason")


# spread(function, items, shared, title=, unit=) calls function(item, shared) for every item, here or on a cluster; results in order
Spread = Callable[..., list[bytes]]


@dataclass(frozen=True)
class Search:
    """What all crops are looked up with."""

    index: Index
    max_pixels: int
    matcher: MatcherSettings


def pair_by_content(
    pairs: Sequence[Pair], known: Iterable[Mapping[str, Any]], spread: Spread, *, max_pixels: int, matcher: MatcherSettings
) -> list[Pair]:
    """Gives an original to every crop without one that is found in just one of all originals, paired ones included.

    Args:
        pairs: as :func:`cropreg.pairs.find` gives them.
        known: rows of an earlier run with KNOWN_COLUMNS.  A crop that was found keeps its original while both files stay as they are;
            one that was not is looked for again when any original has come, gone or changed.
        spread: runs a function over files.
        max_pixels, matcher: as for the matching itself, so that what is found here will be found there.

    Returns:
        the pairs, sorted by ``pair_id``; every file is in one, as before.  A crop that stays alone has what was seen in its reason, and a
        stamp that changes with the originals.
    """
    originals = {p.original_uri: p for p in pairs if p.original_uri is not None}
    stamps = {uri: p.stamp.partition("/")[0] for uri, p in originals.items()}
    digest = hashlib.sha256(repr(sorted(stamps.items())).encode()).hexdigest()[:16]
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        rows.setdefault(row["crop_uri"], []).append(row)
    decisions: dict[str, Decision] = {}
    alone = {p.crop_uri: p for p in pairs if p.original_uri is None and p.crop_uri is not None}
    for uri, pair in alone.items():
        earlier = _remembered(rows.get(uri, []), stamps, _crop_stamp(pair), digest)
        if earlier is not None:
            decisions[uri] = earlier
    asked = sorted(uri for uri in alone if uri not in decisions)
    if asked and originals:
        decisions |= _look_for(asked, sorted(originals), spread, max_pixels, matcher)
    return _paired(pairs, originals, decisions, digest)


def _crop_stamp(pair: Pair) -> str:
    return pair.stamp.partition("/")[2]


def _remembered(rows: Iterable[Mapping[str, Any]], stamps: Mapping[str, str], crop_stamp: str, digest: str) -> Decision | None:
    """What an earlier run decided about a crop, while that still holds."""
    for row in rows:
        original = row["original_uri"]
        if row["verdict"] == FOUND and original in stamps and row["stamp"] == f"{stamps[original]}/{crop_stamp}":
            return Decision(original)
        if row["verdict"] == UNPAIRED and row["stamp"] == f"/{crop_stamp}/{digest}":
            return Decision(None, row["reason"].partition("; ")[2])
    return None


def _look_for(
    crops: Sequence[str], originals: Sequence[str], spread: Spread, max_pixels: int, matcher: MatcherSettings
) -> dict[str, Decision]:
    described = spread(describe_file, originals, max_pixels, title="describe", unit="originals")
    index = Index({uri: Description.from_bytes(data) for uri, data in zip(originals, described, strict=True) if data})
    log.info("originals=%d index_bytes=%d crops=%d", len(index.names), index.num_bytes, len(crops))
    decided = spread(decide_file, crops, Search(index, max_pixels, matcher), title="by content", unit="crops")
    return {uri: Decision(*json.loads(data)) for uri, data in zip(crops, decided, strict=True)}


def describe_file(uri: str, max_pixels: int) -> bytes:
    """The description of an original as bytes; none when it cannot be read, for its own pair will say so."""
    try:
        return describe(_open(uri, max_pixels)).to_bytes()
    except UnreadableImage as error:
        log.debug("described=no reason=%s", error)
        return b""


def decide_file(uri: str, search: Search) -> bytes:
    """The decision about one crop as JSON: its original or null, and the reason."""
    try:
        crop = _open(uri, search.max_pixels)
        likely = search.index.shortlist(describe(crop, NUM_CROP), SHORTLIST)
        # With a proxy, as when the pair is matched: the plane that is searched is then the same, and so is the verdict.
        decision = decide(crop, likely, lambda name: _open(name, search.max_pixels, with_proxy=True), search.matcher)
    except UnreadableImage as error:
        decision = Decision(None, f"by content: {error}")
    except Exception as error:  # a fault of ours on one crop among a million must not cost the others
        log.exception("crop=%s", uri)
        decision = Decision(None, f"by content: the search itself failed ({type(error).__name__}: {error}). Report it.")
    return json.dumps([decision.original, decision.reason]).encode()


def _open(uri: str, max_pixels: int, with_proxy: bool = False) -> Picture:
    try:
        return Picture(storage.read_bytes(uri), uri, max_pixels=max_pixels, with_proxy=with_proxy)
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read ({error.strerror or error})") from error


def _paired(pairs: Sequence[Pair], originals: Mapping[str, Pair], decisions: Mapping[str, Decision], digest: str) -> list[Pair]:
    """The pairs with the decisions in them; an original that was alone and has got a crop is not alone any more."""
    result: list[Pair] = []
    taken = {d.original for d in decisions.values()}
    for pair in pairs:
        decision = decisions.get(pair.crop_uri) if pair.original_uri is None and pair.crop_uri is not None else None
        if decision is None:
            if pair.crop_uri is not None or pair.original_uri not in taken:
                result.append(pair)
        elif decision.original is None:
            result.append(replace(pair, reason=f"{pair.reason}; {decision.reason}", stamp=f"{pair.stamp}/{digest}"))
        else:
            original = originals[decision.original]
            name = original.original_name
            stamp = f"{original.stamp.partition('/')[0]}/{_crop_stamp(pair)}"
            new_id = pair_id(name, pair.crop_name)
            result.append(Pair(new_id, original.original_uri, pair.crop_uri, stamp, None, name, pair.crop_name))
    unique = {p.pair_id: p for p in result}  # a table may name a crop alone, and with its original
    return [unique[key] for key in sorted(unique)]
