"""``cropreg match``: finds where every crop lies in its original, over the cluster, and writes the box dataset once."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import ray.data

import cropreg
from cropreg import pairs as pairing
from cropreg import storage
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.interchange import reading
from cropreg.interchange.reading import ImportedPair
from cropreg.labels import Labelling, label_pairs
from cropreg.logs import Progress
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair
from cropreg.pipelines import cluster
from cropreg.schema import (
    FOUND,
    PAIRS,
    UNPAIRED,
    VERDICTS,
    BoxDataset,
    Part,
    commit_manifest,
    csv_bytes,
    fingerprint,
    latest_manifest,
    parquet_bytes,
    proxies_bytes,
    top_reasons,
)
from cropreg.settings import MatchSettings
from cropreg.splits import parse_shares, split_of

log = logging.getLogger(__name__)

_PART_PAIRS_MIN, _PART_PAIRS_MAX, _PARTS_WANTED = 16, 1000, 64


def compute_bounding_boxes(
    originals: str | None = None, crops: str | None = None, out: str = "boxes", *, pairs: str | None = None, **settings: Any
) -> BoxDataset:
    """Finds every crop in its original and returns the box dataset: what ``cropreg match`` does, from Python.

    Runs once, before any split or training; run again it computes only what is new.

    Args:
        originals, crops: folders, paired by relative path; or ``pairs``: a table with the columns ``original`` and ``crop``.
        out: the folder of the dataset.
        **settings: fields of :class:`cropreg.settings.MatchSettings`.

    Raises:
        InputError, OutputError, UsageError, ClusterError: as the command would end.
    """
    run(originals, crops, out=out, pairs=pairs, settings=MatchSettings(**settings))
    return BoxDataset.open(out)


def run(
    originals: str | None,
    crops: str | None,
    *,
    out: str,
    pairs: str | None = None,
    settings: MatchSettings,
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Builds or extends the dataset and returns the summary: counts by verdict, top reasons, exit code.

    Raises:
        UsageError: neither two folders nor a table, or a wrong setting.
        InputError: no pairs. OutputError: ``out`` is something else, or was built with other settings. ClusterError: Ray failed.
    """
    out = storage.absolute(out)
    shares = parse_shares(settings.split)
    how = Labelling(settings.proxy_long_px, settings.proxy_quality, settings.max_pixels, MatcherSettings())
    config = {"split": shares, **asdict(how) | {"matcher": how.matcher.model_dump()}}
    found: Sequence[Pair]
    if settings.import_from and not settings.import_:
        raise UsageError("--import-from needs --import: say what it holds, xmp, pp3, coco or csv.")
    if settings.import_:
        config = {"split": shares, "import": settings.import_, **asdict(how), "matcher": None}
        found = _imported(originals, crops, pairs, settings)
    else:
        found = pairing.find(originals, crops, pairs, pair_by=settings.pair_by)
    existing = _existing(out, config, settings.overwrite)
    todo = _todo(found, existing, settings.overwrite)
    parts = cut_parts(todo, settings.pairs_per_part)
    num_unpaired = sum(p.original_uri is None or p.crop_uri is None for p in found)
    summary: dict[str, Any] = {"verb": "match", "out": out, "pairs": len(found), "unpaired": num_unpaired, "computed": len(todo)}
    if dry_run:
        return {**summary, "code": 0, "dry_run": True, "parts": len(parts)}
    if num_unpaired == len(found):
        raise InputError(
            f"no crop has an original: {len(found)} pictures and not one pair. "
            f"First: {found[0].original_uri or found[0].crop_uri}: {found[0].reason}. See --pair-by and --pairs."
        )
    kept = existing if not settings.overwrite else None
    removed = sorted(_all_ids(kept) - {pair.pair_id for pair in found}) if kept else []
    if todo or existing is None or removed != existing.manifest.get("removed", []):
        storage.make_folder(out)
        # Building again gives parts of other names: what is there may be damaged, and must stay until the new dataset stands.
        again = existing.number if existing and settings.overwrite else 0
        written = _build(parts, out, [config, again] if again else config, how, shares, settings, address) if parts else []
        _commit(out, written, existing, config, settings.overwrite, removed)
    return {**summary, **_report(BoxDataset.open(out), settings)}


