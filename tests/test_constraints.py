"""Constraints: whatever is asked of whatever box, the crop lies in the picture, and what cannot be had is said."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cropreg.boxes import EDGES, Box
from cropreg.constraints import Constraints, Shaped, outward, parse, shape
from cropreg.errors import UsageError

Case = tuple[Box, list[list[float]], tuple[int, int]]
RATIOS = (1.0, 3 / 2, 4 / 3, 16 / 9, 65 / 24)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A predicted box, the intervals of its edges, and the picture's size."""
    w, h = draw(st.integers(2, 5000)), draw(st.integers(2, 5000))
    x1, y1 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
    box = Box(x1, y1, draw(st.integers(x1 + 1, w)), draw(st.integers(y1 + 1, h)))
    reach = [draw(st.floats(0, 0.45)) * side for side in (*box.size_wh, *box.size_wh)]
    ends = (w, h, w, h)
    limits = [[max(edge - r, 0), min(edge + r, end)] for edge, r, end in zip(box, reach, ends, strict=True)]
    return box, limits, (w, h)


@st.composite
def wishes(draw: st.DrawFn) -> Constraints:
    ratios = tuple((f"{ratio:.2f}", ratio) for ratio in draw(st.lists(st.sampled_from(RATIOS), max_size=3)))
    kept = ((("keep", None),) if draw(st.booleans()) else ()) + ratios
    sides = sorted((draw(st.integers(1, 2000)), draw(st.integers(1, 2000))), reverse=True)
    is_share = draw(st.booleans())
    pad = draw(st.floats(0, 0.5)) if is_share else float(draw(st.integers(0, 300)))
    trims = tuple(draw(st.floats(0, 1, exclude_max=True)) for _ in EDGES)
    return Constraints(kept, (sides[0], sides[1]), pad, is_share, (trims[0], trims[1], trims[2], trims[3]))


def inside(box: Box, size_wh: tuple[int, int]) -> bool:
    return box.x1 >= 0 and box.y1 >= 0 and box.x2 <= size_wh[0] and box.y2 <= size_wh[1]


def holds(outer: Box, inner: Box) -> bool:
    return outer.x1 <= inner.x1 and outer.y1 <= inner.y1 and outer.x2 >= inner.x2 and outer.y2 >= inner.y2


def off_ratio(box: Box, ratio: float) -> float:
    """How many px one side is off what the other asks for."""
    w, h = box.size_wh
    return min(abs(w - ratio * h), abs(h - w / ratio))


@given(cases(), wishes())
def test_crop_is_whole_and_inside_the_picture_whatever_is_wanted(case: Case, wanted: Constraints) -> None:
    box, limits, size_wh = case
    made = shape(box, limits, size_wh, wanted)
    assert made.box.is_whole and inside(made.box, size_wh)
    assert (made.note is None) == (tuple(made.box) == tuple(box))


@given(cases(), wishes())
def test_what_is_wanted_is_met_or_the_problem_is_said(case: Case, wanted: Constraints) -> None:
    box, limits, size_wh = case
    made = shape(box, limits, size_wh, wanted)
    if made.problem:
        return
    x1, y1, x2, y2 = made.box
    w, h = size_wh
    left, top, right, bottom = wanted.max_trim
    assert x1 <= left * w + 1e-6 and y1 <= top * h + 1e-6
    assert x2 >= (1 - right) * w - 1e-6 and y2 >= (1 - bottom) * h - 1e-6
    assert sorted(made.box.size_wh) >= sorted(wanted.min_wh) and min(made.box.size_wh) >= min(wanted.min_wh)
    if wanted.aspects:
        ratios = [w / h if ratio is None else ratio for _, ratio in wanted.aspects]
        assert min(off_ratio(made.box, turned) for ratio in ratios for turned in (ratio, 1 / ratio)) <= 1


