"""Decide: which of a few likely originals a crop was cut from, by the matcher; only what it has found counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from cropreg.content.index import LEAST_AGREEING, Likely
from cropreg.content.twins import nearer
from cropreg.errors import UnreadableImage
from cropreg.matching.find import find_in
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.settings import MatcherSettings

TRIED_BY_VOTES = 3  # likely originals without geometric support that are tried, nevertheless: tiny crops have few features
STILL_LIKE = 0.2  # share of the best's agreeing features; below it an original is tried only when nothing was found
AS_LIKE = 0.5  # share of the winner's agreeing features from which an original without any place for the crop casts doubt
AS_LIKE_LEAST = 16  # agreeing features; in soft pictures chance gives up to 11
NONE_ALIKE = "by content: no original looks like it"


@dataclass(frozen=True)
class Decision:
    """The original a crop was cut from, or None and the reason why."""

    original: str | None
    reason: str | None = None


def decide(
    crop: Picture,
    likely: Sequence[Likely],
    open_original: Callable[[str], Picture],
    settings: MatcherSettings,
    given_up: Collection[str] = (),
) -> Iterator[str | Decision]:
    """Tries likely originals, the likeliest first, and takes the one in which the crop is found; of twins the one clearly nearer.

    Args:
        crop: the crop.
        likely: as :meth:`cropreg.content.index.Index.shortlist` gives them.
        open_original: a name's picture; may raise :class:`UnreadableImage`, and that original is passed over.
        settings: the matcher's.
        given_up: names of originals that must not be opened; as nothing is known of their place, they cast doubt if they look like it.

    Yields:
        the name of each original before it is tried, so that one who watches knows where it broke; last the decision.  An original in
        which the crop has a place, but a doubtful one, must be beaten like any other, and never wins.
    """
    placed: list[_Placed] = []
    placeless: list[Likely] = []
    for rank, candidate in enumerate(likely):
        if any(p.match.verdict == "found" for p in placed):
            if candidate.agreeing < max(LEAST_AGREEING, STILL_LIKE * max(p.agreeing for p in placed)):
                break
        elif rank >= TRIED_BY_VOTES and candidate.agreeing < LEAST_AGREEING:
            break
        if candidate.name in given_up:
            placeless.append(candidate)
            continue
        yield candidate.name
        try:
            original = open_original(candidate.name)
            match = find_in(original, crop, settings)
        except UnreadableImage:
            continue
        if match.box is not None:
            placed.append(_Placed(candidate.name, candidate.agreeing, original, match))
        elif match.verdict != "unreadable" and candidate.agreeing >= LEAST_AGREEING:
            placeless.append(candidate)
    if not likely:
        yield Decision(None, NONE_ALIKE)
    elif not placed:
        yield Decision(None, f"by content: found in none of the originals most like it, the nearest {likely[0].name}")
    else:
        yield _best(crop, placed, placeless)


@dataclass(frozen=True)
class _Placed:
    """An original in which the crop has a place."""

    name: str
    agreeing: int
    picture: Picture
    match: Match


def _best(crop: Picture, placed: list[_Placed], placeless: list[Likely]) -> Decision:
    """The place that clearly beats each of the others, if it is one that was found.

    A near-duplicate that the matcher finds no place in cannot be compared: the crop may have been cut from it and edited much.
    """

    def beats(one: _Placed, other: _Placed) -> bool:
        return nearer(one.picture, one.match, other.picture, other.match, crop) < 0

    winner = next((p for p in placed if p.match.verdict == "found"), placed[0])
    for other in placed:
        if other is not winner and beats(other, winner):
            winner = other
    if winner.match.verdict != "found":
        return Decision(None, f"by content: most like {winner.name}, but: {winner.match.reason}")
    for other in placed:
        if other is not winner and not beats(winner, other):
            names = " and ".join(sorted((winner.name, other.name)))
            return Decision(None, f"by content: {names} show it equally well")
    doubt = next((c.name for c in placeless if c.agreeing >= max(AS_LIKE_LEAST, AS_LIKE * winner.agreeing)), None)
    if doubt is not None:
        return Decision(None, f"by content: found in {winner.name}, but {doubt} looks as much like it")
    return Decision(winner.name)
