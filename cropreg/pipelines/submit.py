"""``cropreg submit``: sends a verb to a Ray cluster as a job, through ``ray job submit``, and ends with the verb's own exit code.

What is sent is checked here first: on the cluster a mistake shows only after an upload, and perhaps after machines have started.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.exceptions
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from cropreg import storage
from cropreg.errors import ClusterError, UsageError
from cropreg.settings import SubmitSettings

log = logging.getLogger(__name__)
_rules = log.getChild("rules")
_rules.setLevel(logging.WARNING)  # Ray tells of every ignore file it meets

UPLOAD_LIMIT_BYTES = 100 * 2**20  # the job server refuses larger requests with 413, whatever Ray's own limit for packages says
_LARGEST_NAMED = 5
_POLL_S = 2.0
_NOT_FILES = {"weights": ("imagenet", "none")}  # values of a path setting that are no paths
_OURS = ("ADDRESS", *(name.upper() for name in SubmitSettings.model_fields))  # CROPREG_* variables that are not the verb's


def run(
    verb: str,
    arguments: Sequence[str],
    *,
    paths: Mapping[str, str],
    config: Path | None,
    settings: SubmitSettings,
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Submits ``cropreg VERB ARGUMENTS`` as a job, follows its log to the end, and returns a summary with the verb's exit code.

    Args:
        verb: of the command line.
        arguments: passed on unchanged; they were checked before.
        paths: those of the arguments that name data, by their names.
        config: the settings file among them.
        settings: how the job is sent.
        address: of the job server; default: ``RAY_API_SERVER_ADDRESS``, then ``RAY_ADDRESS``.
        dry_run: return the command line instead.

    Raises:
        UsageError: a path that the cluster cannot see, no address, or an upload that Ray would refuse.
        ClusterError: the job server does not answer, or not to us; or the job was stopped or lost.
    """
    address = job_server(address, os.environ)
    refuse_local(paths, settings.shared_path)
    folder = settings.working_dir.resolve() if settings.working_dir else checkout(Path(__file__))
    environment = runtime_env(settings.runtime_env, folder, os.environ)
    upload = files_to_upload(folder, environment.get("excludes", ())) if folder else {}
    refuse_large(folder, upload)
    refuse_config(config, settings.shared_path, upload)
    submission_id = settings.submission_id or f"cropreg-{verb}-{uuid.uuid4().hex[:8]}"
    line = command(verb, arguments, address, submission_id, folder, environment, settings.no_wait)
    size = (
        f"{sum(upload.values()) / 2**20:.1f} MiB in {len(upload)} files" if folder else "none: the nodes run the cropreg they have"
    )
    summary: dict[str, Any] = {"verb": "submit", "submission_id": submission_id, "line": line, "upload": size}
    if dry_run:
        return {**summary, "code": 0, "dry_run": True, "text": f"{shlex.join(line)}\nupload: {size}"}
    client = reach(address)
    follow = f"ray job logs --follow --address {address} {submission_id}"
    if settings.submission_id and any(job.submission_id == submission_id for job in client.list_jobs()):
        raise UsageError(
            f"--submission-id {submission_id}: the cluster has had a job of this name. Take another. Its log: {follow}"
        )
    log.info("%s", shlex.join(line))
    accepted = _submit(line, submission_id, address) == 0
    if settings.no_wait:
        if not accepted:
            raise ClusterError(f"{submission_id}: was not accepted; `ray job submit` says above why.")
        return {**summary, "code": 0, "text": f"submitted as {submission_id}; its log: {follow}"}
    code = _ended_with(client, submission_id, follow)
    return {**summary, "code": code, "text": f"{submission_id}: {verb} ended with code {code}"}


def job_server(address: str | None, environment: Mapping[str, str]) -> str:
    """The address of the job server: the one given, else the one that Ray's own variables name."""
    address = address or environment.get("RAY_API_SERVER_ADDRESS") or environment.get("RAY_ADDRESS")
    if not address:
        raise UsageError(
            "submit: no cluster is named. Give its job server with --address http://HOST:8265, or in RAY_API_SERVER_ADDRESS."
        )
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"submit: {address} is no job server, whose address looks like http://HOST:8265. Give it with --address.")
    return address.rstrip("/")


def refuse_local(paths: Mapping[str, str], shared: Sequence[Path]) -> None:
    """Raises UsageError for the first path that the nodes of a cluster would look for in vain, and says what to do."""
    for name, path in paths.items():
        if storage.is_remote(path) or path in _NOT_FILES.get(name, ()):
            continue
        place = storage.absolute(path)
        if not _is_shared(place, shared):
            raise UsageError(
                f"{name.upper()} {path}: lies on this machine, where the nodes of the cluster cannot see it. Copy it to s3://, gs:// or "
                f"abfs://. If it is on a disk that all nodes mount at the same place, say so: "
                f"--shared-path {os.path.dirname(storage.local_path(place))}"
            )
        if not path.startswith(("/", "file://")):
            raise UsageError(f"{name.upper()} {path}: a job runs in another folder. Write the whole path: {place}")


def refuse_config(config: Path | None, shared: Sequence[Path], upload: Mapping[str, int]) -> None:
    """Raises UsageError when the settings file would be missing on the cluster."""
    if config is None or (config.is_absolute() and _is_shared(str(config), shared)) or config.as_posix() in upload:
        return
    raise UsageError(
        f"--config {config}: does not travel with the job. Put it below the working dir, where .rayignore lets it through, and name it "
        f"relative to that; or put it below a --shared-path."
    )


