"""The command line: precedence, exit codes, messages; everything that needs no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropreg import cli, logs
from cropreg.cli.endings import Interrupted
from cropreg.pipelines import match as match_pipeline
from cropreg.pipelines import train as train_pipeline
from cropreg.settings import PRESETS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``cropreg train`` was called with; nothing is trained."""
    calls: dict[str, Any] = {}

    def run(boxes: str, **rest: Any) -> dict[str, Any]:
        calls.update(boxes=boxes, **rest)
        return {"verb": "train", "out": rest["out"], "code": 0}

    monkeypatch.setattr(train_pipeline, "run", run)
    return calls


def test_setting_comes_from_flag_then_variable_then_file_then_default(
    seen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  max_epochs: 3\n  patience: 4\n  batch-size: 6\nmatch:\n  split: 60/20/10/10\n")
    monkeypatch.setenv("CROPREG_PATIENCE", "5")
    monkeypatch.setenv("CROPREG_BATCH_SIZE", "8")
    arguments = ["train", "boxes", "--out", str(tmp_path / "run"), "--config", str(file), "--batch-size", "10"]
    assert cli.run(arguments) == 0
    settings = seen["settings"]
    assert (settings.batch_size, settings.patience, settings.max_epochs, settings.seed) == (10, 5, 3, 0)


def test_flag_alone_needs_no_file(seen: dict[str, Any], tmp_path: Path) -> None:
    assert cli.run(["train", "boxes", "--out", str(tmp_path), "--from", "originals", "--no-use-gpu", "--address", "ray://x"]) == 0
    assert seen["settings"].from_ == "originals" and seen["settings"].use_gpu is False and seen["address"] == "ray://x"


def test_preset_yields_to_flag_and_file(seen: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {patience: 4}")
    arguments = ["train", "boxes", "--out", str(tmp_path / "run"), "--config", str(file), "--preset", "fast", "--image-side", "160"]
    assert cli.run(arguments) == 0
    settings = seen["settings"]
    assert (settings.image_side, settings.patience, settings.max_epochs) == (160, 4, PRESETS["fast"]["max_epochs"])


def test_setting_with_the_name_of_a_python_word_comes_from_a_file(seen: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {from: originals}")
    assert cli.run(["train", "boxes", "--out", str(tmp_path / "run"), "--config", str(file)]) == 0
    assert seen["settings"].from_ == "originals"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_epoch: 3", "unknown setting 'max_epoch'. Did you mean 'max_epochs'?"),
        ("max_epochs: many", "max_epochs"),
        ("- 1", "must hold settings as 'name: value'"),
        ("train:\n  batchsize: 3", "unknown setting 'batchsize'. Did you mean 'batch_size'?"),
    ],
)
def test_mistake_in_the_file_ends_with_2_and_says_what_was_meant(
    seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert cli.run(["train", "boxes", "--out", str(tmp_path / "run"), "--config", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not seen


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "boxes", "--out", "x", "--max-epochs", "0"],
        ["train", "boxes", "--out", "x", "--nonsense"],
        ["predict", "run", "--nonsense", "--out", "x"],
        ["predict", "run", "images", "--nonsense", "--out", "x"],
        ["predict", "run", "--out", "x"],
        ["train", "boxes"],
        ["crop"],
        ["match", "only-one", "--out", "x"],
        ["match", "a", "b", "--pairs", "c", "--out", "x"],
        ["match", "a", "b", "--out", "x", "--split", "50/50"],
        ["train", "boxes", "--out", "x", "--config", "/nowhere.yaml"],
    ],
)
def test_wrong_argument_ends_with_2_and_makes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.startswith("cropreg: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quality", "500"], "--quality 500: must be less than or equal to 100."),
        (["--lean", "far"], "--lean far: must be 'safe', 'even' or 'greedy'."),
        (["--quality", "x", "--max-risk=2"], "--quality x: must be a whole number.\n--max-risk 2: must be less than 1."),
        ([], "CROPREG_BATCH_SIZE 0: must be greater than or equal to 1."),
        (["--pad", "-5px"], "--pad: needs a value. One that begins with a hyphen is written --pad=-5px."),
        (["--pad=-5px"], "--pad -5px: give whole px such as 20px, or a share of the crop such as 0.02 or 2%."),
        (["--pad=-0.1"], "--pad -0.1: give a share from 0 to below 1, such as 0.02 or 2%."),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROPREG_BATCH_SIZE", "8" if arguments else "0")
    assert cli.run(["predict", "run", "images", "--out", "x", *arguments]) == 2
    said = capsys.readouterr().err.removesuffix("See: cropreg predict --help\n")
    assert {*said.removeprefix("cropreg: ").splitlines()} == {*message.splitlines()}


def test_missing_input_ends_with_3_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["match", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x")]) == 3
    assert f"{tmp_path / 'a'}: there is no such folder" in capsys.readouterr().err
    assert cli.run(["train", str(tmp_path), "--out", str(tmp_path / "x")]) == 3
    assert "no box dataset here" in capsys.readouterr().err
    assert cli.run(["predict", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "x")]) == 3
    assert "no checkpoint here" in capsys.readouterr().err


