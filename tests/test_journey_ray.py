"""The whole way through Ray, sharing one local cluster: match, train on two workers, evaluate, predict; and through ``ray job submit``."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cropreg
from cropreg import cli, runs
from cropreg.boxes import Box
from cropreg.dataset import read_labels
from cropreg.demo import journey
from cropreg.errors import InputError, ModelError, OutputError
from cropreg.pipelines import evaluate, match, predict, train
from cropreg.schema import PAIRS, BoxDataset, read_predictions
from cropreg.settings import EvaluateSettings, MatchSettings, PredictSettings, TrainSettings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]
TRAINING = TrainSettings(
    weights="none", image_side=64, max_epochs=2, batch_size=8, num_workers=2, resources="CPU=1", max_failures=0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_pairs: Callable[[Path, int], dict[str, tuple[int, ...]]]) -> Path:
    """Thirty pairs with known boxes, and one of each kind of trouble."""
    base = tmp_path_factory.mktemp("journey")
    truth = make_pairs(base, 30)
    (base / "truth.json").write_text(json.dumps(truth))
    (base / "originals" / "lonely.jpg").write_bytes((base / "originals" / "0000.jpg").read_bytes())
    (base / "originals" / "cut.jpg").write_bytes((base / "originals" / "0001.jpg").read_bytes()[:3000])
    (base / "crops" / "cut.png").write_bytes((base / "crops" / "0001.png").read_bytes())
    (base / "originals" / "other.jpg").write_bytes((base / "originals" / "0002.jpg").read_bytes())
    (base / "crops" / "other.png").write_bytes((base / "crops" / "0003.png").read_bytes())
    return base


@pytest.fixture(scope="module")
def boxes(folder: Path, ray_local: None) -> Path:
    assert (
        cli.run(
            ["match", str(folder / "originals"), str(folder / "crops"), "--out", str(folder / "boxes"), "--split", "60/20/10/10"]
        )
        == 0
    )
    return folder / "boxes"


@pytest.fixture(scope="module")
def trained(boxes: Path, folder: Path) -> Path:
    summary = train.run(str(boxes), out=str(folder / "run"), settings=TRAINING)
    assert summary["code"] == 0 and summary["epochs"] == 2
    return folder / "run"


def without_times(table: pa.Table) -> list[dict[str, Any]]:
    return table.drop_columns(["elapsed_ms"]).to_pylist()


def test_match_finds_every_crop_and_names_every_trouble(boxes: Path, folder: Path) -> None:
    table = BoxDataset.open(str(boxes)).pairs()
    assert table.schema.equals(PAIRS, check_metadata=False)
    truth = json.loads((folder / "truth.json").read_text())
    rows = {Path(row["original_uri"]).stem: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == 33
    for name, box in truth.items():
        assert rows[name]["verdict"] == "found"
        assert [rows[name][k] for k in ("x1", "y1", "x2", "y2")] == box
    assert {name: rows[name]["verdict"] for name in ("lonely", "cut", "other")} == {
        "lonely": "unpaired",
        "cut": "unreadable",
        "other": "no_match",
    }
    assert "cut.jpg" in rows["cut"]["reason"]
    with open(boxes / "problems.csv", newline="") as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"unpaired", "unreadable", "no_match"}
    result = json.loads((boxes / "result.json").read_text())
    assert result["counts"] == {"found": 30, "no_match": 1, "unreadable": 1, "unpaired": 1} and result["code"] == 0


@pytest.mark.parametrize(("pairs_per_part", "concurrency"), [(1, 1), (7, 3), (1000, None)])
def test_table_is_the_same_for_any_workers_and_blocks(
    boxes: Path, folder: Path, tmp_path: Path, pairs_per_part: int, concurrency: int | None
) -> None:
    settings = MatchSettings(pairs_per_part=pairs_per_part, concurrency=concurrency, split="60/20/10/10")
    match.run(str(folder / "originals"), str(folder / "crops"), out=str(tmp_path / "again"), settings=settings)
    again = BoxDataset.open(str(tmp_path / "again"))
    assert without_times(again.pairs()) == without_times(BoxDataset.open(str(boxes)).pairs())


def test_match_again_computes_only_what_is_new(boxes: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "originals", tmp_path / "originals", copy_function=shutil.copy2)
    shutil.copytree(folder / "crops", tmp_path / "crops", copy_function=shutil.copy2)
    out = str(tmp_path / "boxes")

    def run(**change: Any) -> dict[str, Any]:
        return match.run(str(tmp_path / "originals"), str(tmp_path / "crops"), out=out, settings=MatchSettings(**change))

    assert run()["computed"] == 33
    before = {p: p.stat().st_mtime_ns for p in Path(out).rglob("part-*")}
    assert run()["computed"] == 0
    shutil.copy(folder / "originals" / "0004.jpg", tmp_path / "originals" / "new.jpg")
    shutil.copy(folder / "crops" / "0004.png", tmp_path / "crops" / "new.png")
    shutil.copy(folder / "crops" / "0003.png", tmp_path / "crops" / "0002.png")  # no longer of this original
    summary = run()
    assert summary["computed"] == 2 and summary["counts"]["found"] == 30 and summary["counts"]["no_match"] == 2
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing is rewritten"
    (tmp_path / "originals" / "lonely.jpg").unlink()
    (tmp_path / "crops" / "new.png").rename(tmp_path / "crops" / "newer.png")
    summary = run()  # the old pair is gone; two files without counterpart are new
    assert summary["computed"] == 2 and summary["counts"] == {"found": 29, "no_match": 2, "unreadable": 1, "unpaired": 2}
    (tmp_path / "crops" / "newer.png").rename(tmp_path / "crops" / "new.png")
    summary = run()  # back again
    assert summary["computed"] == 0 and summary["counts"] == {"found": 30, "no_match": 2, "unreadable": 1}
    with pytest.raises(OutputError, match="built with other settings"):
        run(split="100/0/0/0")
    assert run(split="100/0/0/0", overwrite=True)["computed"] == 33
    next(Path(out).glob("proxies/part-*")).unlink()  # a file is lost: matching again makes a whole dataset
    assert run(split="100/0/0/0", overwrite=True)["computed"] == 33
    listed = {Path(out) / part["file"] for part in BoxDataset.open(out).manifest["parts"]}
    assert listed == set(Path(out).rglob("part-*"))


def test_near_duplicates_stay_together_in_one_run_or_in_several(ray_local: None, folder: Path, tmp_path: Path) -> None:
    for side in ("originals", "crops"):
        (tmp_path / side).mkdir()

    def add(name: str, source: str, quality: int) -> None:
        shutil.copy(folder / "crops" / f"{source}.png", tmp_path / "crops" / f"{name}.png")
        with Image.open(folder / "originals" / f"{source}.jpg") as picture:
            picture.save(tmp_path / "originals" / f"{name}.jpg", quality=quality)

    def groups(out: str) -> dict[str, tuple[str, str]]:
        match.run(
            str(tmp_path / "originals"), str(tmp_path / "crops"), out=str(tmp_path / out), settings=MatchSettings(max_bad_share=1)
        )
        rows = BoxDataset.open(str(tmp_path / out)).pairs(["original_uri", "group", "split", "original_phash"]).to_pylist()
        assert all(row["original_phash"] is not None for row in rows)
        return {Path(row["original_uri"]).stem: (row["group"], row["split"]) for row in rows}

    for i in range(4):
        add(f"first {i}", f"000{i}", 95)
    before = groups("steps")
    assert len({*before.values()}) == 4
    for i in range(4):
        add(f"saved again {i}", f"000{i}", 60)
    after = groups("steps")
    assert {name: after[name] for name in before} == before, "what was there keeps group and split"
    assert all(after[f"saved again {i}"] == before[f"first {i}"] for i in range(4))
    at_once = groups("once")
    assert all(at_once[f"saved again {i}"] == at_once[f"first {i}"] for i in range(4)) and len({*at_once.values()}) == 4
    assert len(BoxDataset.open(str(tmp_path / "once")).parts("groups")) == 1


def test_python_api_makes_the_same_dataset(folder: Path, boxes: Path, tmp_path: Path) -> None:
    dataset = cropreg.compute_bounding_boxes(
        str(folder / "originals"), str(folder / "crops"), str(tmp_path / "api"), split="60/20/10/10"
    )
    assert without_times(dataset.pairs()) == without_times(BoxDataset.open(str(boxes)).pairs())


def test_two_workers_train_and_leave_a_run_that_can_be_used(trained: Path) -> None:
    names = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert {"run.json", "metrics.csv", "curves.png", "checkpoints/best/model.safetensors", "checkpoints/last/state.pt"} <= names
    rows = runs.read_metrics(str(trained))
    assert [row["epoch"] for row in rows] == [0, 1]
    assert json.loads((trained / "run.json").read_text())["settings"]["num_workers"] == 2


def test_finished_run_is_not_trained_again_and_another_is_not_mixed_in(trained: Path, boxes: Path) -> None:
    with pytest.raises(OutputError, match="--resume"):
        train.run(str(boxes), out=str(trained), settings=TRAINING)
    before = (trained / "metrics.csv").read_bytes()
    assert train.run(str(boxes), out=str(trained), settings=TRAINING.model_copy(update={"resume": True}))["epochs"] == 2
    assert (trained / "metrics.csv").read_bytes() == before
    with pytest.raises(OutputError, match=r"other settings \(learning_rate\)"):
        train.run(str(boxes), out=str(trained), settings=TRAINING.model_copy(update={"resume": True, "learning_rate": 0.5}))


def test_run_goes_on_in_one_process_where_two_workers_left_it(trained: Path, boxes: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    more = TRAINING.model_copy(update={"resume": True, "num_workers": 0, "max_epochs": 3})
    assert train.run(str(boxes), out=str(tmp_path / "run"), settings=more)["epochs"] == 3
    rows = runs.read_metrics(str(tmp_path / "run"))
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[:2] == runs.read_metrics(str(trained))


def test_divergence_on_a_worker_comes_back_as_one_named_error(boxes: Path, tmp_path: Path) -> None:
    wild = TRAINING.model_copy(update={"learning_rate": 1e30, "num_workers": 1, "warmup_epochs": 0.0})
    with pytest.raises(ModelError, match="training diverged in epoch 1, step"):
        train.run(str(boxes), out=str(tmp_path / "run"), settings=wild)


def test_error_on_one_worker_ends_the_others_and_keeps_its_name(boxes: Path, tmp_path: Path) -> None:
    settings = TRAINING.model_copy(update={"from_": "originals"})
    uri = read_labels(BoxDataset.open(str(boxes)), "train").original_uris[0].as_py()
    Path(uri).rename(tmp_path / "away")
    try:
        with pytest.raises(InputError, match=rf"{uri}.*cannot be read any more"):
            train.run(str(boxes), out=str(tmp_path / "run"), settings=settings)
    finally:
        (tmp_path / "away").rename(uri)
    assert not (tmp_path / "run" / "failed.json").exists()


def test_evaluate_writes_figures_and_report(trained: Path, boxes: Path) -> None:
    summary = evaluate.run(str(trained), settings=EvaluateSettings(split="all", bootstrap=50))
    figures = json.loads((trained / "evaluation.json").read_text())
    assert figures["n"] == 30 and set(figures["baselines"]) == {"no_crop", "centre", "median_box", "iou_optimal"}
    assert 0 < figures["neighbour"]["iou_mean"] < 1 and figures["baselines"]["no_crop"]["over_crop"] == 0
    assert figures["model"]["error_left_px"] > figures["model"]["error_left"]
    assert figures["model"]["iou_mean"] == pytest.approx(summary["model"]["iou_mean"])
    assert figures["half_size"]["n"] == 30 and 0 < figures["half_size"]["moved_mean"] < 0.003, (
        "the answer hardly depends on the size"
    )
    page = (trained / "report.html").read_text()
    assert "median box" in page and "data:image/jpeg;base64," in page and "http" not in page.replace("http-equiv", "")
    for name in ("best.jpg", "worst.jpg", "curves.png"):
        with Image.open(trained / name) as picture:
            assert min(picture.size) > 100


def test_predict_crops_a_tree_and_goes_on_where_it_stopped(trained: Path, folder: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "deep").mkdir(parents=True)
    for i in range(5):
        shutil.copy(folder / "originals" / f"000{i}.jpg", images / ("deep" if i % 2 else ".") / f"{i}.jpg")
    (images / "torn.jpg").write_bytes((images / "0.jpg").read_bytes()[:2000])
    settings = PredictSettings(all=True, batch_size=2)
    summary = predict.run(str(trained), str(images), out=str(out), settings=settings)
    assert summary["computed"] == 6 and summary["counts"]["failed"] == 1
    rows = {Path(row["image_uri"]).name: row for row in read_predictions(str(out / "predictions.parquet"))}
    assert len(rows) == 6 and "torn.jpg" in rows["torn.jpg"]["reason"]
    for name in ("0.jpg", "1.jpg"):
        row = rows[name]
        box = Box(*(row[k] for k in ("x1", "y1", "x2", "y2")))
        assert box.is_whole and box.x1 >= 0 and box.x2 <= row["width"]
        assert Path(row["crop_uri"]) == out / ("deep" if name == "1.jpg" else "") / name
        with Image.open(row["crop_uri"]) as crop:
            assert crop.size == box.size_wh
    with open(out / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    shutil.copy(folder / "originals" / "0007.jpg", images / "new.jpg")
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.jpg")}
    again = predict.run(str(trained), str(images), out=str(out), settings=settings)
    assert again["computed"] == 2 and again["pictures"] == 7, "the new picture and the one that failed"
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    with pytest.raises(OutputError, match="another model or other settings"):
        predict.run(str(trained), str(images), out=str(out), settings=PredictSettings(all=True, quality=50))


def test_demo_goes_the_whole_way(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"max_epochs": 1, "image_side": 64, "batch_size": 8, "num_workers": 0}
    monkeypatch.setattr(journey, "_TRAINING", journey._TRAINING.model_copy(update=small))
    monkeypatch.setattr(journey, "_NUM_PAIRS", 60)
    monkeypatch.setattr(journey, "_NUM_NEW", 6)
    summary = journey.run(str(tmp_path / "demo"))
    assert "skill" in summary["text"] and "cropreg match ORIGINALS CROPS" in summary["text"]
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert (tmp_path / "demo" / "run" / "report-new-boxes.html").exists()
    with pytest.raises(OutputError, match="holds something already"):
        journey.run(str(tmp_path / "demo"))


@pytest.fixture(scope="module")
def head_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A one-node cluster on loopback, as ``ray start --head`` makes it; stopped by its own process group."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in ports:
            sock.bind(("127.0.0.1", 0))
        gcs_port, dashboard_port, agent_port = (sock.getsockname()[1] for sock in ports)
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs_port}", "--num-cpus=4"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--object-store-memory=150000000"]
    # The default port of the agent is taken by the shared local Ray, and an agent without its port starts no jobs.
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += [f"--temp-dir={tmp_path_factory.mktemp('r', numbered=True)}", "--include-dashboard=true"]
    with open(token.parent / "head.log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{dashboard_port}", environment
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # all its daemons are in it; asked to end, it waits half a minute for them
            head.wait(60)


def test_jobs_match_and_train_on_a_cluster(head_node: tuple[str, dict[str, str]], folder: Path, tmp_path: Path) -> None:
    address, environment = head_node
    _wait_until_it_answers(address, environment)
    boxes, run = tmp_path / "boxes", tmp_path / "run"
    arguments = [str(folder / "originals"), str(folder / "crops"), "--out", str(boxes), "--split", "60/20/10/10"]

    def submit(verb: str, *arguments: str, **change: str) -> tuple[int, str]:
        """What ``cropreg submit`` ends with, and what it and the job write to standard error."""
        shared = ["--address", address, "--shared-path", str(folder), "--shared-path", str(tmp_path)]
        command = [sys.executable, "-m", "cropreg.cli", "submit", *shared, verb, *arguments]
        done = subprocess.run(command, env=environment | change, cwd=ROOT, capture_output=True, text=True, timeout=240)
        return done.returncode, done.stderr

    (tmp_path / "token").write_text(secrets.token_hex(32))
    for change, why in (
        ({"RAY_AUTH_MODE": "disabled"}, "none was sent. Set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "the one sent is not its own"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"),
    ):
        code, said = submit("match", *arguments, **change)
        assert code == 5 and f"{address}: this cluster asks for a token" in said and why in said, said
    assert not boxes.exists()

    code, said = submit("match", *arguments, "--max-bad-share", "0.01")
    assert code == 6, said
    assert "match 33/33 100%" in said and "2 of 32 pairs were not found" in said
    assert BoxDataset.open(str(boxes)).manifest["counts"]["found"] == 30

    # The same through Ray's own command and the doors.
    command = ["ray", "job", "submit", f"--address={address}", f"--working-dir={ROOT}", "--", "python", "ray_jobs/train.py"]
    command += [str(boxes), f"--out={run}", "--weights=none", "--image-side=64", "--max-epochs=1", "--batch-size=8"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "train epoch 1/1" in done.stdout + done.stderr
    assert json.loads((run / "result.json").read_text())["code"] == 0
    assert len(pq.read_table(boxes / "pairs", columns=["verdict"])) == 33


def _wait_until_it_answers(address: str, environment: dict[str, str]) -> None:
    """Submits a job that does nothing until one is accepted, for at most two minutes.

    The server answers before the node's agent, which starts the jobs, has told it that it is there; until then it refuses jobs.
    """
    ask = """
import sys, time
from ray.job_submission import JobSubmissionClient
ends = time.monotonic() + 120
while True:
    try:
        JobSubmissionClient(sys.argv[1]).submit_job(entrypoint="true")
        break
    except (ConnectionError, RuntimeError):
        if time.monotonic() > ends:
            raise
        time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", ask, address], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, f"the cluster accepted no job: {done.stderr[-3000:]}"
