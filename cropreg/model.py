"""The regressor: EfficientNet-B0's features, and a head that says of them where four margins end."""

from __future__ import annotations

import logging
import math
import urllib.error
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import nn
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0

from cropreg import edges, storage
from cropreg.errors import InputError, ModelError
from cropreg.refiner import EdgeRefiner
from cropreg.settings import Settings

log = logging.getLogger(__name__)

_FINE, _COARSE = 5, 8  # stages of features: 112 channels at stride 16, 1280 channels at stride 32
_FINE_CHANNELS, _COARSE_CHANNELS = 112, 1280
_FINE_KEPT, _COARSE_KEPT, _HIDDEN = 16, 48, 128
_MORE = 2  # times the channels kept by a head that keeps rows and columns alone
KIND_CHANNELS = _FINE_CHANNELS


class Architecture(Settings):
    """What it takes to build the regressor again."""

    backbone: Literal["efficientnet_b0"] = "efficientnet_b0"
    head: Literal["spatial", "pooled", "marginal", "distribution"] = "spatial"
    image_side: int = Field(ge=64, le=1024)
    dropout: float = Field(0.2, ge=0, lt=1)
    refine: bool = False
    trims_to: float | None = Field(None, ge=1)  # the second look says untrimmed boxes: crops are trimmed to this aspect
    scales: bool = False  # whether the first look says of each margin how unsure it is

    @property
    def numbers(self) -> int:
        """How many numbers the head says of each edge; see :mod:`cropreg.edges`."""
        return edges.PLACES if self.head == "distribution" else 1 + self.scales


