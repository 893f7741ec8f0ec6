"""Looking at a dataset before training."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cropreg.errors import InputError
from cropreg.pipelines import check

pytestmark = pytest.mark.long  # each test opens whole EfficientNets or draws pictures


@pytest.fixture
def boxes(made_boxes: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    return tmp_path / "boxes"


def test_check_counts_and_leaves_something_to_look_at(boxes: Path) -> None:
    summary = check.run(str(boxes))
    assert summary["counts"] == {"found": 57, "ambiguous": 3}
    assert sum(summary["found_by_split"].values()) == 57
    with open(boxes / "problems.csv", newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["ambiguous"] * 3
    for name in ("labels.jpg", "histograms.png"):
        with Image.open(boxes / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10, "something is drawn"


def test_check_writes_nothing_when_dry(boxes: Path) -> None:
    before = sorted(boxes.rglob("*"))
    assert check.run(str(boxes), dry_run=True)["dry_run"]
    assert sorted(boxes.rglob("*")) == before


def test_check_finds_a_flipped_bit_in_the_proxies(boxes: Path) -> None:
    file = boxes / "proxies" / "part-a.arrow"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"part-a\.arrow: the file is not the one the manifest lists"):
        check.run(str(boxes))


def test_label_far_from_all_others_is_suspicious() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.2, 0.02, (100, 4))
    margins[7, 2] = 0.7
    oddness = check._oddness(margins)
    assert int(oddness.argmax()) == 7 and oddness[7] > check._SUSPICIOUS > np.delete(oddness, 7).max()
