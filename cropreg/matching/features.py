"""Features: ORB keypoints and a seeded vote find a crop of unknown scale and small turn."""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.matching.place import Affine, without_shear
from cropreg.matching.plane import Plane, from_between
from cropreg.matching.search import Candidate

TRIALS = 400  # pairs of matches tried; with 10% right ones, 0.1**2 * 400 = 4 good pairs are expected
EDGE_PX = 16  # half a keypoint's patch: nearer to an edge there are none
Points = NDArray[np.complex128]  # (n,) x + iy
SEED = 20240  # the trials are the same in every process


class Keypoints(NamedTuple):
    """Corners of a plane: (n, 2) x, y in plane pixels, and their codes (n, 32); None without any."""

    plane: Plane
    points: NDArray[np.float64]
    codes: NDArray[np.uint8] | None


def by_features(
    original: Keypoints, crop: Keypoints, *, scale_range: tuple[float, float], max_angle_deg: float, count: int
) -> list[Candidate]:
    """Candidates from ORB keypoints (Rublee et al., ICCV 2011) and a similarity that most of them agree on (RANSAC), best first.

    ``scale_range`` is in crop pixels per original pixel.  Cost: 2 ms, and 2 for the keypoints of each.
    """
    if original.codes is None or crop.codes is None or len(crop.points) < 6 or len(original.points) < 6:
        return []
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(crop.codes, original.codes, k=2)
    good = [p[0] for p in pairs if len(p) == 2 and p[0].distance < 0.85 * p[1].distance and p[0].distance < 64]
    if len(good) < 5:
        return []
    a = crop.points[[m.queryIdx for m in good]]
    b = original.points[[m.trainIdx for m in good]]
    # a crop plane pixel covers crop.step crop px, that is crop.step / scale original px
    plane_scale = original.plane.step / crop.plane.step
    low, high = (1 / (s * plane_scale) for s in scale_range[::-1])
    found = []
    for linear, shift, votes in similarities(a, b, (low, high), max_angle_deg, count):
        matrix = np.hstack([linear, shift[:, None]])
        found.append(
            Candidate(
                without_shear(from_between(original.plane, crop.plane, matrix), crop.plane.center_xy),
                votes / len(good),
                original.plane.step,
            )
        )
    return found


def keypoints(plane: Plane, num_features: int) -> Keypoints:
    """The ``num_features`` strongest corners of a plane."""
    pixels = plane.pixels
    grey = pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0, 255).astype(np.uint8)
    # small planes: the patch is 31 px and keypoints keep away from the edge, so enlarge the picture by two instead
    zoom = 2 if max(grey.shape) < 400 else 1
    if zoom > 1:
        grey = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    if min(grey.shape) <= 2 * EDGE_PX:  # none is far enough from both edges; OpenCV fails at a pyramid without rows
        return Keypoints(plane, np.zeros((0, 2)), None)
    orb = cv2.ORB_create(nfeatures=num_features, scaleFactor=1.3, nlevels=6, edgeThreshold=EDGE_PX, patchSize=31, fastThreshold=10)
    points, codes = orb.detectAndCompute(grey, None)
    xy = np.array([p.pt for p in points], np.float64).reshape(-1, 2)
    return Keypoints(plane, (xy + 0.5) / zoom - 0.5, codes)


def similarities(
    a: NDArray[np.float64], b: NDArray[np.float64], scale_range: tuple[float, float], max_angle_deg: float, count: int
) -> list[tuple[Affine, NDArray[np.float64], int]]:
    """Up to ``count`` similarities a -> b with the most inliers: (linear (2, 2), shift (2,), votes); complex numbers are points."""
    rng = np.random.default_rng(SEED)
    n = len(a)
    za, zb = a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]
    i, j = rng.integers(0, n, TRIALS), rng.integers(0, n, TRIALS)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = (zb[i] - zb[j]) / (za[i] - za[j])
    far = np.abs(za[i] - za[j]) > 8
    size = np.abs(turn)
    fits = far & (size > scale_range[0]) & (size < scale_range[1]) & (np.abs(np.angle(turn, deg=True)) < max_angle_deg)
    turn, i = turn[fits], i[fits]
    if not len(turn):
        return []
    move = zb[i] - turn * za[i]
    close_px = 3.0 * np.maximum(1.0, np.abs(turn))[:, None]
    inside = np.abs(turn[:, None] * za[None] + move[:, None] - zb[None]) < close_px  # (trials, n)
    found: list[tuple[Affine, NDArray[np.float64], int]] = []
    free = np.ones(n, bool)
    for _ in range(count):
        votes = (inside & free).sum(1)
        k = int(votes.argmax())
        chosen = inside[k] & free
        if votes[k] < 4:
            break
        free &= ~inside[k]
        refined = _least_squares(za, zb, chosen)
        if refined is None:
            continue
        t, m, inliers = refined
        if scale_range[0] < abs(t) < scale_range[1] and abs(math.degrees(cmath.phase(t))) <= max_angle_deg:
            found.append((np.array([[t.real, -t.imag], [t.imag, t.real]]), np.array([m.real, m.imag]), inliers))
    return found


def _least_squares(za: Points, zb: Points, chosen: NDArray[np.bool_]) -> tuple[complex, complex, int] | None:
    """The similarity z_b = turn * z_a + move that fits the chosen points best, twice re-chosen: (turn, move, inliers)."""
    for _ in range(3):
        if chosen.sum() < 3:
            return None
        mean_a, mean_b = za[chosen].mean(), zb[chosen].mean()
        spread = (np.abs(za[chosen] - mean_a) ** 2).sum()
        if spread < 1e-6:
            return None
        turn = ((zb[chosen] - mean_b) * np.conj(za[chosen] - mean_a)).sum() / spread
        move = mean_b - turn * mean_a
        chosen = np.abs(turn * za + move - zb) < 3.0 * max(1.0, abs(turn))
    return complex(turn), complex(move), int(chosen.sum())
