"""``cropreg predict --apply-reviews``: crops and rows become what a person decided, and what the model said when that is taken back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import framed_print, save
from PIL import Image

from cropreg import checkpoint, reviews
from cropreg.errors import InputError
from cropreg.pipelines import predict
from cropreg.review import queue
from cropreg.reviews import Review
from cropreg.schema import PREDICTIONS, parquet_bytes, read_predictions
from cropreg.settings import PredictSettings
from cropreg.storage import list_files

pytestmark = pytest.mark.long  # imports Ray, without starting it

APPLY = PredictSettings(apply_reviews=True)
MODEL_BOX = {"x1": 10.0, "y1": 20.0, "x2": 110.0, "y2": 100.0}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for n in range(4):
        save(framed_print(n)[0], tmp_path / "in" / "sub" / f"{n}.png")
    return tmp_path / "in"


@pytest.fixture
def out(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a model has made of four pictures: 0 and 1 written, 2 and 3 left for review."""
    monkeypatch.setattr(predict, "_model_id", lambda run, settings: "model")
    monkeypatch.setattr(checkpoint, "best_of", lambda run: run)
    monkeypatch.setattr(predict, "_predict", lambda todo, *rest: [_row(entry) for entry in todo])
    rows = [_row(entry) for entry in list_files(str(images))]
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for row in rows:
        if row["verdict"] == "accept":
            row["crop_uri"] = str(out / "sub" / Path(row["image_uri"]).name)
            Image.open(row["image_uri"]).crop((10, 20, 110, 100)).save(row["crop_uri"])
    (out / "predictions.parquet").write_bytes(parquet_bytes(rows, PREDICTIONS))
    return out


def _row(entry: Any) -> dict[str, Any]:
    row = {**dict.fromkeys(PREDICTIONS.names), "image_uri": entry.uri, "width": 240, "height": 180, **MODEL_BOX}
    sure = Path(entry.uri).stem in "01"
    return {**row, "angle_deg": 0.0, "verdict": "accept" if sure else "review", "stamp": f"model/{entry.stamp}"}


def decide(out: Path, number: int, decision: str, box: Any = None, angle: float = 0.0, undoes: str | None = None) -> str:
    row = rows_of(out)[number]
    earlier = len(reviews.read(str(out)))
    corners = box or ((None,) * 4 if decision in ("reject", "undo") else tuple(MODEL_BOX.values()))
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=earlier)
    review = Review(f"r{earlier}", None, row["image_uri"], decision, *corners, angle, "ann", at, row["stamp"], undoes)
    reviews.write(str(out), [review])
    return review.review_id


def rows_of(out: Path) -> list[dict[str, Any]]:
    return sorted(read_predictions(str(out / "predictions.parquet")), key=lambda row: row["image_uri"])


def crop(out: Path, number: int) -> Any:
    return np.asarray(Image.open(out / "sub" / f"{number}.png").convert("RGB"))


def test_corrected_picture_is_written_anew_and_confirmed_one_for_the_first_time(images: Path, out: Path) -> None:
    decide(out, 0, "correct", (30.0, 40.0, 90.0, 70.0))
    decide(out, 2, "accept")
    summary = predict.run("run", str(images), out=str(out), settings=APPLY)
    assert (summary["code"], summary["computed"], summary["reviewed"]) == (0, 0, 2)
    assert summary["counts"] == {"accept": 3, "review": 1}
    assert np.array_equal(crop(out, 0), framed_print(0)[0][40:70, 30:90])
    assert np.array_equal(crop(out, 2), framed_print(2)[0][20:100, 10:110])
    rows = rows_of(out)
    assert [row["reviewed_by"] for row in rows] == ["ann", None, "ann", None]
    assert (rows[0]["x1"], rows[0]["y2"], rows[2]["verdict"], rows[2]["reason"]) == (30.0, 70.0, "accept", None)
    assert "reviewed_by" in (out / "predictions.csv").read_text().splitlines()[0]


def test_confirmed_crop_that_is_there_is_not_touched(images: Path, out: Path) -> None:
    decide(out, 0, "accept")
    before = (out / "sub" / "0.png").stat()
    predict.run("run", str(images), out=str(out), settings=APPLY)
    assert (out / "sub" / "0.png").stat().st_mtime_ns == before.st_mtime_ns and rows_of(out)[0]["reviewed_by"] == "ann"


def test_rejected_crop_is_taken_away(images: Path, out: Path) -> None:
    decide(out, 1, "reject")
    predict.run("run", str(images), out=str(out), settings=APPLY)
    row = rows_of(out)[1]
    assert not (out / "sub" / "1.png").exists()
    assert (row["verdict"], row["reason"], row["crop_uri"]) == ("review", "rejected by ann", None)


