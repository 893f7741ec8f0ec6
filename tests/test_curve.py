"""The learning curve: what the same training on fewer pairs says about having more of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg import curve
from cropreg.dataset import read_labels
from cropreg.errors import InputError, ModelError
from cropreg.pipelines import train
from cropreg.runs import summary_of
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings

PAIRS = [50, 100, 200, 400]


def judged(a: float, b: float, c: float, seed: int, n: int = 80) -> NDArray[np.float64]:
    """Made IoUs of four trainings whose means follow a - b n^-c, but for the seeds' noise and that of the same hard and easy pictures."""
    rng = np.random.default_rng(seed)
    law = a - b * np.array(PAIRS, float) ** -c + rng.normal(0, curve.SEED_SD, 4)
    return np.asarray(np.clip(law[:, None] + rng.normal(0, 0.04, n) + rng.normal(0, 0.03, (4, n)), 0, 1))


def measured(ious: NDArray[np.float64], seed: int = 0) -> curve.Curve:
    return curve.measure(PAIRS, ious, [str(i) for i in range(ious.shape[1])], np.random.default_rng(seed))


@pytest.mark.parametrize("law", [(0.97, 1.2, 0.6), (1.0, 0.8, 0.25), (0.95, 2.0, 1.0)])
def test_what_twice_the_pairs_bring_lies_within_what_is_said_about_as_often_as_promised(law: tuple[float, float, float]) -> None:
    a, b, c = law
    true = b * (400.0**-c - 800.0**-c)
    held = 0
    for seed in range(40):
        _, low, high = measured(judged(a, b, c, seed), seed).doubling
        held += low <= true <= high
    assert held >= 32, "promised: 90%"


def test_steep_curve_names_a_number_near_the_true_one() -> None:
    a, b, c = 1.0, 0.8, 0.25
    rest = b * 400.0**-c
    true = 400 * ((1 - curve.STEP_IOU / rest) ** (-1 / c) - 1)
    numbers = [measured(judged(a, b, c, seed), seed).wanted[0] for seed in range(20)]
    assert true / 1.5 < np.median([n or np.inf for n in numbers]) < true * 1.5
    assert "would add 0.01, with the same settings" in curve.in_words(measured(judged(a, b, c, 0)))


def test_level_curve_says_that_pairs_are_not_what_is_missing() -> None:
    words = curve.in_words(measured(judged(0.9, 0.0, 0.5, 1)))
    assert words.endswith("more pairs are not what this model lacks.")


def test_curve_that_does_not_tell_says_so() -> None:
    rng = np.random.default_rng(0)
    few = np.clip(np.array([0.80, 0.85, 0.84, 0.87])[:, None] + rng.normal(0, 0.15, (4, 20)), 0, 1)
    words = curve.in_words(measured(few))
    assert "cannot be told" in words and "about" not in words.lower()


def test_points_that_follow_no_law_tell_no_number() -> None:
    """Means of real trainings that were cut short; the law that is nearest to them misses one by 0.07."""
    rng = np.random.default_rng(0)
    apart = np.array([0.627, 0.691, 0.655, 0.870])[:, None] + rng.normal(0, 0.05, (4, 78))
    some = measured(apart)
    assert "cannot be told" in curve.in_words(some)
    assert "--max-epochs" in curve.in_words(replace(some, cut_short=True)) and "--max-epochs" not in curve.in_words(some)


