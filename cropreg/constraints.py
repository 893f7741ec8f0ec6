"""What a crop must be beside what the model says: an aspect ratio, a least size, room around it, a limit to what is cut away.

Pure arithmetic on whole pixels.  A constraint grows the box, by the edges whose intervals are widest.  Only where the picture is too
small for that is it made smaller, and then up to the inner end of each interval; more than that is a problem that is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cropreg.boxes import EDGES, Box, area
from cropreg.errors import UsageError

KEEP = "keep"


@dataclass(frozen=True)
class Constraints:
    """What was asked for.

    Attributes:
        aspects: width / height by the words they were given in; either orientation of each will do.  None: that of the picture.
        min_wh: least width and height of a crop that lies (one that stands: the other way round), px.
        pad: room around the predicted box; a share of its width and height when ``pad_is_share``, else px.
        max_trim: at most so much of the picture's width or height may be cut away left, top, right, bottom.
    """

    aspects: tuple[tuple[str, float | None], ...] = ()
    min_wh: tuple[int, int] = (1, 1)
    pad: float = 0.0
    pad_is_share: bool = False
    max_trim: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Shaped:
    """A box that was made to fit.

    Attributes:
        box: whole pixels, inside the picture; the nearest to what was asked for when there is a ``problem``.
        note: which constraints moved it, how far each edge went and what that did to the area; None when nothing moved.
        problem: why the constraints cannot be met, a sentence without its full stop; None when they are.
    """

    box: Box
    note: str | None = None
    problem: str | None = None


def parse(aspect: str | None, min_size: str | None, pad: str | None, max_trim: str | None) -> Constraints | None:
    """Reads the constraints as they stand on the command line; None when there are none.

    >>> parse("3:2,keep", "1200x800", "2%", None)
    Constraints(aspects=(('3:2', 1.5), ('keep', None)), min_wh=(1200, 800), pad=0.02, pad_is_share=True, max_trim=(1.0, 1.0, 1.0, 1.0))

    Raises:
        UsageError: one of them cannot be understood.
    """
    if aspect is None and min_size is None and pad is None and max_trim is None:
        return None
    aspects = tuple((word, _aspect(word)) for word in (aspect or "").replace(" ", "").split(",") if word)
    min_wh = (1, 1)
    if min_size is not None:
        found = re.fullmatch(r"(\d+)(?:[x×](\d+))?(?:px)?", min_size.replace(" ", ""))
        if found is None or 0 in (int(found[1]), int(found[2] or found[1])):
            raise UsageError(f"--min-size {min_size}: give it in px, as 1200x800 (a crop that stands may be 800x1200) or as 800.")
        sides = sorted((int(found[1]), int(found[2] or found[1])), reverse=True)
        min_wh = sides[0], sides[1]
    pad_value, pad_is_share = (0.0, False) if pad is None else _pad(pad)
    trims = (1.0,) * 4 if max_trim is None else tuple(_share("--max-trim", word) for word in max_trim.split(","))
    if len(trims) not in (1, 4):
        raise UsageError(f"--max-trim {max_trim}: give one share, or four with commas between: left,top,right,bottom.")
    left, top, right, bottom = trims * (4 // len(trims))
    return Constraints(aspects, min_wh, pad_value, pad_is_share, (left, top, right, bottom))


def _aspect(word: str) -> float | None:
    if word == KEEP:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", word)
    ratio = float(found[1]) / float(found[2]) if found and float(found[2]) else 0.0
    if not 0.01 <= ratio <= 100:
        raise UsageError(f"--aspect {word}: give it as width:height, such as 3:2 or 4:3,1:1; or {KEEP} for that of the picture.")
    return ratio


def _pad(text: str) -> tuple[float, bool]:
    word = text.replace(" ", "")
    if word.endswith("px") or (word.isdigit() and int(word) >= 1):
        if word.removesuffix("px").isdigit():
            return float(word.removesuffix("px")), False
        raise UsageError(f"--pad {text}: give whole px such as 20px, or a share of the crop such as 0.02 or 2%.")
    return _share("--pad", word), True


def _share(flag: str, word: str) -> float:
    """A share in [0, 1), given as 0.02 or 2%."""
    found = re.fullmatch(r"\s*(\d*\.?\d+)(%?)\s*", word)
    value = float(found[1]) / (100 if found[2] else 1) if found else 1.0
    if value >= 1:
        raise UsageError(f"{flag} {word}: give a share from 0 to below 1, such as 0.02 or 2%.")
    return value


def shape(box: Box, limits_px: Sequence[Sequence[float]], size_wh: tuple[int, int], wanted: Constraints) -> Shaped:
    """Makes a predicted box meet the constraints, inside the picture.

    Args:
        box: the prediction, whole px, inside the picture.
        limits_px: (4, 2) lowest and highest place of left, top, right, bottom, px.
        size_wh: of the picture, px.
        wanted: the constraints.
    """
    left, top, right, bottom = limits_px
    x_axis = _Axis.of(int(box.x1), int(box.x2), left, right, size_wh[0], wanted.max_trim[0], wanted.max_trim[2])
    y_axis = _Axis.of(int(box.y1), int(box.y2), top, bottom, size_wh[1], wanted.max_trim[1], wanted.max_trim[3])
    because: list[str] = []
    problems: list[str] = []
    x, y = (x_axis.low, x_axis.high), (y_axis.low, y_axis.high)

    def step(name: str, new_x: tuple[int, int], new_y: tuple[int, int]) -> None:
        nonlocal x, y
        if (new_x, new_y) != (x, y):
            because.append(name)
        x, y = new_x, new_y

    if wanted.pad:
        by_x, by_y = (round(wanted.pad * (side if wanted.pad_is_share else 1)) for side in (x[1] - x[0], y[1] - y[0]))
        room = (x[0] - by_x, y[0] - by_y, size_wh[0] - x[1] - by_x, size_wh[1] - y[1] - by_y)
        short = [edge for edge, left_over in zip(EDGES, room, strict=True) if left_over < 0]
        name = f"pad (the picture ends before it: {', '.join(short)})" if short else "pad"
        step(name, x_axis.inside(x[0] - by_x, x[1] + by_x), y_axis.inside(y[0] - by_y, y[1] + by_y))
    step("max-trim", x_axis.with_kept(*x), y_axis.with_kept(*y))
    lies = box.size_wh[0] >= box.size_wh[1]
    min_w, min_h = wanted.min_wh if lies else wanted.min_wh[::-1]
    if min_w > x_axis.end or min_h > y_axis.end:
        problems.append(f"the picture ({size_wh[0]} x {size_wh[1]} px) is smaller than the crop must be (--min-size)")
    w, h = (min(max(span[1] - span[0], least), axis.end) for span, least, axis in ((x, min_w, x_axis), (y, min_h, y_axis)))
    step("min-size", x_axis.resized(*x, w), y_axis.resized(*y, h))
    if wanted.aspects:
        word, ratio = _nearest(wanted.aspects, box, size_wh)
        w, h = (max(side, 1) for side in _sides(ratio, w, h, size_wh))
        if min(abs(w - ratio * h), abs(h - w / ratio)) > 1:
            problems.append(f"the picture ({size_wh[0]} x {size_wh[1]} px) is too narrow for {word}")
        step(f"aspect {word}", x_axis.resized(*x, w), y_axis.resized(*y, h))
        if not problems and (w < min_w or h < min_h):
            problems.append(f"no {word} crop of the least size fits into the picture ({size_wh[0]} x {size_wh[1]} px)")
        trimmed = [*x_axis.trimmed(*x, ("left", "right")), *y_axis.trimmed(*y, ("top", "bottom"))]
        if trimmed:
            problems.append(f"{word} fits into the picture only with more cut away than --max-trim allows ({', '.join(trimmed)})")
        cut = [*x_axis.cut(*x, ("left", "right")), *y_axis.cut(*y, ("top", "bottom"))]
        if cut:
            problems.append(f"{word} fits into the picture only by cutting into what the crop should hold: {', '.join(cut)}")
    made = Box(x[0], y[0], x[1], y[1])
    note = told(", ".join(because), box, made) if tuple(made) != tuple(box) else None
    return Shaped(made, note, "; ".join(problems) or None)


def outward(before: Box, after: Box) -> tuple[int, int, int, int]:
    """How far left, top, right and bottom went outward from one box of whole px to another; negative is inward."""
    return int(before.x1 - after.x1), int(before.y1 - after.y1), int(after.x2 - before.x2), int(after.y2 - before.y2)


def told(why: str, before: Box, after: Box) -> str:
    """Says what became of a box: ``pad: left +20 px, right +20 px; area +4.0%``; plus is outward."""
    went = ", ".join(f"{edge} {by:+d} px" for edge, by in zip(EDGES, outward(before, after), strict=True) if by)
    change = 100 * (float(area([*after])) / float(area([*before])) - 1)
    return f"{why}: {went}; area {change:+.1f}%"


def _nearest(aspects: Sequence[tuple[str, float | None]], box: Box, size_wh: tuple[int, int]) -> tuple[str, float]:
    """The listed ratio, either way up, that is nearest to the box's own, by the factor between them."""
    own = box.size_wh[0] / box.size_wh[1]
    ratios = [(word, size_wh[0] / size_wh[1] if ratio is None else ratio) for word, ratio in aspects]
    both = [(word, turned) for word, ratio in ratios for turned in (ratio, 1 / ratio)]
    return min(both, key=lambda item: abs(math.log(item[1] / own)))


