"""Pictures of another kind are told from those the model learned from; ordinary ones seldom are taken for such."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cropreg import novelty
from cropreg.checkpoint import Novelty


def features(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Features (N, 40) that vary along six directions, and a little in all."""
    mixing = np.random.default_rng(9).normal(size=(6, 40))
    return 3 + rng.normal(size=(count, 6)) * [5, 3, 2, 1, 1, 0.5] @ mixing + rng.normal(0, 0.1, (count, 40))


@pytest.mark.parametrize(("rows", "alarms"), [(400, 0.01), (49, 0.02)])
def test_ordinary_pictures_are_rarely_taken_for_unlike(rows: int, alarms: float) -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(40):
        learned = novelty.fit(features(rng, 200), features(rng, rows))
        shares.append((novelty.times_limit(features(rng, 500), learned) > 1).mean())
    assert 0.2 * alarms < np.mean(shares) < 1.5 * alarms


@pytest.mark.parametrize("how", ["far along what varies", "off what varies"])
def test_other_pictures_are_unlike(how: str) -> None:
    rng = np.random.default_rng(1)
    learned = novelty.fit(features(rng, 200), features(rng, 60))
    other = features(rng, 50)
    other = (
        other + 60 * np.random.default_rng(9).normal(size=(6, 40))[0]
        if how.startswith("far")
        else other + rng.normal(0, 2, other.shape)
    )
    assert (novelty.times_limit(other, learned) > 1.2).all()


def test_what_was_learned_comes_back_from_json() -> None:
    rng = np.random.default_rng(2)
    learned = novelty.fit(features(rng, 100), features(rng, 30))
    assert learned is not None and learned.rows == 30
    again = Novelty.model_validate_json(learned.model_dump_json())
    some = features(rng, 10)
    assert (novelty.times_limit(some, again) == novelty.times_limit(some, learned)).all()


def test_too_few_pictures_teach_no_kind() -> None:
    rng = np.random.default_rng(3)
    assert novelty.fit(features(rng, 100), features(rng, 19)) is None
    assert novelty.fit(features(rng, 19), features(rng, 100)) is None
    assert np.isnan(novelty.times_limit(features(rng, 4), None)).all()


def test_pictures_that_are_all_the_same_teach_a_kind_too() -> None:
    same = np.ones((30, 5))
    learned = novelty.fit(same, same + 1e-7)
    assert (novelty.times_limit(same + 1, learned) > 100).all()
