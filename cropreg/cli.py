"""The command line: parses, calls the one function of a verb, prints what was made, and ends with the verb's exit code.

Nothing heavy is imported before a verb runs, so that ``cropreg --help`` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict, Env

from cropreg import __version__, logs, storage
from cropreg.errors import CropregError, LockedError, OutputError, UsageError
from cropreg.settings import (
    DEFAULT_RETRY,
    VERBS,
    VERDICT_NAMES,
    DoorSettings,
    EvaluateSettings,
    ExportSettings,
    MatchSettings,
    PredictSettings,
    ReviewSettings,
    Settings,
    SubmitSettings,
    TrainSettings,
    read_yaml,
)

log = logging.getLogger(__name__)

_SETTINGS: dict[str, type[Settings]] = dict(
    zip(VERBS, (MatchSettings, TrainSettings, EvaluateSettings, PredictSettings, ExportSettings, ReviewSettings), strict=True)
)
_HELP = """Learns how a person crops, from the pairs of originals and crops they already have.

Paths are local, or s3://, gs://, abfs://.  A setting comes from the first of: flag, CROPREG_* variable (CROPREG_BATCH_SIZE),
--config file, default.  Start with: cropreg demo
"""
_EPILOGUE = (
    "Exit codes: 0 done, 2 wrong argument, 3 nothing usable in the input, 4 output exists or cannot be written, 5 Ray failed, "
    "6 too much of the input is bad, 7 another run is writing, 8 diverged or invalid model, 130 interrupted."
)

_SHORT = {"verbose": "-v", "quiet": "-q"}
_PATHS = {  # what each verb reads or writes, by the names of arguments and settings
    "match": ("originals", "crops", "pairs", "out"),
    "train": ("boxes", "weights", "out"),
    "evaluate": ("run", "boxes"),
    "predict": ("run", "images", "out"),
}
_WITHOUT_VALUE = ("--no-wait", "--dry-run", "--json", "--verbose", "-v", "--quiet", "-q", "--help", "-h", "--version")
_OURS = ("result.json", "run.json", "manifests", "pairs", "predictions.parquet", ".parts")  # an output of ours has one of these

app = App(
    name="cropreg",
    default_parameter=Parameter(short_alias=lambda field, taken: _SHORT.get(field.name, ())),
    help=_HELP,
    help_epilogue=_EPILOGUE,
    version=__version__,
    help_format="plaintext",
)
_Flat = Parameter(name="*")
Door = Annotated[DoorSettings, _Flat]


class _Interrupted(BaseException):
    """SIGTERM, as an exception, so that what is open is closed on the way out."""


class _Stopped(Exception):
    """A verb was interrupted; the first argument is its exit code."""


@app.command
def match(
    originals: str | None = None,
    crops: str | None = None,
    *,
    out: str,
    pairs: str | None = None,
    explain: str | None = None,
    settings: Annotated[MatchSettings, _Flat] = MatchSettings(),  # noqa: B008  # frozen
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Find where every crop lies in its original; write the box dataset.

    Parameters
    ----------
    originals
        Folder of uncropped pictures; with --import alone: what other programs say of their crops is read, nothing is matched.
    crops
        Folder of crops, paired with the originals by relative path.
    out
        Folder of the box dataset; run again it computes only what is new.
    pairs
        Instead of two folders: CSV or Parquet with the columns original and crop.
    explain
        Draw one pair instead, by its pair_id or the name of its crop: what the matcher saw, and why it decided as it did.
    """

    def work() -> dict[str, Any]:
        if explain is not None:
            from cropreg.pipelines import explain as picture

            return picture.run(explain, originals, crops, out=out, pairs=pairs, settings=settings, dry_run=door.dry_run)
        from cropreg.pipelines import match as pipeline

        return pipeline.run(originals, crops, out=out, pairs=pairs, settings=settings, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, None if explain else out)


