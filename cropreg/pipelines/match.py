"""``cropreg match``: finds where every crop lies in its original, over the cluster, and writes the box dataset once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq
import ray.data

import cropreg
from cropreg import child, faults, groups, isolation, storage
from cropreg import pairs as pairing
from cropreg.content.pairing import KNOWN_COLUMNS, Search, pair_by_content
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.interchange import reading
from cropreg.interchange.reading import ImportedPair
from cropreg.known import Known
from cropreg.labels import Labelling, Row
from cropreg.logs import Progress
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair
from cropreg.pipelines import cluster
from cropreg.schema import (
    FOUND,
    GROUPS,
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
from cropreg.spill import Spill
from cropreg.splits import parse_shares, split_of

log = logging.getLogger(__name__)

_PART_PAIRS_MIN, _PART_PAIRS_MAX, _PARTS_WANTED = 32, 1000, 64
_PARTS_IN_MEMORY = 64

Labeller = Callable[[Sequence[Pair], Labelling, child.Limits], tuple[list[Row], list[Row]]]


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
    label: Labeller = isolation.label_pairs,
) -> dict[str, Any]:
    """Builds or extends the dataset and returns the summary: counts by verdict, top reasons, exit code.

    ``label`` makes rows of pairs, on a worker; measurements of everything else give another.

    Raises:
        UsageError: neither two folders nor a table, or a wrong setting.
        InputError: no pairs. OutputError: ``out`` is something else, or was built with other settings. ClusterError: Ray failed.
    """
    out = storage.absolute(out)
    shares = parse_shares(settings.split)
    how = Labelling(settings.proxy_long_px, settings.proxy_quality, settings.max_pixels, MatcherSettings())
    config = {"split": shares, "groups": groups.RULE, **asdict(how) | {"matcher": how.matcher.model_dump()}}
    summary: dict[str, Any] = {"verb": "match", "out": out}
    if settings.import_from and not settings.import_:
        raise UsageError("--import-from needs --import: say what it holds, xmp, pp3, coco or csv.")
    if settings.import_:
        config |= {"import": settings.import_, "matcher": None}
    with _listed(originals, crops, pairs, out, settings) as found:
        storage.refuse_if_held(out)
        existing = _existing(out, config, settings.overwrite)
        if dry_run:
            with _planned(found, existing, config, settings) as plan:
                looked_for = {"crops_looked_for": plan.num_crops_alone} if settings.by_content else {}
                return {**summary, **plan.figures, **looked_for, "code": 0, "dry_run": True, "parts": plan.num_parts}
        with storage.held(out, "match") as lease:
            existing = _existing(out, config, settings.overwrite)  # another run may have ended meanwhile
            with _planned(_by_content(found, existing, how, settings, address), existing, config, settings) as plan:
                if not plan.num_paired:
                    raise InputError(
                        f"no crop has an original: {plan.figures['pairs']} pictures and not one pair. {plan.first_alone} "
                        f"See --pair-by, --pairs and --by-content."
                    )
                if plan.num_parts or existing is None or plan.removed != existing.manifest.get("removed", []):
                    written, counts = (
                        _build(plan, out, how, shares, settings, address, label) if plan.num_parts else ([], Counter())
                    )
                    lease.check()
                    _commit(out, written, plan.stay + counts, existing, config, settings.overwrite, plan.removed)
                return {**summary, **plan.figures, **_report(BoxDataset.open(out), settings)}


def _by_content(
    found: Iterable[list[Pair]], existing: BoxDataset | None, how: Labelling, settings: MatchSettings, address: str | None
) -> Iterable[list[Pair]]:
    """The pairs, as they are or with an original for every crop that was alone and could be found in one."""
    if not settings.by_content:
        return found
    pairs = [pair for some in found for pair in some]
    known = existing.pairs(KNOWN_COLUMNS).to_pylist() if existing and not settings.overwrite else []
    retried = (settings.retry_failed or "").split(",")
    known = [row for row in known if row["verdict"] not in retried]  # a crop that stayed alone is looked for again, too
    spread = partial(cluster.spread, address=address, concurrency=settings.concurrency)
    return [pair_by_content(pairs, known, spread, Search(how.max_pixels, how.matcher, _limits(settings)))]


def _limits(settings: MatchSettings) -> child.Limits:
    return child.Limits(settings.pair_timeout_s, settings.pair_memory_mb * 2**20)


@dataclass(frozen=True)
class _Plan:
    """What a run has to do.

    ``figures`` are those of the summary; ``stay`` counts the rows that need nothing done, by verdict; ``removed`` are the ids of pairs
    whose files are gone; ``parts`` holds each part's name and pairs, on disk if they are many.
    """

    figures: dict[str, int]
    num_paired: int
    num_crops_alone: int
    first_alone: str
    stay: Counter[str]
    removed: list[str]
    parts: Spill

    @property
    def num_parts(self) -> int:
        return self.parts.count


@contextlib.contextmanager
def _planned(
    found: Iterable[list[Pair]], existing: BoxDataset | None, config: dict[str, Any], settings: MatchSettings
) -> Iterator[_Plan]:
    """Goes through all pairs once, and cuts what is to be matched into parts."""
    known = Known(None if settings.overwrite else existing)
    retried = settings.retry_failed.split(",") if settings.retry_failed else []
    num_pairs = num_alone = num_crops_alone = num_todo = 0
    first_alone = ""
    with Spill(most_in_memory=_PARTS_IN_MEMORY) as parts:
        for pairs in found:
            alone = [pair for pair in pairs if pair.original_uri is None or pair.crop_uri is None]
            num_pairs, num_alone = num_pairs + len(pairs), num_alone + len(alone)
            num_crops_alone += sum(pair.original_uri is None for pair in alone)
            if alone and not first_alone:
                first = min(alone, key=lambda pair: pair.pair_id)
                first_alone = f"First: {first.original_uri or first.crop_uri}: {first.reason}."
            todo = known.todo(pairs, retried)
            num_todo += len(todo)
            # Building again gives parts of other names: what is there may be damaged, and must stay until the new dataset stands.
            again = existing.number if existing is not None and (settings.overwrite or known.has_retried) else 0
            identity = fingerprint([config, again] if again else config)
            for part in cut_parts(todo, settings.pairs_per_part):
                name = fingerprint([identity, sorted([p.pair_id, p.stamp] for p in part)])
                parts.add(name, (name, [asdict(p) for p in part]))
        figures = {"pairs": num_pairs, "unpaired": num_alone, "computed": num_todo}
        yield _Plan(figures, num_pairs - num_alone, num_crops_alone, first_alone, known.counts(), known.removed(), parts)


@contextlib.contextmanager
def _listed(
    originals: str | None, crops: str | None, pairs: str | None, out: str, settings: MatchSettings
) -> Iterator[Iterable[list[Pair]]]:
    """The pairs of folders, of a table, or of what other programs wrote; may be gone through again."""
    if settings.import_:
        yield [list(_imported(originals, crops, pairs, out, settings))]
    else:
        with pairing.streamed(originals, crops, pairs, pair_by=settings.pair_by, out=out) as found:
            yield found


def _imported(originals: str | None, crops: str | None, pairs: str | None, out: str, settings: MatchSettings) -> list[ImportedPair]:
    """The pairs of ``--import``: originals, and what another program says of their crops."""
    if crops is not None or pairs is not None or settings.pair_by is not None:
        raise UsageError("--import takes the crops from what other programs wrote: leave out CROPS, --pairs and --pair-by.")
    assert settings.import_ is not None
    return reading.find(settings.import_, originals, settings.import_from, out)


def _existing(out: str, config: dict[str, Any], overwrite: bool) -> BoxDataset | None:
    """The dataset that is at ``out``, or None; refuses a folder of something else, or of other settings."""
    if latest_manifest(out) == 0:
        strangers = storage.exists(out) and next(
            (
                e.relative
                for e in storage.list_files(out)
                if not e.relative.startswith(("pairs/", "proxies/", "explain/", "result.json", "groups/"))
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
    plan: _Plan,
    out: str,
    how: Labelling,
    shares: tuple[float, ...],
    settings: MatchSettings,
    address: str | None,
    label: Labeller,
) -> tuple[list[Part], Counter[str]]:
    """Builds all parts over the cluster; returns what was written, in an order that depends on the parts alone, and counts by verdict.

    A part of that name that is there already is taken as it is.
    """
    cluster.connect(address)
    parts = (part for some in plan.parts for part in some)
    cluster.check_shared(
        (uri for _, pairs in parts for pair in pairs for uri in (pair["original_uri"], pair["crop_uri"]) if uri), out
    )
    read_uri = next((uri for some in plan.parts for _, pairs in some for pair in pairs if (uri := pair["original_uri"])), None)
    # One block a part, put into Ray's store, which keeps on disk what is too much for memory.
    blocks = [ray.put(pa.table({"name": [name], "pairs": [json.dumps(pairs)]})) for some in plan.parts for name, pairs in some]
    data = ray.data.from_arrow_refs(blocks).map(
        _build_part,
        fn_kwargs={"out": out, "how": how, "limits": _limits(settings), "shares": shares, "label": label},
        compute=cluster.at_a_time(settings.concurrency, plan.num_parts),
        num_cpus=cluster.cpus(read_uri),
    )
    written: list[Part] = []
    counts: Counter[str] = Counter()
    with cluster.faults_named(), Progress("match", plan.figures["computed"], "pairs") as progress:
        for row in data.iter_rows():
            listed = [Part(**part) for part in json.loads(row["parts"])]
            written += listed
            new = json.loads(row["counts"])
            counts.update(new)
            progress.advance(listed[0].rows, **new)
    expected = plan.figures["computed"]
    assert counts.total() == expected, f"{expected} pairs went in and {counts.total()} rows came out"
    return sorted(written, key=lambda part: part.file), counts


def _build_part(
    row: dict[str, Any], out: str, how: Labelling, limits: child.Limits, shares: tuple[float, ...], label: Labeller
) -> dict[str, Any]:
    """Matches one part's pairs and writes its files, or finds them written by an earlier try; runs on a worker."""
    pairs_file, proxies_file = f"pairs/part-{row['name']}.parquet", f"proxies/part-{row['name']}.arrow"
    pairs_uri, proxies_uri = storage.join(out, pairs_file), storage.join(out, proxies_file)
    if not storage.exists(pairs_uri):
        values = json.loads(row["pairs"])
        if "kind" in values[0]:  # imported: there is nothing to match
            imported = [ImportedPair.of(pair) for pair in values]
            rows, proxies = isolation.label_pairs(imported, how, limits, reading.label_imported)
        else:
            rows, proxies = label([Pair(**pair) for pair in values], how, limits)
        faults.trip("part", row["name"])
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


