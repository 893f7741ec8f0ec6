"""Decisions of a person: kept one by one, never lost, and in effect wherever the table they judge is read."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg import reviews, storage
from cropreg.errors import InputError
from cropreg.reviews import ACCEPT, CORRECT, REJECT, UNDO, Review
from cropreg.schema import BoxDataset, commit_manifest

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def review(number: int, decision: str, pair_id: str = "0000", *, undoes: str | None = None, stamp: str | None = None) -> Review:
    box = (1.0, 2.0, 30.5, 40.0) if decision in (ACCEPT, CORRECT) else (None,) * 4
    return Review(
        f"r{number}", pair_id, None, decision, *box, 0.5 if box[0] else None, "ann", NOON + timedelta(seconds=number), stamp, undoes
    )


@pytest.fixture
def boxes(made_boxes: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    return tmp_path / "boxes"


def test_reviews_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = [review(1, ACCEPT), review(2, CORRECT, "a/ä\n"), review(3, REJECT), review(4, UNDO, undoes="r3")]
    for item in reversed(kept):
        reviews.write(str(tmp_path), [item])
    assert reviews.read(str(tmp_path)) == kept


def test_review_sent_twice_is_one_file_and_one_decision(tmp_path: Path) -> None:
    assert reviews.write(str(tmp_path), [review(1, ACCEPT)]) == reviews.write(str(tmp_path), [review(1, ACCEPT)])
    reviews.write(str(tmp_path), [review(1, ACCEPT), review(2, REJECT)])  # and once more, within a batch
    assert [r.review_id for r in reviews.read(str(tmp_path))] == ["r1", "r2"]


@given(st.lists(st.sampled_from(["accept", "reject", "undo"]), max_size=12), st.integers(0, 9))
def test_what_is_in_effect_is_the_latest_not_undone_in_any_order_of_files(decisions: list[str], seed: int) -> None:
    kept: list[Review] = []
    stack: list[Review] = []
    for number, decision in enumerate(decisions):
        item = review(number, decision, undoes=stack[-1].review_id if decision == UNDO and stack else None)
        kept.append(item)
        if decision != UNDO:
            stack.append(item)
        elif stack:
            stack.pop()
    random.Random(seed).shuffle(kept)
    assert reviews.in_effect(kept) == ({"0000": stack[-1]} if stack else {})


def test_gathering_many_files_changes_nothing_but_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "_GATHER_ABOVE", 5)
    for number in range(9):
        reviews.write(str(tmp_path), [review(number, ACCEPT, f"{number}")])
    before = reviews.read(str(tmp_path))
    assert reviews.gather(str(tmp_path)) == 9
    assert reviews.read(str(tmp_path)) == before
    assert len(list(storage.list_files(str(tmp_path / "reviews")))) == 1
    assert reviews.gather(str(tmp_path)) == 0


def test_stranger_among_the_reviews_is_named(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "x.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"x\.parquet: no table of reviews that this cropreg reads"):
        reviews.read(str(tmp_path))


def test_box_that_is_no_number_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a review"):
        reviews.write(str(tmp_path), [replace(review(1, CORRECT), x1=float("nan"))])
    assert reviews.read(str(tmp_path)) == []


def test_corrected_pair_is_found_with_the_new_box(boxes: Path) -> None:
    before = BoxDataset.open(str(boxes))
    assert next(r for r in before.pairs().to_pylist() if r["pair_id"] == "0000")["verdict"] == "ambiguous"
    reviews.write(str(boxes), [review(1, CORRECT)])
    dataset = BoxDataset.open(str(boxes))
    row = next(r for r in dataset.pairs().to_pylist() if r["pair_id"] == "0000")
    assert (row["verdict"], row["method"], row["reason"]) == ("found", "reviewed", None)
    assert (row["x1"], row["y1"], row["x2"], row["y2"], row["angle_deg"]) == (1.0, 2.0, 30.5, 40.0, 0.5)
    assert dataset.pairs(["x2", "verdict"]).column_names == ["x2", "verdict"]
    assert dataset.pairs(["pair_id", "verdict"])["verdict"][0].as_py() == "found"


def test_rejected_pair_says_who_rejected_it_and_trains_no_more(boxes: Path) -> None:
    reviews.write(str(boxes), [review(1, REJECT, "0001")])
    row = BoxDataset.open(str(boxes)).pairs().to_pylist()[1]
    assert (row["pair_id"], row["verdict"], row["reason"]) == ("0001", "no_match", "rejected by ann")


def test_other_rows_stay_as_they_are_and_in_order(boxes: Path) -> None:
    before = BoxDataset.open(str(boxes)).pairs().to_pylist()
    reviews.write(str(boxes), [review(1, CORRECT, "0020"), review(2, REJECT, "not there")])
    after = BoxDataset.open(str(boxes)).pairs().to_pylist()
    assert [row["pair_id"] for row in after] == [row["pair_id"] for row in before]
    assert [row for row in after if row["pair_id"] != "0020"] == [row for row in before if row["pair_id"] != "0020"]


def test_reviews_outlive_another_match_of_the_same_files(boxes: Path) -> None:
    reviews.write(str(boxes), [review(1, CORRECT)])
    dataset = BoxDataset.open(str(boxes))
    parts = dataset.parts("pairs") + dataset.parts("proxies")
    number = commit_manifest(str(boxes), parts, config={}, counts={}, parent=dataset.number, version="0", removed=["0059"])
    again = BoxDataset.open(str(boxes))
    assert again.number == number and again.pairs()["method"][0].as_py() == "reviewed"
    unjudged = BoxDataset(again.uri, again.number, again.manifest)
    assert unjudged.pairs()["verdict"][0].as_py() == "ambiguous", "what is counted as matched is what the matcher said"


def test_review_of_files_that_have_changed_counts_no_longer(boxes: Path) -> None:
    reviews.write(str(boxes), [review(1, CORRECT, stamp="12-34/56-78")])
    assert BoxDataset.open(str(boxes)).pairs()["verdict"][0].as_py() == "ambiguous"


def test_fingerprint_changes_with_a_review_and_changes_back_when_it_is_undone(boxes: Path) -> None:
    before = BoxDataset.open(str(boxes)).fingerprint
    reviews.write(str(boxes), [review(1, CORRECT)])
    during = BoxDataset.open(str(boxes)).fingerprint
    reviews.write(str(boxes), [review(2, UNDO, undoes="r1")])
    assert during != before == BoxDataset.open(str(boxes)).fingerprint


def test_open_dataset_does_not_change_under_a_training_that_reads_it(boxes: Path) -> None:
    dataset = BoxDataset.open(str(boxes))
    before = dataset.pairs()
    reviews.write(str(boxes), [review(1, CORRECT)])
    assert dataset.pairs().equals(before)


def test_confirmed_box_of_a_picture_outlives_the_model_and_a_rejected_one_does_not() -> None:
    box, refused = (replace(review(1, d, stamp="model1/9-9"), pair_id=None, image_uri="/a.jpg") for d in (CORRECT, REJECT))
    assert reviews.applies(box, "model2/9-9") and not reviews.applies(box, "model1/9-8")
    assert reviews.applies(refused, "model1/9-9") and not reviews.applies(refused, "model2/9-9")
