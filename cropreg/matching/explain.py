"""Explain: one PNG that shows what the matcher saw of a pair, and why it decided as it did."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import Box, iou
from cropreg.errors import UnreadableImage
from cropreg.images import decode_color
from cropreg.matching import place as places
from cropreg.matching.find import DEFAULTS, find_in, search
from cropreg.matching.follow import Found
from cropreg.matching.match import Match
from cropreg.matching.picture import Picture
from cropreg.matching.search import Candidate, at_same_scale
from cropreg.matching.settings import MatcherSettings

PANEL_PX = 460  # long side of a panel
SAME_PLACE_IOU = 0.5  # of the box and the place it was settled from, which may still have been off by a few per cent
INK, GREEN, ORANGE, RED, GREY = (40, 40, 40), (30, 150, 60), (230, 130, 20), (200, 40, 40), (130, 130, 130)
COLORS = {"found": GREEN, "ambiguous": ORANGE, "doubtful": ORANGE, "flat": ORANGE, "no_match": RED, "unreadable": RED}
Image = NDArray[np.uint8]


def explain(
    original: bytes, crop: bytes, settings: MatcherSettings = DEFAULTS, names: tuple[str, str] = ("original", "crop")
) -> tuple[Match, bytes]:
    """Matches a pair and draws a PNG: both pictures, the first candidates (grey), the box, the tiles, what is left over, the verdict.

    Never raises for a bad picture: what could be read is drawn.  Cost: two full decodes more than the matching itself.
    """
    whole, part = Picture(original, names[0], with_proxy=True), Picture(crop, names[1])  # as a box dataset is made
    match = find_in(whole, part, settings)
    panels = [_titled(_thumbnail(original, names[0]), "original"), _titled(_thumbnail(crop, names[1]), "crop")]
    if match.original_wh is not None and match.crop_wh is not None and match.verdict != "unreadable":
        candidates, found = _looked_at(whole, part, match.box, settings)
        panels[0] = _titled(_with_boxes(_thumbnail(original, names[0]), match, candidates), "original: candidates (grey), place")
        if found is not None:
            panels += [
                _titled(_tiles(found), "agreement of tiles: red 0, green 1, black: no texture"),
                _titled(_residual(found), "left over after registration (grey: nothing)"),
            ]
    sheet = _sheet(panels, [_headline(match, names), *_facts(match)], COLORS[match.verdict])
    done, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV encodes every uint8 array"
    return match, png.tobytes()


def _looked_at(original: Picture, crop: Picture, box: Box | None, s: MatcherSettings) -> tuple[list[Candidate], Found | None]:
    """The first candidates, and the place of ``box`` as the search saw it; without a box the first place."""
    (ow, oh), (cw, ch) = original.size_wh, crop.size_wh
    lowest = max(s.lowest_scale, s.overlap * max(cw / ow, ch / oh))
    if lowest > s.highest_scale:
        return [], None
    candidates: list[Candidate] = []
    if cw <= ow and ch <= oh:
        candidates = at_same_scale(crop.maps_in(original, s.template_px, s.band_px), s.search_peaks)
    mirages: list[Found] = []
    while len(mirages) <= s.most_mirages:
        found = search(original, crop, lowest, s, [mirage.place for mirage in mirages])
        if found is None:
            break
        if box is None or iou(list(places.to_box(found.place, crop.size_wh)), list(box)) > SAME_PLACE_IOU:
            return candidates, found
        mirages.append(found)
    return candidates, mirages[0] if mirages else None


def _thumbnail(data: bytes, name: str) -> Image:
    try:
        return _fitted(decode_color(data, name))
    except UnreadableImage:
        return np.full((PANEL_PX * 2 // 3, PANEL_PX, 3), 235, np.uint8)


def _fitted(pixels: Image, interpolation: int = cv2.INTER_AREA) -> Image:
    ratio = PANEL_PX / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio))
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)


def _with_boxes(panel: Image, match: Match, candidates: list[Candidate]) -> Image:
    assert match.original_wh is not None
    assert match.crop_wh is not None
    ratio = panel.shape[1] / match.original_wh[0]
    w, h = match.crop_wh
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float64)

    def outline(place: places.Affine, color: tuple[int, int, int], thickness: int) -> None:
        points = np.round(places.apply(place, corners) * ratio).astype(np.int32)
        cv2.polylines(panel, [points], True, color, thickness, cv2.LINE_AA)

    for candidate in candidates:
        outline(candidate.place, GREY, 1)
    if match.box is not None:
        outline(places.from_box(match.box, match.crop_wh, match.angle_deg or 0.0), COLORS[match.verdict], 2)
    return panel


def _tiles(found: Found) -> Image:
    ncc = found.evidence.tile_ncc
    good = np.clip(np.nan_to_num(ncc), 0, 1)[..., None]
    colors = (1 - good) * np.array(RED) + good * np.array(GREEN)
    colors[np.isnan(ncc)] = 0
    w, h = found.pair.grid.size_wh
    grid = np.asarray(cv2.resize(colors.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST), np.uint8)
    grey = np.clip(found.pair.grid.pixels if not found.pair.bands else found.pair.grid.pixels * 3 + 128, 0, 255).astype(np.uint8)
    mixed = cv2.addWeighted(grid, 0.5, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 0.5, 0)
    return _fitted(np.asarray(mixed, np.uint8), cv2.INTER_NEAREST)


def _residual(found: Found) -> Image:
    target, moved = found.pair.target, found.pair.moved(found.pair.matrix(found.place))
    rest = target - np.float32(found.evidence.gain) * moved
    scale = 60 / max(float(target.std()), 1e-3)
    grey = np.clip(rest * scale + 128, 0, 255).astype(np.uint8)
    return _fitted(np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8), cv2.INTER_NEAREST)


def _headline(match: Match, names: tuple[str, str]) -> str:
    return f"{match.verdict}: {names[1]} in {names[0]}"


def _facts(match: Match) -> list[str]:
    lines = [match.reason] if match.reason else []
    if match.box is not None:
        box = ", ".join(f"{v:.2f}" for v in match.box)
        lines.append(f"box {box} px   angle {match.angle_deg:.3f} deg   scale {match.scale:.4f}   method {match.method}")
        lines.append(
            f"score {match.score:.4f}   gap {match.gap:.4f}   predicted error {match.error_px:.3f} px   probability {match.probability:.3f}"
        )
    return lines


def _titled(panel: Image, title: str) -> Image:
    height = panel.shape[0] + 26
    canvas = np.full((height, PANEL_PX, 3), 255, np.uint8)
    canvas[26:, : panel.shape[1]] = panel
    cv2.putText(canvas, title, (0, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return canvas


def _sheet(panels: list[Image], lines: list[str], color: tuple[int, int, int]) -> Image:
    """Panels in rows of two under the lines of text."""
    rows = []
    for i in range(0, len(panels), 2):
        pair = panels[i : i + 2]
        height = max(p.shape[0] for p in pair)
        padded = [np.vstack([p, np.full((height - p.shape[0], PANEL_PX, 3), 255, np.uint8)]) for p in pair]
        rows.append(np.hstack([padded[0], np.full((height, 20, 3), 255, np.uint8), padded[-1]]))
    text = np.full((30 * len(lines) + 16, rows[0].shape[1], 3), 255, np.uint8)
    for i, line in enumerate(lines):
        cv2.putText(
            text,
            line,
            (0, 26 + 30 * i),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.75 if i == 0 else 0.46,
            color if i == 0 else INK,
            1,
            cv2.LINE_AA,
        )
    sheet = np.vstack([text, *rows])
    return np.asarray(cv2.copyMakeBorder(sheet, 16, 16, 16, 16, cv2.BORDER_CONSTANT, value=(255, 255, 255)), np.uint8)