def _imported(originals: str | None, crops: str | None, pairs: str | None, settings: MatchSettings) -> list[ImportedPair]:
    """The pairs of ``--import``: originals, and what another program says of their crops."""
    if crops is not None or pairs is not None or settings.pair_by is not None:
        raise UsageError("--import takes the crops from what other programs wrote: leave out CROPS, --pairs and --pair-by.")
    assert settings.import_ is not None
    return reading.find(settings.import_, originals, settings.import_from)


def _existing(out: str, config: dict[str, Any], overwrite: bool) -> BoxDataset | None:
    """The dataset that is at ``out``, or None; refuses a folder of something else, or of other settings."""
    if latest_manifest(out) == 0:
        strangers = storage.exists(out) and next(
            (
                e.relative
                for e in storage.list_files(out)
                if not e.relative.startswith(("pairs/", "proxies/", "explain/", "result.json"))
            ),
            None,
        )
        if strangers:
            raise OutputError(f"{out}: this folder holds other things ({strangers}). Give a new or empty one with --out.")
        return None
    existing = BoxDataset.open(out)
    if existing.manifest["fingerprint"] != fingerprint(config) and not overwrite:
        raise OutputError(
            f"{out}: this dataset was built with other settings or another matcher, and rows of both must not mix. "
            f"Use --overwrite to build it again, or another --out."
        )
    return existing


def _todo(found: Sequence[Pair], existing: BoxDataset | None, overwrite: bool) -> list[Pair]:
    """The pairs that are new or whose files changed since they were matched."""
    if existing is None or overwrite:
        return list(found)
    everything = BoxDataset(existing.uri, existing.number, {**existing.manifest, "removed": []})
    known = everything.pairs(["pair_id", "stamp"])
    stamps = dict(zip(known["pair_id"].to_pylist(), known["stamp"].to_pylist(), strict=True))
    return [pair for pair in found if stamps.get(pair.pair_id) != pair.stamp]


def cut_parts(pairs: Sequence[Pair], pairs_per_part: int) -> list[list[Pair]]:
    """Cuts pairs into parts of about ``pairs_per_part`` (0: by their number alone); crops of one original stay in one part."""
    size = pairs_per_part or min(max(math.ceil(len(pairs) / _PARTS_WANTED), _PART_PAIRS_MIN), _PART_PAIRS_MAX)
    ordered = sorted(pairs, key=lambda p: (p.original_uri or "", p.pair_id))
    parts: list[list[Pair]] = []
    for pair in ordered:
        same = parts and pair.original_uri is not None and pair.original_uri == parts[-1][-1].original_uri
        if not parts or (len(parts[-1]) >= size and not same):
            parts.append([])
        parts[-1].append(pair)
    return parts


def _build(
    parts: Sequence[Sequence[Pair]],
    out: str,
    identity: Any,
    how: Labelling,
    shares: tuple[float, ...],
    settings: MatchSettings,
    address: str | None,
) -> list[Part]:
    """Builds all parts over the cluster; returns what was written, in an order that depends on the parts alone.

    ``identity`` is what parts are named by beside their pairs: a part of that name that is there already is taken as it is.
    """
    cluster.connect(address)
    identity_id = fingerprint(identity)
    rows = [
        {
            "name": fingerprint([identity_id, sorted([p.pair_id, p.stamp] for p in part)]),
            "pairs": json.dumps([asdict(p) for p in part]),
        }
        for part in parts
    ]
    data = ray.data.from_arrow(pa.Table.from_pylist(rows), override_num_blocks=len(rows))
    compute = ray.data.TaskPoolStrategy(size=settings.concurrency) if settings.concurrency else None
    data = data.map(_build_part, fn_kwargs={"out": out, "how": how, "shares": shares}, compute=compute)
    written: dict[str, list[Part]] = {}
    num_rows = 0
    with cluster.faults_named(), Progress("match", sum(map(len, parts)), "pairs") as progress:
        for row in data.iter_rows():
            listed = [Part(**part) for part in json.loads(row["parts"])]
            written[row["name"]] = listed
            num_rows += listed[0].rows
            progress.advance(listed[0].rows, **json.loads(row["counts"]))
    expected = sum(map(len, parts))
    assert num_rows == expected, f"{expected} pairs went in and {num_rows} rows came out"
    return [part for row in rows for part in written[row["name"]]]


