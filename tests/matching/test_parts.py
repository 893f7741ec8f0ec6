"""The stages by themselves: what each promises to the next."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from cropreg.boxes import Box
from cropreg.images import decode_reduced
from cropreg.matching import place as places
from cropreg.matching.local import displacements
from cropreg.matching.plane import Pair, Plane
from cropreg.matching.progressive import first_scan
from cropreg.matching.register import PATIENCE, register
from cropreg.matching.settings import MatcherSettings
from cropreg.matching.verify import verify

from .conftest import encode, scene


def test_the_settings_need_neither_opencv_nor_numpy():
    code = "import sys, cropreg.matching.settings; sys.exit(bool({'cv2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_setting_tells_its_reason():
    assert all(field.description for field in MatcherSettings.model_fields.values())


@pytest.fixture(scope="module")
def pair() -> Pair:
    picture = scene(7, 640, 480)[..., 0]
    return Pair(Plane(picture).smoothed(0.9), Plane(picture[100:340, 120:440]).smoothed(0.9), 15)


@pytest.mark.parametrize("model", ["shift", "scale", "similarity", "free"])
def test_registration_leads_back_to_the_place_and_predicts_its_error(pair, model):
    fit = register(pair, places.shifted(121.3, 98.9), model, iterations=20)
    assert fit.converged
    assert places.distance_px(fit.place, places.shifted(120, 100), (320, 240)) < 0.02
    assert fit.sigma_px < 0.05


def test_registration_gives_up_where_nothing_agrees(pair):
    fit = register(pair, places.shifted(10, 10), "shift", iterations=20)
    assert fit.ncc < 0.5


def test_registration_loses_patience_where_little_agrees_but_not_where_it_starts_far_off(pair, monkeypatch):
    steps: list[object] = []
    moved = Pair.moved
    monkeypatch.setattr(Pair, "moved", lambda self, matrix: steps.append(matrix) or moved(self, matrix))
    far = places.shifted(130, 100)
    register(pair, far, "shift", iterations=20)
    patient = len(steps)
    assert register(pair, far, "shift", iterations=20, least_ncc=0.99).ncc < 0.2
    assert len(steps) - patient == PATIENCE + 1 < patient
    assert register(pair, places.shifted(123, 100), "shift", iterations=20, least_ncc=0.5).converged


def test_verification_tells_the_place_from_its_surroundings(pair):
    right = verify(pair, places.shifted(120, 100), most_tiles=8, least_tile_px=10, noise=0.4)
    wrong = verify(pair, places.shifted(150, 130), most_tiles=8, least_tile_px=10, noise=0.4)
    assert right.low > 0.99
    assert wrong.low < 0.3
    assert right.tiles == 64


def test_a_place_that_leaves_the_original_says_by_how_much(pair):
    assert verify(pair, places.shifted(480, 0), most_tiles=8, least_tile_px=10, noise=0.4).inside == pytest.approx(0.5, abs=0.01)


def test_tiles_of_an_object_that_moved_tell_by_how_much():
    picture = scene(8, 640, 480)[..., 1].astype(np.float32)
    moved = picture.copy()
    moved[160:288, 192:320] = picture[160:288, 191:319]
    pair = Pair(Plane(picture).smoothed(0.9), Plane(moved).smoothed(0.9), 15)
    found = displacements(pair, places.shifted(0, 0), tiles_px=(32,))[0]
    still = np.hypot(*np.moveaxis(found.shifts_px, -1, 0))
    inner = found.shifts_px[6:8, 7:9]  # rows and columns of 32 px well inside the object
    assert np.allclose(inner[..., 0], -1, atol=0.25)
    assert still[:4].max() < 0.02


def test_the_first_scan_of_a_progressive_file_shows_the_same_reduced_picture():
    data = encode(scene(9), progressive=True, quality=90)
    start = first_scan(data)
    assert start is not None
    assert len(start) < len(data) / 4
    whole, part = (decode_reduced(d, "x", 8, grey=True).pixels.astype(int) for d in (data, start))
    assert np.abs(whole - part).mean() < 1.5


def test_a_baseline_file_and_one_without_its_end_have_no_first_scan():
    assert first_scan(encode(scene(9, 200, 100))) is None
    data = encode(scene(9, 400, 300), progressive=True)
    assert first_scan(data[:-20]) is None


def test_registering_leaves_no_shear_behind_though_the_planes_steps_differ():
    original = Plane(cv2.resize(scene(5)[..., 1], (227, 151), interpolation=cv2.INTER_AREA), (8.0, 8.0)).smoothed(0.9)
    box = Box(320.0, 240.0, 1280.0, 880.0)
    pixels = Image.fromarray(scene(5)[240:880, 320:1280, 1]).resize((96, 66), Image.Resampling.BOX)  # 10 and 9.7 px a pixel
    crop = Plane(np.asarray(pixels), (10.0, 640 / 66)).smoothed(0.9)
    start = places.from_box(box, (960, 640), 8.0)
    (a, b, _), (c, d, _) = register(Pair(original, crop, 15), start, "similarity", iterations=30).place
    assert abs(a - d) < 1e-9 and abs(b + c) < 1e-9