def test_alike_pictures_are_drawn_together() -> None:
    ious = judged(0.97, 1.2, 0.6, 0, n=200)
    groups = [str(i // 20) for i in range(200)]
    together = np.repeat(ious[:, ::20], 20, axis=1)  # 20 copies of ten pictures
    rng = np.random.default_rng(0)
    alone, copies = (curve._drawn_again(together, g, rng).std(axis=0).mean() for g in ([str(i) for i in range(200)], groups))
    assert copies > 2 * alone


def test_smaller_share_lies_within_a_larger_one_and_groups_stay_whole(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    shares = [read_labels(dataset, "all", share, seed=3) for share in (*curve.SHARES, 1.0)]
    ids = [set(labels.pair_ids.to_pylist()) for labels in shares]
    assert ids[0] < ids[1] < ids[2] < ids[3] == set(read_labels(dataset, "all").pair_ids.to_pylist())
    assert len(ids[2]) == pytest.approx(len(ids[3]) / 2, abs=12)
    assert set(read_labels(dataset, "all", 0.5, seed=4).pair_ids.to_pylist()) != ids[2]


def test_too_few_pairs_are_refused_before_training(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    curve.check(False, dataset, 0, 1)
    with pytest.raises(InputError, match=r"--learning-curve: .* needs 16 and 20"):
        curve.check(True, dataset, 0, 1)
    with pytest.raises(InputError, match="needs 24 and 20"):
        curve.check(True, dataset, 0, 12)


@pytest.mark.long
def test_run_draws_its_curve_also_afterwards(made_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    boxes, out = str(tmp_path / "boxes"), str(tmp_path / "run")
    plain = TrainSettings(weights="none", image_side=64, max_epochs=2, batch_size=8, num_workers=0, use_gpu=False, refine=False)
    train.run(boxes, out=out, settings=plain)
    before = (tmp_path / "run/checkpoints/best/model.safetensors").read_bytes()
    monkeypatch.setattr(curve, "_LEAST_TRAIN", 3)
    monkeypatch.setattr(curve, "_LEAST_TEST", 3)
    monkeypatch.setattr(curve, "SHARES", (0.25, 0.5))
    drawn: list[Any] = []
    monkeypatch.setattr(curve.report, "learning_png", lambda *args: drawn.append(args) or b"png")
    more = plain.model_copy(update={"resume": True, "learning_curve": True})
    summary = train.run(boxes, out=out, settings=more)
    figures = json.loads((tmp_path / "run/learning_curve.json").read_text())
    assert summary["more_pairs"] == figures["in_words"] == drawn[0][3] == summary_of(out, more)["more_pairs"]
    found = len(read_labels(BoxDataset.open(boxes), "train"))
    assert figures["pairs"][-1] == found and figures["pairs"] == sorted(figures["pairs"]) and len(set(figures["iou"])) == 3
    assert not (tmp_path / "run/partial").exists()
    assert (tmp_path / "run/checkpoints/best/model.safetensors").read_bytes() == before, "the run itself learned no more"
    assert "more_pairs" not in train.run(boxes, out=out, settings=plain.model_copy(update={"overwrite": True}))


@pytest.mark.long
def test_training_on_a_share_that_diverges_says_that_the_model_itself_is_trained(
    made_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(
        weights="none", image_side=64, max_epochs=1, batch_size=16, num_workers=0, use_gpu=False, refine=False, learning_curve=True
    )
    learn = train.learning.learn

    def partly(*args: Any) -> None:
        if args[5] < 1:
            raise ModelError("training diverged in epoch 2, step 1: loss nan. To go on: --overwrite.")
        learn(*args)

    monkeypatch.setattr(curve, "check", lambda *_: None)
    monkeypatch.setattr(train.learning, "learn", partly)
    with pytest.raises(ModelError, match=r"loss nan\. That was the training on 0\.125 of the pairs .* --resume without that flag"):
        train.run(str(made_boxes), out=str(tmp_path / "run"), settings=settings)
    after = settings.model_copy(update={"learning_curve": False, "resume": True})
    assert train.run(str(made_boxes), out=str(tmp_path / "run"), settings=after)["epochs"] == 1


def test_drawing_of_a_curve_is_a_picture() -> None:
    from cropreg.report import learning_png

    some = measured(judged(0.97, 1.2, 0.6, 0))
    assert learning_png(some.pairs, some.iou, some.law, curve.in_words(some)).startswith(b"\x89PNG")
