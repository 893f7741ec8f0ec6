"""The demo's pictures: photographs that may be shipped, scans that are always the same, crops that can be learned but not guessed."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

import cropreg.demo
from cropreg import boxes
from cropreg.demo.scans import HABIT, make_scan, write_scans
from cropreg.errors import InputError

FOLDER = Path(cropreg.demo.__file__).parent / "photos"
PHOTOS = sorted(FOLDER.glob("*.jpg"))


def photo(seed: int = 0, size_hw: tuple[int, int] = (200, 300)) -> np.ndarray:
    """A textured picture (H, W, 3) uint8 from a seed."""
    coarse = np.random.default_rng(seed).integers(60, 200, (size_hw[0] // 8, size_hw[1] // 8, 3), np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scans of the shipped photographs."""
    path = tmp_path_factory.mktemp("scans")
    write_scans(PHOTOS, path, 12, seed=3, long_px=192)
    return path


def truth(folder: Path) -> list[dict[str, str]]:
    with (folder / "truth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_photographs_are_few_small_and_every_one_names_its_source() -> None:
    assert 8 <= len(PHOTOS) <= 14
    assert sum(path.stat().st_size for path in PHOTOS) < 1_000_000
    sources = (FOLDER / "SOURCES.md").read_text()
    rows = [line for line in sources.splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == [path.name for path in PHOTOS]
    assert all("CC0" in row or "public domain" in row for row in rows)


def test_same_seed_gives_the_same_files_and_another_seed_gives_others(folder: Path, tmp_path: Path) -> None:
    write_scans(PHOTOS, tmp_path / "same", 4, seed=3, long_px=192)  # fewer: a scan does not depend on how many there are
    write_scans(PHOTOS, tmp_path / "other", 4, seed=4, long_px=192)
    for row in truth(tmp_path / "same"):
        for name in (row["original"], row["crop"]):
            assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
            assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()
    assert truth(tmp_path / "same") == truth(folder)[:4]


@pytest.mark.parametrize("seed", range(40))
def test_box_lies_inside_the_scan_in_whole_pixels(seed: int) -> None:
    scan, box = make_scan(photo(), np.random.default_rng(seed), long_px=160)
    assert scan.dtype == np.uint8
    assert max(scan.shape[:2]) == 160
    assert box.is_whole
    assert box.x1 >= 0
    assert box.y1 >= 0
    assert box.x2 <= scan.shape[1]
    assert box.y2 <= scan.shape[0]
    assert min(box.size_wh) >= 30


def test_crop_is_its_region_of_the_stored_original_up_to_its_own_compression(folder: Path) -> None:
    for row in truth(folder):
        original, crop = cv2.imread(str(folder / row["original"])), cv2.imread(str(folder / row["crop"]))
        x1, y1, x2, y2 = (int(row[name]) for name in ("x1", "y1", "x2", "y2"))
        region = original[y1:y2, x1:x2]
        assert crop.shape == region.shape
        encoded = cv2.imencode(".jpg", region, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        assert np.array_equal(crop, cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def test_crop_shows_the_picture_and_neither_border_nor_lid() -> None:
    red = np.zeros((150, 200, 3), np.uint8)
    red[..., 0] = 255
    for seed in range(30):
        scan, box = make_scan(red, np.random.default_rng(seed), long_px=240)
        x1, y1, x2, y2 = (int(v) for v in box)
        is_red = scan[..., 0].astype(int) - scan[..., 1] > 100
        inside = is_red[y1:y2, x1:x2]
        assert inside.mean() > 0.97  # the rest is dust
        assert inside.sum() > 0.85 * is_red.sum()  # and nearly all of it: less the habit's few percent and what a skew costs


def test_habit_cuts_more_at_the_bottom() -> None:
    left, top, right, bottom = HABIT
    assert bottom > 2 * max(left, top, right)


def test_constant_box_is_poor_but_no_worse_than_chance() -> None:
    sizes, found = [], []
    for seed in range(120):
        scan, box = make_scan(photo(seed % 3), np.random.default_rng(seed), long_px=96)
        sizes.append((scan.shape[1], scan.shape[0]))
        found.append(tuple(box))
    boxes_norm = boxes.normalise(found, sizes)
    for constant in (boxes_norm.mean(axis=0), np.median(boxes_norm, axis=0)):
        assert 0.4 < boxes.iou(boxes_norm, constant).mean() < 0.65


def test_prints_stand_out_from_what_lies_around_them() -> None:
    contrasts = []
    for seed in range(30):
        scan, box = make_scan(photo(), np.random.default_rng(seed), long_px=240)
        x1, x2 = int(box.x1), int(box.x2)
        y = int(box.center_xy[1])
        for inner, outer in ((x1 + 3, x1 - 7), (x2 - 4, x2 + 6)):
            if 0 <= outer < scan.shape[1]:
                rows = slice(y - 10, y + 10)
                contrasts.append(abs(float(scan[rows, inner].mean()) - float(scan[rows, outer].mean())))
    assert np.quantile(contrasts, 0.1) > 20


def test_no_photographs_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give at least one picture file"):
        write_scans([], tmp_path, 1, seed=0)


def test_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "fake.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"fake\.jpg: not a picture"):
        write_scans([tmp_path / "fake.jpg"], tmp_path / "out", 1, seed=0)


@pytest.mark.parametrize("bad", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3), np.float32), np.zeros((8, 40, 3), np.uint8)])
def test_photo_of_the_wrong_kind_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"photo must be \(H, W, 3\) uint8"):
        make_scan(bad, np.random.default_rng(0), 96)
