"""What other programs are told of a run: TensorBoard always, MLflow and Weights & Biases when asked for."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cropreg import tracking
from cropreg.errors import UsageError
from cropreg.pipelines import train
from cropreg.settings import TrainSettings

FIGURES = {"val_loss": 0.5, "val_iou": 0.75}


def events(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of all scalars in the event files of a folder, by the files' own framing."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
            data = data[16 + length :]


def test_run_leaves_files_for_tensorboard_with_every_figure_of_every_epoch(made_boxes: Path, tmp_path: Path) -> None:
    settings = TrainSettings(weights="none", image_side=64, max_epochs=1, batch_size=32, num_workers=0, refine=False, use_gpu=False)
    train.run(str(made_boxes), out=str(tmp_path / "run"), settings=settings)
    longer = settings.model_copy(update={"max_epochs": 2, "resume": True})
    train.run(str(made_boxes), out=str(tmp_path / "run"), settings=longer)
    told = {(step, name): value for step, name, value in events(tmp_path / "run/tensorboard")}
    rows = train.runs.read_metrics(str(tmp_path / "run"))
    assert {step for step, _ in told} == {0, 1} and {name for _, name in told} == set(rows[0])
    for row in rows:
        for name, value in row.items():
            assert told[int(row["epoch"]), name] == pytest.approx(value, rel=1e-5)


def test_figure_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    with tracking.opened(str(tmp_path), "", {}, 0) as told:
        told.write(0, {**FIGURES, "grad_norm": float("nan")})
    assert {name for _, name, _ in events(tmp_path / "tensorboard")} == set(FIGURES)


def test_tracker_that_is_not_installed_is_told_before_anything_is_written(
    made_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--track wandb: .*pip install 'cropreg\[wandb\]'"):
        train.run(str(made_boxes), out=str(tmp_path / "run"), settings=TrainSettings(track="wandb", num_workers=0))
    assert not (tmp_path / "run").exists()


def test_mlflow_without_a_place_is_refused_rather_than_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="Set MLFLOW_TRACKING_URI"):
        tracking.check("mlflow")


def test_unknown_tracker_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="no tracker is called neptune; there are mlflow, wandb"):
        TrainSettings(track="wandb,neptune")


class _Unreachable:
    """A client of a server that goes away after it has taken the run."""

    runs = 0

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, number: str, run_name: str) -> Any:
        _Unreachable.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_param(self, *_: Any) -> None: ...
    def update_run(self, *_: Any, **__: Any) -> None: ...

    def log_batch(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("the server is away")

    def set_terminated(self, *_: Any) -> None:
        raise AssertionError("a tracker that failed is not told more")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    entities = SimpleNamespace(Metric=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=_Unreachable, __spec__=object()))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def test_tracker_that_fails_is_told_of_once_and_the_others_go_on(
    unreachable: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), tracking.opened(str(tmp_path), "mlflow", {}, 0) as told:
        for epoch in range(3):
            told.write(epoch, FIGURES)
    assert [record.getMessage() for record in caplog.records] == [
        "tracker=mlflow failed, training goes on without it: the server is away"
    ]
    assert {step for step, _, _ in events(tmp_path / "tensorboard")} == {0, 1, 2}


def test_tracker_that_cannot_begin_ends_the_run_with_its_cause(
    unreachable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, name: str) -> Any:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(_Unreachable, "get_experiment_by_name", refuse)
    with pytest.raises(UsageError, match="--track mlflow: connection refused"), tracking.opened(str(tmp_path), "mlflow", {}, 0):
        raise AssertionError("training has begun")


def test_resumed_run_goes_on_under_its_own_name(unreachable: None, tmp_path: Path) -> None:
    before = _Unreachable.runs
    for _ in range(2):
        with tracking.opened(str(tmp_path), "mlflow", {}, 0):
            pass
    assert _Unreachable.runs == before + 1
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": "r1"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # theirs
def test_mlflow_itself_keeps_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs cropreg[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first in (0, 2):
        with tracking.opened(str(tmp_path / "run"), "mlflow", {"seed": 3}, first) as told:
            for epoch in (first, first + 1):
                told.write(epoch, {"val_loss": 1.0 / (epoch + 1)})
    identity = json.loads((tmp_path / "run/tracking.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(identity, "val_loss")] == [(e, 1.0 / (e + 1)) for e in range(4)]
    kept = client.get_run(identity)
    assert kept.data.params == {"seed": "3"} and kept.info.status == "FINISHED" and kept.info.run_name == "run"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # theirs
def test_wandb_itself_keeps_the_figures_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs cropreg[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    with tracking.opened(str(tmp_path / "run"), "wandb", {"seed": 3}, 0) as told:
        told.write(0, {"val_loss": 0.123456})
    wandb.teardown()  # or it would stay offline in the next test
    identity = json.loads((tmp_path / "run/tracking.json").read_text())["wandb"]
    [kept] = (tmp_path / "run").rglob(f"run-{identity}.wandb")
    assert b"val_loss" in kept.read_bytes() and b"0.123456" in kept.read_bytes()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # theirs
def test_wandb_without_a_login_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs cropreg[wandb]")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match=r"--track wandb: .*Cure that"), tracking.opened(str(tmp_path / "run"), "wandb", {}, 0):
        raise AssertionError("training has begun")