def test_folder_of_other_things_is_never_written_into(
    tmp_path: Path, make_pairs: Callable[[Path, int], object], capsys: pytest.CaptureFixture[str]
) -> None:
    make_pairs(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    arguments = ["match", str(tmp_path / "originals"), str(tmp_path / "crops"), "--out", str(tmp_path / "out")]
    assert cli.run(arguments) == 4
    assert "holds other things (diary.txt)" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["diary.txt"]


def test_dry_run_says_how_much_and_makes_nothing(
    tmp_path: Path, make_pairs: Callable[[Path, int], object], capsys: pytest.CaptureFixture[str], made_boxes: Path
) -> None:
    make_pairs(tmp_path, 3)
    (tmp_path / "crops" / "stranger.png").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "match",
        str(tmp_path / "originals"),
        str(tmp_path / "crops"),
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
        "--json",
    ]
    assert cli.run(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["pairs"], said["unpaired"], said["parts"], said["dry_run"]) == (4, 1, 1, True)
    assert cli.run(["train", str(made_boxes), "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps_per_epoch"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_too_much_bad_input_ends_with_6_after_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {"verb": "match", "out": str(tmp_path), "code": 6, "message": "9 of 10 pairs were not found"}
    monkeypatch.setattr(match_pipeline, "run", lambda *a, **k: summary)
    assert cli.run(["match", "a", "b", "--out", str(tmp_path)]) == 6
    assert "9 of 10 pairs" in capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text())["code"] == 6


def test_doctor_leaves_nothing_behind_where_it_tried_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("new/er", "there", "there/new"):
        cli.run(["doctor", str(tmp_path / folder), "--json"])  # the code is about this machine, too
        (finding,) = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["what"] == str(tmp_path / folder)]
        assert finding["found"] == "written, read and removed"
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Interrupted, 143)])
def test_interruption_prints_the_command_to_go_on(
    error: type[BaseException], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(train_pipeline, "run", stop)
    assert cli.run(["train", "boxes", "--out", str(tmp_path), "--seed", "3"]) == code
    assert f"go on with: cropreg train boxes --out {tmp_path} --seed 3 --resume" in capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text())["code"] == code


def test_help_of_every_verb_names_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, word in (
        ("match", "--pair-by"),
        ("train", "--weights"),
        ("evaluate", "--split"),
        ("predict", "--min-confidence"),
        ("demo", "--out"),
    ):
        assert cli.run([verb, "--help"]) == 0
        assert word in capsys.readouterr().out


def test_doors_of_jobs_say_the_same_as_the_command() -> None:
    for verb in ("match", "train", "evaluate", "predict"):
        door = subprocess.run(
            [sys.executable, f"ray_jobs/{verb}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f"Usage: cropreg {verb}" in door.stdout


@pytest.mark.parametrize(("flag", "verbosity"), [("-v", 1), ("--verbose", 1), ("-q", -1), (None, 0)])
def test_how_much_is_told_has_short_flags(
    flag: str | None, verbosity: int, seen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(logs, "set_up", told.append)
    assert cli.run(["train", "boxes", "--out", str(tmp_path), *([flag] if flag else [])]) == 0
    assert told == [verbosity]


def test_command_to_go_on_does_not_throw_away_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_pipeline, "run", stop)
    assert cli.run(["train", "boxes", "--out", str(tmp_path), "--overwrite"]) == 130
    assert f"go on with: cropreg train boxes --out {tmp_path} --resume\n" in capsys.readouterr().err


def test_failure_leaves_no_word_in_a_folder_of_other_things(tmp_path: Path) -> None:
    diary = tmp_path / "home" / "diary.txt"
    diary.parent.mkdir()
    diary.write_text("mine")
    for arguments in (["match", "/nowhere/a", "/nowhere/b", "--out"], ["evaluate"], ["predict", "/nowhere", "/nowhere", "--out"]):
        assert cli.run([*arguments, str(diary.parent)]) == 3
    assert list(diary.parent.iterdir()) == [diary]
    (diary.parent / "run.json").write_text("{}")
    assert cli.run(["evaluate", str(diary.parent)]) == 3
    assert json.loads((diary.parent / "result.json").read_text())["code"] == 3, "a run that cannot be judged says so"


def test_json_leaves_out_what_is_written_for_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {"verb": "match", "out": str(tmp_path), "code": 0, "n": 3, "text": "a table\nof lines"}
    monkeypatch.setattr(match_pipeline, "run", lambda *a, **k: summary)
    assert cli.run(["match", "a", "b", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verb": "match", "out": str(tmp_path), "code": 0, "n": 3}
    assert "text" not in json.loads((tmp_path / "result.json").read_text())


def test_ctrl_c_while_the_process_ends_changes_nothing(tmp_path: Path) -> None:
    """As when it comes in the half second that Ray takes to shut down."""
    program = (
        "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from cropreg.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "match", "a", "b", "--out", "c"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 3 and "Traceback" not in ended.stderr, ended.stderr