def _build_part(row: dict[str, Any], out: str, how: Labelling, shares: tuple[float, ...]) -> dict[str, Any]:
    """Matches one part's pairs and writes its files, or finds them written by an earlier try; runs on a worker."""
    cv2.setNumThreads(1)  # Ray runs as many tasks as there are cores
    pairs_file, proxies_file = f"pairs/part-{row['name']}.parquet", f"proxies/part-{row['name']}.arrow"
    pairs_uri, proxies_uri = storage.join(out, pairs_file), storage.join(out, proxies_file)
    if not storage.exists(pairs_uri):
        values = json.loads(row["pairs"])
        if "kind" in values[0]:  # imported: there is nothing to match
            limits = {"proxy_long_px": how.proxy_long_px, "proxy_quality": how.proxy_quality, "max_pixels": how.max_pixels}
            rows, proxies = reading.label_imported([ImportedPair.of(pair) for pair in values], **limits)
        else:
            rows, proxies = label_pairs([Pair(**pair) for pair in values], how)
        for item in rows:
            item["split"] = split_of(item["group"], shares)
        if proxies:
            storage.create_exclusive(proxies_uri, proxies_bytes(proxies))
        storage.create_exclusive(pairs_uri, parquet_bytes(rows, PAIRS))  # last: where it stands, the proxies stand too
    data = storage.read_bytes(pairs_uri)
    verdicts = pq.read_table(pa.BufferReader(data), columns=["verdict"])["verdict"].to_pylist()
    parts = [Part.of("pairs", pairs_file, len(verdicts), data)]
    if storage.exists(proxies_uri):
        data = storage.read_bytes(proxies_uri)
        parts.append(Part.of("proxies", proxies_file, pa.ipc.open_file(pa.BufferReader(data)).read_all().num_rows, data))
    return {"name": row["name"], "parts": json.dumps([asdict(p) for p in parts]), "counts": json.dumps(Counter(verdicts))}


def _all_ids(dataset: BoxDataset) -> set[str]:
    """The ids of all pairs in the dataset's parts, those whose files are gone too."""
    everything = BoxDataset(dataset.uri, dataset.number, {**dataset.manifest, "removed": []})
    return set(everything.pairs(["pair_id"])["pair_id"].to_pylist())


def _commit(
    out: str, written: list[Part], existing: BoxDataset | None, config: dict[str, Any], overwrite: bool, removed: list[str]
) -> None:
    """Makes the written parts, behind those there are, the dataset; pairs in ``removed`` have no files any more and no longer count."""
    kept = existing.parts("pairs") + existing.parts("proxies") if existing and not overwrite else []
    listed = [*kept, *(part for part in written if part not in kept)]
    parent = existing.number if existing else 0
    if removed:
        log.info("removed=%d pairs whose files are no longer in the input", len(removed))
    coming = BoxDataset(out, 0, {"parts": [asdict(p) for p in listed], "removed": removed})
    verdicts = coming.pairs(["verdict"])["verdict"].to_pylist()
    counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    number = commit_manifest(out, listed, config=config, counts=counts, parent=parent, version=cropreg.__version__, removed=removed)
    if number is None:
        raise OutputError(
            f"{out}: another run has just finished this dataset. Run the same command again: it computes what is missing."
        )
    if existing and overwrite:
        keep = {part.file for part in listed}
        for part in existing.parts("pairs") + existing.parts("proxies"):
            if part.file not in keep:
                storage.remove(storage.join(out, part.file))


def _report(dataset: BoxDataset, settings: MatchSettings) -> dict[str, Any]:
    """Writes ``problems.csv`` and returns counts, top reasons and the exit code."""
    table = dataset.pairs(["pair_id", "original_uri", "crop_uri", "verdict", "reason"])
    problems = [row for row in table.to_pylist() if row["verdict"] != FOUND]
    storage.write_whole(storage.join(dataset.uri, "problems.csv"), csv_bytes(problems, table.column_names))
    counts = {verdict: number for verdict, number in dataset.manifest["counts"].items() if number}
    tried = table.num_rows - counts.get(UNPAIRED, 0)
    bad = tried - counts.get(FOUND, 0)
    result: dict[str, Any] = {"code": 0, "counts": counts, "manifest": dataset.number}
    result["top_reasons"] = top_reasons(problems)
    if tried and bad / tried > settings.max_bad_share:
        result["code"] = 6
        result["message"] = (
            f"{bad} of {tried} pairs were not found, more than the share of {settings.max_bad_share:g} that --max-bad-share allows. "
            f"Every one stands with its reason in {storage.join(dataset.uri, 'problems.csv')}."
        )
    return result
