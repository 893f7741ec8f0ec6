"""By content and from other programs' crops: pictures that kill, hang or eat memory are named, and cost nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import framed_print, save, textured

from cropreg import child, isolation, pairs
from cropreg.boxes import Box
from cropreg.content.pairing import KNOWN_COLUMNS, Search, pair_by_content
from cropreg.interchange import xmp
from cropreg.interchange.reading import find, label_imported
from cropreg.labels import Labelling
from cropreg.matching.settings import MatcherSettings
from cropreg.schema import UNPAIRED

pytestmark = pytest.mark.long

LIMITS = child.Limits(5.0, 2**29)
KINDS = [("crash", "SIGSEGV"), ("kill", "SIGKILL"), ("hang", "longer than 5 s"), ("memory", "512 MB")]
Fault = Callable[[str], Callable[[], int]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four originals, the last without a crop; a crop by name, two that were renamed, one of another picture."""
    for seed in range(4):
        save(textured(seed, 480, 360), tmp_path / "originals" / f"{seed}.jpg")
    for seed, name in ((0, "0"), (1, "one"), (2, "two"), (50, "stranger")):
        save(textured(seed, 480, 360)[60:300, 80:400], tmp_path / "crops" / f"{name}.png")
    return tmp_path


def here(function: Any, items: Sequence[str], shared: Any, *, title: str, unit: str) -> list[bytes]:
    """Does in this process what the cluster spreads over workers."""
    return [function(item, shared) for item in items]


def by_content(folder: Path, known: Sequence[dict[str, Any]] = ()) -> Iterator[tuple[str, str, str | None]]:
    """Yields the name of each pair's original and crop, and the reason."""
    found = pairs.discover(str(folder / "originals"), str(folder / "crops"))
    for pair in pair_by_content(found, known, here, Search(10**7, MatcherSettings(), LIMITS)):
        yield pair.original_name, pair.crop_name, pair.reason


def test_a_child_decides_what_is_expected_of_good_pictures(folder: Path) -> None:
    assert {(original, crop) for original, crop, _ in by_content(folder)} == {
        ("0.jpg", "0.png"),
        ("1.jpg", "one.png"),
        ("2.jpg", "two.png"),
        ("3.jpg", ""),
        ("", "stranger.png"),
    }


@pytest.mark.parametrize(("kind", "told"), KINDS)
def test_an_original_that_breaks_the_process_is_named_and_nothing_else_is_lost(
    kind: str, told: str, folder: Path, fault: Fault
) -> None:
    fired = fault(f"open:{kind}:originals/3.jpg:9")
    reasons = {(original, crop): reason for original, crop, reason in by_content(folder)}
    assert fired() == 2
    assert reasons.keys() == {("0.jpg", "0.png"), ("1.jpg", "one.png"), ("2.jpg", "two.png"), ("3.jpg", ""), ("", "stranger.png")}
    reason = reasons["3.jpg", ""]
    assert reason is not None and reason.startswith("no crop has this name; by content: ")
    assert "3.jpg" in reason and told in reason and reason.endswith("2 times. The file may be damaged.")


@pytest.mark.parametrize(("kind", "told"), KINDS)
def test_a_crop_that_breaks_the_process_stays_alone_and_is_named(kind: str, told: str, folder: Path, fault: Fault) -> None:
    fired = fault(f"open:{kind}:one.png:9")
    reasons = {(original, crop): reason for original, crop, reason in by_content(folder)}
    assert fired() == 2
    assert reasons.keys() == {
        ("0.jpg", "0.png"),
        ("1.jpg", ""),
        ("", "one.png"),
        ("2.jpg", "two.png"),
        ("3.jpg", ""),
        ("", "stranger.png"),
    }
    reason = reasons["", "one.png"]
    assert reason is not None and reason.startswith("no original has this name; by content: ")
    assert "one.png" in reason and told in reason and "2 times" in reason


