"""Reaching Ray: the job's own cluster, a given address, or one started on this machine."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import posixpath
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cropreg import errors, storage
from cropreg.errors import ClusterError, CropregError, InputError, OutputError
from cropreg.logs import Progress

log = logging.getLogger(__name__)

_FOLDERS_LOOKED_AT = 64  # of the input, spread over all of it: a preflight, not a second listing
_CPUS_A_READER = 0.66  # of a task that reads from a bucket: while one waits for a file, another keeps the core busy
_MOST_QUEUED = 256  # tasks; each takes 40 kB of the driver
_SEEN_WITHIN_S = 10  # a network disk may show a new file late


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
        for noisy in ("ray._private.authentication.authentication_token_setup", "ray.data"):  # notices, not news
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # errors come to us as exceptions, and are told once
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=log.isEnabledFor(logging.DEBUG))
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"Ray: {error}. Check --address and RAY_ADDRESS (without both, Ray starts on this machine), and the token if the cluster "
                f"asks for one: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN."
            ) from error
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack and may end in SIGABRT
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # All tasks at once to Ray's own queue, in the place of a budget for each operator: ours have one operator and small results, and Ray
    # Data allows one task until it has asked for the cluster's limits after 1.1 s, then lets 0.2 s pass between two.
    if hasattr(context, "op_resource_reservation_enabled"):
        context.op_resource_reservation_enabled = False


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


def share_of_cpus(count: int) -> float:
    """The most whole CPUs that each of ``count`` workers can have where none is split over two machines; at least 1."""
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    shares = range(max(machines, default=1), 1, -1)
    return float(next((share for share in shares if sum(cpus // share for cpus in machines) >= count), 1))


def check_shared(to_read: Iterable[str], to_write: str | None = None) -> None:
    """Looks, before work starts, whether every node of the cluster sees the local files that the driver sees.

    On a single node nothing is done.  On several, one small task a node looks for a file of each folder of ``to_read``, and for a file
    that is written to ``to_write`` for this; a folder of the same name on another disk does not pass.

    Args:
        to_read: URIs of files; those on an object store are left out.
        to_write: URI of the folder that tasks write to; None when only this process writes.

    Raises:
        InputError, OutputError: a node does not see a file; names the node, the file and the cure. ClusterError: a node did not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 and total("CPU") > 0:  # a head alone that runs no tasks waits for machines that are still to come
        return
    folders: dict[str, str] = {}
    for uri in to_read:
        if not storage.is_remote(uri):
            folders.setdefault(posixpath.dirname(uri), uri)
    step = -(-len(folders) // _FOLDERS_LOOKED_AT) or 1
    picked = itertools.islice(folders.values(), 0, None, step)
    uris = [uri for uri in picked if storage.exists(uri)]  # a broken link is for the verb to tell
    probe = None
    if to_write is not None and not storage.is_remote(to_write):
        probe = storage.join(to_write, f"{storage.TEMPORARY_PREFIX}shared-{uuid.uuid4().hex}")
        storage.write_whole(probe, b"cropreg looks whether every machine of the cluster sees this folder")
    if not uris and probe is None:
        return
    try:
        _look_from_every_node(nodes, uris, probe)
    finally:
        if probe is not None:
            storage.remove(probe)


def _look_from_every_node(nodes: list[dict[str, Any]], uris: list[str], probe: str | None) -> None:
    """Asks every node that runs tasks; where none does yet (a head without CPUs), the first that comes."""
    look = ray.remote(num_cpus=0)(_unseen)
    workers = [node for node in nodes if node["Resources"].get("CPU", 0) > 0]
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(uris, probe): node
        for node in workers
    }
    if not asked:
        log.info("no machine that runs tasks is there yet: waiting for one, to see whether it shares the disk")
        asked = {look.options(num_cpus=1).remote(uris, probe): {}}
    for answer, node in asked.items():
        with faults_named():
            unseen: list[str] = ray.get(answer)
        if unseen:
            name = f"the node {node['NodeManagerAddress']} ({node['NodeID'][:8]})" if node else "a node of the cluster"
            kind = OutputError if unseen == [probe] else InputError
            uri = posixpath.dirname(unseen[0]) if kind is OutputError else unseen[0]
            raise kind(
                f"{uri}: {name} does not see {'this folder' if kind is OutputError else 'this file'}, which lies on a disk of the machine "
                f"that drives the run. On a cluster of several nodes, use s3://, gs:// or abfs://, or a disk that all of them "
                f"mount at the same place."
            )


def at_a_time(concurrency: int | None, num_tasks: int) -> ray.data.TaskPoolStrategy | None:
    """What ``ray.data.Dataset.map`` is told of how many tasks may run at a time: ``concurrency``, or as many as there are CPUs."""
    most = concurrency or max(_MOST_QUEUED, int(2 * total("CPU")))
    return ray.data.TaskPoolStrategy(size=most) if num_tasks > most else None  # a limit that is never reached makes Ray Data warn


def cpus(uri: str | None) -> float:
    """How many CPUs a task takes that reads pictures like this one: of a disk a whole one, for a third child on two cores disturbs."""
    return _CPUS_A_READER if uri is not None and storage.is_remote(uri) else 1


def _unseen(uris: list[str], probe: str | None) -> list[str]:
    """Which files the node that runs this does not see, a network disk's delay allowed for."""
    unseen = [uri for uri in (*uris, probe) if uri is not None]
    until = time.monotonic() + _SEEN_WITHIN_S
    while unseen := [uri for uri in unseen if not storage.exists(uri)]:
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    return unseen


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
    data = ray.data.from_arrow(table, override_num_blocks=num_blocks)
    data = data.map_batches(
        _spread_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"function": function, "shared": ray.put(shared)},
        compute=at_a_time(concurrency, num_blocks),
        num_cpus=cpus(items[0]),
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
