"""What training minimises: the IoU loss plus the margin loss."""

from __future__ import annotations

import torch
from torchvision.ops import generalized_box_iou_loss

_SMOOTH = 0.01  # margin errors below 1% of a side count quadratically


def to_boxes(margins: torch.Tensor) -> torch.Tensor:
    """Margins (N, 4) left, top, right, bottom to boxes (N, 4) x1, y1, x2, y2 in shares; margins that meet give a box of one thousandth."""
    x1y1 = margins[:, :2]
    return torch.cat([x1y1, torch.maximum(1 - margins[:, 2:], x1y1 + 1e-3)], dim=1)


def crop_loss(margins: torch.Tensor, boxes_norm: torch.Tensor, iou_weight: float, margin_weight: float) -> torch.Tensor:
    """The loss of each picture, (N,): ``iou_weight`` (1 - GIoU) + ``margin_weight`` mean over the edges of smooth L1.

    Source: GIoU, Rezatofighi et al. 2019 (torchvision's implementation); smooth L1, Girshick 2015, scaled so that it is |error|
    less a constant beyond ``0.01``.

    Args:
        margins: (N, 4) predicted shares, not clamped.
        boxes_norm: (N, 4) true boxes in shares.
    """
    boxes = to_boxes(margins)
    true_margins = torch.cat([boxes_norm[:, :2], 1 - boxes_norm[:, 2:]], dim=1)
    edges = torch.nn.functional.smooth_l1_loss(margins, true_margins, beta=_SMOOTH, reduction="none").mean(dim=1)
    return iou_weight * generalized_box_iou_loss(boxes, boxes_norm) + margin_weight * edges
