"""How the first look says where an edge lies: as a number, as a number with how unsure it is, or as a distribution over places.

Which of them it is shows in the shape of what is said: (N, 4), (N, 4, 2) or (N, 4, PLACES).
"""

from __future__ import annotations

import numpy as np
import torch

PLACES = 48
"""Of a distribution, from no margin to the whole side: 2.1% of the side lie between two, and edges between places."""

_LEAST_SCALE = 1e-3  # share of the side; no edge is said to be surer, or a single exact one would outweigh all others
_FIRST_SCALE = 0.1  # before any training, about how far a constant box is off
_SMOOTH = 0.01  # margin errors below 1% of a side count quadratically
_LAPLACE_TIMES = 0.02  # at this scale a Laplace loss is as steep as the smooth L1 that it stands for
_PLACES_TIMES = 0.04  # cross-entropies are large numbers: with this the label counts as in the second look


def first_bias(margins: tuple[float, float, float, float], numbers: int) -> torch.Tensor:
    """The biases (4 * numbers,) with which a last layer whose weights are nought says ``margins``.

    Of distributions it is the flattest one with that mean.
    """
    if numbers == 1:
        return torch.tensor(margins)
    if numbers == 2:
        return torch.tensor([[margin, 0.0] for margin in margins]).flatten()
    places = np.linspace(0, 1, numbers)
    return torch.from_numpy(np.stack([_tilt(margin, places) * places for margin in margins]).astype(np.float32)).flatten()


def read(said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins (N, 4), not clamped, and how unsure each is (N, 4), in shares of the side; nought where nothing is said of it.

    It is the standard deviation of the distribution, or the scale of the Laplace distribution.
    """
    if said.ndim == 2:
        return said, torch.zeros_like(said)
    if said.shape[2] == 2:
        return said[..., 0], _scale(said)
    places = torch.linspace(0, 1, PLACES, device=said.device)
    shares = said.softmax(dim=2)
    mean = (shares * places).sum(dim=2)
    variance = (shares * (places - mean[..., None]) ** 2).sum(dim=2)
    return mean, variance.sqrt()


def edge_loss(said: torch.Tensor, margins: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of each edge (N, 4) against the true ``margins`` (N, 4).

    Args:
        said: what the first look says.
        margins: in shares of the side.
        kind: ``smooth-l1`` of the margin that is read, scaled so that it is |error| less a constant beyond ``0.01`` (Girshick 2015);
            ``laplace``: the negative logarithm of a Laplace distribution's density, whose scale is learned (Kendall and Gal 2017), up to
            a constant that keeps it above nought; ``dfl``: smooth L1 and beside it the distribution focal loss, cross-entropy with the
            two places next to the edge (Li et al. 2020).
    """
    found, scale = read(said)
    if kind == "laplace":
        return _LAPLACE_TIMES * ((found - margins).abs() / scale + (scale / _LEAST_SCALE).log())
    smooth = torch.nn.functional.smooth_l1_loss(found, margins, beta=_SMOOTH, reduction="none")
    return smooth if kind == "smooth-l1" else smooth + _PLACES_TIMES * _focal(said, margins)


def _focal(said: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    at = margins.clamp(0, 1) * (PLACES - 1)
    below = at.long().clamp(max=PLACES - 2)
    above_share = at - below
    logs = said.log_softmax(dim=2)
    next_to = [logs.gather(2, (below + step)[..., None])[..., 0] for step in (0, 1)]
    return -((1 - above_share) * next_to[0] + above_share * next_to[1])


def _scale(said: torch.Tensor) -> torch.Tensor:
    return _LEAST_SCALE + _FIRST_SCALE * said[..., 1].clamp(-10, 3).exp()


def _tilt(mean: float, places: np.ndarray) -> float:
    """The slope t for which shares that grow as exp(t place) have that mean, within 300: by halving."""
    low, high = -300.0, 300.0
    for _ in range(60):
        middle = (low + high) / 2
        shares = np.exp(middle * places - max(middle, 0.0))
        low, high = (middle, high) if (shares * places).sum() / shares.sum() < mean else (low, middle)
    return (low + high) / 2
