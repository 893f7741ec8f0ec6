"""Isolation: pictures are decoded and matched in a child process, so that one that kills its decoder costs one pair and no more.

The child says step by step how far it is (:class:`cropreg.labels.Opened`, :class:`cropreg.labels.Labelled`), so that its parent knows on
which pair it broke.  That pair gets one more try in a fresh child, then its verdict is ``crashed``.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cropreg import child
from cropreg.child import TRIES, Died, Limits
from cropreg.labels import (
    Labelling,
    LabelOriginal,
    Opened,
    Row,
    Step,
    by_original,
    crashed,
    in_order,
    label_original,
    shrink,
)
from cropreg.pairs import Pair
from cropreg.schema import CRASHED, UNREADABLE

log = logging.getLogger(__name__)

_ORIGINALS_ASKED = 100  # at a time: the child need not wait for its parent between them


@dataclass
class _Original:
    """What is known of an original, and its crops that have no row yet."""

    uri: str
    left: list[Pair]
    is_open: bool = False
    original_id: str | None = None
    has_label: bool = False
    proxy: Row | None = None


def label_pairs(
    pairs: Sequence[Pair], how: Labelling, limits: Limits, label: LabelOriginal = label_original
) -> tuple[list[Row], list[Row]]:
    """:func:`cropreg.labels.label_pairs` in a child process: every pair has a row, whatever its pictures do to the decoder."""
    rows, members = by_original(pairs)
    originals = [_Original(uri, crops) for uri, crops in members.items()]
    todo = deque(originals)
    failed_on, tries = "", 0
    while todo:
        asked = list(islice(todo, _ORIGINALS_ASKED))
        for original in asked:
            original.is_open = False
        try:
            for step in child.ask(limits, _steps, label, [(o.uri, o.left) for o in asked], how):
                original = todo[0]
                if isinstance(step, Opened):
                    original.is_open, original.original_id = True, step.original_id
                    continue
                rows.append(step.row)
                original.proxy = original.proxy or step.proxy
                original.has_label |= step.row["verdict"] not in (UNREADABLE, CRASHED)
                original.left.pop(0)
                if not original.left:
                    todo.popleft()
        except Died as error:
            original = todo[0]
            blamed = original.left[0].pair_id if original.is_open else original.uri
            tries = tries + 1 if blamed == failed_on else 1
            failed_on = blamed
            log.warning("died=%s try=%d on=%s", error, tries, blamed)
            if tries == TRIES:
                what = original.left[0].crop_uri if original.is_open else f"{original.uri} (the original)"
                given_up = original.left[:1] if original.is_open else original.left[:]
                reason = f"{what}: {error}, {TRIES} times. The file may be damaged."
                rows += [crashed(pair, original.original_id, reason) for pair in given_up]
                del original.left[: len(given_up)]
                if not original.left:
                    todo.popleft()
    for original in originals:
        if original.has_label and original.proxy is None:  # the pair that would have made it crashed
            with contextlib.suppress(Died):
                original.proxy = next(iter(child.tried(limits, shrink, original.uri, how)), None)
    return in_order(rows, [original.proxy for original in originals if original.proxy])


def _steps(label: LabelOriginal, originals: Sequence[tuple[str, Sequence[Pair]]], how: Labelling) -> Iterator[Step]:
    """In the child: the steps of these originals, one after the other."""
    for uri, members in originals:
        yield from label(uri, members, how)