def test_folder_that_was_copied_leaves_the_crops_of_its_old_place_alone(images: Path, out: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    decide(copied, 1, "reject")
    predict.run("run", str(images), out=str(copied), settings=APPLY)
    assert (out / "sub" / "1.png").exists() and not (copied / "sub" / "1.png").exists()
    assert rows_of(copied)[0]["crop_uri"] == str(copied / "sub" / "0.png")


def test_rejected_picture_loses_its_sidecar_and_others_keep_theirs(images: Path, out: Path) -> None:
    predict.run("run", str(images), out=str(out), settings=PredictSettings(export_="xmp,pp3"))
    assert len([*out.rglob("*.xmp"), *out.rglob("*.pp3")]) == 4
    decide(out, 1, "reject")
    predict.run("run", str(images), out=str(out), settings=PredictSettings(export_="xmp,pp3", apply_reviews=True))
    assert sorted(p.name for p in [*out.rglob("*.xmp"), *out.rglob("*.pp3")]) == ["0.png.pp3", "0.xmp"]


def test_sidecar_of_a_review_that_was_taken_back_goes_with_its_crop(images: Path, out: Path) -> None:
    with_sidecars = PredictSettings(export_="xmp", apply_reviews=True)
    made = [decide(out, 1, "correct", (30.0, 40.0, 90.0, 70.0)), decide(out, 2, "accept")]
    predict.run("run", str(images), out=str(out), settings=with_sidecars)
    assert sorted(p.name for p in out.rglob("*.xmp")) == ["0.xmp", "1.xmp", "2.xmp"]
    for number, review in zip((1, 2), made, strict=True):
        decide(out, number, "undo", undoes=review)
    predict.run("run", str(images), out=str(out), settings=with_sidecars)
    assert sorted(p.name for p in out.rglob("*.xmp")) == ["0.xmp", "1.xmp"], "1 is sure again without a person, 2 is not"


def test_turned_box_is_cut_turned_even_where_it_sticks_out(images: Path, out: Path) -> None:
    decide(out, 3, "correct", (-5.0, 20.0, 95.0, 100.0), angle=12.0)
    predict.run("run", str(images), out=str(out), settings=APPLY)
    assert crop(out, 3).shape == (80, 100, 3) and rows_of(out)[3]["angle_deg"] == 12.0


def test_decision_taken_back_gives_the_row_to_the_model_again(images: Path, out: Path) -> None:
    made = decide(out, 2, "correct", (30.0, 40.0, 90.0, 70.0))
    predict.run("run", str(images), out=str(out), settings=APPLY)
    decide(out, 2, "undo", undoes=made)
    summary = predict.run("run", str(images), out=str(out), settings=APPLY)
    assert summary["computed"] == 1
    row = rows_of(out)[2]
    assert (row["x1"], row["verdict"], row["reviewed_by"]) == (10.0, "review", None)
    assert not (out / "sub" / "2.png").exists(), "the crop was the person's"


def test_review_of_a_picture_that_has_changed_is_not_applied(images: Path, out: Path) -> None:
    decide(out, 2, "correct", (30.0, 40.0, 90.0, 70.0))
    save(framed_print(77)[0], images / "sub" / "2.png")
    assert predict.run("run", str(images), out=str(out), settings=APPLY)["reviewed"] == 0


def test_strange_file_where_the_crop_should_go_is_kept(images: Path, out: Path) -> None:
    decide(out, 2, "accept")
    (out / "sub" / "2.png").write_bytes(b"mine")
    predict.run("run", str(images), out=str(out), settings=APPLY)
    row = rows_of(out)[2]
    assert row["verdict"] == "failed" and "exists already" in row["reason"] and (out / "sub" / "2.png").read_bytes() == b"mine"


def test_without_the_flag_nothing_is_applied(images: Path, out: Path) -> None:
    decide(out, 2, "accept")
    predict.run("run", str(images), out=str(out), settings=PredictSettings())
    assert rows_of(out)[2]["verdict"] == "review" and not (out / "sub" / "2.png").exists()


def test_table_of_an_earlier_version_without_the_column_is_read(out: Path) -> None:
    rows = rows_of(out)
    old = PREDICTIONS.remove(PREDICTIONS.get_field_index("reviewed_by"))
    (out / "predictions.parquet").write_bytes(parquet_bytes([{k: r[k] for k in old.names} for r in rows], old))
    assert rows_of(out) == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a diary", "damaged, or no table of predictions ("),
        (
            parquet_bytes([], pa.schema([field for field in PREDICTIONS if field.name not in ("verdict", "stamp")])),
            "no table of predictions, for it lacks the columns verdict, stamp.",
        ),
    ],
)
def test_table_that_is_none_is_named_with_its_cure(images: Path, out: Path, data: bytes, message: str) -> None:
    table = out / "predictions.parquet"
    table.write_bytes(data)
    cure = "Restore it; or move it away, and run cropreg predict again with --overwrite."
    readers: tuple[Callable[[], object], ...] = (
        lambda: queue.open_predictions(str(out)),
        lambda: predict.run("run", str(images), out=str(out), settings=PredictSettings()),
    )
    for read in readers:
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).startswith(f"{table}: {message}") and str(caught.value).endswith(cure)
    table.unlink()
    assert predict.run("run", str(images), out=str(out), settings=PredictSettings(overwrite=True))["computed"] == 4
