"""Crops of one aspect: when labels have one, and where it puts edges that the picture does not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg import boxes, checkpoint, proportions
from cropreg.checkpoint import Proportion
from cropreg.dataset import read_labels
from cropreg.pipelines import train
from cropreg.proportions import held_to, learn
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

SIZES = np.array([(640, 480), (480, 640), (600, 600)])
FOUR_TO_THREE = Proportion(aspect=4 / 3, deviation=0.01, rows=100)


def cut(
    rng: np.random.Generator, aspects: NDArray[np.float64], tremor_px: float = 2.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Boxes of these aspects (N,), every other one standing, in pictures of several shapes; shares, and the pictures' sizes."""
    rows = len(aspects)
    sizes_wh = SIZES[rng.integers(len(SIZES), size=rows)]
    long = rng.uniform(200, 400, rows)
    sides = np.stack([long, long / aspects], 1)
    sides[::2] = sides[::2, ::-1]
    corner = rng.uniform(10, 60, (rows, 2))
    boxes_px = np.concatenate([corner, corner + sides], 1) + rng.normal(0, tremor_px, (rows, 4))
    return boxes.normalise(boxes_px, sizes_wh), sizes_wh


@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 16 / 9])
def test_aspect_that_a_hand_keeps_is_learned_in_spite_of_tremor_and_exceptions(aspect: float) -> None:
    rng = np.random.default_rng(1)
    aspects = np.full(200, aspect)
    aspects[:10] = rng.uniform(1, 3, 10)
    found = learn(*cut(rng, aspects))
    assert found is not None and found.rows == 200
    assert found.aspect == pytest.approx(aspect, rel=0.015)
    assert 0.002 < found.deviation < 0.03


@pytest.mark.parametrize(
    "aspects",
    [
        np.random.default_rng(0).uniform(1, 2, 200),  # free
        np.where(np.arange(200) % 3 == 0, 1.5, 4 / 3),  # two of them
        np.full(20, 4 / 3),  # too few to tell
        np.empty(0),
    ],
    ids=["free", "two aspects", "few", "none"],
)
def test_no_aspect_is_learned_where_labels_have_none_in_common(aspects: NDArray[np.float64]) -> None:
    assert learn(*cut(np.random.default_rng(1), aspects)) is None


def test_unsure_edges_move_and_sure_ones_stay() -> None:
    sizes_wh = np.array([[1000, 1000]])
    box = np.array([[0.1, 0.2, 0.6, 0.5]])  # 500 x 300, where 400 x 300 is wanted
    unsure_ends = np.array([[0.03, 0.001, 0.03, 0.001]])
    found, spread = held_to(box, unsure_ends, sizes_wh, FOUR_TO_THREE)
    assert found[0] == pytest.approx([0.15, 0.2, 0.55, 0.5], abs=0.005)
    assert (spread[0, ::2] < 0.8 * 0.03).all(), "each end is told by the other and by the height"
    one_end = np.array([[0.001, 0.001, 0.03, 0.001]])
    found, spread = held_to(box, one_end, sizes_wh, FOUR_TO_THREE)
    assert found[0] == pytest.approx([0.1, 0.2, 0.5, 0.5], abs=0.005) and spread[0, 2] < 0.01


def test_boxes_of_the_aspect_stay_lying_and_standing() -> None:
    box, sizes_wh = cut(np.random.default_rng(2), np.full(40, 4 / 3), tremor_px=0.0)
    found, _ = held_to(box, np.full_like(box, 0.01), sizes_wh, FOUR_TO_THREE)
    assert np.abs(found - box).max() < 1e-9


def test_without_an_aspect_nothing_changes() -> None:
    box, spread = np.array([[0.1, 0.2, 0.6, 0.5]]), np.full((1, 4), 0.01)
    assert held_to(box, spread, np.array([[10, 10]]), None) == (box, spread)


def test_box_between_lying_and_standing_is_doubtful() -> None:
    sizes_wh = np.array([[1000, 1000], [1000, 1000]])
    box = np.array([[0.2, 0.2, 0.601, 0.6], [0.2, 0.2, 0.6, 0.51]])
    _, spread = held_to(box, np.full_like(box, 0.02), sizes_wh, FOUR_TO_THREE)
    assert (spread[0] > 1.5 * spread[1]).all() and (spread[1] <= 0.02).all()


def test_held_boxes_are_nearer_the_truth_when_each_edge_tells_how_unsure_it_is() -> None:
    """A law, not a case: errors as large as they are said to be."""
    rng = np.random.default_rng(3)
    true, sizes_wh = cut(rng, np.full(500, 4 / 3), tremor_px=0.5)
    spread = rng.choice([0.003, 0.02], true.shape)
    seen = true + spread * rng.normal(size=true.shape)
    found, left = held_to(seen, spread, sizes_wh, FOUR_TO_THREE)
    assert ((found - true) ** 2).mean() < 0.8 * ((seen - true) ** 2).mean()
    assert 0.8 < np.sqrt((((found - true) / left) ** 2).mean()) < 1.2, "the spread that is left is that of the errors"


@pytest.mark.long
def test_training_keeps_what_it_learns_of_aspects_in_the_checkpoint(
    tmp_path: Path, made_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(proportions, "learn", lambda boxes_norm, sizes_wh: asked.append(len(sizes_wh)) or FOUR_TO_THREE)
    settings = TrainSettings(weights="none", image_side=64, max_epochs=1, batch_size=32, num_workers=0, refine=False)
    train.run(str(made_boxes), out=str(tmp_path / "run"), settings=settings)
    info = checkpoint.load_info(checkpoint.best_of(str(tmp_path / "run")))
    assert info.proportion == FOUR_TO_THREE and info.calibration is not None, "saved again with the calibration"
    assert asked == [len(read_labels(BoxDataset.open(str(made_boxes)), "train"))], "training labels alone"
