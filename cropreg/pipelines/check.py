"""``cropreg check``: a look at a box dataset before anything is trained on it: counts, reasons, histograms, and the labels themselves."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cropreg import report, storage
from cropreg.boxes import to_margins
from cropreg.dataset import CropDataset
from cropreg.errors import InputError
from cropreg.schema import FOUND, SPLITS, VERDICTS, BoxDataset, csv_bytes, top_reasons

log = logging.getLogger(__name__)

_SHOWN = 24
_SUSPICIOUS = 4.0  # robust standard deviations from the median margins


def run(boxes: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Checks every part against its checksum, writes ``problems.csv``, ``labels.jpg``, ``suspicious.jpg`` and ``histograms.png``.

    Returns:
        the summary: counts by verdict and split, groups of near-duplicates, top reasons, and the labels that lie farthest from the others.

    Raises:
        InputError: no dataset, a damaged part, a group that straddles a split, or not one found pair.
    """
    dataset = BoxDataset.open(boxes)
    if dry_run:
        return {"verb": "check", "code": 0, "out": dataset.uri, "dry_run": True, "counts": dataset.manifest["counts"]}
    for part in dataset.parts("proxies"):
        dataset.read_part(part)
    table = dataset.pairs()
    grouped = _groups(dataset.uri, table)
    rows = table.select(["pair_id", "original_uri", "crop_uri", "verdict", "reason"]).to_pylist()
    problems = [row for row in rows if row["verdict"] != FOUND]
    storage.write_whole(storage.join(dataset.uri, "problems.csv"), csv_bytes(problems, list(rows[0]) if rows else ["pair_id"]))
    data = CropDataset(dataset, "all", 64)
    if len(data) == 0:
        raise InputError(
            f"{dataset.uri}: not one pair was found, so there is nothing to look at. See problems.csv there for the reasons."
        )
    margins = to_margins(data.labels.boxes_norm)
    oddness = _oddness(margins)
    by_oddness = np.argsort(-oddness, kind="stable")
    spaced = np.unique(np.linspace(0, len(data) - 1, _SHOWN).astype(int))
    odd = [int(i) for i in by_oddness[:_SHOWN] if oddness[i] > _SUSPICIOUS]
    for name, chosen in (("labels.jpg", spaced.tolist()), ("suspicious.jpg", odd)):
        uri = storage.join(dataset.uri, name)
        if chosen:
            storage.write_whole(uri, report.mosaic_jpeg([_example(data, i, oddness[i]) for i in chosen]))
        else:
            storage.remove(uri)
    scores = table["score"].drop_null().to_numpy()
    storage.write_whole(storage.join(dataset.uri, "histograms.png"), report.histograms_png(margins, scores))
    found = [row["verdict"] == FOUND for row in rows]
    counts = Counter(row["verdict"] for row in rows)
    splits = Counter(split for split, ok in zip(table["split"].to_pylist(), found, strict=True) if ok)
    return {
        "verb": "check",
        "code": 0,
        "out": dataset.uri,
        "counts": {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
        "found_by_split": {split: splits[split] for split in SPLITS},
        "groups": grouped,
        "suspicious": int((oddness > _SUSPICIOUS).sum()),
        "top_reasons": top_reasons(problems, 5),
        "look_at": ", ".join(["labels.jpg", *(["suspicious.jpg"] if odd else []), "histograms.png", "problems.csv"]),
    }


def _groups(uri: str, table: pa.Table) -> dict[str, int]:
    """How many originals share their group with others, once it is shown that no original and no group stands in two splits."""
    table = table.filter(pc.is_valid(table["original_id"]))
    for key in ("group", "original_id"):
        splits = table.group_by(key).aggregate([("split", "count_distinct"), ("split", "min"), ("split", "max")])
        torn = splits.filter(pc.greater(splits["split_count_distinct"], 1)).sort_by(key).to_pylist()
        if torn:
            raise InputError(
                f"{uri}: {len(torn)} groups stand in more than one split, first {torn[0][key]} in {torn[0]['split_min']} and "
                f"{torn[0]['split_max']}. What is measured on them would be too good: match again with --overwrite."
            )
    sizes = table.group_by("group").aggregate([("original_id", "count_distinct")])["original_id_count_distinct"].to_numpy()
    return {
        "originals": int(sizes.sum()),
        "groups_of_several": int((sizes > 1).sum()),
        "originals_in_them": int(sizes[sizes > 1].sum()),
        "largest": int(sizes.max(initial=0)),
        "in_two_splits": 0,
    }


def _oddness(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each label (N, 4) lies from the median margins, in robust standard deviations of the edge where it is farthest: (N,)."""
    median = np.median(margins, axis=0)
    spread = 1.4826 * np.median(np.abs(margins - median), axis=0)  # of a normal distribution, the standard deviation
    return np.asarray((np.abs(margins - median) / np.maximum(spread, 0.01)).max(axis=1))


def _example(data: CropDataset, row: int, oddness: float) -> report.Example:
    name = storage.name_of(data.labels.original_uris[row].as_py())
    return report.Example(data.picture(row), data.labels.boxes_norm[row], None, f"{name}  {oddness:.1f} sd")
