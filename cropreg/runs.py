"""The run folder: what a training keeps there, who may go on with it, and how far it is.

The folder is the only memory: a worker that was lost, a driver that was killed and ``--resume`` all go on in the same way.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Literal

import torch

import cropreg
from cropreg import checkpoint, proportions, storage
from cropreg.checkpoint import CheckpointInfo
from cropreg.errors import CropregError, OutputError
from cropreg.logs import EVERY_S, Progress
from cropreg.schema import BoxDataset, csv_bytes
from cropreg.settings import TrainSettings
from cropreg.tracking import EVENTS, IDENTITIES
from cropreg.training import EpochResult, Learner

CONTEST, CHALLENGER = "champion.json", "checkpoints/challenger"  # how a new model did beside the one before, and itself if it lost
CURVE, PARTIAL = "learning_curve", "partial"  # .json and .png; trainings on fewer pairs, until the curve is drawn
POLL_S = 1.0  # how often the driver looks how far the workers are
PROGRESS = "progress.json"  # where the first worker leaves word for the driver, while it runs
FAILED = "failed.json"  # where a worker leaves word of an error that would come again
JUDGED = "calib.json"  # what training came to on the pictures that teach the model how sure it may be
_PIECES = (  # what a run leaves in its folder, evaluated or not; run.json is written anew
    *("checkpoints", "ray", "metrics.csv", "curves.png", "finished.json", PROGRESS, FAILED, JUDGED),
    *("evaluation.json", "report.html", "best.jpg", "worst.jpg", EVENTS, IDENTITIES, "wandb"),
    *(CONTEST, PARTIAL, f"{CURVE}.json", f"{CURVE}.png"),
)
_State = Literal["new", "begun", "finished"]


def read_metrics(run: str) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``, one a finished epoch; none when there is no such file yet.

    Raises:
        OutputError: it is damaged.
    """
    uri = storage.join(run, "metrics.csv")
    if not storage.exists(uri):
        return []
    text = storage.read_bytes(uri).decode()
    try:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
    except (TypeError, ValueError) as error:
        raise OutputError(f"{uri}: damaged ({error}). Put it back, or start again with --overwrite instead of --resume.") from error


def state_of(out: str, dataset: BoxDataset, settings: TrainSettings) -> _State:
    """Whether ``out`` is to hold a new run, or holds one that may go on or is finished.

    A run that ended in its first epoch has nothing to keep: a new one takes its place.  ``--resume`` beats ``--overwrite``, which may stand
    in a settings file.

    Raises:
        OutputError: there is a run and neither ``--resume`` nor ``--overwrite``, or the run there is of other data or settings, or
            damaged.
    """
    name = storage.join(out, "run.json")
    if not storage.exists(name):
        if storage.exists(out) and any(entry.relative != "result.json" for entry in storage.list_files(out)):
            raise OutputError(f"{out}: this folder holds other things. Give a new or empty one with --out.")
        return "new"
    if settings.overwrite and not settings.resume:
        return "new"
    last, best = (storage.join(out, "checkpoints", which) for which in ("last", "best"))
    rows, goes_on, finished = len(read_metrics(out)), checkpoint.is_there(last), storage.exists(storage.join(out, "finished.json"))
    if not (rows or goes_on or finished or checkpoint.is_there(best)):
        return "new"
    if not settings.resume:
        raise OutputError(
            f"{out}: a run is here already. Use --resume to go on with it, --overwrite to replace it, or another --out."
        )
    theirs, ours = json.loads(storage.read_bytes(name)), _identity_of(dataset, settings)
    # A setting that did not exist when the run began had the effect of its default, with the head of that run.
    unknown = TrainSettings(head=theirs["settings"].get("head", "spatial")).model_dump()
    changed = [key for key, value in ours["settings"].items() if theirs["settings"].get(key, unknown[key]) != value]
    may_change = {"max_epochs", "patience", "num_workers", "use_gpu", "resources", "loader_workers", "compile", "track"}
    may_change |= {"champion", "learning_curve", "cache_dir", "cache_gb"}
    if theirs["dataset"] != ours["dataset"] or not set(changed) <= may_change:
        what = "another dataset" if theirs["dataset"] != ours["dataset"] else f"other settings ({', '.join(changed)})"
        raise OutputError(f"{out}: the run here was started with {what}, so it cannot go on. Use the same, or another --out.")
    if finished and not changed:
        return "finished"
    if not goes_on and (rows > 1 or finished):  # the first row may be there before the first checkpoint is
        raise OutputError(
            f"{last}: the checkpoint that this run goes on from is gone. Put it back, or start again with --overwrite instead of --resume."
        )
    return "begun"


