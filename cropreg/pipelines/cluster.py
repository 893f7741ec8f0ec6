"""Reaching Ray: the job's own cluster, a given address, or one started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
import ray.exceptions

from cropreg import errors
from cropreg.errors import ClusterError, CropregError, InputError

log = logging.getLogger(__name__)


def connect(address: str | None = None) -> None:
    """Connects to Ray, or does nothing when that was done before.

    Args:
        address: as ``ray.init`` takes it; None means the cluster of the job this runs in, else one that is started here.

    Raises:
        ClusterError: there is no cluster at that address, or none could be started.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will have it; silences its notice
        # The group of training workers needs longer than Ray's 60 s when two busy cores import torch.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
        for noisy in ("ray._private.authentication.authentication_token_setup", "ray.data"):  # notices, not news
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # errors come to us as exceptions, and are told once
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log.isEnabledFor(logging.DEBUG))
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"Ray: {error}. Check --address and RAY_ADDRESS; without both, Ray starts on this machine."
            ) from error
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack and may end in SIGABRT
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def faults_named() -> Iterator[None]:
    """Turns Ray's own failures into a :class:`ClusterError`; the errors of our functions pass as they are."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        ours = _ours(error)
        if ours is not None:
            raise ours from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray: {error}. What was finished is kept; run the same command again.") from error


def _ours(error: ray.exceptions.RayTaskError) -> CropregError | None:
    """The error of our own that a task ended with.  Ray Data wraps it and drops the object on its way here: only its text arrives."""
    cause: BaseException | None = error.cause
    while cause is not None and not isinstance(cause, CropregError):
        cause = cause.__cause__
    if cause is not None:
        return cause
    found = re.search(r"^(?:.*\n)*?cropreg\.errors\.(\w+): ((?:.|\n)*?)(?:\n\n|\Z)", str(error))
    kind = getattr(errors, found[1], None) if found else None
    if found is None or not (isinstance(kind, type) and issubclass(kind, CropregError)):
        return None
    return InputError(found[2].strip()) if kind is errors.UnreadableImage else kind(found[2].strip())


def may_grow(address: str | None) -> bool:
    """Whether more machines may come: true of a cluster that was named, here or by the job; not of a Ray started on this machine."""
    return address not in (None, "local") or "RAY_ADDRESS" in os.environ


def total(resource: str) -> float:
    """How much of a resource (``CPU``, ``GPU``) the cluster has now."""
    resources: dict[str, Any] = ray.cluster_resources()
    return float(resources.get(resource, 0))
