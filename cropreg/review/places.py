"""Where else a crop fits: what the matcher saw when it called a pair ambiguous, found again for the one pair that is looked at."""

from __future__ import annotations

from dataclasses import replace

from cropreg import storage
from cropreg.boxes import Box
from cropreg.errors import UnreadableImage
from cropreg.matching import place
from cropreg.matching.follow import Found, compare, paired
from cropreg.matching.kept import kept_or_free
from cropreg.matching.picture import Picture
from cropreg.matching.register import register
from cropreg.matching.rivals import rivals
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.settle import settle
from cropreg.review.queue import ELSEWHERE, Item, Suggestion

_SAME_PX = 2.0  # of the original: nearer to the matcher's own place it is that place


def elsewhere(item: Item, max_pixels: int) -> list[Suggestion]:
    """The places where the crop of ``item`` fits about as well as in its box, best first.

    Cost: reading both pictures and a part of a match; no more than shrinking one of them for the screen.

    Raises:
        UnreadableImage: a picture cannot be read any more.
    """
    assert item.box is not None and item.crop_uri is not None, "there is a place, and a crop that was matched"
    s = MatcherSettings(max_pixels=max_pixels)
    original, crop = (_picture(uri, max_pixels) for uri in (item.original_uri, item.crop_uri))
    own = place.from_box(Box(*item.box), crop.size_wh, item.angle_deg)
    scale = place.scale(own)
    pair = paired(original, crop, max(original.search_plane.step, crop.finest_step / scale), scale, s)
    fit = register(pair, own, "shift", iterations=s.iterations)
    found = Found(fit, compare(pair, fit.place, s), "ncc", pair)
    known, made = [own], []
    for start in rivals(original, crop, found, s).places:
        other = replace(found, fit=replace(fit, place=start))
        settled = settle(original, crop, *kept_or_free(original, crop, other, s), s)
        there = settled.place
        if all(place.distance_px(there, seen, crop.size_wh) > _SAME_PX for seen in known):
            known.append(there)
            x1, y1, x2, y2 = (float(round(v, 0 if settled.kept else 4)) for v in place.to_box(there, crop.size_wh))
            made.append(Suggestion(ELSEWHERE, (x1, y1, x2, y2), round(place.angle_deg(there), 2) + 0.0))
    return made


def _picture(uri: str, max_pixels: int) -> Picture:
    try:
        return Picture(storage.read_bytes(uri), uri, max_pixels=max_pixels)
    except OSError as error:
        raise UnreadableImage(uri, f"cannot be read any more ({error})") from error
