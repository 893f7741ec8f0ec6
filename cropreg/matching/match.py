"""What the matcher says about one pair."""

from __future__ import annotations

from dataclasses import dataclass

from cropreg.boxes import Box


@dataclass(frozen=True)
class Match:
    """The answer for one pair; everything about the place is None unless a place was found.

    Attributes:
        verdict: ``found``, ``ambiguous``, ``doubtful``, ``flat``, ``no_match`` or ``unreadable``.
        reason: one sentence for the user; None when found.
        box: pixels of the upright original, half-open; whole numbers when the crop was neither resized nor turned.
        angle_deg: clockwise on the screen, the turn of the crop's x axis in the original about the box's centre.
        scale: crop pixels per original pixel.
        score: zero-mean NCC at the place, in [-1, 1].
        gap: ``score`` minus the best score elsewhere.
        method: ``ncc`` or ``features``: how the place was found.
        original_wh, crop_wh: upright pixels; None when the header could not be read.
        orientation: EXIF orientation of the original's file.
        error_px: predicted standard deviation of the box's edges, original pixels.
        probability: calibrated probability that the box is right.
    """

    verdict: str
    reason: str | None = None
    box: Box | None = None
    angle_deg: float | None = None
    scale: float | None = None
    score: float | None = None
    gap: float | None = None
    method: str | None = None
    original_wh: tuple[int, int] | None = None
    crop_wh: tuple[int, int] | None = None
    orientation: int | None = None
    error_px: float | None = None
    probability: float | None = None
