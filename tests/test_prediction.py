"""Using a model: boxes come back in the picture's own coordinates, whatever the frame, format and turn."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import framed_print, textured
from PIL import Image

from cropreg import calibration, cli, cropping, novelty, storage
from cropreg.boxes import EDGES, Box
from cropreg.checkpoint import CheckpointInfo, Outcomes, Proportion
from cropreg.errors import InputError, OutputError, UnreadableImage, UsageError
from cropreg.interchange import xmp
from cropreg.judging import Judge
from cropreg.model import Architecture
from cropreg.pipelines import predict
from cropreg.pipelines.predict import crop_batch
from cropreg.prediction import Predictor, read_small
from cropreg.schema import PREDICTIONS, read_predictions
from cropreg.settings import PredictSettings
from cropreg.storage import local
from cropreg.trimming import lying_share, trimmed

pytestmark = pytest.mark.long


class SeesDark(torch.nn.Module):
    """A stand-in that needs no training: the margins of what is darker than the bed."""

    refiner = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = images.mean(dim=1) < images.mean(dim=1).amax(dim=(1, 2), keepdim=True) - 0.8  # (N, S, S)
        rows = []
        for one in dark:
            ys, xs = torch.nonzero(one.any(dim=1)), torch.nonzero(one.any(dim=0))
            side = one.shape[0]
            rows.append(
                [int(xs.min()) / side, int(ys.min()) / side, 1 - (int(xs.max()) + 1) / side, 1 - (int(ys.max()) + 1) / side]
            )
        return torch.tensor(rows)

    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        margins = self(images)
        return margins, torch.zeros_like(margins), images.mean(dim=(2, 3))


@pytest.fixture
def predictor() -> Predictor:
    rng = np.random.default_rng(0)
    truth = np.clip(rng.normal([0.2, 0.2, 0.8, 0.8], 0.05, (60, 4)), 0, 1)
    how = calibration.fit(truth + rng.normal(0, 0.004, truth.shape), np.full(truth.shape, 0.004), truth)
    info = CheckpointInfo(
        architecture=Architecture(image_side=256),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        prior_margins=(0, 0, 0, 0),
        baselines={},
        epoch=0,
        metrics={},
        calibration=how,
    )
    model: Any = SeesDark()
    return Predictor(model, info)


def test_looks_through_windows_come_back_to_the_picture(predictor: Predictor) -> None:
    pictures, truth = zip(*(framed_print(seed) for seed in range(6)), strict=True)
    predictions = predictor.predict(pictures)
    for box, (x1, y1, x2, y2) in zip(predictions.boxes_norm, truth, strict=True):
        assert np.abs(box * [240, 180, 240, 180] - [x1, y1, x2, y2]).max() < 2
    assert predictions.spread.max() < 0.01


def test_intervals_hold_the_box_and_lie_in_the_picture(predictor: Predictor) -> None:
    predictions = predictor.predict([framed_print(3)[0]])
    limits = predictor.intervals(predictions)
    assert (limits[..., 0] <= predictions.boxes_norm).all() and (predictions.boxes_norm <= limits[..., 1]).all()
    assert limits.min() >= 0 and limits.max() <= 1
    assert 0 < predictor.confidence(predictions)[0] <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_box_is_in_pixels_of_the_upright_original(predictor: Predictor, kind: str, orientation: int) -> None:
    width, height = 1531, 1149  # above twice 512, and no multiple of 8
    upright = np.full((height, width, 3), 235, np.uint8)
    x1, y1, x2, y2 = 300, 220, 1200, 900
    upright[y1:y2, x1:x2] = textured(1, x2 - x1, y2 - y1) // 2
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's name of the turn that EXIF asks to be undone
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif)
    small = read_small(buffer.getvalue(), "a", 10**8, 512)
    assert (small.size_wh, small.orientation) == ((width, height), orientation) and max(small.pixels.shape) == 512
    box = small.to_original(predictor.predict([small.pixels]).boxes_norm[0])
    assert np.abs(box - [x1, y1, x2, y2]).max() < 1531 / 256 * 1.5


def test_bad_picture_among_good_ones_becomes_a_failed_row(predictor: Predictor, tmp_path: Path) -> None:
    items = []
    for i in range(3):
        path = tmp_path / "in" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(framed_print(i)[0]).save(path)
        items.append((str(path), f"{i}.png"))
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:900])
    items.append((str(tmp_path / "in" / "absent.png"), "absent.png"))
    rows = crop_batch(items, predictor, str(tmp_path / "out"), PredictSettings(min_confidence=0.0))
    assert [row["verdict"] for row in rows] == ["accept", "failed", "accept", "failed"]
    assert all(set(row) | {"stamp"} == set(PREDICTIONS.names) for row in rows)
    assert "1.png" in rows[1]["reason"] and "absent.png" in rows[3]["reason"]
    for i in (0, 2):
        box = Box(*(rows[i][k] for k in ("x1", "y1", "x2", "y2")))
        with Image.open(tmp_path / "out" / f"{i}.png") as crop:
            assert crop.size == box.size_wh
            x1, y1, x2, y2 = map(int, box)
            assert np.array_equal(np.asarray(crop), framed_print(i)[0][y1:y2, x1:x2])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "2.png"]


def test_doubtful_picture_is_not_written_unless_all_are_asked_for(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(framed_print(1)[0]).save(path)
    strict = PredictSettings(min_confidence=1.0)
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(tmp_path / "out"), strict)
    assert (
        row["verdict"] == "review"
        and row["crop_uri"] is None
        and "is below 1: looks at the picture disagree most on the" in row["reason"]
    )
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(tmp_path / "out"), strict.model_copy(update={"all": True}))
    assert row["verdict"] == "review" and Path(row["crop_uri"]).exists()


def test_file_that_is_there_is_never_overwritten_without_the_flag(predictor: Predictor, tmp_path: Path) -> None:
    path, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(framed_print(1)[0]).save(path)
    out.mkdir()
    (out / "a.png").write_bytes(b"somebody's")
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(out), PredictSettings(min_confidence=0))
    assert row["verdict"] == "failed" and "exists already and is another picture" in row["reason"]
    assert (out / "a.png").read_bytes() == b"somebody's"
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(out), PredictSettings(min_confidence=0, overwrite=True))
    assert row["verdict"] == "accept" and (out / "a.png").read_bytes() != b"somebody's"


def test_model_without_calibration_sends_everything_to_review(predictor: Predictor, tmp_path: Path) -> None:
    unsure = Predictor(SeesDark(), predictor.info.model_copy(update={"calibration": None}))  # type: ignore[arg-type]
    path = tmp_path / "a.png"
    Image.fromarray(framed_print(1)[0]).save(path)
    (row,) = crop_batch([(str(path), "a.png")], unsure, str(tmp_path / "out"), PredictSettings())
    assert row["verdict"] == "review" and "training was interrupted" in row["reason"] and row["confidence"] is None


def knowing(predictor: Predictor, rows: int = 80, **more: Any) -> Predictor:
    """The same predictor, whose errors on ``rows`` pictures of ``val`` and of ``calib`` are known."""
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.002, 0.02, (rows, 4))
    known = Outcomes(inside=tuple(map(tuple, spread * rng.normal(size=spread.shape))), spread=tuple(map(tuple, spread)))
    how = predictor.info.calibration.model_copy(update={"val": known, "calib": known, **more})  # type: ignore[union-attr]
    return Predictor(SeesDark(), predictor.info.model_copy(update={"calibration": how}))  # type: ignore[arg-type]


def cropped(predictor: Predictor, folder: Path, **settings: Any) -> dict[str, Any]:
    """The row of one picture."""
    folder.mkdir(exist_ok=True)
    path = folder / "a.png"
    Image.fromarray(framed_print(1)[0]).save(path)
    out = str(folder / f"out-{len(list(folder.iterdir()))}")
    (row,) = crop_batch([(str(path), "a.png")], predictor, out, PredictSettings(**settings))
    return row


def test_edges_lean_to_the_ends_of_their_intervals_which_stay(predictor: Predictor, tmp_path: Path) -> None:
    rows = {lean: cropped(predictor, tmp_path, lean=lean, min_confidence=0) for lean in ("even", "safe", "greedy")}
    ends = [f"{edge}_{end}" for edge in EDGES for end in ("lo", "hi")]
    assert all(rows["even"][end] == rows[lean][end] for end in ends for lean in ("safe", "greedy"))
    for lean, sign, outer in (("safe", 1, ("lo", "lo", "hi", "hi")), ("greedy", -1, ("hi", "hi", "lo", "lo"))):
        for corner, edge, end in zip(("x1", "y1", "x2", "y2"), EDGES, outer, strict=True):
            assert abs(rows[lean][corner] - rows[lean][f"{edge}_{end}"]) < 1
            assert sign * rows[lean][f"{edge}_moved"] > 0.5 and rows["even"][f"{edge}_moved"] == 0
    safe = rows["safe"]
    assert safe["x1"] <= safe["left_lo"] + 1e-3 and safe["y2"] >= safe["bottom_hi"] - 1e-3, "rounding cuts nothing off"
    with Image.open(safe["crop_uri"]) as crop:
        assert crop.size == (safe["x2"] - safe["x1"], safe["y2"] - safe["y1"])


def test_promised_crop_is_moved_and_doubt_beyond_the_promise_goes_to_review(predictor: Predictor, tmp_path: Path) -> None:
    safe = cropped(knowing(predictor), tmp_path, max_risk=0.1, tolerance=0.01, lean="safe")
    assert safe["verdict"] == "accept" and min(safe[f"{edge}_moved"] for edge in EDGES) > 0
    even = cropped(knowing(predictor), tmp_path, max_risk=0.1, tolerance=0.08)
    assert even["verdict"] == "accept" and {even[f"{edge}_moved"] for edge in EDGES} == {0.0}
    judge = Judge.of(knowing(predictor).info, PredictSettings(max_risk=0.5, tolerance=0.01))
    assert judge.promise is not None
    limit = judge.promise.doubt_limit
    assert math.isfinite(limit)
    assert judge.verdict(np.full(4, 0.99 * limit), 0.5, 0.1) == ("accept", None), "the promise decides, not the confidence"
    verdict, reason = judge.verdict(np.array([1.0, 1, 1.4, 1]) * limit, 0.5, 0.9)
    assert verdict == "review" and reason is not None
    assert reason.startswith("too doubtful for --max-risk 0.5: looks at the picture disagree most on the right edge")


def test_picture_of_another_kind_goes_to_review_whatever_its_confidence(predictor: Predictor, tmp_path: Path) -> None:
    kind = predictor.kinds([framed_print(seed)[0] for seed in range(40)], 8)
    learned = knowing(predictor, novelty=novelty.fit(kind[:20], kind[20:]))
    assert cropped(learned, tmp_path, min_confidence=0)["verdict"] == "accept"
    Image.fromarray(framed_print(2)[0] // np.array([1, 1, 4], np.uint8)).save(tmp_path / "b.png")  # yellow, which none of them was
    for asked in ({"min_confidence": 0}, {"max_risk": 0.1, "tolerance": 0.08}):
        (row,) = crop_batch([(str(tmp_path / "b.png"), "b.png")], learned, str(tmp_path / "out"), PredictSettings(**asked))
        assert row["verdict"] == "review" and row["crop_uri"] is None
        assert row["reason"].startswith("unlike the pictures that the model learned from: ") and "20 kept aside" in row["reason"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_risk": 0.01, "lean": "safe"}, "with 80 pairs in calib nothing below 3.7% can be promised"),
        ({"max_risk": 0.1, "all": True}, "--all writes doubtful crops too"),
        ({"max_risk": 0.1, "min_confidence": 0.9}, "in the place of --min-confidence"),
        ({"tolerance": 0.1}, "does nothing without it"),
    ],
)
def test_what_cannot_be_promised_is_told_before_any_work(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(predict, "_info", lambda *_: knowing(predictor).info)
    with pytest.raises(UsageError, match=words):
        predict.run("/run", str(tmp_path / "absent"), out=str(tmp_path / "out"), settings=PredictSettings(**asked))
    assert not (tmp_path / "out").exists()


def test_leaning_needs_intervals(predictor: Predictor) -> None:
    few = predictor.info.model_copy(update={"calibration": calibration.fit(*(np.full((5, 4), 0.1) for _ in range(3)))})
    with pytest.raises(UsageError, match="it had 5 pairs in calib"):
        Judge.of(few, PredictSettings(lean="safe"))


def test_opening_nothing_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cropreg train"):
        Predictor.open(str(tmp_path))


def test_picture_is_shown_in_the_size_the_model_learned_from(predictor: Predictor, tmp_path: Path) -> None:
    sizes: list[int] = []
    sharp = Predictor(SeesDark(), predictor.info.model_copy(update={"seen_px": 1000}))  # type: ignore[arg-type]
    sharp.predict = lambda pictures: sizes.append(max(pictures[0].shape)) or predictor.predict(pictures)  # type: ignore[method-assign, func-returns-value]
    bed = np.full((900, 1800, 3), 235, np.uint8)
    bed[200:700, 300:1500] = textured(1, 1200, 500) // 2
    Image.fromarray(bed).save(tmp_path / "a.png")
    crop_batch([(str(tmp_path / "a.png"), "a.png")], sharp, str(tmp_path / "out"), PredictSettings())
    assert sizes == [1000]


def test_small_picture_refuses_what_is_too_large() -> None:
    buffer = io.BytesIO()
    Image.new("L", (300, 300)).save(buffer, "PNG")
    with pytest.raises(UnreadableImage, match="--max-pixels"):
        read_small(buffer.getvalue(), "big.png", 1000, 512)


def test_picture_that_cannot_be_written_in_its_own_format_fails_alone(predictor: Predictor, tmp_path: Path) -> None:
    deep = framed_print(1)[0].astype(">u2") * 257
    (tmp_path / "deep.ppm").write_bytes(b"P6 240 180 65535\n" + deep.tobytes())
    Image.fromarray(framed_print(2)[0]).save(tmp_path / "plain.png")
    items = [(str(tmp_path / name), name) for name in ("deep.ppm", "plain.png")]
    rows = crop_batch(items, predictor, str(tmp_path / "out"), PredictSettings(min_confidence=0.0))
    assert [row["verdict"] for row in rows] == ["failed", "accept"]
    assert "cannot be written without loss" in rows[0]["reason"]


def test_row_of_a_file_of_several_pages_says_that_the_first_was_cut(predictor: Predictor, tmp_path: Path) -> None:
    pages = [Image.fromarray(framed_print(seed)[0]) for seed in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    (row,) = crop_batch([(str(tmp_path / "a.tif"), "a.tif")], predictor, str(tmp_path / "out"), PredictSettings(min_confidence=0.0))
    assert (row["verdict"], row["adjusted"]) == ("accept", "the first of 3 pages")


WANTED = PredictSettings(min_confidence=0.0, aspect="4:3", pad="5px")


def test_row_holds_the_box_that_was_cut_and_what_the_constraints_cost(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(framed_print(1)[0]).save(path)
    (plain,) = crop_batch([(str(path), "a.png")], predictor, str(tmp_path / "plain"), PredictSettings(min_confidence=0.0))
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(tmp_path / "out"), WANTED)
    with Image.open(row["crop_uri"]) as crop:
        w, h = crop.size
    assert (w, h) == (row["x2"] - row["x1"], row["y2"] - row["y1"]) and min(abs(3 * w - 4 * h), abs(3 * h - 4 * w)) <= 2
    assert row["adjusted"].startswith("pad, aspect 4:3: left +")
    moved = [row[f"{edge}_moved"] for edge in ("left", "top", "right", "bottom")]
    before = [row[k] + sign * by for k, sign, by in zip(("x1", "y1", "x2", "y2"), (1, 1, -1, -1), moved, strict=True)]
    assert before == [plain[k] for k in ("x1", "y1", "x2", "y2")] and min(moved) >= 5
    assert plain["adjusted"] is None and plain["left_moved"] == 0


def test_constraint_that_cannot_be_met_sends_the_picture_to_review(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(framed_print(1)[0]).save(path)
    (row,) = crop_batch([(str(path), "a.png")], predictor, str(tmp_path / "out"), WANTED.model_copy(update={"min_size": "500"}))
    assert (row["verdict"], row["crop_uri"]) == ("review", None) and "smaller than the crop must be (--min-size)" in row["reason"]


def test_constraints_belong_to_what_a_second_run_must_share(monkeypatch: pytest.MonkeyPatch) -> None:
    info = type("Info", (), {"sha256": "s", "calibration": None})
    for name in ("best_of", "load_info"):
        monkeypatch.setattr(predict.checkpoint, name, lambda run: info)
    wishes = (
        {},
        {"aspect": "3:2"},
        {"aspect": "4:3"},
        {"pad": "1%"},
        {"min_size": "9"},
        {"max_trim": ".1"},
        {"jpeg_lossless": True},
    )
    ids = [predict._model_id("/run", PredictSettings(**wish)) for wish in wishes]
    assert len(set(ids)) == len(wishes)
    assert predict._model_id("/run", PredictSettings(watch=True, watch_interval_s=1)) == ids[0]


def test_constraint_that_cannot_be_read_is_refused_before_anything_is_computed(made: Made) -> None:
    with pytest.raises(UsageError, match="--aspect wide"):
        made.run(aspect="wide")
    assert not made.out.exists()


def test_picture_that_is_only_read_keeps_its_crop_in_a_sidecar(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "deep.ppm").write_bytes(b"P6 240 180 65535\n" + (framed_print(1)[0].astype(">u2") * 257).tobytes())
    items = [(str(tmp_path / "deep.ppm"), "deep.ppm")]
    (row,) = crop_batch(items, predictor, str(tmp_path / "out"), PredictSettings(min_confidence=0.0, export_="xmp"))
    assert (row["verdict"], row["crop_uri"]) == ("accept", None) and "stands in its sidecar alone" in row["reason"]
    (row,) = crop_batch(items, predictor, str(tmp_path / "out"), PredictSettings(min_confidence=0.0, export_="coco"))
    assert row["verdict"] == "failed"


def test_limit_of_pixels_holds_for_cutting_as_for_looking(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(predict.writing, "cut", lambda *_, max_pixels, **__: asked.append(max_pixels) or b"crop")
    Image.fromarray(framed_print(1)[0]).save(tmp_path / "a.png")
    settings = PredictSettings(min_confidence=0.0, max_pixels=10**9)
    crop_batch([(str(tmp_path / "a.png"), "a.png")], predictor, str(tmp_path / "out"), settings)
    assert asked == [10**9]


class Made:
    """A run whose model is made up, and a cluster that is this process; ``batches`` says after how many it is killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, predictor: Predictor, folder: Path) -> None:
        self.model_id, self.batches, self.out, self.images = "model-1", 99, folder / "out", folder / "in"
        self.images.mkdir()
        for i in range(4):
            Image.fromarray(framed_print(i)[0]).save(self.images / f"{i}.png")
        monkeypatch.setattr(predict, "_model_id", lambda *_: self.model_id)
        monkeypatch.setattr(predict, "_predict", self._predict)
        self._predictor = predictor

    def run(self, **settings: Any) -> dict[str, Any]:
        return predict.run("/run", str(self.images), out=str(self.out), settings=PredictSettings(min_confidence=0.0, **settings))

    def _predict(self, todo: Any, run_uri: str, out: str, model_id: str, settings: PredictSettings, address: Any) -> Any:
        predict._open.update({model_id: self._predictor})
        rows = []
        for number, entry in enumerate(todo):
            if number == self.batches:
                raise KeyboardInterrupt
            item = {"uri": entry.uri, "relative": storage.path_to_uri(entry.relative), "stamp": entry.stamp}
            rows += predict._predict_batch(pa.Table.from_pylist([item]), run_uri, out, model_id, settings).to_pylist()
        return rows


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, tmp_path: Path) -> Made:
    return Made(monkeypatch, predictor, tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_run_goes_on_where_it_was(made: Made, overwrite: bool) -> None:
    if overwrite:
        assert made.run()["computed"] == 4
    made.batches = 3
    with pytest.raises(KeyboardInterrupt):
        made.run(overwrite=overwrite)
    made.batches = 99
    assert made.run(overwrite=overwrite)["computed"] == 1
    assert [Path(row["image_uri"]).name for row in read_predictions(str(made.out / "predictions.parquet"))] == [
        f"{i}.png" for i in range(4)
    ]
    assert made.run()["computed"] == 0
    assert made.run(overwrite=True)["computed"] == 4, "what is finished is written again"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_or_locked_disk_ends_the_run_with_4_and_what_to_do_and_keeps_what_was_finished(
    made: Made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    create = local.create

    def failing(uri: str, data: bytes) -> bool:
        if uri.endswith("2.png"):
            raise OSError(number, os.strerror(number))
        return create(uri, data)

    monkeypatch.setattr(local, "create", failing)
    with pytest.raises(
        OutputError, match=rf"2\.png: cannot be written \({os.strerror(number)}\).*free or unlock.*run again"
    ) as told:
        made.run()
    assert told.value.exit_code == 4
    assert sorted(path.name for path in made.out.glob("*.png")) == ["0.png", "1.png"]
    monkeypatch.undo()
    monkeypatch.setattr(predict, "_model_id", lambda *_: made.model_id)
    monkeypatch.setattr(predict, "_predict", made._predict)
    assert made.run()["computed"] == 2


def test_crops_of_another_model_are_refused_or_replaced_and_none_is_left(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.run()
    made.model_id = "model-2"
    with pytest.raises(OutputError, match="holds crops of another model"):
        made.run()
    write = cropping.write_crop

    def only_even(row: dict[str, Any], *rest: Any) -> None:
        if int(Path(row["image_uri"]).stem) % 2:
            row.update(verdict="review", reason="not sure")
        else:
            write(row, *rest)

    monkeypatch.setattr(cropping, "write_crop", only_even)
    made.run(overwrite=True)
    assert sorted(p.name for p in made.out.iterdir() if p.suffix == ".png") == ["0.png", "2.png"]


def test_overwriting_keeps_crops_of_pictures_that_cannot_be_read_any_more_or_are_gone(made: Made) -> None:
    made.run()
    (made.images / "0.png").write_bytes(b"")
    (made.images / "1.png").unlink()
    before = [(made.out / f"{i}.png").read_bytes() for i in range(4)]
    summary = made.run(overwrite=True)
    assert summary["counts"]["failed"] == 1 and summary["apart"] == 1
    assert [(made.out / f"{i}.png").read_bytes() for i in range(4)] == before


def test_rows_of_pictures_that_were_put_away_or_lie_in_another_folder_stay_with_their_crops(made: Made, tmp_path: Path) -> None:
    made.run()
    rows = {row["image_uri"]: row for row in read_predictions(str(made.out / "predictions.parquet"))}
    (made.images / "0.png").rename(tmp_path / "0.png")
    first, made.images = made.images, tmp_path / "others"
    made.images.mkdir()
    (first / "1.png").rename(made.images / "9.png")
    assert made.run()["apart"] == 4
    both = {row["image_uri"]: row for row in read_predictions(str(made.out / "predictions.parquet"))}
    assert both.items() >= rows.items() and len(both) == 5
    (made.out / "0.png").unlink()
    made.images = first
    assert made.run()["apart"] == 2, "1.png and 9.png; nothing is left of 0.png"
    assert len(read_predictions(str(made.out / "predictions.parquet"))) == 4


def test_exports_of_what_is_finished_compute_nothing(made: Made) -> None:
    made.run()
    names = ["predictions.csv", "predictions.parquet", *(f"{i}.png" for i in range(4))]
    assert sorted(p.name for p in made.out.iterdir()) == sorted(names)
    summary = made.run(export_="csv,coco,label-studio,xmp,pp3,hf")
    assert summary["computed"] == 0
    assert summary["exports"] == dict.fromkeys(("csv", "coco", "label-studio", "xmp", "pp3", "hf"), 4)
    names += ["coco.json", "label-studio.json", "hf", *(f"{i}{end}" for i in range(4) for end in (".xmp", ".png.pp3"))]
    assert sorted(p.name for p in made.out.iterdir()) == sorted(names)
    rows = read_predictions(str(made.out / "predictions.parquet"))
    for row in rows:
        box, _ = xmp.read((made.out / f"{Path(row['image_uri']).stem}.xmp").read_bytes(), (240, 180), row["orientation"], "a")
        assert np.abs(np.array([*box]) - [row[k] for k in ("x1", "y1", "x2", "y2")]).max() < 1e-4


def test_pictures_may_be_named_one_by_one(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "in" / "sub" / os.fsdecode(b"latin-\xe9.png")
    odd.parent.mkdir()
    odd.write_bytes((made.images / "0.png").read_bytes())
    lines = [str(made.images / "1.png"), "", str(odd), str(made.images / "1.png"), str(made.images / "absent.png")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(map(os.fsencode, lines)) + b"\n")))
    arguments = ["predict", "/run", "-", "--out", str(made.out), "--min-confidence", "0", "--export", "xmp", "--quiet"]
    assert cli.run(arguments) == 0
    rows = read_predictions(str(made.out / "predictions.parquet"))
    assert [(storage.name_of(row["image_uri"]), row["verdict"]) for row in rows] == [
        ("1.png", "accept"),
        ("absent.png", "failed"),
        ("latin-%E9.png", "accept"),
    ]
    made_files = {os.path.relpath(path, made.out) for path in made.out.rglob("*") if path.suffix in (".png", ".xmp")}
    inner = os.path.join("sub", odd.stem)
    assert made_files == {"1.png", "1.xmp", f"{inner}.png", f"{inner}.xmp"}


@pytest.mark.parametrize(
    ("named", "error", "message"), [([], InputError, "list of paths is empty"), (["s3://b/a.jpg"], UsageError, "on this machine")]
)
def test_list_of_pictures_that_cannot_be_used_is_refused(
    made: Made, named: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predict.run("/run", named, out=str(made.out), settings=PredictSettings())


def test_unknown_export_is_refused_before_anything_is_computed(made: Made) -> None:
    with pytest.raises(UsageError, match="'yolo' is no format"):
        made.run(export_="yolo")
    assert not made.out.exists()


def test_run_in_which_too_much_failed_ends_with_6(made: Made) -> None:
    for i in range(3):
        (made.images / f"{i}.png").write_bytes(b"no picture")
    summary = made.run()
    assert summary["code"] == 6 and "3 of 4 pictures failed" in summary["message"]
    assert summary["top_reasons"][0][1] == 3, "reasons are told without the names of files"
    assert made.run(max_bad_share=0.8)["code"] == 0


def test_crops_never_go_where_the_originals_are(made: Made) -> None:
    for out in (made.images, made.images.parent):
        made.out = out
        with pytest.raises(UsageError, match="does not hold the originals"):
            made.run(overwrite=True)


def test_constraint_that_moves_an_edge_inward_breaks_the_promise_and_goes_to_review(predictor: Predictor, tmp_path: Path) -> None:
    row = cropped(
        knowing(predictor), tmp_path, max_risk=0.1, tolerance=0.01, lean="safe", aspect="9:1"
    )  # no room for it beside the box
    assert row["verdict"] == "review" and "a constraint moved an edge inward" in row["reason"] and row["crop_uri"] is None


def test_boxes_are_held_to_the_aspect_that_all_training_crops_had(predictor: Predictor) -> None:
    """The model is exact, and told that it is wrong: what moves, and that it comes out in the aspect, is all that is looked at."""
    pictures = [framed_print(seed)[0] for seed in range(6)]
    free = predictor.predict(pictures)
    aspect = Proportion(aspect=2.0, deviation=0.001, rows=100)
    held = Predictor(predictor._network, predictor.info.model_copy(update={"proportion": aspect})).predict(pictures)
    sizes = np.array([picture.shape[1::-1] for picture in pictures])
    sides = (held.boxes_norm[:, 2:] - held.boxes_norm[:, :2]) * sizes
    inside = (held.boxes_norm.min(axis=1) > 0) & (held.boxes_norm.max(axis=1) < 1)
    assert inside.any() and np.abs(np.abs(np.log2(sides[inside, 0] / sides[inside, 1])) - 1).max() < 0.01
    assert (held.spread.mean(axis=1) > free.spread.mean(axis=1)).all(), "a box that had to be moved is less sure"


def test_untrimmed_boxes_are_trimmed_to_the_aspect_once_they_are_found(predictor: Predictor) -> None:
    pictures = [framed_print(seed)[0] for seed in range(6)]
    sizes = np.array([picture.shape[1::-1] for picture in pictures])
    free = predictor.predict(pictures)
    aspect = Proportion(aspect=2.0, deviation=0.001, rows=100, shares=(0.0, 1.0))
    trims = predictor.info.architecture.model_copy(update={"trims_to": 2.0})
    info = predictor.info.model_copy(update={"proportion": aspect, "architecture": trims})
    found = Predictor(predictor._network, info).predict(pictures).boxes_norm
    lying = lying_share(free.boxes_norm, sizes, 0.0) > 0.5
    assert np.allclose(found, trimmed(free.boxes_norm, sizes, 2.0, lying, (0.0, 1.0)))
    assert not np.allclose(found, free.boxes_norm)