def _sides(ratio: float, w: int, h: int, size_wh: tuple[int, int]) -> tuple[int, int]:
    """The smallest (width, height) of that ratio around w x h; the largest that fits into the picture where that one does not.

    The longer side is what the shorter one asks for, to half a px; in a picture that is too narrow for that, the other way round.
    """
    if ratio < 1:
        h, w = _sides(1 / ratio, h, w, size_wh[::-1])
        return w, h
    (most_w, most_h), short = size_wh, h if w == round(ratio * h) else max(h, math.ceil(w / ratio - 1e-9))
    around = [(round(ratio * short), short), (max(w, round(ratio * h)), max(h, round(w / ratio)))]
    largest = (round(ratio * most_h), most_h) if most_w > ratio * most_h else (most_w, round(most_w / ratio))
    return next((sides for sides in around if sides[0] <= most_w and sides[1] <= most_h), largest)


@dataclass(frozen=True)
class _Axis:
    """One direction of the picture: its length, and what is known of the crop's two edges there, all px.

    Attributes:
        low, high: the predicted edges.
        doubt: widths of their intervals.
        inner: the innermost places the edges may lie at.
        kept: where the low edge may lie at the most, and the high one at the least.
        end: length of the picture.
    """

    low: int
    high: int
    doubt: tuple[float, float]
    inner: tuple[int, int]
    kept: tuple[int, int]
    end: int

    @classmethod
    def of(
        cls, low: int, high: int, first: Sequence[float], second: Sequence[float], end: int, trim_low: float, trim_high: float
    ) -> _Axis:
        inner = math.floor(first[1]), math.ceil(second[0])
        if inner[0] >= inner[1]:  # intervals that meet promise nothing about where the content is
            inner = low, high
        doubt = first[1] - first[0] + 1, second[1] - second[0] + 1
        kept = math.floor(trim_low * end), math.ceil((1 - trim_high) * end)
        return cls(low, high, doubt, inner, kept, end)

    def inside(self, low: int, high: int) -> tuple[int, int]:
        return max(low, 0), min(high, self.end)

    def with_kept(self, low: int, high: int) -> tuple[int, int]:
        return min(low, self.kept[0]), max(high, self.kept[1])

    def resized(self, low: int, high: int, length: int) -> tuple[int, int]:
        """The span made ``length`` long: grown where doubt and room are, or shrunk where the edges may lie further in."""
        grow = length - (high - low)
        if grow >= 0:
            by = _split(grow, self.doubt, (low, self.end - high))
            return low - by[0], high + by[1]
        inner = self.with_kept(*self.inner)
        spare = max(0, inner[0] - low), max(0, high - inner[1])
        within = _split(min(-grow, sum(spare)), spare, spare)
        beyond = max(0, -grow - sum(spare))
        return low + within[0] + beyond // 2, high - within[1] - (beyond - beyond // 2)

    def cut(self, low: int, high: int, names: tuple[str, str]) -> list[str]:
        """Which edges lie further in than they may, and than they were predicted."""
        past = low - max(self.inner[0], self.low), min(self.inner[1], self.high) - high
        return [f"{name} edge {by} px" for name, by in zip(names, past, strict=True) if by > 0]

    def trimmed(self, low: int, high: int, names: tuple[str, str]) -> list[str]:
        """Which edges cut into what must not be cut away."""
        past = low - self.kept[0], self.kept[1] - high
        return [name for name, by in zip(names, past, strict=True) if by > 0]


def _split(amount: int, weights: tuple[float, float], limits: tuple[int, int]) -> tuple[int, int]:
    """An amount in two parts by weight, neither above its limit; together the limits allow it."""
    first = round(amount * weights[0] / (weights[0] + weights[1])) if amount else 0
    first = min(max(first, amount - limits[1]), limits[0])
    return first, amount - first
