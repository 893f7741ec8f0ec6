"""Trimming to one aspect: the box that a hand sees in a picture, and what it leaves of that box.

Who cuts a 3:2 print to 4:3 leaves two edges where the picture shows nothing.  The whole print it does show.  So where all labels have one
aspect, a model learns to say the *untrimmed* box, and the crop is what trimming leaves of it.  Of a label it is not known which two edges
were trimmed, left and right or top and bottom: the pair that the model finds less likely to be seen there.  That pair says nothing of the
untrimmed edges but where between them the crop lies.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cropreg.boxes import denormalise, normalise

_UNSURE = 0.03  # of the logarithm of width over height: within about so much of the turn, hands cut lying or standing


class Trimming(nn.Module):
    """How a hand trims, learned beside what it sees.

    Attributes:
        shares: (2,) which share of what is trimmed goes at the left, and which at the top.
        turn: () crops lie where the logarithm of the untrimmed box's width over its height is above this.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((2,), 0.5))
        self.turn = nn.Parameter(torch.zeros(()))

    def slip(self, inside: torch.Tensor) -> torch.Tensor:
        """How far to the right and downward (N, 2) the crop lies of its label, if the untrimmed edges lie ``inside`` (N, 4) its edges.

        Its sides are taken to be as long as the label's.
        """
        low, high = inside.unflatten(1, (2, 2)).unbind(1)  # (N, 2) both
        return (1 - self.shares) * low - self.shares * high

    def answers(self, boxes: torch.Tensor, extents: torch.Tensor, aspect: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is left of untrimmed boxes (N, 4), shares of the picture: lying or standing, whichever is likelier, (N, 4), the other one,
        (N, 4), and how likely the first is, (N,).

        ``extents`` (N, 4, EXTENTS) are those of the strips cut about them, which tell the pictures' sides; ``aspect`` is long over short.
        """
        sides = extents[:, :2, 2].exp().double().cpu().numpy()  # as far as a strip reaches
        untrimmed = boxes.double().cpu().numpy()
        share = lying_share(untrimmed, sides, self.turn.item())
        left, top = self.shares.tolist()
        lying = share > 0.5
        crops = [trimmed(untrimmed, sides, aspect, which, (left, top)) for which in (lying, ~lying)]
        likelier, other = (torch.from_numpy(crop).to(boxes) for crop in crops)
        return likelier, other, torch.from_numpy(np.maximum(share, 1 - share)).to(boxes)

    def turn_loss(self, wide: torch.Tensor, lying: torch.Tensor) -> torch.Tensor:
        """The loss of each picture (N,), of which only :attr:`turn` learns, for untrimmed boxes with logarithms ``wide`` of width over
        height (N,) and crops that are ``lying`` (N,).
        """
        return nn.functional.binary_cross_entropy_with_logits(
            (wide.detach() - self.turn) / _UNSURE, lying.float(), reduction="none"
        )


def trimmed(
    boxes_norm: NDArray[np.float64],
    sizes_wh: NDArray[np.float64] | NDArray[np.int64],
    aspect: float,
    lying: NDArray[np.bool_],
    shares: tuple[float, float] = (0.5, 0.5),
) -> NDArray[np.float64]:
    """What trimming leaves of boxes (N, 4): the largest boxes within that are ``lying`` (N,) or standing in that ``aspect``.

    Args:
        boxes_norm: in shares of the pictures.
        sizes_wh: (N, 2) of the pictures, in any unit.
        aspect: long side over short side.
        lying: whether the box left lies.
        shares: of what is trimmed, at the left and at the top.
    """
    edges = denormalise(boxes_norm, sizes_wh)
    sides = edges[:, 2:] - edges[:, :2]  # (N, 2)
    slope = np.where(lying, aspect, 1 / aspect)
    over = np.maximum(sides - np.stack([sides[:, 1] * slope, sides[:, 0] / slope], axis=1), 0)
    return normalise(edges + np.concatenate([over * shares, over * np.subtract(shares, 1)], axis=1), sizes_wh)


def lying_share(
    boxes_norm: NDArray[np.float64],
    sizes_wh: NDArray[np.float64] | NDArray[np.int64],
    turn: float,
    unsure: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """How likely crops of untrimmed boxes (N, 4) lie, (N,); ``unsure`` (N,) is of the logarithm of width over height."""
    edges = denormalise(boxes_norm, sizes_wh)
    wide = np.log((edges[:, 2] - edges[:, 0]) / (edges[:, 3] - edges[:, 1]))
    return np.asarray(1 / (1 + np.exp(np.clip((turn - wide) / np.hypot(unsure, _UNSURE), -50, 50))), np.float64)
