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
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict, Env

from cropreg import __version__, logs, storage
from cropreg.errors import CropregError, OutputError, UsageError
from cropreg.settings import (
    VERBS,
    DoorSettings,
    EvaluateSettings,
    MatchSettings,
    PredictSettings,
    ReviewSettings,
    Settings,
    TrainSettings,
    read_yaml,
)

log = logging.getLogger(__name__)

_SETTINGS: dict[str, type[Settings]] = dict(
    zip(VERBS, (MatchSettings, TrainSettings, EvaluateSettings, PredictSettings, ReviewSettings), strict=True)
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
        Folder of uncropped pictures.
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
    images: str,
    *,
    out: str,
    settings: Annotated[PredictSettings, _Flat] = PredictSettings(),  # noqa: B008
    door: Door = DoorSettings(),  # noqa: B008
) -> int:
    """Crop new pictures; write predictions.parquet.

    Parameters
    ----------
    run
        Folder of the run whose best checkpoint crops.
    images
        Folder of pictures; they are never touched.
    out
        Folder of the crops, mirroring the tree of the pictures; a second run continues.
    """

    def work() -> dict[str, Any]:
        from cropreg.pipelines import predict as pipeline

        return pipeline.run(run, images, out=out, settings=settings, address=door.address, dry_run=door.dry_run)

    return _finish(work, door, out)


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
    tokens = list(arguments)
    try:
        app.config = [Env("CROPREG_", command=False), *_file(tokens)]
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CropregError as error:
        return _tell(error)
    except _Stopped as stopped:
        again = list(tokens)
        if tokens[0] == "train":  # --overwrite would throw away what was finished
            again = [*(token for token in tokens if token not in ("--overwrite", "--resume")), "--resume"]
        print(f"\ncropreg: interrupted. What was finished is kept; go on with: cropreg {shlex.join(again)}", file=sys.stderr)
        return int(stopped.args[0])
    except CycloptsError as error:
        verb = tokens[0] if tokens and tokens[0] in app else ""
        return _tell(UsageError(f"{error}\nSee: cropreg {verb + ' ' if verb else ''}--help"))


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
    return [Dict({key.replace("_", "-"): value for key, value in values.items()}, use_commands_as_keys=False, source=name)]


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
        _write_failure(out, error.exit_code, str(error), unless=isinstance(error, OutputError | UsageError) or door.dry_run)
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