@pytest.mark.parametrize("stage", ["open", "pair"])
def test_a_crop_that_breaks_it_once_is_found(stage: str, folder: Path, fault: Fault) -> None:
    fired = fault(f"{stage}:crash:one.png")
    found = {(original, crop) for original, crop, _ in by_content(folder)}
    assert fired() == 1
    assert found >= {("1.jpg", "one.png"), ("2.jpg", "two.png")}


def test_a_pair_that_breaks_it_leaves_its_crop_alone_and_others_find_that_original(folder: Path, fault: Fault) -> None:
    save(textured(1, 480, 360)[20:320, 30:380], folder / "crops" / "another.png")
    fired = fault("pair:crash:1.jpg /" + str(folder)[1:] + "/crops/one.png:9")
    reasons = {(original, crop): reason for original, crop, reason in by_content(folder)}
    assert fired() == 2
    assert reasons.keys() >= {("1.jpg", "another.png"), ("2.jpg", "two.png"), ("", "one.png")}
    reason = reasons["", "one.png"]
    assert (
        reason is not None and "; compared with " in reason and "/1.jpg, the process that decodes died (SIGSEGV), 2 times" in reason
    )


def test_a_crop_that_breaks_it_beside_any_original_is_to_blame_after_two(folder: Path, fault: Fault) -> None:
    fired = fault("pair:crash:stranger.png:99")
    reasons = {crop: reason for _, crop, reason in by_content(folder)}
    assert fired() == 4  # and not two for each of twelve likely originals
    assert "stranger.png: the process that decodes died (SIGSEGV), 2 times" in str(reasons["stranger.png"])


def test_an_original_that_broke_it_keeps_its_reason_while_nothing_is_looked_for(folder: Path, fault: Fault) -> None:
    (folder / "crops" / "stranger.png").unlink()
    fired = fault("open:crash:originals/3.jpg:9")
    search = Search(10**7, MatcherSettings(), LIMITS)
    found = pairs.discover(str(folder / "originals"), str(folder / "crops"))
    first = pair_by_content(found, [], here, search)
    assert fired() == 2
    values = ((p.original_uri, p.crop_uri, p.stamp, UNPAIRED if p.reason else "found", p.reason) for p in first)
    known = [dict(zip(KNOWN_COLUMNS, row, strict=True)) for row in values]
    assert pair_by_content(found, known, here, search) == first
    assert fired() == 2


@pytest.fixture
def sidecars(tmp_path: Path) -> Path:
    """Three pictures, each with a sidecar."""
    for seed in range(3):
        picture, box = framed_print(seed)
        save(picture, tmp_path / "in" / f"{seed}.jpg")
        (tmp_path / "in" / f"{seed}.xmp").write_bytes(xmp.write(Box(*box), 0, (240, 180), 1, None, ""))
    return tmp_path / "in"


@pytest.mark.parametrize(("kind", "told"), KINDS)
def test_an_imported_original_that_breaks_the_process_is_crashed_and_nothing_else_is_lost(
    kind: str, told: str, sidecars: Path, fault: Fault
) -> None:
    how = Labelling(64, 90, 10**6, MatcherSettings())
    fired = fault(f"open:{kind}:1.jpg:9")
    rows, proxies = isolation.label_pairs(find("xmp", str(sidecars), None), how, LIMITS, label_imported)
    assert fired() == 2
    verdicts = {Path(row["original_uri"]).name: row["verdict"] for row in rows}
    assert verdicts == {"0.jpg": "found", "1.jpg": "crashed", "2.jpg": "found"}
    reason = next(row["reason"] for row in rows if row["verdict"] == "crashed")
    assert "1.jpg (the original)" in reason and told in reason
    assert len(proxies) == 2


def test_an_imported_original_that_breaks_it_once_is_found(sidecars: Path, fault: Fault) -> None:
    fired = fault("open:crash:1.jpg")
    rows, proxies = isolation.label_pairs(
        find("xmp", str(sidecars), None), Labelling(64, 90, 10**6, MatcherSettings()), LIMITS, label_imported
    )
    assert fired() == 1
    assert [row["verdict"] for row in rows] == ["found"] * 3 and len(proxies) == 3
