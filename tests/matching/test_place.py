"""Laws of places and planes: arithmetic that every stage relies on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg.boxes import Box
from cropreg.matching import place as places
from cropreg.matching.grain import averaged
from cropreg.matching.plane import Plane, between, from_between, warped

coordinate = st.floats(-2000, 2000)
length = st.floats(10, 5000)
angle = st.floats(-15, 15)
pixels = st.integers(8, 6000)


@given(coordinate, coordinate, length, length, angle, pixels, pixels)
def test_a_place_gives_back_the_box_and_the_angle_it_was_made_of(x, y, w, h, degrees, cw, ch):
    place = places.from_box(Box(x, y, x + w, y + h), (cw, ch), degrees)
    assert np.allclose(list(places.to_box(place, (cw, ch))), [x, y, x + w, y + h], atol=1e-6)
    assert places.angle_deg(place) == pytest.approx(degrees, abs=1e-7)


@given(coordinate, coordinate, length, length, angle)
def test_the_inverse_of_a_place_leads_back(x, y, w, h, degrees):
    place = places.from_box(Box(x, y, x + w, y + h), (300, 200), degrees)
    back = places.compose(places.invert(place), place)
    assert np.allclose(back, [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_a_positive_angle_turns_the_crops_x_axis_clockwise_on_the_screen():
    place = places.from_box(Box(0, 0, 100, 100), (100, 100), 10.0)
    left, right = places.apply(place, np.array([[0.0, 50.0], [100.0, 50.0]]))
    assert right[1] > left[1]  # y points down


@given(coordinate, coordinate, length, st.floats(0.99, 1.01), angle)
def test_a_place_without_shear_keeps_the_centre_and_has_one_scale(x, y, w, stretch, degrees):
    place = places.from_box(Box(x, y, x + w, y + w * stretch), (200, 200), degrees)
    even = places.without_shear(place, (100.0, 100.0))
    assert np.allclose(places.center(even, (200, 200)), places.center(place, (200, 200)))
    scale_x, scale_y = places.scales(even)
    assert scale_x == pytest.approx(scale_y)
    assert places.angle_deg(even) == pytest.approx(places.angle_deg(place), abs=0.4)


@given(coordinate, coordinate, length, st.floats(0.9, 1.1), angle)
def test_a_stretched_place_without_shear_is_left_alone(x, y, w, stretch, degrees):
    place = places.from_box(Box(x, y, x + w, y + w * stretch), (200, 200), degrees)
    assert np.allclose(places.without_shear(place, (100.0, 100.0), stretched=True), place)


def test_a_map_between_planes_of_any_resolution_is_the_place_again():
    original = Plane(np.zeros((50, 60), np.uint8), (8.0, 8.0), (3.0, 5.0))
    crop = Plane(np.zeros((40, 30), np.uint8), (2.0, 2.1), (0.0, 1.0))
    place = places.from_box(Box(10, 20, 70, 104), (60, 84), 3.0)
    assert np.allclose(from_between(original, crop, between(original, crop, place)), place)


def test_windows_and_reductions_know_where_they_lie():
    ramp = np.add.outer(np.zeros(64), np.arange(80)).astype(np.float32)  # the value is the column
    plane = Plane(ramp).window(8, 8, 72, 56).reduced(4)
    assert plane.shift_xy == (8.0, 8.0)
    assert plane.step == 4.0
    first_center = plane.shift_xy[0] + plane.step / 2
    assert plane.pixels[0, 0] == pytest.approx(first_center - 0.5)  # the value at a corner coordinate x is x - 0.5


@pytest.mark.parametrize("degrees", [0.0, 2.0])
def test_warping_reads_the_original_where_the_place_says(degrees):
    y, x = np.mgrid[0:120, 0:160].astype(np.float32)
    original = Plane(3 * x + 5 * y)
    place = places.from_box(Box(30.25, 20.5, 90.25, 60.5), (60, 40), degrees)
    moved = warped(original, between(original, Plane(np.zeros((40, 60), np.float32)), place), (60, 40))
    expected = places.apply(place, np.array([[10.5, 20.5]]))[0] - 0.5
    assert moved[20, 10] == pytest.approx(3 * expected[0] + 5 * expected[1], abs=0.2)


def test_reading_is_linear_because_cubic_interpolation_of_opencv_would_shift_the_box():
    step = np.zeros((20, 40), np.float32)
    step[:, 20:] = 100
    moved = warped(Plane(step), places.shifted(0.5, 0.0), (30, 20))
    assert moved.min() >= 0
    assert moved.max() <= 100  # a cubic kernel overshoots
    assert cv2.INTER_LINEAR == 1


def test_reducing_in_steps_is_the_mean_of_the_cells():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    for factor in (2, 3, 4, 5, 8):
        w, h = 96 // factor, 64 // factor
        mean = pixels[: h * factor, : w * factor].reshape(h, factor, w, factor).mean((1, 3))
        assert np.abs(Plane(pixels).reduced(factor).pixels - mean).max() <= (1.0 if factor in (4, 8) else 0.51)
        assert np.allclose(averaged(Plane(pixels), factor).pixels, mean, atol=1e-3)
