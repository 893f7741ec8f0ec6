"""Reaching Ray: the job's own cluster, a given address, or one started on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from cropreg.errors import ClusterError
from cropreg.logs import Progress

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
            logging.getLogger(noisy).setLevel(logging.ERROR)
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
    from cropreg.errors import CropregError

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else None
        while cause is not None and not isinstance(cause, CropregError) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        if isinstance(cause, CropregError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray: {error}. What was finished is kept; run the same command again.") from error


def may_grow(address: str | None) -> bool:
    """Whether more machines may come: true of a cluster that was named, here or by the job; not of a Ray started on this machine."""
    return address not in (None, "local") or "RAY_ADDRESS" in os.environ


def total(resource: str) -> float:
    """How much of a resource (``CPU``, ``GPU``) the cluster has now."""
    resources: dict[str, Any] = ray.cluster_resources()
    return float(resources.get(resource, 0))


def spread(
    function: Callable[[str, Any], bytes],
    items: Sequence[str],
    shared: Any,
    *,
    title: str,
    unit: str,
    address: str | None = None,
    concurrency: int | None = None,
) -> list[bytes]:
    """Calls ``function(item, shared)`` for every item, in blocks on the workers, and returns the results in the order of the items.

    ``shared`` goes into the object store once.  Nothing is started when there are no items.
    """
    if not items:
        return []
    connect(address)
    num_blocks = math.ceil(len(items) / min(max(len(items) // 64, 4), 100))
    table = pa.table({"number": pa.array(range(len(items)), pa.int64()), "item": pa.array(items, pa.string())})
    compute = ray.data.TaskPoolStrategy(size=concurrency) if concurrency else None
    data = ray.data.from_arrow(table, override_num_blocks=num_blocks)
    data = data.map_batches(
        _spread_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"function": function, "shared": ray.put(shared)},
        compute=compute,
    )
    results: list[bytes] = [b""] * len(items)
    with faults_named(), Progress(title, len(items), unit) as progress:
        for row in data.iter_rows():
            results[row["number"]] = row["result"]
            progress.advance()
    return results


def _spread_block(block: pa.Table, function: Callable[[str, Any], bytes], shared: ray.ObjectRef) -> pa.Table:
    cv2.setNumThreads(1)  # Ray runs as many tasks as there are cores
    common = ray.get(shared)
    results = [function(item, common) for item in block["item"].to_pylist()]
    return pa.table({"number": block["number"], "result": pa.array(results, pa.large_binary())})
