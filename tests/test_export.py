"""The exported file: it answers like the model it was made from, says of itself what a stranger needs, and predicts without a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import framed_print, save

from cropreg import checkpoint, cli, export, novelty, storage
from cropreg.boxes import from_margins, in_order
from cropreg.calibration import fit
from cropreg.checkpoint import CheckpointInfo, Proportion
from cropreg.dataset import normalise, squash
from cropreg.errors import InputError, ModelError, UsageError
from cropreg.model import Architecture, CropRegressor
from cropreg.pipelines import predict
from cropreg.prediction import Predictor
from cropreg.schema import read_predictions
from cropreg.settings import PredictSettings

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.long

SIDE = 64


LOOKS: dict[str, dict[str, Any]] = {
    "two looks": {"refine": True},
    "two looks at untrimmed boxes": {"refine": True, "trims_to": 4 / 3},
    "one look with scales": {"scales": True},
    "one look, distribution": {"head": "distribution"},
}


@pytest.fixture(scope="module", params=LOOKS.values(), ids=LOOKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never trained, but whose margins depend on the picture."""
    torch.manual_seed(0)
    model = CropRegressor(Architecture(image_side=SIDE, **request.param), (0.2, 0.15, 0.25, 0.1))
    torch.nn.init.normal_(model.head.last.weight, std=0.0005 if model.architecture.numbers < 3 else 0.01)
    prints = torch.stack([squash(framed_print(seed)[0], SIDE) for seed in range(8)])
    seen = torch.cat([prints, torch.from_numpy(export._pictures(SIDE)[0]).permute(0, 3, 1, 2)])
    model.eval()
    for layer in model.modules():  # without true means and variances random layers hardly tell pictures apart
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.train().momentum = 1.0
    if model.refiner is not None:
        torch.nn.init.normal_(model.refiner.last.weight, std=0.5)
    with torch.no_grad():
        model(normalise(seen))
        if model.refiner is not None:
            strips, extents = map(torch.from_numpy, export._pictures(SIDE)[1:])
            model.refiner(normalise(strips.movedim(-1, -3)), extents)
    model.eval()
    with torch.no_grad():
        *_, seen_kinds = model.look(normalise(prints.repeat(5, 1, 1, 1) // torch.arange(1, 41)[:, None, None, None]))
    kinds_seen = seen_kinds.double().numpy()
    kinds = {"novelty": novelty.fit(kinds_seen[:20], kinds_seen[20:])} if model.refiner is not None else {}
    rng = np.random.default_rng(0)
    truth = np.tile([0.2, 0.2, 0.8, 0.8], (60, 1)) + rng.normal(0, 0.01, (60, 4))
    info = CheckpointInfo(
        architecture=model.architecture,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        prior_margins=(0.2, 0.15, 0.25, 0.1),
        baselines={},
        proportion=None if request.param == LOOKS["two looks"] else Proportion(aspect=4 / 3, deviation=0.02, rows=60, turn=-0.02),
        epoch=0,
        metrics={},
        calibration=fit(truth, np.abs(rng.normal(0, 0.01, truth.shape)), truth[::-1]).model_copy(update=kinds),
    )
    folder = tmp_path_factory.mktemp("exported") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.save(str(folder / "checkpoints/best"), model, info)
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    assert cli.run(["export", str(run), "--quiet"]) == 0
    return run / "model.onnx"


def test_file_predicts_like_its_run(run: Path, file: Path) -> None:
    ours, theirs = Predictor.open(str(run)), export.open_onnx(str(file))
    pictures = [framed_print(seed, 240 + 10 * seed)[0] for seed in range(5)]
    wanted, found = ours.predict(pictures), theirs.predict(pictures)
    assert np.ptp(wanted.boxes_norm, axis=0).min() > 1e-3, "a model that answers alike to all pictures shows nothing"
    near = (
        2e-4 if ours.info.architecture.refine else 1e-5
    )  # pixels of strips are rounded: a box that differs by 1e-6 shows other ones
    assert np.abs(found.boxes_norm - wanted.boxes_norm).max() < near
    assert np.abs(theirs.intervals(found) - ours.intervals(wanted)).max() < 10 * near
    assert np.abs(theirs.confidence(found) - ours.confidence(wanted)).max() < 100 * near
    assert theirs.info == ours.info
    if ours.info.architecture.refine:
        assert np.ptp(wanted.unlike) > 0 and np.abs(found.unlike / wanted.unlike - 1).max() < 1e-3
    else:
        assert np.isnan(found.unlike).all()


@pytest.mark.parametrize("number", [1, 2, 7])
def test_file_takes_any_number_of_pictures_and_gives_boxes_within_them(file: Path, number: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(number).integers(0, 256, (number, SIDE, SIDE, 3), np.uint8)
    second = (
        dict(zip(("strips", "extents"), (v[:3] for v in export._pictures(SIDE)[1:]), strict=True))
        if len(session.get_inputs()) == 3
        else {}
    )  # of another number
    margins, box = session.run(["margins", "box_norm"], {"pixels": pixels, **second})
    assert margins.shape == box.shape == (number, 4)
    assert np.allclose(box, in_order(from_margins(np.clip(margins, 0, 1))), atol=1e-6)
    assert (box[:, 2:] > box[:, :2]).all() and box.min() >= 0 and box.max() <= 1


def test_file_says_what_a_stranger_needs(file: Path) -> None:
    said = {item.key: item.value for item in onnx.load(str(file)).metadata_props}
    assert said["image_side"] == str(SIDE) and said["colour_order"] == "RGB" and said["num_looks"] == "3"
    assert "0.45 and 0.75" in said["looks"] and "half-open" in said["box_norm"] and "512 px" in said["input"]
    assert float(said["max_difference"]) <= export.MAX_DIFFERENCE
    assert json.loads(said["calibration"])["rows"] == 60


def test_export_replaces_nothing_unasked(run: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(run)]) == 4
    assert "exists already and is kept" in capsys.readouterr().err
    assert cli.run(["export", str(run), "--overwrite", "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(file)


def test_file_that_answers_otherwise_is_not_written(run: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = SimpleNamespace(model_proto=onnx.load(file))  # once is enough: it takes as long as ten tests
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: exported)
    monkeypatch.setattr(export, "_difference", lambda *_: 2e-5)
    assert cli.run(["export", str(run), "--out", str(tmp_path / "a.onnx")]) == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_package_names_its_cure(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is needed .* pip install 'cropreg\[onnx\]'"):
        export.to_onnx(*checkpoint.load(checkpoint.best_of(str(run))))


def test_other_file_is_no_model(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cropreg export RUN --out"):
        export.open_onnx(str(tmp_path / "absent.onnx"))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="no ONNX model that onnxruntime opens"):
        export.open_onnx(str(tmp_path / "text.onnx"))
    foreign = onnx.load(str(file))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(ModelError, match="none that cropreg exported"):
        export.open_onnx(str(tmp_path / "foreign.onnx"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "{"}, "says of itself is damaged"),
        ({"checkpoint": "[]"}, "says of itself is damaged"),
        ({"checkpoint": '{"schema_version": 99}'}, "schema version 99, this cropreg reads 1"),
        ({"calibration": '{"rows": 1}'}, "says of itself is damaged"),
        ({"image_side": 96}, "not those it names"),
    ],
)
def test_file_whose_description_is_damaged_is_refused(file: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = onnx.load(str(file))
    said = {item.key: item.value for item in model.metadata_props}
    if "image_side" in change:
        text = json.loads(said["checkpoint"])
        text["architecture"]["image_side"] = change["image_side"]
        change = {"checkpoint": json.dumps(text)}
    onnx.helper.set_model_props(model, said | change)
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(ModelError, match=message):
        export.open_onnx(str(tmp_path / "a.onnx"))


def test_file_that_gives_no_numbers_is_refused(file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(file))
    bias = next(item for item in model.graph.initializer if item.name.endswith("last.bias"))
    bias.raw_data = np.full(bias.dims[0], np.nan, np.float32).tobytes()
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(ModelError, match="NaN or Inf"):
        export.open_onnx(str(tmp_path / "a.onnx"))


def test_crops_of_a_file_and_of_its_run_do_not_mix(run: Path, file: Path) -> None:
    ids = {predict._model_id(str(model), PredictSettings()) for model in (run, file)}
    assert len(ids) == 2


def test_predict_needs_no_run_beside_the_file(run: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_here(todo: Any, run_uri: str, out: str, model_id: str, settings: PredictSettings, address: Any) -> Any:
        items = [{"uri": e.uri, "relative": storage.path_to_uri(e.relative), "stamp": e.stamp} for e in todo]
        return predict._predict_batch(pa.Table.from_pylist(items), run_uri, out, model_id, settings).to_pylist()

    monkeypatch.setattr(predict, "_predict", predict_here)  # four times a cluster's start else
    for seed in range(3):
        save(framed_print(seed)[0], tmp_path / "in" / f"{seed}.png")
    alone = tmp_path / "elsewhere" / "model.onnx"
    alone.parent.mkdir()
    alone.write_bytes(file.read_bytes())
    rows = []
    for model in (alone, run):
        out = tmp_path / f"out-{model.name}"
        summary = predict.run(str(model), str(tmp_path / "in"), out=str(out), settings=PredictSettings(all=True))
        assert summary["code"] == 0 and summary["computed"] == 3
        rows.append(read_predictions(str(out / "predictions.parquet")))
    for ours, theirs in zip(*rows, strict=True):
        for name in ("x1", "y1", "x2", "y2", "verdict", "reason"):
            assert ours[name] == theirs[name]
