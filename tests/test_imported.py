"""Crops that other programs hold become labels: the same table as from matching, and every file in exactly one row."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import framed_print
from PIL import Image

from cropreg import cli, storage
from cropreg.boxes import Box
from cropreg.dataset import CropDataset
from cropreg.errors import InputError, UsageError
from cropreg.interchange import exports, pp3, reading, xmp
from cropreg.interchange.reading import ImportedPair, find, label_imported
from cropreg.labels import Labelling, label_pairs
from cropreg.matching.settings import MatcherSettings
from cropreg.pipelines import match
from cropreg.schema import PAIRS, BoxDataset, csv_bytes, parquet_bytes
from cropreg.settings import MatchSettings

HOW = Labelling(proxy_long_px=64, proxy_quality=90, max_pixels=10**6, matcher=MatcherSettings())
SIZE = (120, 80)
BOX = Box(10, 20, 70, 65)


def picture(path: Path, orientation: int = 1, size_wh: tuple[int, int] = SIZE) -> None:
    """A picture that has ``size_wh`` once it is upright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = size_wh[::-1] if orientation >= 5 else size_wh
    seed = sum(os.fsencode(path.name))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*stored[::-1], 3), np.uint8)).save(path, exif=exif)


def rows_of(kind: Any, originals: Path, place: Path | None = None) -> dict[str, dict[str, Any]]:
    """What an import makes of a folder, by the name of the original (or of the sidecar that has none)."""
    pairs = find(kind, str(originals), None if place is None else str(place))
    travelled = [ImportedPair.of(json.loads(json.dumps(asdict(pair)))) for pair in pairs]
    assert travelled == pairs, "pairs reach a worker as JSON"
    rows, proxies = label_pairs(travelled, HOW, label_imported)
    assert len(rows) == len(pairs) == len({row["pair_id"] for row in rows})
    for item in rows:
        assert (item["verdict"] == "found") == (item.get("x1") is not None) == (item.get("method") == "imported")
        assert (item["reason"] is None) == (item["verdict"] == "found")
    found = {item["original_id"] for item in rows if item["verdict"] == "found"}
    assert found <= {item["original_id"] for item in proxies}
    parquet_bytes([{**item, "split": "train"} for item in rows], PAIRS)
    return {Path(storage.local_path(item["original_uri"] or item["crop_uri"])).name: item for item in rows}


def box_of(row: dict[str, Any]) -> list[float]:
    return [row[key] for key in ("x1", "y1", "x2", "y2")]


@pytest.mark.parametrize("kind", ["xmp", "pp3", "coco", "csv"])
def test_exported_predictions_come_back_as_labels_whatever_the_orientation(kind: str, tmp_path: Path) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    rows = {}
    for orientation in range(1, 9):
        name = f"sub/{orientation}.jpg"
        picture(images / name, orientation)
        rows[name] = {
            "image_uri": str(images / name),
            "width": SIZE[0],
            "height": SIZE[1],
            "orientation": orientation,
            **dict(zip(("x1", "y1", "x2", "y2"), BOX, strict=True)),
            "angle_deg": 0.0,
            "confidence": 0.9,
            "verdict": "accept",
            "reason": None,
        }
    exports.write([kind], rows, str(images), str(out), doubtful=False, overwrite=False, max_pixels=10**6)
    (out / "predictions.csv").write_bytes(csv_bytes(rows.values(), list(rows["sub/1.jpg"])))
    place = {"coco": out / "coco.json", "csv": out / "predictions.csv"}.get(kind, out)
    found = rows_of(kind, images, place)
    assert len(found) == 8
    for name, row in found.items():
        assert row["verdict"] == "found" and box_of(row) == pytest.approx(list(BOX), abs=1e-4)
        assert (row["orientation"], row["original_w"], row["original_h"]) == (int(name[0]), *SIZE)
        assert (row["angle_deg"], row["scale"], row["crop_w"], row["crop_h"]) == (0, 1, 60, 45)


def test_sidecars_beside_the_originals_are_found_by_either_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.jpg", "c.png", "d.jpg"):
        picture(tmp_path / name)
    data = xmp.write(BOX, 0, SIZE, 1, None, "")
    for name in ("a.xmp", "b.JPG.XMP", "c.xmp", "stray.xmp"):
        (tmp_path / name).write_bytes(data)
    rows = rows_of("xmp", tmp_path)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "a.jpg": "found",
        "b.JPG": "found",
        "c.jpg": "unpaired",
        "c.png": "unpaired",
        "d.jpg": "unpaired",
        "c.xmp": "unpaired",
        "stray.xmp": "unpaired",
    }
    assert rows["c.xmp"]["reason"] == "the name fits 2 originals: c.jpg and c.png"
    assert rows["stray.xmp"]["reason"] == "no original has this name" and "no .xmp sidecar" in rows["d.jpg"]["reason"]