@app.command
def check(boxes: str, *, door: Door = DoorSettings()) -> int:  # noqa: B008
    """Look at a box dataset before training: counts, reasons, histograms, the labels.

    Parameters
    ----------
    boxes
        Folder of the box dataset; the pictures to look at are written there.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import check as pipeline

        return pipeline.run(boxes, dry_run=door.dry_run)

    return _finish(work, door, boxes)


@app.command
def train(
    boxes: str,
    *,
    out: str,
    settings: Annotated[TrainSettings, _Flat] = TrainSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Train the regressor on a box dataset with Ray Train.

    Parameters
    ----------
    boxes
        Folder of the box dataset.
    out
        Folder of the run: figures, curves and checkpoints.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import train as pipeline

        return pipeline.run(boxes, out=out, settings=settings, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, out)


@app.command
def evaluate(
    run: str,
    *,
    settings: Annotated[EvaluateSettings, _Flat] = EvaluateSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Judge a run beside the baselines; write a report.

    Parameters
    ----------
    run
        Folder of the run.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import evaluate as pipeline

        return pipeline.run(run, settings=settings, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, run)


@app.command
def predict(
    run: str,
    images: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    out: str,
    settings: Annotated[PredictSettings, _Flat] = PredictSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Crop new pictures; write predictions.parquet.

    Parameters
    ----------
    run
        Folder of the run whose best checkpoint crops, or a model file: an .onnx that cropreg export has written.
    images
        Folder of pictures, which are never touched; or - for paths on standard input, one a line.
    out
        Folder of the crops, mirroring the tree of the pictures; a second run continues.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import predict as pipeline

        if images.startswith("-") and images != "-":  # a mistyped flag, which the lone hyphen lets through
            raise UsageError(f"Unknown option: {images}\nSee: cropreg predict --help")
        named = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()] if images == "-" else images
        return pipeline.run(run, named, out=out, settings=settings, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, out)


@app.command
def submit(
    verb: Literal["match", "train", "evaluate", "predict"],
    /,
    *arguments: str,
    settings: Annotated[SubmitSettings, _Flat] = SubmitSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Run a verb as a job on a Ray cluster: cropreg submit [options] VERB ARGUMENTS; ends with the verb's own exit code.

    Options of submit stand before VERB; what follows it is checked here and passed on unchanged.  --dry-run prints the ray job submit
    line.  --address is that of the job server, http://HOST:8265; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS.

    Parameters
    ----------
    verb
        What the job does.
    arguments
        As the verb takes them; paths that all nodes can see.
    """
    if {"--help", "-h"} & set(arguments):
        return run([verb, "--help"])

    def work() -> dict[str, Any]:
        paths, config = _look_at(verb, arguments)
        if door.config is not None:
            raise UsageError("submit: --config is the verb's: put it behind VERB.")
        from cropreg.pipelines import submit as pipeline

        return pipeline.run(
            verb, arguments, paths=paths, config=config, settings=settings, address=door.address, dry_run=door.dry_run
        )

    return _finish(work, door, None)


