"""What training minimises: a loss of the boxes' overlap plus the margin loss."""

from __future__ import annotations

import torch
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from cropreg.edges import edge_loss, read
from cropreg.settings import EdgeLoss, Overlap
from cropreg.trimming import Trimming

_LEAST = 1e-3  # no side of a box is taken for shorter: of one without area the complete IoU is no number


def to_boxes(margins: torch.Tensor) -> torch.Tensor:
    """Margins (N, 4) left, top, right, bottom to boxes (N, 4) x1, y1, x2, y2 in shares; margins that meet give a box of one thousandth."""
    return _with_area(torch.cat([margins[:, :2], 1 - margins[:, 2:]], dim=1))


def crop_loss(
    said: torch.Tensor,
    boxes_norm: torch.Tensor,
    overlap: Overlap,
    iou_weight: float,
    margin_weight: float,
    edges: EdgeLoss = "smooth-l1",
) -> torch.Tensor:
    """The loss of each picture, (N,): ``iou_weight`` (1 - overlap) + ``margin_weight`` mean over the edges of their loss.

    Sources: GIoU, Rezatofighi et al. 2019; CIoU, Zheng et al. 2020 (torchvision's implementations).

    Args:
        said: what the first look says, or margins (N, 4), shares, not clamped.
        boxes_norm: (N, 4) true boxes in shares.
        overlap: ``iou`` has no slope where boxes do not meet, ``giou`` has one, ``ciou`` weighs centre and proportions too; with
            ``none`` only the margins count.
        iou_weight, margin_weight: of the two parts.
        edges: the loss of an edge, see :func:`cropreg.edges.edge_loss`.
    """
    true_margins = torch.cat([boxes_norm[:, :2], 1 - boxes_norm[:, 2:]], dim=1)
    each = edge_loss(said, true_margins, edges).mean(dim=1)
    if overlap == "none":
        return margin_weight * each
    losses = {"iou": _iou_loss, "giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}
    return iou_weight * losses[overlap](to_boxes(read(said)[0]), _with_area(boxes_norm)) + margin_weight * each


def untrimmed_crop_loss(
    said: torch.Tensor,
    boxes_norm: torch.Tensor,
    overlap: Overlap,
    iou_weight: float,
    margin_weight: float,
    edges: EdgeLoss,
    seen: torch.Tensor,
    trimming: Trimming,
) -> torch.Tensor:
    """Like :func:`crop_loss` where the untrimmed box is asked for: (N,).

    Edges of an axis that is ``seen`` (N, 2) are the label's.  Of the other axis only where between its edges the crop lies is judged, and
    that it does.
    """
    found, _ = read(said)
    true_margins = torch.cat([boxes_norm[:, :2], 1 - boxes_norm[:, 2:]], dim=1)
    inside, seen = found - true_margins, seen.repeat(1, 2)
    slip = trimming.slip(inside)
    told = true_margins + torch.where(seen, inside, torch.cat([slip, -slip], dim=1))
    narrow = inside.unflatten(1, (2, 2)).mean(dim=1).relu().repeat(1, 2)
    unseen = edge_loss(told, true_margins, "smooth-l1") + edge_loss(narrow, torch.zeros_like(narrow), "smooth-l1") / 2
    each = torch.where(seen, edge_loss(said, true_margins, edges), unseen).mean(dim=1)
    rest = crop_loss(told, boxes_norm, overlap, iou_weight, 0.0)
    return rest + margin_weight * each


def _with_area(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + _LEAST)], dim=1)


def _iou_loss(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """1 - IoU of each of (N, 4) with its like."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    both = (high - low).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (others[:, 2:] - others[:, :2]).prod(dim=1)
    return 1 - both / (areas - both)
