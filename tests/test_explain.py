"""``cropreg match --explain``: which pair a name means, and the picture it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import save, textured
from PIL import Image

from cropreg import cli
from cropreg.errors import InputError
from cropreg.pairs import discover
from cropreg.pipelines import explain
from cropreg.settings import MatchSettings


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, make_pairs: Callable[[Path, int], dict[str, tuple[int, int, int, int]]]
) -> Path:
    base = tmp_path_factory.mktemp("explain")
    make_pairs(base, 3)
    save(textured(9, 60, 40), base / "originals" / "sub" / "0001.jpg")
    save(textured(9, 60, 40), base / "crops" / "sub" / "0001.png")
    save(textured(8, 60, 40), base / "originals" / "alone.jpg")
    return base


def pair_of(folder: Path, relative: str) -> str:
    pairs = discover(str(folder / "originals"), str(folder / "crops"))
    return next(pair.pair_id for pair in pairs if pair.crop_uri and pair.crop_uri.endswith("crops/" + relative))


def chosen(folder: Path, name: str) -> str:
    settings = MatchSettings()
    summary = explain.run(
        name, str(folder / "originals"), str(folder / "crops"), out=str(folder / "boxes"), settings=settings, dry_run=True
    )
    return str(summary["pair_id"])


@pytest.mark.parametrize("name", ["0002", "0002.png", "crops/0002.png"])
def test_a_pair_is_known_by_the_name_of_its_crop(folder: Path, name: str) -> None:
    assert chosen(folder, name) == pair_of(folder, "0002.png")


def test_a_pair_is_known_by_the_beginning_of_its_id(folder: Path) -> None:
    wanted = pair_of(folder, "0000.png")
    assert chosen(folder, wanted) == chosen(folder, wanted[:12]) == wanted


def test_a_path_tells_two_crops_of_one_name_apart(folder: Path) -> None:
    assert chosen(folder, "sub/0001.png") == pair_of(folder, "sub/0001.png")
    with pytest.raises(InputError, match=r"2 pairs fit: .*Give the pair_id of one"):
        chosen(folder, "0001.png")


def test_an_unknown_name_is_an_error_that_proposes_a_near_one(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--explain 0002\.pgn: .* Did you mean 0002\.png\?"):
        chosen(folder, "0002.pgn")


def test_a_file_without_counterpart_has_nothing_to_explain(folder: Path) -> None:
    pairs = discover(str(folder / "originals"), str(folder / "crops"))
    lonely = next(pair.pair_id for pair in pairs if pair.crop_uri is None)
    with pytest.raises(InputError, match=r"alone\.jpg: this file has no counterpart"):
        chosen(folder, lonely)


def test_the_picture_is_written_beside_the_dataset_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    arguments = ["match", str(folder / "originals"), str(folder / "crops"), "--out", str(tmp_path / "boxes"), "--explain", "0002"]
    assert cli.run(arguments) == 0
    files = [path for path in (tmp_path / "boxes").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{pair_of(folder, '0002.png')}.png"]
    with Image.open(files[0]) as picture:
        assert picture.size[0] > 900


def test_without_folders_the_box_dataset_itself_is_asked(made_boxes: Path) -> None:
    from cropreg.schema import BoxDataset

    row = BoxDataset.open(str(made_boxes)).pairs(["pair_id", "crop_uri"]).slice(0, 1).to_pylist()[0]
    summary = explain.run(row["pair_id"], None, None, out=str(made_boxes), settings=MatchSettings(), dry_run=True)
    assert summary["crop"] == row["crop_uri"]