def test_sidecar_of_a_raw_file_and_its_jpeg_is_the_raw_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.nef").write_bytes(b"no such camera")
    (tmp_path / "a.xmp").write_bytes(xmp.write(BOX, 0, SIZE, 1, None, ""))
    rows = rows_of("xmp", tmp_path)
    assert rows["a.nef"]["verdict"] == "unreadable" and rows["a.jpg"]["verdict"] == "unpaired"


def test_bad_sidecars_and_originals_become_rows_with_a_reason(tmp_path: Path) -> None:
    sidecars = {
        "none": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>",
        "text": b"a diary",
        "outside": xmp.write(Box(10, 20, 130, 65), 0, SIZE, 1, None, ""),
        "sliver": xmp.write(Box(10, 20, 11, 65), 0, SIZE, 1, None, ""),
        "rounded": xmp.write(Box(-0.4, 0, 120.4, 80.4), 0, SIZE, 1, None, ""),
        "infinite": xmp.write(BOX, 0, SIZE, 1, None, "").replace(b'Right="0.583333333"', b'Right="inf"'),
        "cut-short": xmp.write(BOX, 0, SIZE, 1, None, ""),
        "absent": xmp.write(BOX, 0, SIZE, 1, None, ""),
    }
    for name, data in sidecars.items():
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.xmp").write_bytes(data)
    (tmp_path / "cut-short.jpg").write_bytes((tmp_path / "cut-short.jpg").read_bytes()[:700])
    rows = rows_of("xmp", tmp_path)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        **dict.fromkeys(("none.jpg", "text.jpg", "outside.jpg", "sliver.jpg", "infinite.jpg"), "unpaired"),
        "rounded.jpg": "found",
        "cut-short.jpg": "unreadable",
        "absent.jpg": "found",
    }
    assert "holds no crop" in rows["none.jpg"]["reason"] and "no well-formed XMP" in rows["text.jpg"]["reason"]
    assert "reaches 10 px out of the picture" in rows["outside.jpg"]["reason"] and "only 1 x 45 px" in rows["sliver.jpg"]["reason"]
    assert box_of(rows["rounded.jpg"]) == [0, 0, 120, 80], "what was rounded past the edge lies on it"


def test_turned_crop_keeps_its_angle(tmp_path: Path) -> None:
    for orientation in (1, 5, 6):
        picture(tmp_path / f"{orientation}.jpg", orientation)
        (tmp_path / f"{orientation}.xmp").write_bytes(xmp.write(Box(30, 20, 80, 60), 6.5, SIZE, orientation, None, ""))
    for row in rows_of("xmp", tmp_path).values():
        assert box_of(row) == pytest.approx([30, 20, 80, 60], abs=1e-4) and row["angle_deg"] == pytest.approx(6.5)


def test_changed_sidecar_is_read_again_and_others_are_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.jpg.pp3").write_bytes(pp3.write(BOX, 0, SIZE, None, ""))
    before = {pair.pair_id: pair.stamp for pair in find("pp3", str(tmp_path), None)}
    (tmp_path / "b.jpg.pp3").write_bytes(pp3.write(Box(1, 2, 30, 40), 0, SIZE, None, "") + b"\n")
    after = {pair.pair_id: pair.stamp for pair in find("pp3", str(tmp_path), None)}
    assert before.keys() == after.keys()
    assert sum(before[key] != after[key] for key in before) == 1


def test_list_names_pictures_by_path_or_uri_and_odd_names_are_found(tmp_path: Path) -> None:
    names = ["=cmd.jpg", 'quo"te.jpg', "new\nline.jpg", "'=b.jpg", os.fsdecode(b"latin-\xe9.jpg"), "plain.jpg", "unlisted.jpg"]
    for name in names:
        picture(tmp_path / "in" / name)
    listed = [{"original": storage.as_text(name), "x1": 10, "y1": 20, "x2": 70, "y2": 65} for name in names[:-2]]
    listed += [{"original": str(tmp_path / "in" / "plain.jpg"), "x1": 0, "y1": 0, "x2": 50, "y2": 50, "angle_deg": 0.5}]
    listed += [{"original": "gone.jpg", "x1": 10, "y1": 20, "x2": 70, "y2": 65}]
    file = tmp_path / "boxes.csv"
    file.write_bytes(csv_bytes(listed, ["original", "x1", "y1", "x2", "y2", "angle_deg"]))
    rows = rows_of("csv", tmp_path / "in", file)
    assert rows["unlisted.jpg"]["reason"] == "boxes.csv does not name it"
    assert "names 'gone.jpg', which is not among the originals" in rows["boxes.csv"]["reason"]
    for name in names[:-2]:
        assert rows[name]["verdict"] == "found" and box_of(rows[name]) == list(BOX), name


