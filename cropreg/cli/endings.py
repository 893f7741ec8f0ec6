"""How a verb ends: what it says, the ``result.json`` beside its output, and its exit code."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError
from pydantic import ValidationError

from cropreg import __version__, logs, storage
from cropreg.errors import CropregError, LockedError, OutputError, UsageError
from cropreg.settings import DoorSettings, allowed

log = logging.getLogger(__name__)

_OURS = ("result.json", "run.json", "manifests", "pairs", "predictions.parquet", ".parts")  # an output of ours has one of these


class Interrupted(BaseException):
    """SIGTERM, as an exception, so that what is open is closed on the way out."""


class Stopped(Exception):
    """A verb was interrupted; the first argument is its exit code."""


def finish(work: Callable[[], dict[str, Any]], door: DoorSettings, out: str | None) -> int:
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
        return tell(error)
    except (KeyboardInterrupt, Interrupted, SystemExit) as error:
        # SystemExit: a Ray that was there before us has put its own handler of SIGTERM over ours.
        code = 130 if isinstance(error, KeyboardInterrupt) else 143
        _write_failure(out, code, "interrupted", unless=door.dry_run)
        raise Stopped(code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def tell(error: CropregError) -> int:
    """Prints an error; returns its exit code."""
    print(f"cropreg: {error}", file=sys.stderr)
    return error.exit_code


def in_words(error: CycloptsError) -> str:
    """What is wrong with a command line: of each wrong value its flag or variable, the value, and what is allowed."""
    if isinstance(error, MissingArgumentError) and error.keyword in (tokens := error.root_input_tokens or []):
        following = tokens[tokens.index(error.keyword) + 1 :][:1]
        if following and following[0].startswith("-") and not following[0].startswith("--"):
            return f"{error.keyword}: needs a value. One that begins with a hyphen is written {error.keyword}={following[0]}."
    wrong = error.__cause__
    if not isinstance(wrong, ValidationError) or error.argument is None:
        return str(error)
    flags = {child.field_info.name: child.tokens[0].keyword for child in error.argument.children if child.tokens}
    lines = []
    for item in wrong.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        said = f"{flags.get(name) or name} {item['input']}: " if name else ""
        lines.append(f"{said}{allowed(item['msg'])}.")
    return "\n".join(lines)


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
