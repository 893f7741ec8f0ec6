"""The verbs: each takes its words, calls the one function of its pipeline, and ends with the verb's exit code."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from cropreg import __version__
from cropreg.cli.endings import Stopped, finish, in_words, tell
from cropreg.cli.words import apart, settings_file, with_verdicts
from cropreg.errors import CropregError, UsageError
from cropreg.settings import (
    DoorSettings,
    EvaluateSettings,
    ExportSettings,
    MatchSettings,
    PredictSettings,
    ReviewSettings,
    SubmitSettings,
    TrainSettings,
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

    return finish(work, door, None if explain else out)


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

    return finish(work, door, boxes)


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

    return finish(work, door, out)


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

    return finish(work, door, run)


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

    return finish(work, door, out)


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
        paths, config = look_at(verb, arguments)
        if door.config is not None:
            raise UsageError("submit: --config is the verb's: put it behind VERB.")
        from cropreg.pipelines import submit as pipeline

        return pipeline.run(
            verb, arguments, paths=paths, config=config, settings=settings, address=door.address, dry_run=door.dry_run
        )

    return finish(work, door, None)


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

    return finish(work, door, None)


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

    return finish(work, door, None)


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

    return finish(work, door, out)


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

    return finish(work, door, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs the verb in ``arguments`` (those of the process by default) and exits with its code."""
    code = run(sys.argv[1:] if arguments is None else list(arguments))
    if arguments is None:  # all is done and said; Ctrl-C in the half second that Ray takes to end would print a stack
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Parses and runs one verb; returns the exit code.  ``ray_jobs/`` come in here too."""
    tokens = with_verdicts(arguments)
    try:
        app.config = [Env("CROPREG_", command=False), *settings_file(tokens)]
        if tokens[:1] == ["submit"]:
            tokens = apart(tokens)
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CropregError as error:
        return tell(error)
    except Stopped as stopped:
        if tokens[0] == "submit":  # the job is not ours to continue: it has said how to follow it
            return int(stopped.args[0])
        again = list(tokens)
        if tokens[0] == "train":  # --overwrite would throw away what was finished
            again = [*(token for token in tokens if token not in ("--overwrite", "--resume")), "--resume"]
        print(f"\ncropreg: interrupted. What was finished is kept; go on with: cropreg {shlex.join(again)}", file=sys.stderr)
        return int(stopped.args[0])
    except CycloptsError as error:
        verb = tokens[0] if tokens and tokens[0] in app else ""
        return tell(UsageError(f"{in_words(error)}\nSee: cropreg {verb + ' ' if verb else ''}--help"))


def look_at(verb: str, arguments: Sequence[str]) -> tuple[dict[str, str], Path | None]:
    """Parses a verb's arguments as the job will; returns the paths of its data by name, and its settings file."""
    tokens = [verb, *arguments]
    try:
        app.config = [Env("CROPREG_", command=False), *settings_file(tokens)]
        _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(f"{in_words(error)}\nOptions of submit stand before {verb}. See: cropreg {verb} --help") from error
    if any(token == "--address" or token.startswith("--address=") for token in arguments):
        raise UsageError(f"submit: --address stands before {verb}; the job finds its own cluster by itself.")
    given = bound.arguments
    values = {**dict(given.get("settings", ())), **given}
    paths = {name: str(values[name]) for name in _PATHS[verb] if values.get(name) is not None}
    return paths, given.get("door", DoorSettings()).config
