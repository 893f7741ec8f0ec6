"""Where else an ambiguous crop fits, found again for the row that is looked at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import save, textured

import cropreg
from cropreg.errors import UnreadableImage
from cropreg.review.pictures import Pictures
from cropreg.review.places import elsewhere
from cropreg.review.queue import ELSEWHERE, MATCHER, MEDIAN, MODEL, NEIGHBOURS, Corners, Item, Suggestion

CORNERS = [(30, 40), (420, 40), (30, 380), (420, 380)]


def page_of_prints(folder: Path, count: int, shrunk: float) -> tuple[Path, Path]:
    """A page with the same print several times, to the last grey level, and the crop of its second one."""
    page = np.full((720, 800, 3), 240, np.uint8)
    for x, y in CORNERS[:count]:
        page[y : y + 300, x : x + 340] = textured(3, 340, 300)
    x, y = CORNERS[1]
    crop = page[y : y + 300, x : x + 340]
    save(page, folder / "page.png")
    save(np.asarray(cv2.resize(crop, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA), np.uint8), folder / "crop.png")
    return folder / "page.png", folder / "crop.png"


def item_of(page: Path, crop: Path, box: Corners, verdict: str = "ambiguous") -> Item:
    return Item(
        key="a", name="page.png", original_uri=str(page), crop_uri=str(crop), original_id=None, size_wh=(800, 720), box=box,
        angle_deg=0.0, verdict=verdict, why="", tier=0, benefit=0.0, stamp=None,
    )  # fmt: skip


@pytest.mark.parametrize("shrunk", [1.0, 0.6])
@pytest.mark.parametrize("count", [2, 3])
def test_every_other_print_on_a_page_is_found_where_it_lies(tmp_path: Path, count: int, shrunk: float) -> None:
    page, crop = page_of_prints(tmp_path, count, shrunk)
    match = cropreg.find(str(page), str(crop))
    assert match.verdict == "ambiguous" and match.box is not None
    there = elsewhere(item_of(page, crop, tuple(match.box)), 10**8)
    boxes = np.array([tuple(match.box), *(suggestion.box for suggestion in there)])
    expected = np.array([(x, y, x + 340, y + 300) for x, y in CORNERS[:count]])
    nearest = np.abs(boxes[:, None] - expected).max(axis=2)
    assert sorted(nearest.argmin(axis=1)) == list(range(count)) and nearest.min(axis=1).max() < 0.5
    assert shrunk < 1 or (boxes == boxes.round()).all(), "of a crop that was only cut out the box is whole"
    assert {suggestion.source for suggestion in there} == {ELSEWHERE}


def test_crop_that_fits_once_has_no_other_place(tmp_path: Path) -> None:
    page, crop = page_of_prints(tmp_path, 4, 1.0)
    save(textured(8, 800, 720), page)
    save(textured(8, 800, 720)[100:500, 200:700], crop)
    assert elsewhere(item_of(page, crop, (200, 100, 700, 500)), 10**8) == []


def test_other_places_are_looked_for_once_and_of_ambiguous_crops_only(tmp_path: Path) -> None:
    page, crop = page_of_prints(tmp_path, 3, 1.0)
    x, y = CORNERS[1]
    box = (float(x), float(y), float(x + 340), float(y + 300))
    item, settled = item_of(page, crop, box), item_of(page, crop, box, "doubtful")
    for some in (item, settled):
        some.suggest(Suggestion(MATCHER, box))
        some.suggest(Suggestion(MEDIAN, (1, 2, 300, 400)))
        Pictures().look_elsewhere(some)
    assert [s.source for s in item.suggestions] == [MATCHER, ELSEWHERE, ELSEWHERE]
    assert [s.source for s in settled.suggestions] == [MATCHER, MEDIAN]
    crop.unlink()
    Pictures().look_elsewhere(item)
    item.looked = False
    with pytest.raises(UnreadableImage, match=r"crop\.png"):
        Pictures().look_elsewhere(item)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_boxes_to_choose_from_stand_in_the_same_order_whenever_they_come(order: tuple[int, ...]) -> None:
    every = [
        Suggestion(MATCHER, (0, 0, 100, 100)),
        Suggestion(MODEL, (50, 50, 200, 200)),
        Suggestion(NEIGHBOURS, (50, 50, 200, 200.1)),
        Suggestion(MEDIAN, (300, 300, 500, 500)),
    ]
    item = item_of(Path("page"), Path("crop"), (0, 0, 100, 100))
    for n in order:
        item.suggest(every[n])
    assert [s.source for s in item.suggestions] == [MATCHER, MODEL, MEDIAN], "of two alike the more telling one stays"
