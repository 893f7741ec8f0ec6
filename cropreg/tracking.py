"""Figures of every epoch for other programs: TensorBoard's files always, MLflow and Weights & Biases when they are asked for.

Only the first process tells.  A tracker that cannot begin ends the run before it learns; one that fails later is left out from then on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from cropreg import storage
from cropreg.errors import UsageError

log = logging.getLogger(__name__)

EVENTS = "tensorboard"  # folder of the run: tensorboard --logdir RUN
IDENTITIES = "tracking.json"  # under which names a run is known elsewhere, so that a resumed one goes on there
_PROJECT = "cropreg"


class Tracker(Protocol):
    """One place that is told the figures."""

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Tells the figures of a finished epoch."""
        ...

    def close(self, whole: bool) -> None:
        """Ends the telling; ``whole`` when training ended by itself."""
        ...


def check(names: str) -> None:
    """Looks, before anything starts, whether the trackers that are asked for can be there.

    Raises:
        UsageError: a package is missing, or MLflow has no place; names the cure.
    """
    for name in filter(None, names.split(",")):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--track {name}: the package is not installed here: pip install 'cropreg[{name}]'")
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UsageError("--track mlflow: it does not say where. Set MLFLOW_TRACKING_URI, e.g. to http://HOST:5000.")


class Told:
    """The trackers of a run; made by :func:`opened`."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = trackers

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Tells all trackers the figures of a finished epoch; what is no number is left out."""
        known = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.write(epoch, known))

    def close(self, whole: bool) -> None:
        """Ends the telling."""
        self._each(lambda tracker: tracker.close(whole))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._trackers.items()]:
            try:
                tell(tracker)
            except Exception as error:  # a server that is away must not cost the training
                del self._trackers[name]
                log.warning("tracker=%s failed, training goes on without it: %s", name, error)


@contextlib.contextmanager
def opened(run: str, names: str, settings: Mapping[str, Any], first_epoch: int) -> Iterator[Told]:
    """The trackers of a run folder, while it trains.

    Args:
        run: URI of the run folder.
        names: with commas between.
        settings: what they are told the run was started with.
        first_epoch: where it goes on; what an earlier try told of this epoch and later ones is taken back where that can be.

    Raises:
        UsageError: one cannot begin; names the cure.
    """
    check(names)
    known = storage.join(run, IDENTITIES)
    identities: dict[str, str] = json.loads(storage.read_bytes(known)) if storage.exists(known) else {}
    begin: dict[str, type[_MLflow] | type[_WandB]] = {"mlflow": _MLflow, "wandb": _WandB}
    trackers: dict[str, Tracker] = {"tensorboard": _TensorBoard(run, first_epoch)}
    for name in filter(None, names.split(",")):
        try:
            trackers[name] = tracker = begin[name](run, identities.get(name), settings)
        except Exception as error:  # each has errors of its own kind
            Told(trackers).close(whole=False)
            raise UsageError(f"--track {name}: {error}. Cure that, or leave the flag out.") from error
        identities[name] = tracker.identity
    if names:
        storage.write_whole(known, json.dumps(identities).encode())
    told, whole = Told(trackers), False
    try:
        yield told
        whole = True
    finally:
        told.close(whole)


class _TensorBoard:
    """Event files in the run folder; those of a run on an object store are written here and copied there after every epoch."""

    def __init__(self, run: str, first_epoch: int) -> None:
        from tensorboardX import SummaryWriter

        self._folder = storage.join(run, EVENTS)
        self._here = tempfile.TemporaryDirectory(prefix="cropreg-events-") if storage.is_remote(run) else None
        place = self._here.name if self._here else storage.local_path(self._folder)
        suffix = f".{uuid.uuid4().hex[:8]}"  # a file's name is otherwise host and second
        # Figures of epochs that were lost with their worker stand in an older file; the viewer leaves them out.
        self._writer = SummaryWriter(place, purge_step=first_epoch, filename_suffix=suffix)

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        if self._here:
            for item in os.scandir(self._here.name):
                with open(item.path, "rb") as file:
                    storage.write_whole(storage.join(self._folder, item.name), file.read())

    def close(self, whole: bool) -> None:
        self._writer.close()
        if self._here:
            self._here.cleanup()


class _MLflow:
    """A run of MLflow in the experiment ``cropreg`` (or MLFLOW_EXPERIMENT_NAME), at MLFLOW_TRACKING_URI."""

    def __init__(self, run: str, identity: str | None, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            identity = str(self._client.create_run(number, run_name=storage.name_of(run)).info.run_id)
            for key, value in settings.items():
                self._client.log_param(identity, key, value)
        self._client.update_run(identity, status="RUNNING")
        self.identity = identity

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self.identity, metrics=[Metric(name, value, now_ms, epoch) for name, value in figures.items()])

    def close(self, whole: bool) -> None:
        self._client.set_terminated(self.identity, "FINISHED" if whole else "FAILED")


class _WandB:
    """A run of Weights & Biases in the project ``cropreg`` (or WANDB_PROJECT); its own files lie in the run folder, or in WANDB_DIR."""

    def __init__(self, run: str, identity: str | None, settings: Mapping[str, Any]) -> None:
        import wandb

        self.identity = identity or uuid.uuid4().hex[:12]
        folder = None if storage.is_remote(run) or "WANDB_DIR" in os.environ else storage.local_path(run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), id=self.identity, resume="allow", name=storage.name_of(run),
            dir=folder, config=dict(settings), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=epoch)

    def close(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)
