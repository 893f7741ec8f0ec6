"""``cropreg review``: a local page to confirm, correct or reject labels and predictions by keyboard; decisions flow back as data."""

from __future__ import annotations

import getpass
import logging
import secrets
import socket
import sys
import threading
import time
import webbrowser
from typing import Any

import uvicorn

from cropreg import schema, storage
from cropreg.errors import UsageError
from cropreg.proxies import Proxies
from cropreg.review import app, queue
from cropreg.review.pictures import Pictures
from cropreg.review.session import LABELS, PREDICTIONS, Session
from cropreg.schema import BoxDataset
from cropreg.settings import ReviewSettings

log = logging.getLogger(__name__)


def run(uri: str, *, settings: ReviewSettings, dry_run: bool = False) -> dict[str, Any]:
    """Serves the page for a box dataset or a folder of predictions until it is interrupted; returns what was decided.

    Raises:
        InputError: neither is there. UsageError: the port is taken. OutputError: the folder cannot be written; see ``--read-only``.
        ModelError: the checkpoint of ``--run`` is damaged.
    """
    uri = storage.absolute(uri)
    dataset = BoxDataset.open(uri) if schema.latest_manifest(uri) else None
    if dataset is not None:
        max_pixels = int(dataset.manifest["config"].get("max_pixels", settings.max_pixels))
        items, pictures = queue.of_labels(dataset), Pictures(Proxies(dataset), max_pixels)
    else:
        items, pictures = queue.of_predictions(queue.open_predictions(uri)), Pictures(None, settings.max_pixels)
    kind = LABELS if dataset is not None else PREDICTIONS
    summary: dict[str, Any] = {"verb": "review", "code": 0, "reviewing": uri, "kind": kind, "pictures": len(items)}
    if dry_run:
        return {**summary, "dry_run": True}
    if not items and (settings.run is None or dataset is None):
        return {**summary, "text": f"{uri}: nothing here needs a look. All is settled, and no label is far from its neighbours."}
    session = Session(uri, kind, items, pictures, who=_who(), read_only=settings.read_only)
    listening = _listen(settings.port)
    stop = threading.Event()
    if settings.run is not None:
        _ask(session, settings.run, dataset, stop)
    try:
        _serve(session, listening, settings)
    finally:
        stop.set()
        session.leave()
    open_ = sum(state == "open" for _, state in session.states())
    done = f"{session.decided} decided" if session.decided >= 0 else f"{-session.decided} undone"  # of an earlier sitting
    text = f"{done}, {open_} left. "
    if kind == LABELS:
        text += f"What was decided counts from now on: cropreg train {uri} --out RUN"
    else:
        text += "To write what was decided: cropreg predict RUN IMAGES --out OUT --apply-reviews"
    return {**summary, "decided": session.decided, "left": open_, "text": text}


def _serve(session: Session, listening: socket.socket, settings: ReviewSettings) -> None:
    """Serves until the process is interrupted: that is how a sitting ends."""
    token, port = secrets.token_urlsafe(24), listening.getsockname()[1]
    config = uvicorn.Config(
        app.make(session, token, port), log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    address = f"http://127.0.0.1:{port}/{token}/"
    threading.Thread(target=_announce, args=(server, address, session, settings.browser), daemon=True).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        log.debug("the sitting has ended")


def _announce(server: uvicorn.Server, address: str, session: Session, browser: bool) -> None:
    """Tells the address once somebody answers there: to a person, so past the log's levels and away from ``--json``."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.01)
    mode = " (read-only)" if session.read_only else ""
    sys.stderr.write(f"{len(session.items):,} to review{mode}. Ctrl+C ends.\n{address}\n")
    sys.stderr.flush()
    if browser:
        webbrowser.open(address)


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise UsageError(f"--port {port}: {error.strerror}. Leave it out to take any that is free.") from error
    return listening


def _ask(session: Session, run_uri: str, dataset: BoxDataset | None, stop: threading.Event) -> None:
    from cropreg.prediction import Predictor
    from cropreg.review import opinion

    predictor = Predictor.open(run_uri)
    threading.Thread(target=opinion.ask, args=(session, predictor, dataset, stop), daemon=True).start()


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "someone"
