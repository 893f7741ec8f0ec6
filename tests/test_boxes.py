"""The laws of boxes and margins."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cropreg.boxes import Box, area, boundary_displacement, denormalise, from_margins, iou, normalise, to_margins

shares = st.floats(0, 1)
whole_px = st.integers(-2000, 2000)
sizes_wh = st.tuples(st.integers(1, 40_000), st.integers(1, 40_000))


@st.composite
def boxes_of(draw: st.DrawFn, edges: st.SearchStrategy[float]) -> NDArray[np.float64]:
    """A box (4,) with an area: x1, y1, x2, y2."""
    x1, x2 = sorted(draw(st.lists(edges, min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(edges, min_size=2, max_size=2, unique=True)))
    return np.array([x1, y1, x2, y2], np.float64)


boxes_px = boxes_of(whole_px)
boxes_norm = boxes_of(shares)


@given(boxes_norm)
def test_margins_give_the_box_back_when_turned_twice(box):
    assert np.allclose(from_margins(to_margins(box)), box, atol=1e-15)
    assert np.allclose(to_margins(from_margins(box)), box, atol=1e-15)


@given(boxes_norm)
def test_margins_and_size_fill_the_picture(box):
    left, top, right, bottom = to_margins(box)
    assert left + (box[2] - box[0]) + right == pytest.approx(1)
    assert top + (box[3] - box[1]) + bottom == pytest.approx(1)


@given(st.lists(boxes_norm, min_size=1, max_size=5))
def test_margins_of_many_boxes_are_those_of_each(boxes):
    many = to_margins(np.stack(boxes))
    assert all((row == to_margins(box)).all() for row, box in zip(many, boxes, strict=True))


@given(boxes_px, sizes_wh)
def test_shares_give_pixels_back_when_multiplied_again(box, size_wh):
    assert np.allclose(denormalise(normalise(box, size_wh), size_wh), box, rtol=1e-14)


@given(sizes_wh)
def test_whole_picture_is_one_in_shares(size_wh):
    assert normalise([0, 0, *size_wh], size_wh).tolist() == [0, 0, 1, 1]


def test_each_box_is_divided_by_its_own_picture_when_there_are_many():
    boxes, sizes = np.array([[10, 10, 20, 20], [10, 10, 20, 20]]), np.array([[100, 50], [20, 40]])
    assert normalise(boxes, sizes).tolist() == [[0.1, 0.2, 0.2, 0.4], [0.5, 0.25, 1.0, 0.5]]


@given(boxes_px, boxes_px)
def test_iou_is_symmetric_and_between_nought_and_one(a, b):
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= 1


@given(boxes_px, boxes_px)
def test_iou_is_one_only_for_the_same_box(a, b):
    assert iou(a, a) == 1
    assume((a != b).any())
    assert iou(a, b) < 1


@given(boxes_px, boxes_px)
def test_iou_is_nought_exactly_when_no_pixel_is_shared(a, b):
    apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert (iou(a, b) == 0) == apart


@given(boxes_px, boxes_px, whole_px, whole_px)
def test_iou_stays_when_both_boxes_move(a, b, dx, dy):
    move = np.array([dx, dy, dx, dy])
    assert iou(a + move, b + move) == iou(a, b)


@given(boxes_px, boxes_px, sizes_wh)
def test_iou_is_the_same_in_pixels_and_in_shares(a, b, size_wh):
    assert iou(normalise(a, size_wh), normalise(b, size_wh)) == pytest.approx(float(iou(a, b)), abs=1e-9)


@given(boxes_of(st.integers(0, 12)), boxes_of(st.integers(0, 12)))
def test_iou_counts_shared_pixels(a, b):
    def painted(box):
        canvas = np.zeros((12, 12), bool)
        canvas[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        return canvas

    assert iou(a, b) == pytest.approx((painted(a) & painted(b)).sum() / (painted(a) | painted(b)).sum())


def test_iou_compares_all_with_all_when_broadcast():
    a, b = np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), np.array([[0, 0, 2, 2], [5, 5, 6, 6], [1, 1, 3, 3]])
    every = iou(a[:, None], b[None])
    assert every.shape == (2, 3)
    assert np.diag(every[:, ::2]).tolist() == [1, 1]


@pytest.mark.parametrize("nothing", [[3, 3, 3, 3], [5, 0, 2, 9], [0, 9, 9, 0]])
def test_box_without_area_overlaps_nothing(nothing):
    assert area(nothing) == 0
    assert iou(nothing, nothing) == 0
    assert iou(nothing, [0, 0, 10, 10]) == 0


@given(boxes_norm, boxes_norm, boxes_norm)
def test_boundary_displacement_is_a_distance(a, b, c):
    assert boundary_displacement(a, a) == 0
    assert boundary_displacement(a, b) == boundary_displacement(b, a)
    assert boundary_displacement(a, c) <= boundary_displacement(a, b) + boundary_displacement(b, c) + 1e-12


@given(boxes_norm, st.integers(0, 3), st.floats(-1, 1))
def test_boundary_displacement_is_a_quarter_of_the_error_when_one_edge_is_wrong(box, edge, error):
    moved = box.copy()
    moved[edge] += error
    assert boundary_displacement(box, moved) == pytest.approx(abs(error) / 4, abs=1e-12)


@given(boxes_norm, boxes_norm)
def test_boundary_displacement_is_the_mean_error_of_the_margins(a, b):
    assert boundary_displacement(a, b) == pytest.approx(np.abs(to_margins(a) - to_margins(b)).mean(), abs=1e-12)


@given(boxes_of(st.floats(-1e6, 1e6)), sizes_wh)
def test_rounded_box_lies_inside_and_holds_a_pixel(edges, size_wh):
    box = Box(*edges.tolist()).rounded(size_wh)
    assert 0 <= box.x1 < box.x2 <= size_wh[0]
    assert 0 <= box.y1 < box.y2 <= size_wh[1]
    assert box.is_whole
    assert all(type(edge) is int for edge in box), "whole numbers must index an array"


@given(boxes_of(st.floats(0, 500)))
def test_rounded_box_is_at_most_half_a_pixel_away_when_it_is_inside_and_wide_enough(edges):
    assume(edges[2] - edges[0] > 1 and edges[3] - edges[1] > 1)
    box = Box(*edges.tolist())
    assert np.abs(np.array([*box.rounded((500, 500))]) - edges).max() <= 0.5


@given(boxes_of(st.floats(-100, 600)), sizes_wh)
def test_rounded_box_stays_when_rounded_again(edges, size_wh):
    once = Box(*edges.tolist()).rounded(size_wh)
    assert once.rounded(size_wh) == once


def test_box_cuts_its_own_size_from_an_array():
    box = Box(3, 5, 40, 17)
    cut = np.zeros((50, 60))[box.y1 : box.y2, box.x1 : box.x2]
    assert cut.shape[::-1] == box.size_wh
    assert box.center_xy == (21.5, 11)


@pytest.mark.parametrize("edges", [(5, 0, 5, 9), (5, 0, 4, 9), (0, 9, 9, 9), (0, float("nan"), 9, 9), (float("nan"),) * 4])
def test_box_refuses_edges_without_area(edges):
    with pytest.raises(ValueError, match="a box needs x2 > x1 and y2 > y1, got"):
        Box(*edges)
