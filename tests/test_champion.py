"""A new model beside the one before: it stays only if it is not worse on pictures that trained neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg import champion, checkpoint
from cropreg.errors import InputError
from cropreg.metrics import paired_difference
from cropreg.pipelines import train
from cropreg.runs import summary_of
from cropreg.schema import BoxDataset
from cropreg.settings import TrainSettings


@given(st.integers(0, 99), st.floats(-0.2, 0.2))
def test_paired_difference_of_a_constant_shift_is_that_shift_however_noisy_the_pictures(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    old = rng.uniform(0, 1, 30)
    assert paired_difference(old + shift, old, 50, rng) == pytest.approx((shift,) * 3, abs=1e-9)


def test_paired_difference_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        differences = rng.normal(0.01, 0.05, 60)
        _, low, high = paired_difference(differences, np.zeros(60), 200, rng)
        held += low <= 0.01 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_without_test_rows_or_a_champion_training_is_refused_before_it_starts(tmp_path: Path) -> None:
    champion.check(None, {"test": 0})
    with pytest.raises(InputError, match=str(tmp_path)):
        champion.check(str(tmp_path), {"test": 10})


@pytest.mark.long
def test_worse_model_goes_beside_and_the_champion_takes_its_place(
    made_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    plain = TrainSettings(weights="none", image_side=64, max_epochs=1, batch_size=16, num_workers=0, use_gpu=False)
    train.run(str(tmp_path / "boxes"), out=str(first), settings=plain)
    judged: dict[str, float] = {}

    def ious(dataset: BoxDataset, uri: str, *rest: Any) -> Any:
        return np.full(6, judged[next(name for name in judged if name in uri)])

    monkeypatch.setattr(champion, "ious", ious)
    other = plain.model_copy(update={"champion": str(first), "seed": 5})
    judged.update(first=0.9, second=0.8, third=0.898)
    lost = train.run(str(tmp_path / "boxes"), out=str(second), settings=other)["champion"]
    assert lost["kept"] == "champion" and lost["difference"] == pytest.approx(-0.1)
    assert _weights(second) == _weights(first) != _weights(second, "challenger")
    assert json.loads((second / "champion.json").read_text()) == lost == summary_of(str(second), other)["champion"]
    more = other.model_copy(update={"resume": True, "max_epochs": 2, "champion": None})
    own = _weights(second, "challenger")
    train.runs.take_folder("begun", str(second), BoxDataset.open(str(tmp_path / "boxes")), more)
    assert _weights(second) == own and not (second / "checkpoints/challenger").exists(), "going on, it is in its own place again"
    kept = train.run(str(tmp_path / "boxes"), out=str(third), settings=other)["champion"]
    assert kept["kept"] == "new" and _weights(third) != _weights(first)


@pytest.mark.long
def test_model_beside_itself_is_no_different(made_boxes: Path, tmp_path: Path) -> None:
    plain = TrainSettings(weights="none", image_side=64, max_epochs=1, batch_size=16, num_workers=0, use_gpu=False)
    train.run(str(made_boxes), out=str(tmp_path / "first"), settings=plain)
    again = train.run(
        str(made_boxes), out=str(tmp_path / "second"), settings=plain.model_copy(update={"champion": str(tmp_path / "first")})
    )
    assert again["champion"]["difference"] == pytest.approx(0, abs=1e-6) and again["champion"]["kept"] == "new"


def _weights(run: Path, name: str = "best") -> str:
    return checkpoint.load_info(str(run / "checkpoints" / name)).sha256