class CropRegressor(nn.Module):
    """Pictures in, margins out.

    The head's last layer starts with weights nought and its bias such that it says ``prior_margins``: before any training the regressor
    *is* the constant box of the median margins.

    Args:
        architecture: head and picture side.
        prior_margins: four shares: left, top, right, bottom.
    """

    def __init__(self, architecture: Architecture, prior_margins: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.architecture = architecture
        self.features = efficientnet_b0(weights=None).features
        self.head: SpatialHead | MarginalHead | PooledHead
        if architecture.head == "pooled":
            self.head = PooledHead(architecture)
        elif architecture.head == "marginal":
            self.head = MarginalHead(architecture)
        else:
            self.head = SpatialHead(architecture)
        self.refiner = EdgeRefiner(architecture.trims_to is not None) if architecture.refine else None
        with torch.no_grad():
            self.head.last.weight.zero_()
            self.head.last.bias.copy_(edges.first_bias(prior_margins, architecture.numbers))

    def forward(self, images: torch.Tensor, strips: torch.Tensor | None = None, extents: torch.Tensor | None = None) -> Any:
        """(N, 3, side, side) normalised pictures to what the first look says of their margins; :func:`cropreg.edges.read` reads it.

        With ``strips`` (M, 4, 3, ALONG_PX, ACROSS_PX) and their ``extents`` (M, 4, EXTENTS) to a pair: that, and the refiner's
        logits (M, 4, bins).  One call for both, because gradients over several processes are exchanged per call.
        """
        said = self._said_and_kind(images)[0]
        if strips is None:
            return said
        assert self.refiner is not None, "this model was built without its second look"
        return said, self.refiner(strips, extents)

    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first look: (N, 3, side, side) normalised pictures to (N, 4) margins, shares cut from left, top, right, bottom, not clamped.

        Beside them (N, 4) how unsure it says each is, nought if it says nothing of that, and (N, KIND_CHANNELS): what kind of picture
        that is, wherever in it things lie.  It is the mean of the features at stride 16, which are there anyway.
        """
        said, kind = self._said_and_kind(images)
        return *edges.read(said), kind

    def _said_and_kind(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.features[: _FINE + 1](images)  # (N, 112, side / 16, side / 16)
        coarse = self.features[_FINE + 1 :](fine)  # (N, 1280, side / 32, side / 32)
        said = self.head(fine, coarse)
        numbers = self.architecture.numbers
        return said if numbers == 1 else said.unflatten(1, (4, numbers)), fine.mean(dim=(2, 3))


class SpatialHead(nn.Module):
    """Keeps where things are: both strides reduced by 1x1 convolutions, flattened, then two linear layers.

    Global average pooling throws away the place of an edge, which is what is asked for.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        fine_cells, coarse_cells = (cells**2 for cells in _cells(architecture))
        self.fine = _reduce(_FINE_CHANNELS, _FINE_KEPT)
        self.coarse = _reduce(_COARSE_CHANNELS, _COARSE_KEPT)
        self.hidden = _hidden(_FINE_KEPT * fine_cells + _COARSE_KEPT * coarse_cells, _HIDDEN, architecture)
        self.last = nn.Linear(_HIDDEN, 4 * architecture.numbers)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Features at stride 16 and 32 to (N, 4 * numbers), all numbers of an edge together."""
        flat = torch.cat([self.fine(fine).flatten(1), self.coarse(coarse).flatten(1)], dim=1)
        said: torch.Tensor = self.last(self.hidden(flat))
        return said


class MarginalHead(nn.Module):
    """Keeps where things are along x and along y apart: of the reduced strides the means over rows and those over columns."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        fine_cells, coarse_cells = _cells(architecture)
        self.fine = _reduce(_FINE_CHANNELS, _MORE * _FINE_KEPT)
        self.coarse = _reduce(_COARSE_CHANNELS, _MORE * _COARSE_KEPT)
        self.hidden = _hidden(2 * _MORE * (_FINE_KEPT * fine_cells + _COARSE_KEPT * coarse_cells), _HIDDEN, architecture)
        self.last = nn.Linear(_HIDDEN, 4 * architecture.numbers)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Features at stride 16 and 32 to (N, 4 * numbers)."""
        kept = self.fine(fine), self.coarse(coarse)
        flat = torch.cat([features.mean(dim=over).flatten(1) for features in kept for over in (2, 3)], dim=1)
        said: torch.Tensor = self.last(self.hidden(flat))
        return said


class PooledHead(nn.Module):
    """The head of the script that cropreg replaces: global average pooling, then linear layers with BatchNorm between."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.hidden = _hidden(_COARSE_CHANNELS, 2 * _HIDDEN, architecture)
        self.last = nn.Linear(2 * _HIDDEN, 4 * architecture.numbers)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Features at stride 32 to (N, 4 * numbers); those at stride 16 are not used."""
        said: torch.Tensor = self.last(self.hidden(coarse.mean(dim=(2, 3))))
        return said


def _cells(architecture: Architecture) -> tuple[int, int]:
    """The sides of the features at stride 16 and 32."""
    fine, coarse = (math.ceil(architecture.image_side / stride) for stride in (16, 32))
    return fine, coarse


def _hidden(inputs: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, outputs, bias=False),
        nn.BatchNorm1d(outputs),
        nn.SiLU(inplace=True),
        nn.Dropout(architecture.dropout),
    )


def _reduce(channels: int, kept: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, kept, 1, bias=False), nn.BatchNorm2d(kept), nn.SiLU(inplace=True))


def load_backbone(model: CropRegressor, weights: str) -> None:
    """Puts pretrained weights into the backbone.

    Args:
        model: changed in place.
        weights: ``none`` leaves the random ones; ``imagenet`` downloads torchvision's; anything else is a file: a state dict
            (``.pth``, read without unpickling code) or safetensors, with torchvision's names (``features.*``), as it is or below a prefix.

    Raises:
        InputError: the download is impossible, or the file cannot be read.
        ModelError: the file holds no EfficientNet-B0 features, or some with other shapes.
    """
    if weights == "none":
        log.info("backbone=efficientnet_b0 weights=none (random: learning takes more pairs and epochs)")
        return
    found = _download() if weights == "imagenet" else _read_state_dict(storage.absolute(weights))
    wanted = {f"features.{name}": value for name, value in model.features.state_dict().items()}
    prefix = next((key[: -len("features.0.0.weight")] for key in found if key.endswith("features.0.0.weight")), None)
    if prefix is None:
        raise ModelError(
            f"{weights}: no EfficientNet-B0 here: nothing is called features.0.0.weight. It has e.g. {next(iter(found), None)}."
        )
    missing = [name for name in wanted if prefix + name not in found and not name.endswith("num_batches_tracked")]
    wrong = [n for n, value in wanted.items() if prefix + n in found and found[prefix + n].shape != value.shape]
    if missing or wrong:
        raise ModelError(
            f"{weights}: these are not the features of EfficientNet-B0: {len(missing)} tensors are missing and {len(wrong)} have "
            f"another shape, first {(missing + wrong)[0]}. Give weights with torchvision's names for efficientnet_b0."
        )
    model.features.load_state_dict({n.removeprefix("features."): found.get(prefix + n, value) for n, value in wanted.items()})
    log.info("backbone=efficientnet_b0 weights=%s tensors=%d", weights, len(wanted))


def _download() -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = EfficientNet_B0_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"--weights imagenet: the download of torchvision's EfficientNet-B0 failed ({error}). "
            "Download it where there is a network and give the file with --weights PATH, or start from random weights with --weights none."
        ) from error
    return state


def _read_state_dict(uri: str) -> dict[str, torch.Tensor]:
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise InputError(f"--weights {uri}: cannot be read ({error}).") from error
    try:
        if not data.startswith((b"PK", b"\x80")):  # neither the zip nor the pickle that torch.save writes
            return safetensors.torch.load(data)
        import io

        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # both loaders raise many kinds for a file that is something else
        raise ModelError(
            f"--weights {uri}: neither safetensors nor a state dict that loads without running code ({error})."
        ) from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"--weights {uri}: holds {type(state).__name__}, not a state dict of tensors.")
    return state
