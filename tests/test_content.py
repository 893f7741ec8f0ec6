"""By content: a renamed crop finds its original among all, a twin is never taken for it, and no file disappears."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import framed_print, save, textured
from numpy.typing import NDArray

from cropreg import child, cli, pairs
from cropreg.content.decide import NONE_ALIKE, Decision, decide
from cropreg.content.describe import NUM_CROP, NUM_ORIGINAL, Description, describe
from cropreg.content.index import SHORTLIST, Index, Likely
from cropreg.content.pairing import KNOWN_COLUMNS, Search, pair_by_content
from cropreg.matching.find import Picture
from cropreg.matching.settings import MatcherSettings
from cropreg.pipelines import cluster, match
from cropreg.schema import FOUND, UNPAIRED, BoxDataset
from cropreg.settings import MatchSettings

Pixels = NDArray[np.uint8]
SETTINGS = MatcherSettings()
SEARCH = Search(10**7, SETTINGS, child.Limits(60, 2**30))
X1, Y1, X2, Y2 = 150, 90, 650, 470


def jpeg(pixels: Pixels, quality: int = 92) -> bytes:
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decoded(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    return {f"original {seed}": jpeg(textured(seed, 900, 620)) for seed in range(6)}


@pytest.fixture(scope="module")
def index(originals: dict[str, bytes]) -> Index:
    return indexed(originals)


def indexed(files: dict[str, bytes]) -> Index:
    return Index({name: describe(Picture(data, name)) for name, data in files.items()})


def decision(crop: bytes, files: dict[str, bytes], index: Index | None = None) -> Decision:
    """Everything that is done to one crop."""
    picture = Picture(crop, "crop")
    likely = (index or indexed(files)).shortlist(describe(picture, NUM_CROP), SHORTLIST)
    return last(decide(picture, likely, lambda name: Picture(files[name], name), SETTINGS))


def last(steps: Iterator[str | Decision]) -> Decision:
    *_, decided = steps
    assert isinstance(decided, Decision)
    return decided


def resized(crop: Pixels, scale: float) -> Pixels:
    kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, None, fx=scale, fy=scale, interpolation=kernel))


def toned(crop: Pixels) -> Pixels:
    return np.asarray(np.clip((crop / 255.0) ** 0.8 * 1.1 - 0.05, 0, 1) * 255, np.uint8)


def turned(pixels: Pixels) -> Pixels:
    matrix = cv2.getRotationMatrix2D((400, 280), 2.0, 1.0)
    return np.asarray(cv2.warpAffine(pixels, matrix, (900, 620), flags=cv2.INTER_CUBIC)[Y1:Y2, X1:X2])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda whole: whole[Y1:Y2, X1:X2], id="kept"),
        pytest.param(lambda whole: resized(whole[Y1:Y2, X1:X2], 0.3), id="shrunk"),
        pytest.param(lambda whole: resized(whole[Y1:Y2, X1:X2], 1.6), id="enlarged"),
        pytest.param(lambda whole: toned(whole[Y1:Y2, X1:X2]), id="toned"),
        pytest.param(lambda whole: toned(resized(whole[Y1:Y2, X1:X2], 0.5)), id="toned and resized"),
        pytest.param(turned, id="turned"),
    ],
)
def test_renamed_crop_finds_its_original(originals: dict[str, bytes], index: Index, change: Callable[[Pixels], Pixels]) -> None:
    crop = jpeg(np.ascontiguousarray(change(decoded(originals["original 3"]))))
    assert decision(crop, originals, index) == Decision("original 3")


def test_crop_of_a_picture_that_is_not_there_stays_alone_with_the_reason(originals: dict[str, bytes], index: Index) -> None:
    result = decision(jpeg(textured(99, 500, 380)), originals, index)
    assert result.original is None and result.reason is not None
    assert result.reason.startswith("by content: found in none of the originals most like it, the nearest original ")


def test_crop_without_features_stays_alone(originals: dict[str, bytes], index: Index) -> None:
    assert decision(jpeg(np.full((300, 300, 3), 128, np.uint8)), originals, index) == Decision(None, NONE_ALIKE)


def test_nothing_is_found_among_no_originals() -> None:
    assert Index({}).shortlist(describe(Picture(jpeg(textured(1, 300, 200)), "crop")), 5) == []
    assert decision(jpeg(textured(1, 300, 200)), {}) == Decision(None, NONE_ALIKE)


@pytest.mark.parametrize("truth", ["first", "again"])
def test_of_a_picture_that_was_saved_twice_the_file_is_found_that_the_crop_was_cut_from(
    originals: dict[str, bytes], truth: str
) -> None:
    files = {
        "first": originals["original 2"],
        "again": jpeg(decoded(originals["original 2"]), 80),
        "other": originals["original 1"],
    }
    crop = jpeg(decoded(files[truth])[Y1:Y2, X1:X2], 90)
    assert decision(crop, files) == Decision(truth)


@pytest.mark.parametrize("scale", [0.2, 0.35, 0.7, 1.3])
@pytest.mark.parametrize("truth", ["first", "again", "shifted"])
def test_resized_crop_is_never_given_to_a_twin(originals: dict[str, bytes], truth: str, scale: float) -> None:
    whole = decoded(originals["original 2"])
    files = {"first": originals["original 2"], "again": jpeg(whole, 75), "shifted": jpeg(whole[5:, 3:], 85)}
    crop = jpeg(toned(resized(decoded(files[truth])[Y1:Y2, X1:X2], scale)), 90)
    assert decision(crop, files).original in (truth, None)


def test_crop_of_a_file_that_is_there_twice_stays_alone_and_names_both(originals: dict[str, bytes]) -> None:
    files = {"one": originals["original 2"], "two": originals["original 2"]}
    crop = jpeg(decoded(files["one"])[Y1:Y2, X1:X2])
    assert decision(crop, files) == Decision(None, "by content: one and two show it equally well")


def test_crop_is_not_given_away_when_another_original_is_as_much_like_it_but_has_no_place(originals: dict[str, bytes]) -> None:
    crop = Picture(jpeg(decoded(originals["original 2"])[Y1:Y2, X1:X2]), "crop")
    likely = [Likely("original 2", 100, 200), Likely("original 5", 90, 200)]
    result = last(decide(crop, likely, lambda name: Picture(originals[name], name), SETTINGS))
    assert result == Decision(None, "by content: found in original 2, but original 5 looks as much like it")


def test_original_that_cannot_be_read_is_passed_over(originals: dict[str, bytes]) -> None:
    crop = Picture(jpeg(decoded(originals["original 2"])[Y1:Y2, X1:X2]), "crop")
    files = originals | {"cut": originals["original 2"][:900]}
    likely = [Likely("cut", 120, 220), Likely("original 2", 100, 200)]
    assert last(decide(crop, likely, lambda name: Picture(files[name], name), SETTINGS)) == Decision("original 2")


def test_neighbouring_frame_is_not_taken(originals: dict[str, bytes]) -> None:
    whole = decoded(originals["original 2"])
    rng = np.random.default_rng(5)
    moved = [cv2.resize(rng.normal(0, 3, (5, 7)).astype(np.float32), (900, 620), interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    y, x = np.mgrid[0:620, 0:900].astype(np.float32)
    later = cv2.remap(whole, x + moved[0], y + moved[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    files = {"frame": originals["original 2"], "next frame": jpeg(np.asarray(later, np.uint8))}
    for name in files:
        crop = jpeg(decoded(files[name])[Y1:Y2, X1:X2])
        assert decision(crop, files) == Decision(name)
        assert decision(crop, {other: data for other, data in files.items() if other != name}).original is None


def test_index_is_the_same_for_any_order_of_originals(originals: dict[str, bytes], index: Index) -> None:
    crop = describe(Picture(jpeg(decoded(originals["original 4"])[Y1:Y2, X1:X2]), "crop"), NUM_CROP)
    backwards = indexed(dict(reversed(originals.items())))
    assert backwards.shortlist(crop, 6) == index.shortlist(crop, 6)
    assert index.shortlist(crop, 6)[0].name == "original 4"


def test_index_holds_at_most_the_bytes_it_promises(index: Index) -> None:
    assert 0 < index.num_bytes / len(index.names) <= NUM_ORIGINAL * 61


def test_description_travels_as_bytes_and_comes_back(originals: dict[str, bytes]) -> None:
    one = describe(Picture(originals["original 0"], "a"))
    again = Description.from_bytes(one.to_bytes())
    for name in ("codes", "points_xy", "turns"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert again.step == one.step and 0 < len(one) <= NUM_ORIGINAL


def test_description_covers_the_whole_picture_when_one_part_is_sharper(originals: dict[str, bytes]) -> None:
    whole = textured(7, 900, 620)
    whole[:, :300] = cv2.GaussianBlur(whole, (0, 0), 3)[:, :300]
    x = describe(Picture(jpeg(whole), "a")).points_px()[:, 0]
    assert np.mean(x < 300) > 0.15


def test_picture_with_flat_parts_is_described(originals: dict[str, bytes]) -> None:
    whole = textured(7, 900, 620)
    whole[:, :400], whole[:200] = 0, 255
    assert len(describe(Picture.of_pixels(whole, "a"))) > 100


class Here:
    """Runs functions in this process, and counts the files it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, function: Any, items: Sequence[str], shared: Any, *, title: str, unit: str) -> list[bytes]:
        self.asked += items
        return [function(item, shared) for item in items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three originals; one crop by name, one renamed, one of another picture."""
    for seed in range(3):
        save(textured(seed, 480, 360), tmp_path / "originals" / f"{seed}.jpg")
    for seed, name in ((0, "0"), (1, "renamed"), (50, "stranger")):
        save(textured(seed, 480, 360)[60:300, 80:400], tmp_path / "crops" / f"{name}.png")
    return tmp_path


def by_content(folder: Path, known: Sequence[dict[str, Any]] = ()) -> tuple[list[pairs.Pair], Here]:
    found = pairs.discover(str(folder / "originals"), str(folder / "crops"))
    here = Here()
    return pair_by_content(found, known, here, SEARCH), here


def named(found: Sequence[pairs.Pair]) -> set[tuple[str, str]]:
    return {(p.original_name, p.crop_name) for p in found}


def rows(found: Sequence[pairs.Pair]) -> list[dict[str, Any]]:
    """What a dataset would hold after these pairs were matched."""
    verdicts = (FOUND if p.original_uri and p.crop_uri else UNPAIRED for p in found)
    values = ((p.original_uri, p.crop_uri, p.stamp, verdict, p.reason) for p, verdict in zip(found, verdicts, strict=True))
    return [dict(zip(KNOWN_COLUMNS, row, strict=True)) for row in values]


def test_every_file_stays_in_one_pair_when_crops_are_found_by_content(folder: Path) -> None:
    found, _ = by_content(folder)
    assert named(found) == {("0.jpg", "0.png"), ("1.jpg", "renamed.png"), ("2.jpg", ""), ("", "stranger.png")}
    assert [p.pair_id for p in found] == sorted(pairs.pair_id(p.original_name, p.crop_name) for p in found)
    reason = next(p.reason for p in found if p.crop_name == "stranger.png")
    assert reason is not None and reason.startswith("no original has this name; by content: ")


def test_same_pairs_and_stamps_come_from_an_original_found_by_name_and_by_content(folder: Path) -> None:
    found, _ = by_content(folder)
    (folder / "crops" / "renamed.png").rename(folder / "crops" / "1.png")
    by_name = {p.original_name: p for p in pairs.discover(str(folder / "originals"), str(folder / "crops"))}
    one = next(p for p in found if p.crop_name == "renamed.png")
    assert (one.stamp, one.original_uri) == (by_name["1.jpg"].stamp, by_name["1.jpg"].original_uri)


def test_nothing_is_looked_at_again_when_nothing_changed(folder: Path) -> None:
    found, _ = by_content(folder)
    again, here = by_content(folder, rows(found))
    assert again == found and here.asked == []


def test_only_crops_that_were_not_found_are_looked_for_again_when_an_original_has_come(folder: Path) -> None:
    found, _ = by_content(folder)
    save(textured(50, 480, 360), folder / "originals" / "late.jpg")
    again, here = by_content(folder, rows(found))
    assert named(again) >= {("1.jpg", "renamed.png"), ("late.jpg", "stranger.png")}
    assert [Path(uri).name for uri in here.asked if Path(uri).parent.name == "crops"] == ["stranger.png"]


def test_crop_is_looked_for_again_when_its_original_has_changed(folder: Path) -> None:
    found, _ = by_content(folder)
    save(textured(70, 480, 360), folder / "originals" / "1.jpg")
    again, _ = by_content(folder, rows(found))
    assert {("1.jpg", ""), ("", "renamed.png")} <= named(again)


def test_crop_that_cannot_be_read_stays_alone_and_says_so(folder: Path) -> None:
    (folder / "crops" / "renamed.png").write_bytes(b"no picture")
    (folder / "originals" / "2.jpg").write_bytes((folder / "originals" / "2.jpg").read_bytes()[:400])
    found, _ = by_content(folder)
    reason = next(p.reason for p in found if p.crop_name == "renamed.png")
    assert reason is not None and "renamed.png" in reason and reason.startswith("no original has this name; by content: ")


def test_crops_without_any_original_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "originals").mkdir()
    save(textured(1, 300, 200), tmp_path / "crops" / "a.png")
    found, here = by_content(tmp_path)
    assert [p.reason for p in found] == ["no original has this name"] and here.asked == []


def test_dry_run_counts_the_crops_that_would_be_looked_for_and_looks_at_none(folder: Path) -> None:
    originals, crops = str(folder / "originals"), str(folder / "crops")
    summary = match.run(originals, crops, out=str(folder / "boxes"), settings=MatchSettings(by_content=True), dry_run=True)
    assert summary["crops_looked_for"] == 2 and summary["unpaired"] == 4


@pytest.mark.ray
def test_spread_gives_the_results_in_the_order_of_the_items(ray_local: None) -> None:
    def worded(item: str, shared: dict[str, int]) -> bytes:
        return f"{item}{shared['more']}".encode()

    items = [f"{i}-" for i in range(300, 0, -1)]
    for concurrency in (None, 1):
        results = cluster.spread(worded, items, {"more": 7}, title="test", unit="items", concurrency=concurrency)
        assert results == [f"{item}7".encode() for item in items]


@pytest.mark.ray
def test_match_by_content_pairs_renamed_crops_and_remembers_them(tmp_path: Path, ray_local: None) -> None:
    for seed in range(6):
        original, (x1, y1, x2, y2) = framed_print(seed, 480, 360)
        save(original, tmp_path / "originals" / f"{seed}.jpg")
        if seed < 5:
            save(original[y1:y2, x1:x2], tmp_path / "crops" / (f"{seed}.png" if seed < 2 else f"renamed {9 - seed}.png"))
    save(textured(50, 200, 150), tmp_path / "crops" / "stranger.png")

    def run(*options: str) -> dict[str, Any]:
        arguments = ["match", *(str(tmp_path / name) for name in ("originals", "crops")), "--out", str(tmp_path / "boxes")]
        assert cli.run([*arguments, *options]) == 0
        result: dict[str, Any] = json.loads((tmp_path / "boxes" / "result.json").read_text())
        return result

    result = run("--by-content")
    assert result["counts"] == {"found": 5, "unpaired": 2} and result["computed"] == 7
    table = BoxDataset.open(str(tmp_path / "boxes")).pairs(["original_uri", "crop_uri", "verdict", "reason"]).to_pylist()
    pairs_found = {(Path(r["original_uri"]).stem, Path(r["crop_uri"]).stem) for r in table if r["verdict"] == "found"}
    assert pairs_found == {("0", "0"), ("1", "1"), ("2", "renamed 7"), ("3", "renamed 6"), ("4", "renamed 5")}
    assert run("--by-content", "--concurrency", "1")["computed"] == 0
    again = run("--by-content", "--overwrite", "--concurrency", "1")
    assert again["counts"] == result["counts"]
    assert BoxDataset.open(str(tmp_path / "boxes")).pairs(["original_uri", "crop_uri", "verdict", "reason"]).to_pylist() == table
    assert run()["counts"] == {"found": 2, "unpaired": 8}  # without the flag only names count, as in a new dataset
    shutil.rmtree(tmp_path / "boxes")
