"""What is done with a prediction: where its box is cut, and whether that is written or left for a person, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropreg import calibration, promise
from cropreg.boxes import EDGES
from cropreg.checkpoint import CheckpointInfo
from cropreg.errors import UsageError
from cropreg.prediction import Predictions
from cropreg.promise import Promise
from cropreg.schema import ACCEPT, REVIEW
from cropreg.settings import PredictSettings


@dataclass(frozen=True)
class Judge:
    """Decides about the predictions of one model as the user asked for.

    Attributes:
        info: the model's.
        settings: the user's.
        promise: what keeps ``--max-risk``; None without it.
    """

    info: CheckpointInfo
    settings: PredictSettings
    promise: Promise | None

    @staticmethod
    def asks_more_of_the_model(settings: PredictSettings) -> bool:
        """Whether settings ask for what not every model can do, which is to be told before any work."""
        return settings.max_risk is not None or settings.tolerance is not None or settings.lean != "even"

    @classmethod
    def of(cls, info: CheckpointInfo, settings: PredictSettings) -> Judge:
        """The judge for a model and settings.

        Raises:
            UsageError: this model cannot do what is asked for, or settings contradict each other.
        """
        how = info.calibration
        if settings.max_risk is None:
            if settings.tolerance is not None:
                raise UsageError("--tolerance says what --max-risk counts as a loss, and does nothing without it. Give both.")
            if settings.lean != "even" and (how is None or how.edge_factors is None):
                raise UsageError(
                    f"--lean {settings.lean}: this model has no intervals to lean in: it had {how.rows if how else 0} pairs in calib, "
                    "which takes at least 9. Match more pairs and train again, or leave the flag out."
                )
            return cls(info, settings, None)
        if settings.all:
            raise UsageError("--max-risk: --all writes doubtful crops too, so nothing can be promised of them. Give one of both.")
        if settings.min_confidence != PredictSettings.model_fields["min_confidence"].default:
            raise UsageError("--max-risk decides what is written in the place of --min-confidence. Give one of both.")
        if settings.jpeg_lossless and settings.jpeg_snap == "in":
            raise UsageError(
                "--max-risk: --jpeg-snap in moves edges inward, so nothing can be promised of them. Use --jpeg-snap out."
            )
        tolerance = promise.DEFAULT_TOLERANCE if settings.tolerance is None else settings.tolerance
        return cls(info, settings, promise.decide(how, settings.max_risk, tolerance, settings.lean))

    def boxes(self, predictions: Predictions) -> NDArray[np.float64]:
        """The boxes (N, 4) to cut, shares of the picture: as predicted, or with edges moved outward or inward."""
        if self.promise is not None:
            return self.promise.boxes(predictions.boxes_norm, predictions.spread)
        if self.settings.lean == "even":
            return predictions.boxes_norm
        limits = calibration.intervals(predictions.boxes_norm, predictions.spread, self.info.calibration)
        return calibration.leaned(limits, self.settings.lean)

    @property
    def keeps_whole(self) -> bool:
        """Whether boxes are brought to whole pixels outward, so that rounding cuts nothing off that was to be kept."""
        return self.promise is not None or self.settings.lean == "safe"

    def verdict(self, spread_norm: NDArray[np.float64], unlike: float, confidence: float) -> tuple[str, str | None]:
        """Accept or review, and the reason for the latter.

        Args:
            spread_norm: (4,) shares of the side.
            unlike: multiples of what is ordinary; NaN: unknown.
            confidence: that the crop is good; NaN: unknown.
        """
        edge, doubt = int(np.argmax(spread_norm)), float(spread_norm.mean())
        most = (
            f"looks at the picture disagree most on the {EDGES[edge]} edge, by {100 * spread_norm[edge]:.1f}% of the "
            f"{'width' if edge % 2 == 0 else 'height'}"
        )
        if unlike > 1:
            novelty = self.info.calibration and self.info.calibration.novelty
            return REVIEW, (
                f"unlike the pictures that the model learned from: {unlike:.1f} times as far from them as ordinary ones lie at most (of "
                f"{novelty.rows if novelty else 0} kept aside)"
            )
        if self.promise is not None:
            if doubt > self.promise.doubt_limit:
                return REVIEW, f"too doubtful for --max-risk {self.promise.max_risk:g}: {most}"
        elif math.isnan(confidence):
            if self.info.calibration is None:
                return REVIEW, (
                    "the training was interrupted before it learned how sure it may be: go on with cropreg train ... --resume"
                )
            return REVIEW, "the run had too few pairs in its calib split to know how sure it may be"
        elif confidence < self.settings.min_confidence:
            return REVIEW, f"confidence {confidence:.2f} is below {self.settings.min_confidence:g}: {most}"
        return ACCEPT, None
