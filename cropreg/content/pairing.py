"""Pairing by content: the list of pairs again, with an original for every crop that was alone and could be found in just one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cropreg import child, faults, storage
from cropreg.child import Died, Limits
from cropreg.content.decide import Decision, decide
from cropreg.content.describe import NUM_CROP, NUM_ORIGINAL, Description, describe
from cropreg.content.index import SHORTLIST, Index, Likely
from cropreg.errors import UnreadableImage
from cropreg.matching.picture import Picture
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair, pair_id
from cropreg.schema import FOUND, UNPAIRED

log = logging.getLogger(__name__)

KNOWN_COLUMNS = ("original_uri", "crop_uri", "stamp", "verdict", "reason")
_SEEN, _UNSEEN = b"+", b"-"

# spread(function, items, shared, title=, unit=) calls function(item, shared) for every item, here or on a cluster; results in order
Spread = Callable[..., list[bytes]]


@dataclass(frozen=True)
class Search:
    """What all pictures are looked at with."""

    max_pixels: int
    matcher: MatcherSettings
    limits: Limits
    index: Index | None = None


def pair_by_content(pairs: Sequence[Pair], known: Iterable[Mapping[str, Any]], spread: Spread, search: Search) -> list[Pair]:
    """Gives an original to every crop without one that is found in just one of all originals, paired ones included.

    Args:
        pairs: as :func:`cropreg.pairs.find` gives them.
        known: rows of an earlier run with KNOWN_COLUMNS.  A crop that was found keeps its original while both files stay as they are;
            one that was not is looked for again when any original has come, gone or changed.
        spread: runs a function over files.
        search: without an index; else as for the matching itself, so that what is found here will be found there.

    Returns:
        the pairs, sorted by ``pair_id``; every file is in one, as before.  A crop that stays alone has what was seen in its reason, and a
        stamp that changes with the originals; so has an original that stays alone because it could not be looked at.
    """
    originals = {p.original_uri: p for p in pairs if p.original_uri is not None}
    stamps = {uri: p.stamp.partition("/")[0] for uri, p in originals.items()}
    digest = hashlib.sha256(repr(sorted(stamps.items())).encode()).hexdigest()[:16]
    rows: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in known:
        rows.setdefault(row["crop_uri"], []).append(row)
    unseen = {
        row["original_uri"]: row["reason"].partition("; by content: ")[2]
        for row in rows.get(None, [])
        if row["original_uri"] in stamps and row["stamp"] == _unseen_stamp(stamps[row["original_uri"]])
    }
    decisions: dict[str, Decision] = {}
    alone = {p.crop_uri: p for p in pairs if p.original_uri is None and p.crop_uri is not None}
    for uri, pair in alone.items():
        earlier = _remembered(rows.get(uri, []), stamps, _crop_stamp(pair), digest)
        if earlier is not None:
            decisions[uri] = earlier
    asked = sorted(uri for uri in alone if uri not in decisions)
    if asked and originals:
        decided, unseen = _look_for(asked, sorted(originals), spread, search)
        decisions |= decided
    return _paired(pairs, originals, decisions, unseen, digest)


def _crop_stamp(pair: Pair) -> str:
    return pair.stamp.partition("/")[2]


def _unseen_stamp(original_stamp: str) -> str:
    return f"{original_stamp}/unseen"


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
    crops: Sequence[str], originals: Sequence[str], spread: Spread, search: Search
) -> tuple[dict[str, Decision], dict[str, str]]:
    """The decisions about the crops, and the originals that could not be looked at, with the reason."""
    described = spread(describe_file, originals, search, title="describe", unit="originals")
    seen = {uri: data[1:] for uri, data in zip(originals, described, strict=True) if data[:1] == _SEEN}
    unseen = {uri: data[1:].decode() for uri, data in zip(originals, described, strict=True) if uri not in seen}
    index = Index({uri: Description.from_bytes(data) for uri, data in seen.items()})
    log.info("originals=%d unseen=%d index_bytes=%d crops=%d", len(index.names), len(unseen), index.num_bytes, len(crops))
    decided = spread(decide_file, crops, replace(search, index=index), title="by content", unit="crops")
    return {uri: Decision(*json.loads(data)) for uri, data in zip(crops, decided, strict=True)}, unseen


def describe_file(uri: str, search: Search) -> bytes:
    """The description of an original as bytes after _SEEN, or after _UNSEEN the reason why there is none."""
    try:
        [described] = child.tried(search.limits, _described, uri, search.max_pixels, NUM_ORIGINAL)
    except Died as error:
        described = f"{uri}: {error}. The file may be damaged."
    return _UNSEEN + described.encode() if isinstance(described, str) else _SEEN + described.to_bytes()


def decide_file(uri: str, search: Search) -> bytes:
    """The decision about one crop as JSON: its original or null, and the reason.

    The child decodes; the index stays here, where all workers share it.
    """
    assert search.index is not None
    try:
        [described] = child.tried(search.limits, _described, uri, search.max_pixels, NUM_CROP)
    except Died as error:
        described = f"{uri}: {error}. The file may be damaged."
    if isinstance(described, str):
        decision = Decision(None, f"by content: {described}")
    else:
        decision = _decision(uri, search.index.shortlist(described, SHORTLIST), search)
    return json.dumps([decision.original, decision.reason]).encode()


def _decision(uri: str, likely: Sequence[Likely], search: Search) -> Decision:
    """The decision among likely originals.  One on which the child dies twice is given up; a second such one, and it is the crop."""
    given_up: dict[str, str] = {}
    died: Counter[str | None] = Counter()
    while True:
        at: str | None = None
        try:
            for step in child.ask(search.limits, _decided, uri, likely, search.max_pixels, search.matcher, tuple(given_up)):
                if isinstance(step, Decision):
                    broken = "".join(f"; {reason}" for reason in given_up.values())
                    return Decision(step.original, step.reason and step.reason + broken)
                at = step
        except Died as error:
            died[at] += 1
            log.warning("died=%s try=%d crop=%s original=%s", error, died[at], uri, at)
            if died[at] == child.TRIES:
                reason = f"{error}, {child.TRIES} times"
                if at is None or given_up:
                    return Decision(None, f"by content: {uri}: {reason}. The file may be damaged.")
                given_up[at] = f"compared with {at}, {reason}"


_kept: dict[str, Picture] = {}


def _described(uri: str, max_pixels: int, count: int) -> Iterator[Description | str]:
    """In the child: the description of a picture, or why it has none.  The picture is kept for the decision that may follow."""
    _kept.clear()
    try:
        _kept[uri] = _open(uri, max_pixels)
        yield describe(_kept[uri], count)
    except UnreadableImage as error:
        yield str(error)


def _decided(
    uri: str, likely: Sequence[Likely], max_pixels: int, matcher: MatcherSettings, given_up: Sequence[str]
) -> Iterator[str | Decision]:
    """In the child: the steps of :func:`cropreg.content.decide.decide` for the crop at ``uri``."""

    def open_original(name: str) -> Picture:
        faults.trip("pair", f"{name} {uri}")
        # With a proxy, as when the pair is matched: the plane that is searched is then the same, and so is the verdict.
        return _open(name, max_pixels, with_proxy=True)

    try:
        crop = _kept.pop(uri, None) or _open(uri, max_pixels)
        yield from decide(crop, likely, open_original, matcher, given_up)
    except UnreadableImage as error:
        yield Decision(None, f"by content: {error}")
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours on one crop among a million must not cost the others
        log.exception("crop=%s", uri)
        yield Decision(None, f"by content: the search itself failed ({type(error).__name__}: {error}). Report it.")


def _open(uri: str, max_pixels: int, with_proxy: bool = False) -> Picture:
    faults.trip("open", uri)
    try:
        return Picture(storage.read_bytes(uri), uri, max_pixels=max_pixels, with_proxy=with_proxy)
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read ({error.strerror or error})") from error


def _paired(
    pairs: Sequence[Pair],
    originals: Mapping[str, Pair],
    decisions: Mapping[str, Decision],
    unseen: Mapping[str, str],
    digest: str,
) -> list[Pair]:
    """The pairs with the decisions in them; an original that was alone and has got a crop is not alone any more."""
    result: list[Pair] = []
    taken = {d.original for d in decisions.values()}
    for pair in pairs:
        decision = decisions.get(pair.crop_uri) if pair.original_uri is None and pair.crop_uri is not None else None
        if decision is None:
            reason = unseen.get(pair.original_uri or "") if pair.crop_uri is None else None
            if reason is not None:
                reason = f"{pair.reason}; by content: {reason}"
                result.append(replace(pair, reason=reason, stamp=_unseen_stamp(pair.stamp.partition("/")[0])))
            elif pair.crop_uri is not None or pair.original_uri not in taken:
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
