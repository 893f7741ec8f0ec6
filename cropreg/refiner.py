"""The second look: a small network that says where in a strip the edge lies, as a distribution over places.

A distribution and not a number (Li et al., "Generalized Focal Loss", NeurIPS 2020): its mean is the edge, its width says how sure that
is, and a strip that shows two likely edges is not answered with the place between them.
"""

from __future__ import annotations

import torch
from torch import nn

from cropreg.strips import ACROSS_PX, EXTENTS
from cropreg.trimming import Trimming

_CHANNELS, _HIDDEN = 24, 32
_BINS = ACROSS_PX // 2
_SOFT = 0.05  # standard deviation of the soft label, in shares of the reach: 0.4% of the picture's side
_SMOOTH = 0.05
_LABEL_WEIGHT, _OFFSET_WEIGHT = 0.2, 5.0
_TURN_WEIGHT = 0.1  # it is learned by a number of its own, and takes nothing from the others
_LEAST = 1e-3


class EdgeRefiner(nn.Module):
    """Strips in, edges out; the same weights for all four edges, which are told which one they are.

    Along the edge everything is pooled by attention: what says where the edge lies may be a small part of it.  Only then is it told the
    extents: where something ends is seen alike in strips of all sizes, how much of it a person leaves out is not.  And of each other's
    strips edges hear what kind they are, whether there is a border or a slant, but not where: an edge that is hard to see has three
    neighbours that may not be.

    Args:
        untrimmed: it is to learn the box before it was trimmed to an aspect, and beside it how that is done.
    """

    positions: torch.Tensor

    def __init__(self, untrimmed: bool = False) -> None:
        super().__init__()
        c = _CHANNELS
        self.first = nn.Conv2d(3, c, 5, (2, 2), padding=2, bias=False)
        self.which = nn.Parameter(torch.zeros(4, c))
        self.body = nn.Sequential(
            nn.BatchNorm2d(c),
            nn.SiLU(inplace=True),
            _block(c, c, (2, 1)),
            _block(c, 2 * c, (2, 1)),
            _block(2 * c, 2 * c, (1, 1)),
            _block(2 * c, 2 * c, (2, 1)),
            _block(2 * c, 2 * c, (1, 1)),
        )
        self.attention = nn.Conv2d(2 * c, 1, 1)
        self.extents = nn.Sequential(nn.Linear(EXTENTS, _HIDDEN), nn.SiLU(inplace=True), nn.Linear(_HIDDEN, 2 * c))
        self.across = nn.Sequential(nn.Conv1d(2 * c, 2 * c, 7, padding=3, bias=False), nn.BatchNorm1d(2 * c), nn.SiLU(inplace=True))
        self.others = nn.Sequential(nn.Linear(4 * 2 * c, 2 * _HIDDEN), nn.SiLU(inplace=True), nn.Linear(2 * _HIDDEN, 2 * c))
        self.last_but_one = nn.Sequential(nn.Conv1d(2 * c, 2 * c, 7, padding=3), nn.SiLU(inplace=True))
        self.last = nn.Conv1d(2 * c, 1, 1)
        nn.init.zeros_(self.last.weight)  # at first every place is as likely: the first look's edge stands
        self.trimming = Trimming() if untrimmed else None
        self.register_buffer("positions", (torch.arange(_BINS) + 0.5) / _BINS * 2 - 1, persistent=False)

    def forward(self, strips: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        """Where edges lie.

        Args:
            strips: (N, 4, 3, ALONG_PX, ACROSS_PX), normalised.
            extents: (N, 4, EXTENTS), see :func:`cropreg.strips.extents_of`.

        Returns:
            logits (N, 4, bins) of the place, outside to inside.
        """
        count = strips.shape[0]
        first = self.first(strips.flatten(0, 1))  # (4N, c, along / 2, across / 2)
        features = self.body(first + self.which.repeat(count, 1)[:, :, None, None])
        weights = self.attention(features).softmax(dim=2)
        pooled = (features * weights).sum(dim=2)  # (4N, 2c, bins)
        pooled = pooled + self.extents(extents.flatten(0, 1))[:, :, None]
        seen = self.across(pooled)
        kinds = seen.mean(dim=2).view(count, 4, -1)
        # Own, next, opposite and last edge, as each sees them.
        around = torch.cat([kinds.roll(-turn, dims=1) for turn in range(4)], dim=2)  # (N, 4, 8c)
        seen = seen + self.others(around.flatten(0, 1))[:, :, None]
        logits: torch.Tensor = self.last(self.last_but_one(seen)).view(count, 4, _BINS)
        return logits

    def read(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean and the standard deviation (N, 4) of the places that ``logits`` describe, in shares of the reach."""
        shares = logits.softmax(dim=-1)
        mean = (shares * self.positions).sum(dim=-1)
        variance = (shares * (self.positions - mean[..., None]) ** 2).sum(dim=-1)
        return mean, variance.sqrt()


def refine_loss(refiner: EdgeRefiner, logits: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The loss of each picture (N,): cross-entropy with a soft label about the true place, and smooth L1 of the mean.

    ``offsets`` (N, 4) are the true places in shares of the reach.
    """
    mean, _ = refiner.read(logits)
    offset = nn.functional.smooth_l1_loss(mean, offsets, beta=_SMOOTH, reduction="none").mean(dim=1)
    return _LABEL_WEIGHT * _unlikely(refiner, logits, offsets).mean(dim=1) + _OFFSET_WEIGHT * offset


def untrimmed_loss(
    refiner: EdgeRefiner, logits: torch.Tensor, offsets: torch.Tensor, extents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each picture (N,) where the untrimmed box is asked for, and which of its axes is taken to be seen, (N, 2).

    Of each label one pair of edges, that which costs less, is taken for edges of the untrimmed box.  Between those of the other pair the
    crop must lie, and where trimming puts it.

    Args:
        refiner: one that has a :class:`Trimming`.
        logits: (N, 4, bins), what it says of strips.
        offsets: (N, 4) the places of the label's edges in them, in shares of the reach.
        extents: (N, 4, EXTENTS) of the strips.
    """
    assert refiner.trimming is not None
    mean, _ = refiner.read(logits)
    inside = mean - offsets
    seen = _of_axes(_LABEL_WEIGHT * _unlikely(refiner, logits, offsets) + _OFFSET_WEIGHT * _smooth(inside)).mean(dim=2)
    within = _OFFSET_WEIGHT * (_smooth(refiner.trimming.slip(inside)) + _smooth(_of_axes(inside).mean(dim=2).relu()) / 2)
    each = (seen + within.flip(1)) / 2  # (N, 2), if that axis is the one that is seen
    across, reach = extents[:, :2, 1:].exp().unbind(2)  # (N, 2) both: of left and top
    sides = [across - 2 * reach * _of_axes(places).mean(dim=2) for places in (mean, offsets)]
    wide, lies = (ends.clamp(min=_LEAST).log() @ ends.new_tensor([1.0, -1.0]) for ends in sides)
    turn = refiner.trimming.turn_loss(wide, lies > 0)
    return each.amin(dim=1) + _TURN_WEIGHT * turn, nn.functional.one_hot(each.argmin(dim=1), 2).bool()


def _unlikely(refiner: EdgeRefiner, logits: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Cross-entropies (N, 4) with soft labels about true places."""
    soft = (-(((offsets[..., None] - refiner.positions) / _SOFT) ** 2) / 2).softmax(dim=-1)
    return -(soft * logits.log_softmax(dim=-1)).sum(dim=-1)


def _smooth(off: torch.Tensor) -> torch.Tensor:
    return nn.functional.smooth_l1_loss(off, torch.zeros_like(off), beta=_SMOOTH, reduction="none")


def _of_axes(edges: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom (N, 4) as (N, 2, 2): of x and of y both ends."""
    return edges.unflatten(1, (2, 2)).transpose(1, 2)


def _block(channels: int, kept: int, stride: tuple[int, int], kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(channels, kept, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(kept), nn.SiLU(inplace=True))