@given(cases(), wishes())
def test_content_is_never_cut_beyond_the_inner_end_of_an_interval_without_a_word(case: Case, wanted: Constraints) -> None:
    box, limits, size_wh = case
    left, top, right, bottom = limits
    made = shape(box, limits, size_wh, wanted)
    content = Box(left[1], top[1], right[0], bottom[0])
    assert made.problem or holds(made.box, content)


@given(cases(), wishes())
def test_box_only_grows_where_the_picture_has_room_for_it(case: Case, wanted: Constraints) -> None:
    box, limits, _ = case
    far = 200_000  # room to all sides, for any of the wishes
    moved = Box(*(edge + far for edge in box))
    shifted = [[low + far, high + far] for low, high in limits]
    trimmed_never = Constraints(tuple(a for a in wanted.aspects if a[1]), wanted.min_wh, wanted.pad, wanted.pad_is_share)
    made = shape(moved, shifted, (2 * far, 2 * far), trimmed_never)
    assert made.problem is None and holds(made.box, moved)


@given(cases(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_more_pad_gives_a_box_around_that_of_less(case: Case, a: float, b: float) -> None:
    box, limits, size_wh = case
    less, more = (shape(box, limits, size_wh, Constraints(pad=pad, pad_is_share=True)) for pad in sorted((a, b)))
    assert holds(more.box, less.box) and holds(less.box, box)


@given(cases(), wishes())
def test_what_is_met_once_is_left_alone_the_second_time(case: Case, wanted: Constraints) -> None:
    box, limits, size_wh = case
    without_pad = Constraints(wanted.aspects, wanted.min_wh, max_trim=wanted.max_trim)
    once = shape(box, limits, size_wh, without_pad)
    again = shape(once.box, limits, size_wh, without_pad)
    assert once.problem or max(map(abs, outward(once.box, again.box))) <= 1  # a side may be rounded the other way


@given(cases(), wishes())
def test_lying_on_its_side_a_picture_gets_the_same_crop_on_its_side(case: Case, wanted: Constraints) -> None:
    (x1, y1, x2, y2), limits, (w, h) = case
    assume(abs((x2 - x1) - (y2 - y1)) > 1)  # of a square nothing says which way is up
    left, top, right, bottom = wanted.max_trim
    on_side = Constraints(wanted.aspects, wanted.min_wh, wanted.pad, wanted.pad_is_share, (top, left, bottom, right))
    one = shape(Box(x1, y1, x2, y2), limits, (w, h), wanted)
    other = shape(Box(y1, x1, y2, x2), [limits[i] for i in (1, 0, 3, 2)], (h, w), on_side)
    assert (one.problem is None) == (other.problem is None)
    if one.problem is None:
        assert tuple(other.box) == (one.box.y1, one.box.x1, one.box.y2, one.box.x2)


BOX = Box(400, 300, 1000, 700)  # 600 x 400, which is 3:2
TIGHT = [[395.0, 405.0], [295.0, 305.0], [995.0, 1005.0], [695.0, 705.0]]


def made(box: Box = BOX, limits: list[list[float]] = TIGHT, size_wh: tuple[int, int] = (1600, 1200), **wanted: str) -> Shaped:
    how = parse(*(wanted.get(name) for name in ("aspect", "min_size", "pad", "max_trim")))
    assert how is not None
    return shape(box, limits, size_wh, how)


@pytest.mark.parametrize(
    ("wanted", "box"),
    [
        ({"aspect": "3:2,1:1"}, (400, 300, 1000, 700)),
        ({"aspect": "2:3"}, (400, 300, 1000, 700)),  # either way up
        ({"aspect": "1:1"}, (400, 200, 1000, 800)),
        ({"aspect": "2:1"}, (300, 300, 1100, 700)),
        ({"aspect": "keep"}, (400, 275, 1000, 725)),  # 1600 x 1200 is 4:3
        ({"pad": "20px"}, (380, 280, 1020, 720)),
        ({"pad": "0.1"}, (340, 260, 1060, 740)),
        ({"pad": "10%"}, (340, 260, 1060, 740)),
        ({"min_size": "500"}, (400, 250, 1000, 750)),
        ({"min_size": "500x800"}, (300, 250, 1100, 750)),  # the longer side lies
        ({"max_trim": "0.2"}, (320, 240, 1280, 960)),
        ({"max_trim": "0.1,1%,.9,.99"}, (160, 12, 1000, 700)),
        ({"aspect": "1:1", "pad": "100"}, (300, 100, 1100, 900)),
    ],
)
def test_constraint_means_what_it_says(wanted: dict[str, str], box: tuple[int, ...]) -> None:
    assert tuple(made(**wanted).box) == box
    assert made(**wanted).problem is None


def test_edge_whose_interval_is_wide_moves_most() -> None:
    wide_left = [[310.0, 490.0], *TIGHT[1:]]
    assert tuple(made(limits=wide_left, aspect="2:1").box) == (211, 300, 1011, 700)


def test_cost_is_said_edge_by_edge_and_in_area() -> None:
    note = made(aspect="2:1", pad="30px").note
    assert note == "pad, aspect 2:1: left +160 px, top +30 px, right +160 px, bottom +30 px; area +76.3%"


def test_intervals_that_meet_allow_no_cut() -> None:
    unknown = [[0.0, 1000.0], [0.0, 600.0], [0.0, 1000.0], [0.0, 600.0]]
    assert "left edge 50 px, right edge 50 px" in str(made(Box(0, 100, 1000, 500), unknown, (1000, 600), aspect="3:2").problem)


def test_pad_that_the_picture_has_no_room_for_ends_at_its_edge_and_says_so() -> None:
    shaped = made(size_wh=(1010, 1200), pad="20px")
    assert tuple(shaped.box) == (380, 280, 1010, 720)
    assert shaped.note and shaped.note.startswith("pad (the picture ends before it: right): left +20 px")


def test_picture_without_room_is_cut_within_the_intervals_and_beyond_goes_to_review() -> None:
    flat = Box(0, 100, 1000, 500)
    limits = [[0.0, 60.0], [90.0, 110.0], [960.0, 1000.0], [490.0, 510.0]]
    within = made(flat, limits, (1000, 600), aspect="3:2")  # 600 px of height give 900 px of width
    assert tuple(within.box) == (60, 0, 960, 600) and within.problem is None
    beyond = made(flat, [[0.0, 10.0], limits[1], [995.0, 1000.0], limits[3]], (1000, 600), aspect="3:2")
    assert beyond.box.size_wh == (900, 600)
    assert beyond.problem == (
        "3:2 fits into the picture only by cutting into what the crop should hold: left edge 42 px, right edge 43 px"
    )


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"min_size": "1700x100"}, "the picture (1600 x 1200 px) is smaller than the crop must be (--min-size)"),
        ({"aspect": "1:1", "min_size": "1500x10"}, "no 1:1 crop of the least size fits into the picture (1600 x 1200 px)"),
        ({"aspect": "1:1", "max_trim": "0.05"}, "1:1 fits into the picture only with more cut away than --max-trim allows"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(wanted: dict[str, str], problem: str) -> None:
    assert problem in str(made(**wanted).problem)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("aspect", "3x2"),
        ("aspect", "0:2"),
        ("aspect", "3:2,wide"),
        ("aspect", "3:0"),
        ("min_size", "0"),
        ("min_size", "10x"),
        ("min_size", "1.5"),
        ("pad", "-3"),
        ("pad", "1.5"),
        ("pad", "a px"),
        ("max_trim", "0.1,0.2"),
        ("max_trim", "1.5"),
        ("max_trim", ""),
    ],
)
def test_constraint_that_cannot_be_read_names_its_flag_and_shows_how(flag: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"^--{flag.replace('_', '-')} .*(give|such as)"):
        made(**{flag: value})


def test_no_constraint_is_none() -> None:
    assert parse(None, None, None, None) is None
