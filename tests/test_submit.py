"""``cropreg submit`` up to the moment it reaches a cluster: what it sends, and what it refuses to send."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cropreg import cli
from cropreg.cli import words as cli_words
from cropreg.errors import UsageError
from cropreg.pipelines import submit

pytestmark = pytest.mark.long

HERE = "http://127.0.0.1:8265"
MATCH = ["match", "s3://b/originals", "s3://b/crops", "--out", "s3://b/boxes"]


@pytest.fixture(autouse=True)
def no_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def dry(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The words of the line that ``cropreg submit --dry-run`` prints."""
    assert cli.run(["submit", "--dry-run", "--address", HERE, *arguments]) == 0
    line, upload = capsys.readouterr().out.splitlines()
    assert upload.startswith("upload: ")
    return shlex.split(line)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``cropreg submit`` says when it ends with 2 before it has looked for a cluster."""
    assert cli.run(["submit", "--address", "http://127.0.0.1:1", *arguments]) == 2
    return capsys.readouterr().err


def test_line_is_that_of_ray_and_the_arguments_are_unchanged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*MATCH, "--pair-by", r"(.+)_c\d", "--max-bad-share=0.2", "-v"]
    words = dry(capsys, "--submission-id", "nightly", "--working-dir", str(tmp_path), "--no-wait", *arguments)
    begins = ["ray", "job", "submit", "--address", HERE, "--submission-id", "nightly", "--working-dir", str(tmp_path)]
    assert words[: len(begins)] == begins
    environment = words.index("--runtime-env-json")
    assert json.loads(words[environment + 1]) == {"env_vars": {}}
    assert words[environment + 2 :] == ["--no-wait", "--", "python", "-m", "cropreg.cli", *arguments]


def test_checkout_travels_with_its_runtime_env_and_without_its_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    words = dry(capsys, *MATCH)
    folder = Path(words[words.index("--working-dir") + 1])
    assert folder == Path(__file__).parents[1]
    environment = json.loads(words[words.index("--runtime-env-json") + 1])
    assert environment["env_vars"]["VIPS_CONCURRENCY"] == "1"
    upload = submit.files_to_upload(folder, environment["excludes"])
    assert {"cropreg/cli/verbs.py", "ray_jobs/match.py", "pyproject.toml"} <= set(upload)
    assert not [name for name in upload if name.startswith(("tests/", ".git/", ".venv/", "docs/"))]


def test_installed_package_uploads_nothing(tmp_path: Path) -> None:
    assert submit.checkout(tmp_path / "lib/site-packages/cropreg/pipelines/submit.py") is None
    line = submit.command("train", ["s3://b/boxes"], HERE, "x", None, {"env_vars": {}}, no_wait=False)
    assert "--working-dir" not in line and line[-4:] == ["-m", "cropreg.cli", "train", "s3://b/boxes"]


def test_variables_of_the_verb_travel_and_those_of_submit_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime_env.yaml").write_text("env_vars: {A: '1', CROPREG_SPLIT: 50/50/0/0}\nexcludes: [/big/]\n")
    monkeypatch.setenv("CROPREG_SPLIT", "60/20/10/10")
    monkeypatch.setenv("CROPREG_SHARED_PATH", "/mnt/disk")
    monkeypatch.setenv("CROPREG_ADDRESS", "http://elsewhere:1")
    words = dry(capsys, "--working-dir", str(tmp_path), "match", "/mnt/disk/a", "/mnt/disk/b", "--out", "/mnt/disk/c")
    environment = json.loads(words[words.index("--runtime-env-json") + 1])
    assert environment == {"env_vars": {"A": "1", "CROPREG_SPLIT": "60/20/10/10"}, "excludes": ["/big/"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["match", "s3://b/a", "s3://b/c", "--out", "s3://b/x", "--no-wait"], "Options of submit stand before match"),
        (["match", "s3://b/a", "s3://b/c", "--out", "s3://b/x", "--proxy-long-px", "3"], "proxy"),
        (["match", "s3://b/a", "s3://b/c"], "--out"),
        ([*MATCH, "--address", HERE], "--address stands before match"),
        (["crop", "s3://b/a"], "crop"),
        ([], "submit --help"),
        (["--config", "/none.yaml", *MATCH], "none.yaml is not there"),
        (["--runtime-env", "/none.yaml", *MATCH], "--runtime-env /none.yaml: cannot be read"),
        (["--working-dir", "/none", *MATCH], "--working-dir /none: there is no such folder"),
        ([*MATCH, "--config", "/none.yaml"], "none.yaml"),
    ],
)
def test_wrong_argument_ends_with_2_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (["match", "/data/a", "s3://b/c", "--out", "s3://b/x"], "ORIGINALS /data/a"),
        (["match", "s3://b/a", "/data/c", "--out", "s3://b/x"], "CROPS /data/c"),
        (["match", "--pairs", "/data/p.csv", "--out", "s3://b/x"], "PAIRS /data/p.csv"),
        (["match", "s3://b/a", "s3://b/c", "--out", "x"], "OUT x"),
        (["train", "/data/boxes", "--out", "s3://b/run"], "BOXES /data/boxes"),
        (["train", "s3://b/boxes", "--out", "s3://b/run", "--weights", "/data/w.pth"], "WEIGHTS /data/w.pth"),
        (["evaluate", "/data/run"], "RUN /data/run"),
        (["evaluate", "s3://b/run", "--boxes", "/data/boxes"], "BOXES /data/boxes"),
        (["predict", "s3://b/run", "/data/new", "--out", "s3://b/x"], "IMAGES /data/new"),
    ],
)
def test_local_path_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str], verb: list[str], name: str) -> None:
    error = refused(capsys, *verb)
    assert f"{name}: lies on this machine, where the nodes of the cluster cannot see it" in error and "--shared-path /" in error


def test_path_on_a_shared_disk_is_taken_when_it_is_said_to_be_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["train", "/mnt/a/boxes", "--out", "/mnt/b/run", "--weights", "none"]
    words = dry(capsys, "--working-dir", str(tmp_path), "--shared-path", "/mnt/a", "--shared-path=/mnt/b/", *arguments)
    assert words[-len(arguments) :] == arguments
    assert "OUT /mnt/b/run: lies on this machine" in refused(capsys, "--shared-path", "/mnt/a", *arguments)
    with pytest.raises(UsageError, match="OUT /mnt/ab"):
        submit.refuse_local({"out": "/mnt/ab"}, [Path("/mnt/a")])


def test_relative_path_is_refused_though_its_disk_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        submit.refuse_local({"out": "boxes"}, [tmp_path])
    assert str(caught.value) == f"OUT boxes: a job runs in another folder. Write the whole path: {tmp_path}/boxes"


def test_settings_file_must_travel_with_the_job(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nightly.yaml").write_text("split: 60/20/10/10\n")
    dry(capsys, "--working-dir", ".", *MATCH, "--config", "nightly.yaml")
    dry(capsys, "--working-dir", ".", "--shared-path", str(tmp_path), *MATCH, "--config", str(tmp_path / "nightly.yaml"))
    (tmp_path / ".rayignore").write_text("*.yaml\n")
    assert "--config nightly.yaml: does not travel with the job" in refused(
        capsys, "--working-dir", ".", *MATCH, "--config", "nightly.yaml"
    )


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (HERE + "/", {}, HERE),
        (None, {"RAY_API_SERVER_ADDRESS": "https://a", "RAY_ADDRESS": "http://b"}, "https://a"),
        (None, {"RAY_ADDRESS": "http://b"}, "http://b"),
        (None, {}, None),
        (None, {"RAY_ADDRESS": "auto"}, None),
        ("10.0.0.1:6379", {}, None),
    ],
)
def test_job_server_is_the_one_given_or_that_of_rays_variables(
    given: str | None, environment: dict[str, str], address: str | None
) -> None:
    if address is not None:
        assert submit.job_server(given, environment) == address
        return
    with pytest.raises(UsageError, match=r"http://HOST:8265"):
        submit.job_server(given, environment)


def test_upload_is_measured_by_the_rules_of_ray(tmp_path: Path) -> None:
    (tmp_path / ".rayignore").write_text("*.jpg\n!/keep.jpg\n/out/\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".gitignore").write_text("local\n")
    files = {
        "a.py": 3,
        "scan.jpg": 5,
        "keep.jpg": 7,
        "out/x": 11,
        "deep/b.py": 13,
        "deep/local": 17,
        "deep/c.tmp": 19,
        ".git/x": 23,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    upload = submit.files_to_upload(tmp_path, ["*.tmp"])
    assert {name: size for name, size in upload.items() if "ignore" not in name} == {"a.py": 3, "keep.jpg": 7, "deep/b.py": 13}


def test_upload_that_ray_would_refuse_names_the_largest_files_and_the_cure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, megabytes in (("boxes/a.bin", 70), ("run/b.bin", 40), ("c.py", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            file.truncate(megabytes * 2**20)
    error = refused(capsys, "--working-dir", str(tmp_path), *MATCH)
    assert "110 MiB would be uploaded, and Ray refuses more than 100 MiB" in error
    assert error.index("70.0 MiB  /boxes/a.bin") < error.index("40.0 MiB  /run/b.bin") < error.index(f"{tmp_path}/.rayignore")
    (tmp_path / ".rayignore").write_text("/boxes/a.bin\n")
    dry(capsys, "--working-dir", str(tmp_path), *MATCH)


def test_cluster_that_is_not_there_ends_with_5(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["submit", "--address", "http://127.0.0.1:1", "--working-dir", str(tmp_path), *MATCH]) == 5
    assert "http://127.0.0.1:1: no job server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "apart"),
    [
        (["submit", "match", "a", "--out", "b"], ["submit", "--", "match", "a", "--out", "b"]),
        (
            ["submit", "--submission-id", "match", "-v", "train", "a"],
            ["submit", "--submission-id", "match", "-v", "--", "train", "a"],
        ),
        (["submit", "--address=x", "--", "train", "a"], ["submit", "--address=x", "--", "train", "a"]),
        (["submit", "--help"], ["submit", "--help"]),
    ],
)
def test_options_before_the_verb_are_kept_apart_from_those_behind(tokens: list[str], apart: list[str]) -> None:
    assert cli_words.apart(tokens) == apart


class Sent:
    """Stands for the process of ``ray job submit``: waiting for it is interrupted once, or ends; with 1 if the job is refused."""

    def __init__(self, words: list[str], interrupted: bool, **_: Any) -> None:
        self.words, self.interrupted, self.ended = words, interrupted, False

    def wait(self) -> int:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        return int("refused" in self.words)

    def terminate(self) -> None:
        self.ended = True


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """What was sent, to a job server whose jobs all end with 6; interrupted or refused when it is named so."""
    found: list[Sent] = []

    def popen(words: list[str], **rest: Any) -> Sent:
        found.append(Sent(words, "interrupted" in words, **rest))
        return found[-1]

    monkeypatch.setattr(submit.subprocess, "Popen", popen)
    monkeypatch.setattr(submit, "reach", lambda _: Job("FAILED", 6))
    return found


def test_submit_ends_with_the_code_of_the_verb_or_does_not_wait_for_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sent: list[Sent]
) -> None:
    options = ["submit", "--address", HERE, "--working-dir", str(tmp_path), "--submission-id", "nightly"]
    assert cli.run([*options, *MATCH]) == 6
    assert capsys.readouterr().out == "nightly: match ended with code 6\n"
    assert cli.run([*options, "--no-wait", "--json", *MATCH]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["submission_id"] == "nightly" and summary["line"][1:] == sent[1].words[3:]
    assert "--no-wait" in summary["line"] and "--no-wait" not in sent[0].words


def test_job_of_the_same_name_is_not_taken_for_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path, sent: list[Sent]) -> None:
    options = ["submit", "--address", HERE, "--working-dir", str(tmp_path), "--submission-id"]
    assert cli.run([*options, "yesterday", *MATCH]) == 2
    assert "--submission-id yesterday: the cluster has had a job of this name" in capsys.readouterr().err and not sent


def test_job_that_is_refused_ends_with_5_though_nobody_waits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sent: list[Sent]
) -> None:
    options = ["submit", "--address", HERE, "--working-dir", str(tmp_path), "--submission-id", "refused", "--no-wait"]
    assert cli.run([*options, *MATCH]) == 5
    assert "refused: was not accepted" in capsys.readouterr().err


def test_interrupted_submit_says_that_the_job_may_go_on_and_how_to_stop_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sent: list[Sent], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--address", HERE, "--working-dir", str(tmp_path), "--submission-id", "interrupted"]
    assert cli.run(["submit", *options, *MATCH]) == 130
    assert f"interrupted may go on without us. Its log: ray job logs --follow --address {HERE} interrupted." in caplog.text
    assert f"ray job stop --address {HERE} interrupted" in caplog.text and sent[0].ended
    assert "go on with: cropreg submit" not in capsys.readouterr().err


class Job:
    """What the job server says of a job that has ended."""

    def __init__(self, status: str, code: int | None) -> None:
        from ray.job_submission import JobStatus

        self.status, self.driver_exit_code, self.message = JobStatus(status), code, "Job said why."
        self.submission_id = "yesterday"

    def get_job_info(self, _: str) -> Job:
        return self

    def list_jobs(self) -> list[Job]:
        return [self]


@pytest.mark.parametrize(("status", "code"), [("SUCCEEDED", 0), ("FAILED", 6), ("FAILED", 143)])
def test_exit_code_is_that_of_the_verb(status: str, code: int) -> None:
    client: Any = Job(status, code)
    assert submit._ended_with(client, "x", "ray job logs x") == code


@pytest.mark.parametrize(
    ("status", "code", "message"), [("STOPPED", None, "was stopped"), ("FAILED", None, "Job said why"), ("FAILED", -9, "Job said")]
)
def test_job_that_did_not_end_by_itself_is_a_fault_of_the_cluster(status: str, code: int | None, message: str) -> None:
    from cropreg.errors import ClusterError

    client: Any = Job(status, code)
    with pytest.raises(ClusterError, match=message):
        submit._ended_with(client, "x", "ray job logs x")
