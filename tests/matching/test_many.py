"""A thousand pairs and a thousand wrong ones, of all kinds and several seeds: right or silent.

Run by ``make test-matching``.  The photographs are those of the demo, enlarged; ``CROPREG_PHOTOS=DIR`` takes larger ones instead.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cropreg.boxes import iou
from cropreg.matching.find import find

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LEAST_FOUND = {"flat": 3, "least": 6, "tiny_resized": 6, "text": 7}  # of PAIRS; 8 of the other kinds
MOST_FOUND = {"rescan": 2}  # of WRONG_PAIRS; none of the other kinds
SEEDS, PAIRS, WRONG_PAIRS, SIZE_MP = range(4), 9, 51, 2


def _made_pairs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_pairs", ROOT / "benchmarks" / "made_pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


made = _made_pairs()
PHOTOS = sorted(Path(os.environ.get("CROPREG_PHOTOS", ROOT / "cropreg" / "demo" / "photos")).rglob("*.jpg"))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [*made.KEPT, *made.OTHERWISE])
def test_what_is_found_is_right_and_hardly_anything_is_missed(kind, seed):
    found = 0
    for index in range(PAIRS):
        pair = made.make(kind, SIZE_MP, PHOTOS, seed, index)
        match = find(pair.original, pair.crop)
        if match.verdict != "found":
            continue
        found += 1
        off_px = max(abs(a - b) for a, b in zip(match.box, pair.box, strict=True))
        if kind in made.KEPT:
            assert off_px == 0, (index, match)
        else:
            assert off_px <= max(1.0, 1 / pair.scale), (index, match)
            assert float(iou(list(match.box), list(pair.box))) > 0.97, (index, match)
            assert abs(match.angle_deg - pair.angle_deg) < max(0.1, 20 / match.crop_wh[0]), (index, match)
    assert found >= LEAST_FOUND.get(kind, 8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", made.REJECT)
def test_what_was_not_cut_from_the_original_is_not_found(kind, seed):
    found = []
    for index in range(WRONG_PAIRS):
        pair = made.make(kind, SIZE_MP, PHOTOS, seed, index)
        match = find(pair.original, pair.crop)
        if match.verdict == "found":
            found.append((index, match))
    # A print put down twice at the same angle and at a whole pixel's distance is taken for the same scan.
    assert len(found) <= MOST_FOUND.get(kind, 0), found
    assert kind != "rescan" or all(match.angle_deg == 0 for _, match in found), found
