"""The settings of every verb: what a user can set, with its unit and its default, checked at birth.

Each is a frozen pydantic model that refuses unknown fields.  They stand here, on the ground floor, so that ``cropreg --help`` needs
neither torch nor Ray.  The matcher's own thresholds stand with the matcher.
"""

from cropreg.settings.reading import allowed, check, read_yaml
from cropreg.settings.verbs import (
    DEFAULT_RETRY,
    PRESETS,
    TRACKERS,
    VERBS,
    VERDICT_NAMES,
    DoorSettings,
    EdgeLoss,
    EvaluateSettings,
    ExportSettings,
    MatchSettings,
    Overlap,
    PredictSettings,
    ReadFrom,
    ReviewSettings,
    Settings,
    SubmitSettings,
    TrainSettings,
    read_resources,
)

__all__ = [
    "DEFAULT_RETRY",
    "PRESETS",
    "TRACKERS",
    "VERBS",
    "VERDICT_NAMES",
    "DoorSettings",
    "EdgeLoss",
    "EvaluateSettings",
    "ExportSettings",
    "MatchSettings",
    "Overlap",
    "PredictSettings",
    "ReadFrom",
    "ReviewSettings",
    "Settings",
    "SubmitSettings",
    "TrainSettings",
    "allowed",
    "check",
    "read_resources",
    "read_yaml",
]
