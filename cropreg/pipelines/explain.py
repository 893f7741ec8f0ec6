"""``cropreg match --explain``: one picture that shows what the matcher saw of one pair.  Needs no Ray."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Sequence
from typing import Any

from cropreg import pairs as pairing
from cropreg import storage
from cropreg.errors import InputError
from cropreg.matching.explain import explain
from cropreg.matching.settings import MatcherSettings
from cropreg.schema import BoxDataset, latest_manifest
from cropreg.settings import MatchSettings

_Known = tuple[str, str | None, str | None]  # pair_id, original_uri, crop_uri


def run(
    pair: str,
    originals: str | None,
    crops: str | None,
    *,
    out: str,
    pairs: str | None = None,
    settings: MatchSettings,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Matches one pair again and writes ``explain/<pair_id>.png`` into the box dataset at ``out``.

    Args:
        pair: a pair_id or its beginning, or the name of a crop: its path, its file name, with or without ending.
        originals, crops, pairs: where to look; left out, the box dataset itself is asked.

    Raises:
        InputError: no such pair, several, or one without a counterpart. UsageError: as ``cropreg match``.
    """
    out = storage.absolute(out)
    pair_id, original_uri, crop_uri = _chosen(pair, _known(originals, crops, out, pairs, settings))
    if original_uri is None or crop_uri is None:
        raise InputError(f"{original_uri or crop_uri}: this file has no counterpart, so there is nothing to match.")
    if dry_run:
        return {"verb": "match", "code": 0, "dry_run": True, "pair_id": pair_id, "original": original_uri, "crop": crop_uri}
    files = [_read(uri) for uri in (original_uri, crop_uri)]
    matcher = MatcherSettings(max_pixels=settings.max_pixels)
    match, png = explain(files[0], files[1], matcher, (posixpath.basename(original_uri), posixpath.basename(crop_uri)))
    picture = storage.join(out, f"explain/{pair_id}.png")
    storage.write_whole(picture, png)
    return {"verb": "match", "code": 0, "pair_id": pair_id, "verdict": match.verdict, "reason": match.reason, "picture": picture}


def _known(originals: str | None, crops: str | None, out: str, pairs: str | None, settings: MatchSettings) -> list[_Known]:
    if originals is None and crops is None and pairs is None and latest_manifest(out):
        table = BoxDataset.open(out).pairs(["pair_id", "original_uri", "crop_uri"])
        return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    found = pairing.find(originals, crops, pairs, pair_by=settings.pair_by, out=out)
    return [(p.pair_id, p.original_uri, p.crop_uri) for p in found]


def _chosen(pair: str, known: Sequence[_Known]) -> _Known:
    """The one pair that ``pair`` names: by its id, else by its crop, the whole path before the file name before the name alone."""
    tests = [
        [row for row in known if row[0].startswith(pair)],
        *([row for row in known if row[2] is not None and name_of(row[2]) == pair] for name_of in (str, posixpath.basename, _stem)),
        [row for row in known if row[2] is not None and row[2].endswith("/" + pair.lstrip("/"))],
    ]
    fitting = next((rows for rows in tests if rows), [])
    if not fitting:
        near = difflib.get_close_matches(
            pair, {name for _, _, uri in known if uri for name in (posixpath.basename(uri), _stem(uri))}, 1
        )
        raise InputError(
            f"--explain {pair}: no pair has this id and no crop this name."
            + (f" Did you mean {near[0]}?" if near else " The ids stand in problems.csv and in pairs/.")
        )
    if len(fitting) > 1:
        some = ", ".join(f"{row[0]} ({row[2]})" for row in fitting[:3])
        raise InputError(f"--explain {pair}: {len(fitting)} pairs fit: {some}. Give the pair_id of one.")
    return fitting[0]


def _stem(uri: str) -> str:
    return posixpath.splitext(posixpath.basename(uri))[0]


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise InputError(f"{uri}: cannot be read ({error.strerror or error}).") from error
