"""From pairs to rows: every pair keeps a verdict, an original is read once, and its proxy comes along."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import framed_print, save

from cropreg import labels, storage
from cropreg.images import decode_color
from cropreg.labels import Labelling, label_pairs
from cropreg.matching.settings import MatcherSettings
from cropreg.pairs import Pair, discover

HOW = Labelling(proxy_long_px=128, proxy_quality=90, max_pixels=10**8, matcher=MatcherSettings())


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Three crops of one original, one of another, and a crop without original."""
    for name, seed in (("a", 1), ("b", 2)):
        original, (x1, y1, x2, y2) = framed_print(seed)
        save(original, tmp_path / "originals" / f"{name}.png")
        save(original[y1:y2, x1:x2], tmp_path / "crops" / f"{name}.png")
        if name == "a":
            save(original[y1 : y2 - 20, x1:x2], tmp_path / "crops" / "a_1.png")
            save(original[y1 + 20 : y2, x1:x2], tmp_path / "crops" / "a_2.png")
    save(framed_print(3)[0], tmp_path / "crops" / "c.png")
    return discover(str(tmp_path / "originals"), str(tmp_path / "crops"), pair_by=r"(.+)_\d")


def by_crop(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {storage.name_of(row["crop_uri"] or row["original_uri"]): row for row in rows}


def test_every_pair_becomes_one_row_and_every_original_one_proxy(pairs: list[Pair]) -> None:
    rows, proxies = label_pairs(pairs, HOW)
    assert [row["pair_id"] for row in rows] == sorted(pair.pair_id for pair in pairs)
    verdicts = {name: row["verdict"] for name, row in by_crop(rows).items()}
    assert verdicts == {"a.png": "found", "a_1.png": "found", "a_2.png": "found", "b.png": "found", "c.png": "unpaired"}
    assert [proxy["original_id"] for proxy in proxies] == sorted({row["original_id"] for row in rows if row["original_id"]})
    for name, (_, (x1, y1, x2, y2)) in (("a.png", framed_print(1)), ("b.png", framed_print(2))):
        assert [by_crop(rows)[name][k] for k in ("x1", "y1", "x2", "y2")] == [x1, y1, x2, y2]


def test_rows_do_not_depend_on_the_order_or_company_of_pairs(pairs: list[Pair]) -> None:
    def without_time(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {row["pair_id"]: {k: v for k, v in row.items() if k != "elapsed_ms"} for row in rows}

    together = without_time(label_pairs(pairs, HOW)[0])
    alone = {}
    for pair in reversed(pairs):
        alone |= without_time(label_pairs([pair], HOW)[0])
    assert together == alone == without_time(label_pairs(pairs[::-1], HOW)[0])


def test_proxy_is_the_original_made_small(pairs: list[Pair]) -> None:
    _, proxies = label_pairs(pairs, HOW)
    pictures = [decode_color(proxy["jpeg"], "proxy") for proxy in proxies]
    assert {picture.shape for picture in pictures} == {(96, 128, 3)}
    wanted = [cv2.resize(framed_print(seed)[0], (128, 96), interpolation=cv2.INTER_AREA).astype(float) for seed in (1, 2)]
    for picture in pictures:
        assert min(float(np.abs(picture - want).mean()) for want in wanted) < 4


def test_bad_files_get_a_verdict_and_a_reason_each(pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "crops" / "a_1.png").write_bytes(b"")
    (tmp_path / "crops" / "a_2.png").unlink()
    (tmp_path / "originals" / "b.png").write_text("<html>not found</html>")
    found = by_crop(label_pairs(pairs, HOW)[0])
    assert [found[name]["verdict"] for name in ("a.png", "a_1.png", "a_2.png", "b.png")] == ["found", *["unreadable"] * 3]
    assert "a_1.png: is empty" in found["a_1.png"]["reason"]
    assert "a_2.png: is not there" in found["a_2.png"]["reason"]
    assert "originals/b.png" in found["b.png"]["reason"]


def test_fault_of_the_matcher_costs_one_pair_and_says_so(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    find_in = labels.find_in

    def faulty(original: Any, crop: Any, settings: Any) -> Any:
        if crop.name.endswith("a_1.png"):
            raise ZeroDivisionError("by nought")
        return find_in(original, crop, settings)

    monkeypatch.setattr(labels, "find_in", faulty)
    found = by_crop(label_pairs(pairs, HOW)[0])
    assert found["a_1.png"]["verdict"] == "crashed" and "ZeroDivisionError: by nought" in found["a_1.png"]["reason"]
    assert found["a_2.png"]["verdict"] == "found"


def test_too_many_pixels_are_refused_from_the_header(pairs: list[Pair]) -> None:
    found = by_crop(label_pairs(pairs, dataclasses.replace(HOW, max_pixels=1000))[0])
    assert found["a.png"]["verdict"] == "unreadable" and "--max-pixels" in found["a.png"]["reason"]