def _identity_of(dataset: BoxDataset, settings: TrainSettings) -> dict[str, Any]:
    """What a run goes on with, as ``run.json`` keeps it."""
    return {"settings": settings.model_dump(exclude={"resume", "overwrite", "max_failures"}), "dataset": dataset.fingerprint}


def take_folder(state: _State, out: str, dataset: BoxDataset, settings: TrainSettings) -> None:
    """Makes the run folder ours: empty of an earlier run if this one is new, with the settings that hold from now on."""
    name = storage.join(out, "run.json")
    if state == "new":
        for piece in _PIECES:
            storage.remove(storage.join(out, piece))
        versions = {"cropreg": cropreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        facts = {"boxes": dataset.uri, "versions": versions, "started_at": datetime.now(UTC).isoformat(timespec="seconds")}
    else:
        storage.remove(storage.join(out, "finished.json"))
        lost = storage.join(out, CHALLENGER)
        if checkpoint.is_there(lost):  # it goes on learning in its own place
            checkpoint.save(storage.join(out, "checkpoints/best"), *checkpoint.load(lost))
            storage.remove(lost)
        facts = json.loads(storage.read_bytes(name))
        stale = [CONTEST]  # what was said of a model that goes on learning now
        if any(facts["settings"].get(key) != getattr(settings, key) for key in ("max_epochs", "patience")):
            stale += [f"{CURVE}.json", f"{CURVE}.png"]
        for piece in stale:
            storage.remove(storage.join(out, piece))
    storage.make_folder(out)
    storage.write_whole(name, json.dumps({**facts, **_identity_of(dataset, settings)}, indent=1).encode())


def summary_of(out: str, settings: TrainSettings) -> dict[str, Any]:
    """What a finished run came to, how it did beside the champion, if there was one, and what its learning curve says."""
    contest = storage.join(out, CONTEST)
    champion = {"champion": json.loads(storage.read_bytes(contest))} if storage.exists(contest) else {}
    drawn = storage.join(out, f"{CURVE}.json")
    curve = {"more_pairs": json.loads(storage.read_bytes(drawn))["in_words"]} if storage.exists(drawn) else {}
    return {**_learned(out, settings), **curve, **champion}


def _learned(out: str, settings: TrainSettings) -> dict[str, Any]:
    """What a finished run came to, and why it ended when it did."""
    rows = read_metrics(out)
    best = min(rows, key=lambda row: row["val_loss"])
    why = f"all {len(rows)} epochs done; for more: --resume --max-epochs {2 * max(len(rows), settings.max_epochs)}"
    if len(rows) < settings.max_epochs:
        why = (
            f"after epoch {len(rows)} of {settings.max_epochs}: for {settings.patience} epochs the validation loss was not below that of "
            f"epoch {best['epoch'] + 1:.0f}, which is kept as the best; to go on: --resume --patience {2 * settings.patience}"
        )
    summary = {"code": 0, "epochs": len(rows), "best_epoch": int(best["epoch"]) + 1, "val_iou": best["val_iou"], "ended": why}
    name = storage.join(out, JUDGED)
    judged = json.loads(storage.read_bytes(name)) if storage.exists(name) else {}
    return summary | {
        key: judged[words] for key, words in (("learned", "in_words"), ("edges", "edges_in_words")) if words in judged
    }


def leave_word(out: str, error: CropregError) -> None:
    """Writes down an error that would come again, if none is there."""
    word = json.dumps({"code": error.exit_code, "message": str(error)})
    with contextlib.suppress(OutputError):  # a full disk may be the error itself
        storage.create_exclusive(storage.join(out, FAILED), word.encode())


def left_word(out: str) -> CropregError | None:
    """The error that a worker has written down."""
    name = storage.join(out, FAILED)
    if not storage.exists(name):
        return None
    word = json.loads(storage.read_bytes(name))
    kind = next(kind for kind in CropregError.__subclasses__() if kind.exit_code == word["code"])
    return kind(word["message"])


def epoch_line(row: Mapping[str, Any], max_epochs: int) -> str:
    """One line about a finished epoch."""
    return (
        f"train epoch {row['epoch'] + 1:.0f}/{max_epochs} loss {row['train_loss']:.4f} val {row['val_loss']:.4f} "
        f"iou {row['val_iou']:.3f} bde {row['val_bde']:.4f} lr {row['learning_rate']:.1e} {row['images_per_s']:.1f} images/s"
        + (" best" if row["is_best"] else "")
    )


class Recorder:
    """What the first process keeps of every epoch: figures, the best checkpoint and the last."""

    def __init__(
        self, out: str, settings: TrainSettings, learner: Learner, info: CheckpointInfo, progress: Progress | None
    ) -> None:
        self._out, self._settings, self._learner, self._info, self._progress = out, settings, learner, info, progress
        # Epochs after the last checkpoint were lost with their worker and will come again.
        self._rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(out) if row["epoch"] < learner.progression.epoch]
        self._told_s = time.monotonic()

    def on_epoch(self, result: EpochResult) -> None:
        """Keeps the figures and the checkpoints of a finished epoch."""
        row = asdict(result)
        self._rows.append(row)
        info = self._info.model_copy(
            update={
                "epoch": result.epoch,
                "proportion": proportions.as_trained(self._info.proportion, self._learner.judged),
                "metrics": {"val_loss": result.val_loss, "val_iou": result.val_iou, "val_bde": result.val_bde},
            }
        )
        folder = storage.join(self._out, "checkpoints")
        if result.is_best:
            checkpoint.save(storage.join(folder, "best"), self._learner.judged, info)
        whole = {field.name for field in fields(EpochResult) if field.type in ("int", "bool")}
        rows = ({key: int(v) if key in whole else float(f"{v:.6g}") for key, v in item.items()} for item in self._rows)
        storage.write_whole(storage.join(self._out, "metrics.csv"), csv_bytes(rows, list(row)))
        # After the figures: killed in between, the epoch comes again, and its row with it.
        checkpoint.save(storage.join(folder, "last"), self._learner.judged, info, self._learner.state())
        if self._progress is not None:
            self._progress.note(epoch_line(row, self._settings.max_epochs))

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Tells, now and then, how far the epoch is."""
        if self._progress is not None:
            self._progress.reach(epoch * steps + step)
        elif time.monotonic() - self._told_s >= (EVERY_S if storage.is_remote(self._out) else POLL_S):
            self._told_s = time.monotonic()
            at = json.dumps({"epoch": epoch, "step": step, "steps": steps})
            with contextlib.suppress(OutputError):  # the next one may succeed
                storage.write_whole(storage.join(self._out, PROGRESS), at.encode())


class Follower:
    """Follows a run folder and tells each finished epoch and how far the current one is."""

    def __init__(self, out: str, settings: TrainSettings, progress: Progress) -> None:
        self._out, self._settings, self._progress, self._told = out, settings, progress, len(read_metrics(out))

    def tell(self) -> None:
        """Tells what is new since the last time; what cannot be read now is told later."""
        with contextlib.suppress(CropregError, OSError):
            rows = read_metrics(self._out)
            for row in rows[self._told :]:
                self._progress.note(epoch_line(row, self._settings.max_epochs))
            self._told = len(rows)
            name = storage.join(self._out, PROGRESS)
            if storage.exists(name):
                at = json.loads(storage.read_bytes(name))
                self._progress.reach(at["epoch"] * at["steps"] + at["step"])