def _is_shared(uri: str, shared: Sequence[Path]) -> bool:
    path = storage.local_path(uri)
    return any(os.path.commonpath([path, prefix]) == str(prefix) for prefix in (os.path.abspath(folder) for folder in shared))


def checkout(module: Path) -> Path | None:
    """The checkout that a module of cropreg lies in, whose code then travels; None when cropreg was installed from a wheel."""
    root = module.resolve().parents[2]
    return root if all((root / name).is_file() for name in ("pyproject.toml", "runtime_env.yaml", ".rayignore")) else None


def runtime_env(file: Path | None, folder: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """The job's environment: of ``file``, else of ``runtime_env.yaml`` in the working dir; and the verb's settings in ``CROPREG_*``."""
    if file is None and folder is not None and (folder / "runtime_env.yaml").is_file():
        file = folder / "runtime_env.yaml"
    values: Any = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f"--runtime-env {file}: cannot be read as YAML: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("env_vars", {}), dict):
            raise UsageError(f"--runtime-env {file}: must hold a mapping, and below env_vars another.")
    ours = {f"CROPREG_{name}" for name in _OURS}
    settings = {name: value for name, value in environment.items() if name.startswith("CROPREG_") and name not in ours}
    return {**values, "env_vars": {**values.get("env_vars", {}), **settings}}


def files_to_upload(folder: Path, excludes: Sequence[str]) -> dict[str, int]:
    """What Ray would send of a working dir: the size in bytes of every file, by its path below ``folder``.

    By Ray's own rules: its default excludes, those of the runtime environment, and every ``.gitignore`` and ``.rayignore``.

    Raises:
        UsageError: there is no such folder.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    if not folder.is_dir():
        raise UsageError(f"--working-dir {folder}: there is no such folder.")
    sizes: dict[str, int] = {}

    def measure(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    excluded = _get_excludes(folder, [*ray_constants.get_runtime_env_default_excludes(), *excludes])
    with_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(folder, [excluded], measure, include_gitignore=with_gitignore, logger=_rules)
    return sizes


def refuse_large(folder: Path | None, upload: Mapping[str, int]) -> None:
    """Raises UsageError when a working dir is larger than the job server accepts, before compression, and names its largest files."""
    total = sum(upload.values())
    if total <= UPLOAD_LIMIT_BYTES:
        return
    largest = sorted(upload.items(), key=lambda item: -item[1])[:_LARGEST_NAMED]
    listed = "\n".join(f"  {size / 2**20:8.1f} MiB  /{name}" for name, size in largest)
    raise UsageError(
        f"{folder}: {total / 2**20:.0f} MiB would be uploaded, and Ray refuses more than {UPLOAD_LIMIT_BYTES // 2**20} MiB. The largest:\n"
        f"{listed}\nPut what is not code on shared storage, and into {folder}/.rayignore: a line as above, from the slash, or *.ending."
    )


def command(
    verb: str,
    arguments: Sequence[str],
    address: str,
    submission_id: str,
    folder: Path | None,
    environment: Mapping[str, Any],
    no_wait: bool,
) -> list[str]:
    """The words of the ``ray job submit`` line.

    The job is ``python -m cropreg.cli``: in a checkout that is the code that travels, elsewhere the cropreg that the nodes have.
    """
    line = ["ray", "job", "submit", "--address", address, "--submission-id", submission_id]
    if folder is not None:
        line += ["--working-dir", str(folder)]
    line += ["--runtime-env-json", json.dumps(environment)]
    if no_wait:
        line.append("--no-wait")
    return [*line, "--", "python", "-m", "cropreg.cli", verb, *arguments]


def reach(address: str) -> JobSubmissionClient:
    """The client of a job server that answers.

    Raises:
        ClusterError: it does not answer, or wants a token that it was not given.
    """
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        sent = os.environ.get("RAY_AUTH_MODE") == "token"
        raise ClusterError(
            f"{address}: this cluster asks for a token, and {'the one sent is not its own' if sent else 'none was sent'}. "
            f"Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (default ~/.ray/auth_token) or "
            f"RAY_AUTH_TOKEN to the token itself. On the machine that made it, `ray get-auth-token` prints it."
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"{address}: no job server answers ({error}). Is the cluster up, and its port reachable from here? "
            f"`ray dashboard cluster.yaml` or `kubectl port-forward` makes it so."
        ) from error


def _submit(line: Sequence[str], submission_id: str, address: str) -> int:
    """Runs the line with this Python's own Ray and returns what it ended with.

    What it and the job print goes to standard error, as all that is not the summary.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", *line[1:]]
    process = subprocess.Popen(words, stdout=2, start_new_session=True)  # 2: standard error
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        log.warning(
            "%s may go on without us. Its log: ray job logs --follow --address %s %s. Stop it: ray job stop --address %s %s",
            submission_id, address, submission_id, address, submission_id,
        )  # fmt: skip
        raise


def _ended_with(client: JobSubmissionClient, submission_id: str, follow: str) -> int:
    """The exit code of a job's process, once it has ended: ``ray job submit`` itself knows only 0 and 1."""
    try:
        while not (info := client.get_job_info(submission_id)).status.is_terminal():  # its log was cut off before its end
            time.sleep(_POLL_S)
    except (ConnectionError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"{submission_id}: was not accepted, or the cluster was lost ({error}). What was finished is kept; submit it again."
        ) from error
    if info.status == JobStatus.STOPPED:
        raise ClusterError(f"{submission_id}: was stopped. What was finished is kept; submit it again to go on.")
    if info.driver_exit_code is None or info.driver_exit_code < 0:  # never started, or killed: no code of ours
        raise ClusterError(f"{submission_id}: {info.message} What was finished is kept. Its log: {follow}")
    return int(info.driver_exit_code)
