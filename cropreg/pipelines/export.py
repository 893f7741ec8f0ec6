"""``cropreg export``: a model file for other runtimes."""

from __future__ import annotations

import logging
from typing import Any

from cropreg import checkpoint, export, storage
from cropreg.errors import OutputError
from cropreg.settings import ExportSettings

log = logging.getLogger(__name__)


def run(run_uri: str, *, out: str | None, settings: ExportSettings, dry_run: bool = False) -> dict[str, Any]:
    """Writes the best model of a run (or a checkpoint) as one file, ``model.onnx`` in the run by default; returns the summary.

    Raises:
        InputError: no run. ModelError: the checkpoint is damaged, or the file answers otherwise than the model; nothing is written.
        OutputError: the file exists already. UsageError: the extra that the format needs is not installed.
    """
    run_uri = storage.absolute(run_uri)
    file = storage.join(run_uri, f"model.{settings.format}") if out is None else storage.absolute(out)
    if storage.exists(file) and not settings.overwrite:
        raise OutputError(f"{file} exists already and is kept. Use --overwrite or another --out.")
    model, info = checkpoint.load(checkpoint.best_of(run_uri))
    summary: dict[str, Any] = {"verb": "export", "code": 0, "file": file, "image_side": info.architecture.image_side}
    if dry_run:
        return {**summary, "dry_run": True}
    data, difference = export.to_onnx(model, info)
    storage.write_whole(file, data, overwrite=settings.overwrite)
    log.info("file=%s bytes=%d max_difference=%.3g", file, len(data), difference)
    return {**summary, "bytes": len(data), "max_difference": f"{difference:.3g}", "allowed": f"{export.MAX_DIFFERENCE:g}"}
