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
from cropreg.schema import GROUPS, BoxDataset, Part, commit_manifest, parquet_bytes, top_reasons

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


def test_check_says_how_many_originals_share_a_group(boxes: Path) -> None:
    assert check.run(str(boxes))["groups"] == {
        "originals": 60,
        "groups_of_several": 0,
        "originals_in_them": 0,
        "largest": 1,
        "in_two_splits": 0,
    }
    _add_groups(
        boxes,
        [("0001", "0000"), ("0002", "0000"), ("0004", "0003")],
        {"0000": _split(boxes, "0000"), "0003": _split(boxes, "0003")},
    )
    assert check.run(str(boxes))["groups"] == {
        "originals": 60,
        "groups_of_several": 2,
        "originals_in_them": 5,
        "largest": 3,
        "in_two_splits": 0,
    }


def test_check_refuses_a_group_in_two_splits(boxes: Path) -> None:
    elsewhere = "test" if _split(boxes, "0000") != "test" else "train"
    _add_groups(boxes, [("0001", "0000")], {"0000": elsewhere})
    with pytest.raises(InputError, match=r"1 groups stand in more than one split, first 0000 in .* match again with --overwrite"):
        check.run(str(boxes))


def _split(boxes: Path, name: str) -> str:
    rows = BoxDataset.open(str(boxes)).pairs(["original_id", "split"]).to_pylist()
    return str(next(row["split"] for row in rows if row["original_id"] == name))


def _add_groups(boxes: Path, groups: list[tuple[str, str]], splits: dict[str, str]) -> None:
    """Lists a groups table in a new manifest."""
    data = parquet_bytes(({"original_id": name, "group": group, "split": splits[group]} for name, group in groups), GROUPS)
    (boxes / "groups").mkdir()
    (boxes / "groups" / "part-a.parquet").write_bytes(data)
    dataset = BoxDataset.open(str(boxes))
    listed = [*dataset.parts("pairs"), *dataset.parts("proxies"), Part.of("groups", "groups/part-a.parquet", len(groups), data)]
    commit_manifest(str(boxes), listed, config={}, counts={}, parent=dataset.number, version="0")


def test_reasons_that_differ_in_numbers_only_are_counted_together() -> None:
    reasons = [
        "The crop (9 x 8 px) is too large.",
        "The crop (7 x 6 px) is too large.",
        "no crop has this name",
        "no crop has this name",
    ]
    rows = [{"verdict": "no_match", "reason": reason} for reason in [*reasons, reasons[0]]]
    assert top_reasons(rows) == [
        ("no_match: The crop (9 x 8 px) is too large. (and alike)", 3),
        ("no_match: no crop has this name", 2),
    ]


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
