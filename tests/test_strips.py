"""Strips along edges, and the refiner that reads them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import framed_print

from cropreg.dataset import normalised_strips
from cropreg.refiner import EdgeRefiner, refine_loss
from cropreg.strips import ACROSS_PX, ALONG_PX, EXTENTS, REACH, cut_strips, extents_of, jittered, moved, offsets_between


def box_of(picture: np.ndarray, box_px: tuple[int, int, int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.array(box_px) / np.array([width, height, width, height])


def test_an_edge_lies_in_the_middle_of_its_strip_with_the_inside_on_the_right() -> None:
    picture = np.full((400, 600, 3), 255, np.uint8)
    picture[100:300, 150:450] = 0
    strips = cut_strips(picture, box_of(picture, (150, 100, 450, 300)))
    assert strips.shape == (4, ALONG_PX, ACROSS_PX, 3)
    for strip in strips[:, 2:-2]:  # at its ends a strip sees the corner
        assert strip[:, : ACROSS_PX // 2 - 1].min() > 250
        assert strip[:, ACROSS_PX // 2 + 1 :].max() < 5


@pytest.mark.parametrize("edge", range(4))
def test_a_step_in_a_strip_is_where_the_offset_says(edge: int) -> None:
    picture = np.full((400, 600, 3), 255, np.uint8)
    picture[100:300, 150:450] = 0
    true = box_of(picture, (150, 100, 450, 300))
    off = true.copy()
    off[edge] += 0.03
    offset = offsets_between(off, true)[edge]
    dark = cut_strips(picture, off)[edge].mean(axis=(0, 2)) < 128
    step = int(np.argmax(dark)) / ACROSS_PX * 2 - 1
    assert step == pytest.approx(offset, abs=0.05)
    assert moved(off, offsets_between(off, true)) == pytest.approx(true)


def test_a_strip_beyond_the_picture_is_plain() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    strips = cut_strips(picture, np.array([0.0, 0.0, 1.0, 1.0]))
    assert (strips[:, :, 0] == 128).all()
    assert (strips[:, :, -1] == 0).all()


def test_chance_moves_every_edge_but_never_out_of_its_strip() -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.2, 0.2, 0.8, 0.8])
    boxes = np.array([jittered(true, rng) for _ in range(500)])
    assert np.abs(boxes - true).max() < REACH
    assert np.abs(boxes - true).std(axis=0).min() > REACH / 10


def test_a_refiner_that_learned_nothing_leaves_edges_where_they_are() -> None:
    mean, deviation = (lambda r: r.read(r(torch.randn(2, 4, 3, ALONG_PX, ACROSS_PX), torch.randn(2, 4, EXTENTS))))(
        EdgeRefiner().eval()
    )
    assert mean.abs().max() < 1e-6
    assert deviation.min() > 0.5  # and says that it knows nothing


def test_a_strip_shows_the_same_whatever_else_the_picture_holds() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (900, 1200, 3), np.uint8)  # so large that strips are averaged
    box = np.array([0.3, 0.3, 0.7, 0.8])
    away = picture.copy()
    away[: int((0.3 - REACH) * 900) - 30] = 0  # what no strip reaches
    assert np.array_equal(cut_strips(picture, box), cut_strips(away, box))


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.4, 0.4, 0.41, 0.9), (0.9, 0.2, 0.8, 0.3), (1.2, 1.2, 1.4, 1.4)])
def test_strips_and_extents_of_odd_boxes_are_there_and_finite(box: tuple[float, ...]) -> None:
    picture = np.zeros((40, 3, 3), np.uint8)
    assert cut_strips(picture, np.array(box)).shape == (4, ALONG_PX, ACROSS_PX, 3)
    assert np.isfinite(extents_of(np.array(box), (3, 40))).all()


def test_extents_are_those_of_the_box_in_the_picture_and_of_no_pixel() -> None:
    box = np.array([0.25, 0.5, 0.75, 1.0])
    extents = np.exp(extents_of(box, (200, 100)))
    assert extents[:, 0] == pytest.approx([0.25, 0.5, 0.25, 0.5]), "how long each edge is"
    assert extents[:, 1] == pytest.approx([0.5, 0.25, 0.5, 0.25]), "how far away the opposite one"
    assert extents[:, 2] == pytest.approx([REACH, REACH / 2, REACH, REACH / 2])
    assert np.array_equal(extents_of(box, (400, 200)), extents_of(box, (200, 100)))


Pairs = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Pictures, true boxes, and boxes that are a little off."""


def prints(seeds: range, rng: np.random.Generator, width: int = 240, height: int = 180) -> Pairs:
    drawn = [(picture, box_of(picture, box_px)) for picture, box_px in (framed_print(seed, width, height) for seed in seeds)]
    return [(picture, true, jittered(true, rng)) for picture, true in drawn]


def looked_at(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    strips = np.stack([cut_strips(picture, off) for picture, _, off in pairs])
    extents = np.stack([extents_of(off, (picture.shape[1], picture.shape[0])) for picture, _, off in pairs])
    return normalised_strips(strips), torch.from_numpy(extents)


def offsets_of(pairs: Pairs) -> torch.Tensor:
    return torch.from_numpy(np.stack([offsets_between(off, true) for _, true, off in pairs])).float()


@pytest.fixture(scope="module")
def learned() -> EdgeRefiner:
    """A refiner after 40 steps over 80 prints, each seen with boxes that are off otherwise every time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    refiner = EdgeRefiner()
    optimizer = torch.optim.AdamW(refiner.parameters(), 3e-3)
    for step in range(40):
        pairs = prints(range(8 * (step % 10), 8 * (step % 10) + 8), rng)
        optimizer.zero_grad()
        refine_loss(refiner, refiner(*looked_at(pairs)), offsets_of(pairs)).mean().backward()
        optimizer.step()
    return refiner.eval()


@pytest.mark.long
def test_a_refiner_learns_where_edges_are(learned: EdgeRefiner) -> None:
    pairs = prints(range(900, 908), np.random.default_rng(1))
    with torch.no_grad():
        mean, deviation = learned.read(learned(*looked_at(pairs)))
    offsets = offsets_of(pairs)
    assert (mean - offsets).abs().mean() < 0.5 * offsets.abs().mean()
    assert deviation.mean() < 0.4


@pytest.mark.long
def test_what_a_refiner_learned_does_not_depend_on_the_size_of_the_picture(learned: EdgeRefiner) -> None:
    large = prints(range(900, 908), np.random.default_rng(1), 480, 360)
    halved = [(np.asarray(cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)), *rest) for p, *rest in large]
    with torch.no_grad():
        (one, _), (other, _) = (learned.read(learned(*looked_at(pairs))) for pairs in (large, halved))
    assert (one - other).abs().mean() * REACH < 0.003, "less than 0.3% of the picture's side"
    assert (one - other).abs().max() > 0, "they are not the same pixels"