@app.command
def export(
    run: str,
    *,
    out: str | None = None,
    settings: Annotated[ExportSettings, _Flat] = ExportSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Write the model as one file for other runtimes, and compare it with the run.

    Parameters
    ----------
    run
        Folder of the run whose best checkpoint is exported.
    out
        The file; default: model.onnx in the run.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import export as pipeline

        return pipeline.run(run, out=out, settings=settings, dry_run=door.dry_run)

    return _finish(work, door, None)


@app.command
def review(
    boxes: str,
    *,
    settings: Annotated[ReviewSettings, _Flat] = ReviewSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Confirm, correct or reject doubtful labels or predictions on a local page, by keyboard.

    Parameters
    ----------
    boxes
        Folder of a box dataset, or of predictions; decisions are kept there, in reviews/.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import review as pipeline

        return pipeline.run(boxes, settings=settings, dry_run=door.dry_run)

    return _finish(work, door, None)


def _look_at(verb: str, arguments: Sequence[str]) -> tuple[dict[str, str], Path | None]:
    """Parses a verb's arguments as the job will; returns the paths of its data by name, and its settings file."""
    tokens = [verb, *arguments]
    try:
        app.config = [Env("CROPREG_", command=False), *_file(tokens)]
        _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(f"{error}\nOptions of submit stand before {verb}. See: cropreg {verb} --help") from error
    if any(token == "--address" or token.startswith("--address=") for token in arguments):
        raise UsageError(f"submit: --address stands before {verb}; the job finds its own cluster by itself.")
    given = bound.arguments
    values = {**dict(given.get("settings", ())), **given}
    paths = {name: str(values[name]) for name in _PATHS[verb] if values.get(name) is not None}
    return paths, given.get("door", DoorSettings()).config


def _apart(tokens: Sequence[str]) -> list[str]:
    """Puts ``--`` before the verb of ``cropreg submit``, so that what follows is not taken for options of submit."""
    at = 1
    while at < len(tokens) and tokens[at].startswith("-") and tokens[at] != "--":
        at += 1 if "=" in tokens[at] or tokens[at] in _WITHOUT_VALUE else 2
    return [*tokens[:at], *(["--"] if tokens[at : at + 1] not in ([], ["--"]) else []), *tokens[at:]]


@app.command
def demo(*, out: str | None = None, door: Door = DoorSettings()) -> int:  # noqa: B008
    """Show the whole way on pictures that come with the package: minutes on 2 CPU cores, no download.

    Parameters
    ----------
    out
        New or empty folder for everything it makes; default: the first free of cropreg-demo, cropreg-demo-2, ...
    """

    def work() -> dict[str, Any]:
        from cropreg.demo import journey

        return journey.run(out, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, out)


@app.command
def doctor(uri: str | None = None, *, door: Door = DoorSettings()) -> int:  # noqa: B008
    """Say what this installation has and lacks: versions, devices, codecs, Ray, a place to write.

    Parameters
    ----------
    uri
        Folder to try writing to.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import doctor as pipeline

        return pipeline.run(None if door.dry_run else uri)

    return _finish(work, door, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs the verb in ``arguments`` (those of the process by default) and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Parses and runs one verb; returns the exit code.  ``ray_jobs/`` come in here too."""
    tokens = _with_verdicts(arguments)
    try:
        app.config = [Env("CROPREG_", command=False), *_file(tokens)]
        if tokens[:1] == ["submit"]:
            tokens = _apart(tokens)
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CropregError as error:
        return _tell(error)
    except _Stopped as stopped:
        if tokens[0] == "submit":  # the job is not ours to continue: it has said how to follow it
            return int(stopped.args[0])
        again = list(tokens)
        if tokens[0] == "train":  # --overwrite would throw away what was finished
            again = [*(token for token in tokens if token not in ("--overwrite", "--resume")), "--resume"]
        print(f"\ncropreg: interrupted. What was finished is kept; go on with: cropreg {shlex.join(again)}", file=sys.stderr)
        return int(stopped.args[0])
    except CycloptsError as error:
        verb = tokens[0] if tokens and tokens[0] in app else ""
        return _tell(UsageError(f"{error}\nSee: cropreg {verb + ' ' if verb else ''}--help"))


def _with_verdicts(arguments: Sequence[str]) -> list[str]:
    """The arguments with what follows ``--retry-failed`` (verdicts, or nothing) made one value, which is all that a flag can take."""
    tokens: list[str] = []
    retried: list[str] | None = None
    for token in arguments:
        if token == "--retry-failed":
            retried = []
        elif retried is not None and token in VERDICT_NAMES:
            retried.append(token)
        else:
            if retried is not None:
                tokens.append(f"--retry-failed={','.join(retried) or DEFAULT_RETRY}")
                retried = None
            tokens.append(token)
    return tokens if retried is None else [*tokens, f"--retry-failed={','.join(retried) or DEFAULT_RETRY}"]


def _file(tokens: Sequence[str]) -> list[Dict]:
    """The settings file named in the arguments or in CROPREG_CONFIG, checked against the verb's settings before it is used."""
    name = os.environ.get("CROPREG_CONFIG")
    for i, token in enumerate(tokens):
        if token == "--config" and i + 1 < len(tokens):
            name = tokens[i + 1]
        elif token.startswith("--config="):
            name = token.removeprefix("--config=")
    verb = tokens[0] if tokens else ""
    if name is None or verb not in _SETTINGS:
        return []
    values = read_yaml(Path(name), verb, _SETTINGS[verb])
    return [
        Dict({key.rstrip("_").replace("_", "-"): value for key, value in values.items()}, use_commands_as_keys=False, source=name)
    ]


def _finish(work: Callable[[], dict[str, Any]], door: DoorSettings, out: str | None) -> int:
    """Runs a verb, tells how it ended, leaves ``result.json`` beside its output, and returns the exit code."""
    logs.set_up(-1 if door.quiet else 1 if door.verbose else 0)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        summary = work()
        code = int(summary["code"])
        if not door.dry_run and "out" in summary:
            _write_result(str(summary["out"]), summary)
        print(json.dumps(_figures(summary)) if door.json_ else _text(summary))
        if "message" in summary:
            print(f"cropreg: {summary['message']}", file=sys.stderr)
        return code
    except CropregError as error:
        silent = isinstance(error, LockedError | OutputError | UsageError)  # the output is another's, or cannot be written
        _write_failure(out, error.exit_code, str(error), unless=silent or door.dry_run)
        return _tell(error)
    except (KeyboardInterrupt, _Interrupted, SystemExit) as error:
        # SystemExit: a Ray that was there before us has put its own handler of SIGTERM over ours.
        code = 130 if isinstance(error, KeyboardInterrupt) else 143
        _write_failure(out, code, "interrupted", unless=door.dry_run)
        raise _Stopped(code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted


def _tell(error: CropregError) -> int:
    print(f"cropreg: {error}", file=sys.stderr)
    return error.exit_code


def _write_failure(out: str | None, code: int, message: str, *, unless: bool) -> None:
    """Leaves word of a failure in an output that is ours or empty; a folder of other things is left alone."""
    if unless or out is None:
        return
    try:
        out = storage.absolute(out)
        empty = not storage.is_remote(out) and storage.is_folder(out) and not any(storage.list_files(out))
        if empty or any(storage.exists(storage.join(out, name)) for name in _OURS):
            _write_result(out, {"code": code, "message": message})
    except CropregError as error:
        log.debug("no result.json: %s", error)


def _write_result(out: str, summary: dict[str, Any]) -> None:
    result = {**_figures(summary), "cropreg_version": __version__}
    storage.write_whole(storage.join(storage.absolute(out), "result.json"), json.dumps(result, indent=1).encode())


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what is written for a person."""
    return {name: value for name, value in summary.items() if name != "text"}


def _text(summary: dict[str, Any]) -> str:
    """The summary as a few lines for a person."""
    if "text" in summary:
        return str(summary["text"])
    lines = []
    for name, value in summary.items():
        if name in ("code", "top_reasons", "message") or value is None:
            continue
        if isinstance(value, dict):
            value = "  ".join(f"{key} {item:,}" if isinstance(item, int) else f"{key} {item}" for key, item in value.items())
        lines.append(
            f"{name.replace('_', ' '):12s} {value:.4f}" if isinstance(value, float) else f"{name.replace('_', ' '):12s} {value}"
        )
    lines += [f"  {number} x {reason}" for reason, number in summary.get("top_reasons", [])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