def test_list_may_hold_several_crops_of_one_original(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    whole = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 120, "height": 80}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 0, 50, 50]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [50, 0, -1, 50]},
        ],
        "categories": [{"id": 1, "name": "crop"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(whole))
    pairs = find("coco", str(tmp_path), str(tmp_path / "a.json"))
    rows, proxies = label_pairs(pairs, HOW, label_imported)
    assert sorted(row["verdict"] for row in rows) == ["found", "found", "unpaired"]
    assert len({row["group"] for row in rows}) == 1 and len(proxies) == 1


def test_list_that_knew_another_picture_is_not_believed(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 6)
    (tmp_path / "a.csv").write_text("file_name,width,height,x1,y1,x2,y2\na.jpg,80,120,1,2,30,40\n")
    row = rows_of("csv", tmp_path, tmp_path / "a.csv")["a.jpg"]
    assert row["verdict"] == "unpaired" and "knows this picture as 80 x 120 px, upright it has 120 x 80" in row["reason"]


def test_import_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder ORIGINALS"):
        find("xmp", None, None)
    with pytest.raises(UsageError, match="--import-from FILE"):
        find("coco", str(tmp_path), None)
    with pytest.raises(InputError, match="no pictures here"):
        find("xmp", str(tmp_path), None)
    picture(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        find("csv", str(tmp_path), str(tmp_path / "absent.csv"))
    with pytest.raises(UsageError, match="--import-from needs --import"):
        match.run(str(tmp_path), None, out=str(tmp_path / "b"), settings=MatchSettings(import_from="a"))
    with pytest.raises(UsageError, match="leave out CROPS"):
        match.run(str(tmp_path), str(tmp_path), out=str(tmp_path / "b"), settings=MatchSettings(import_="xmp"))


@pytest.mark.parametrize("import_", [None, "xmp"])
def test_pictures_in_the_dataset_are_no_originals(tmp_path: Path, import_: Any) -> None:
    picture(tmp_path / "originals" / "a.jpg")
    picture(tmp_path / "crops" / "a.jpg")
    picture(tmp_path / "originals" / "boxes" / "explain" / "0123.png")
    crops = None if import_ else str(tmp_path / "crops")
    settings, out = MatchSettings(import_=import_), str(tmp_path / "originals" / "boxes")
    assert match.run(str(tmp_path / "originals"), crops, out=out, settings=settings, dry_run=True)["pairs"] == 1


def test_sidecar_that_vanished_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.xmp").write_bytes(b"")
    pairs = find("xmp", str(tmp_path), None)
    (tmp_path / "a.xmp").unlink()
    ((row,), _) = label_pairs(pairs, HOW, label_imported)
    assert row["verdict"] == "unpaired" and "this sidecar cannot be read" in row["reason"]
    monkeypatch.setattr(reading.storage, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
    ((row,), _) = label_pairs(pairs, HOW, label_imported)
    assert row["verdict"] == "unreadable"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_imported_dataset_trains_like_a_matched_one(tmp_path: Path) -> None:
    for seed in range(6):
        pixels, box = framed_print(seed)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{seed}.png")
        (tmp_path / "in" / f"{seed}.xmp").write_bytes(xmp.write(Box(*box), 0, (240, 180), 1, None, ""))
    arguments = ["match", str(tmp_path / "in"), "--import", "xmp", "--out", str(tmp_path / "boxes"), "--quiet"]
    assert cli.run([*arguments, "--split", "100/0/0/0"]) == 0
    dataset = BoxDataset.open(str(tmp_path / "boxes"))
    assert dataset.manifest["counts"]["found"] == 6 and set(dataset.pairs(["method"])["method"].to_pylist()) == {"imported"}
    examples = CropDataset(dataset, "train", 64)
    boxes = {tuple(np.round(np.asarray(examples[i][1]) * [240, 180, 240, 180]).astype(int)) for i in range(6)}
    assert boxes == {framed_print(seed)[1] for seed in range(6)}
    assert cli.run(["check", str(tmp_path / "boxes"), "--quiet"]) == 0
    assert cli.run([*arguments, "--split", "100/0/0/0", "--json"]) == 0
    assert cli.run(arguments) == 4, "another split is another dataset"
    (tmp_path / "in" / "0.xmp").unlink()
    assert cli.run([*arguments, "--split", "100/0/0/0"]) == 0
    assert BoxDataset.open(str(tmp_path / "boxes")).manifest["counts"]["found"] == 5
