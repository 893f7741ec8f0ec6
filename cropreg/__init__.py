"""Learns how a person crops from the pairs of originals and crops they already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropreg.boxes import Box
    from cropreg.dataset import CropDataset
    from cropreg.matching.find import find
    from cropreg.matching.match import Match
    from cropreg.pipelines.match import compute_bounding_boxes
    from cropreg.prediction import Predictor

__version__ = "0.1.0"
__all__ = ["Box", "CropDataset", "Match", "Predictor", "compute_bounding_boxes", "find"]

_HOME = {
    "Box": "cropreg.boxes",
    "CropDataset": "cropreg.dataset",
    "Match": "cropreg.matching.match",
    "Predictor": "cropreg.prediction",
    "compute_bounding_boxes": "cropreg.pipelines.match",
    "find": "cropreg.matching.find",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``cropreg --help`` loads neither OpenCV nor torch nor Ray."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cropreg' has no attribute {name!r}")