def _commit(
    out: str,
    written: list[Part],
    counts: Counter[str],
    existing: BoxDataset | None,
    config: dict[str, Any],
    overwrite: bool,
    removed: list[str],
) -> None:
    """Makes the written parts, behind those there are, the dataset; pairs in ``removed`` have no files any more and no longer count."""
    kept = existing.parts("pairs") + existing.parts("proxies") if existing and not overwrite else []
    listed = [*kept, *(part for part in written if part not in kept)]
    if removed:
        log.info("removed=%d pairs whose files are no longer in the input", len(removed))
    coming = BoxDataset(out, 0, {"parts": [asdict(part) for part in listed], "removed": removed})
    if rows := groups.regrouped(coming, None if overwrite else existing, config["split"]):
        data = parquet_bytes(rows, GROUPS)
        file = f"groups/part-{hashlib.sha256(data).hexdigest()[:20]}.parquet"
        storage.write_whole(storage.join(out, file), data)
        listed.append(Part.of("groups", file, len(rows), data))
    faults.trip("commit", out)
    number = commit_manifest(
        out,
        listed,
        config=config,
        counts={verdict: counts[verdict] for verdict in VERDICTS},
        parent=existing.number if existing else 0,
        version=cropreg.__version__,
        removed=removed,
    )
    if number is None:
        raise OutputError(
            f"{out}: another run has just finished this dataset. Run the same command again: it computes what is missing."
        )
    if existing and overwrite:
        keep = {part.file for part in listed}
        for part in existing.parts("pairs") + existing.parts("proxies") + existing.parts("groups"):
            if part.file not in keep:
                storage.remove(storage.join(out, part.file))


def _report(dataset: BoxDataset, settings: MatchSettings) -> dict[str, Any]:
    """Writes ``problems.csv`` and returns counts, top reasons and the exit code."""
    columns = ["pair_id", "original_uri", "crop_uri", "verdict", "reason"]
    problems: list[dict[str, Any]] = []
    for table in dataset.tables(columns):
        problems += table.filter(pc.not_equal(table["verdict"], FOUND)).to_pylist()
    problems.sort(key=lambda row: str(row["pair_id"]))
    storage.write_whole(storage.join(dataset.uri, "problems.csv"), csv_bytes(problems, columns))
    counts = {verdict: number for verdict, number in dataset.manifest["counts"].items() if number}
    tried = sum(counts.values()) - counts.get(UNPAIRED, 0)
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
