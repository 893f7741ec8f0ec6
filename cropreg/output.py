"""Output: the folder that ``predict`` writes, its tables, and what runs before this one have left there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cropreg import storage
from cropreg.errors import OutputError
from cropreg.schema import FAILED, PREDICTIONS, csv_bytes, parquet_bytes, read_predictions
from cropreg.storage import Entry

TABLE, PARTS = "predictions.parquet", ".parts"


def earlier(out: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of an earlier run that finished, and of one that was interrupted."""
    table, parts = storage.join(out, TABLE), storage.join(out, PARTS)
    finished = read_predictions(table) if storage.exists(table) else []
    uris = [entry.uri for entry in storage.list_files(parts, (".parquet",))] if storage.is_folder(parts) else []
    return finished, [row for uri in uris for row in read_predictions(uri)]


def at_home(rows: list[dict[str, Any]], out: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows, whose crops lie in ``out`` though it was moved or copied: those of its old place are not ours to write or remove."""
    home = {entry.uri: storage.join(out, storage.local_path(storage.path_to_uri(entry.relative))) for entry in entries}
    for row in rows:
        if row["crop_uri"] is not None and not row["crop_uri"].startswith(storage.join(out, "")):
            row["crop_uri"] = home.get(row["image_uri"])
    return rows


def refuse_others(out: str, model_id: str, rows: Sequence[dict[str, Any]]) -> None:
    """Raises OutputError if the rows are of another model or other settings, or ``out`` holds something else."""
    if any(not row["stamp"].startswith(model_id) for row in rows):
        raise OutputError(
            f"{out}: holds crops of another model or other settings. Use --overwrite to replace them, or another --out."
        )
    if not rows and storage.is_folder(out) and next((e for e in storage.list_files(out) if e.relative != "result.json"), None):
        raise OutputError(f"{out}: this folder holds other things. Give a new or empty one with --out, or --overwrite.")


def done(rows: Sequence[dict[str, Any]], model_id: str, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """The rows of this model that still hold, by image."""
    stamps = {entry.uri: f"{model_id}/{entry.stamp}" for entry in entries}
    return {row["image_uri"]: row for row in rows if row["verdict"] != FAILED and stamps.get(row["image_uri"]) == row["stamp"]}


def apart(rows: Sequence[dict[str, Any]], model_id: str, out: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows of this model whose crops still lie in ``out`` though their pictures are not among the entries.

    They are another folder's, or were put away when they were cropped.
    """
    listed = {entry.uri for entry in entries}
    ours = {row["image_uri"]: row for row in rows if row["image_uri"] not in listed and row["stamp"].startswith(f"{model_id}/")}
    there = {entry.uri for entry in storage.list_files(out)} if ours else set()
    return [row for row in ours.values() if row["crop_uri"] in there]


def write_tables(out: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the table twice, for programs and for people, and only then drops the parts it was collected in."""
    storage.write_whole(storage.join(out, "predictions.csv"), csv_bytes(rows, PREDICTIONS.names))
    storage.write_whole(storage.join(out, TABLE), parquet_bytes(rows, PREDICTIONS))
    storage.remove(storage.join(out, PARTS))
