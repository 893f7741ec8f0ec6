"""A trained model as one ONNX file for other runtimes, and such a file used again for predicting.

The file takes pixels as they are: normalisation is inside.  What no graph can say (how the picture is squashed, what the numbers mean,
how sure the model may be) stands in its metadata, so that neither the run nor cropreg is needed to use it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from cropreg import __version__, storage
from cropreg.checkpoint import Calibration, CheckpointInfo
from cropreg.dataset import normalise
from cropreg.errors import ClusterError, InputError, ModelError, UsageError
from cropreg.model import KIND_CHANNELS, CropRegressor
from cropreg.prediction import FROM_OUTSIDE, LOOKS, Network, Predictor
from cropreg.schema import SCHEMA_VERSION
from cropreg.strips import ACROSS_PX, ALONG_PX, EXTENTS, REACH, cut_strips, extents_of

MAX_DIFFERENCE = 1e-5  # between the file's answers and the model's: a hundredth of a pixel in 1,000
_INPUTS = ("pixels", "strips", "extents")  # all but the first are the second look's
# Outputs: of the first look, of a head that says how unsure its margins are, of what kind a picture is, and of the second look.
_FIRST, _SPREAD, _KIND, _SECOND = ("margins", "box_norm"), ("margins_unsure",), ("kind",), ("inward", "unsure")
_EXAMPLES = 2  # pictures the graph is traced with; one would be taken for a constant


class _FromPixels(torch.nn.Module):
    """The regressor between what a user has and what a user wants."""

    def __init__(self, model: CropRegressor, with_kind: bool) -> None:
        super().__init__()
        self.model, self.with_kind = model, with_kind

    def forward(
        self, pixels: torch.Tensor, strips: torch.Tensor | None = None, extents: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """(N, side, side, 3) uint8 RGB to margins (N, 4) as they come, and boxes (N, 4) in shares, within the picture.

        Of a head that says so how unsure those are (N, 4).  Where asked for, features (N, KIND_CHANNELS) of what kind of picture it is.
        And strips (M, 4, along, across, 3) uint8 with their extents (M, 4, EXTENTS) to how far inward each edge lies, and how unsure that
        is: (M, 4) in shares of the reach.
        """
        margins, unsure, kind = self.model.look(normalise(pixels.permute(0, 3, 1, 2)))
        low = margins[:, :2].clamp(0.0, 0.999)  # the exporter wants both of one type
        high = torch.maximum(1 - margins[:, 2:].clamp(0.0, 1.0), low + 0.001).clamp(max=1.0)
        first: tuple[torch.Tensor, ...] = margins, torch.cat([low, high], dim=1)
        if self.model.architecture.numbers > 1:
            first = *first, unsure
        if self.with_kind:
            first = *first, kind
        if strips is None:
            return first
        assert self.model.refiner is not None
        return *first, *self.model.refiner.read(self.model.refiner(normalise(strips.movedim(-1, -3)), extents))


def to_onnx(model: CropRegressor, info: CheckpointInfo) -> tuple[bytes, float]:
    """Exports a model, and compares the file with it.

    Returns:
        the file; the largest difference between its answers and the model's over pictures of noise, slopes and plain colours.

    Raises:
        UsageError: the extra ``onnx`` is not installed. ModelError: the file answers otherwise than the model.
    """
    onnx, side = _import("onnx"), info.architecture.image_side
    _import("onnxscript"), _import("onnxruntime")
    whole = _FromPixels(model.eval(), _knows_kinds(info))
    inputs, outputs = _names(info)
    examples = tuple(torch.from_numpy(values[:_EXAMPLES]) for values in _pictures(side))[: len(inputs)]
    of_pictures, of_strips = torch.export.Dim("N"), torch.export.Dim("M")
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            whole,
            examples,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=({0: of_pictures}, {0: of_strips}, {0: of_strips})[: len(inputs)],
            verbose=False,
        )
    assert program is not None  # what the legacy exporter returns
    proto = program.model_proto
    difference = _difference(whole, proto.SerializeToString(), info)
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"the exported file answers otherwise than the model: by {difference:.2g} where at most {MAX_DIFFERENCE:g} of the picture's "
            "side is allowed. Nothing was written. Try other versions of torch, onnxscript and onnxruntime."
        )
    onnx.helper.set_model_props(proto, _metadata(info, difference))
    onnx.checker.check_model(proto)
    return proto.SerializeToString(), difference


def open_onnx(uri: str, device: str = "cpu") -> Predictor:
    """Opens a file that :func:`to_onnx` made: looks, averages and judges like the run it was made from.

    Raises:
        UsageError: the extra ``onnx`` is not installed. InputError: there is no file. ClusterError: there is no GPU for it.
        ModelError: not such a file, or one that gives no numbers.
    """
    session = _session(read_onnx(uri), uri, device)
    info = _info_of(session, uri)
    side = info.architecture.image_side
    inputs, outputs = _names(info)
    shapes = {"pixels": [side, side, 3], "strips": [4, ALONG_PX, ACROSS_PX, 3], "extents": [4, EXTENTS]}
    expected = [
        *((name, shapes[name]) for name in inputs),
        *((name, [KIND_CHANNELS] if name in _KIND else [4]) for name in outputs),
    ]
    if [(item.name, item.shape[1:]) for item in (*session.get_inputs(), *session.get_outputs())] != expected:
        raise ModelError(f"{uri}: its inputs and outputs are not those it names. Export it again: cropreg export RUN")

    some = dict(zip(inputs, (values[:1] for values in _pictures(side)), strict=False))  # a graph wants all its inputs

    def look(pixels: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        wanted = [name for name in outputs if name in ("margins", *_SPREAD, *_KIND)]
        values = session.run(wanted, some | {"pixels": pixels.permute(0, 2, 3, 1).contiguous().numpy()})
        found = {name: np.asarray(value, np.float64) for name, value in zip(wanted, values, strict=True)}
        margins = found["margins"]
        return margins, found.get(*_SPREAD, np.zeros_like(margins)), found.get(*_KIND, np.empty((len(pixels), 0)))

    def edges(strips: NDArray[np.uint8], extents: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        inward, unsure = session.run(["inward", "unsure"], some | {"strips": strips, "extents": extents})
        return np.asarray(inward, np.float64), np.asarray(unsure, np.float64)

    network = Network(look, edges if info.architecture.refine else None)
    tried = [*look(torch.from_numpy(_pictures(side)[0]).permute(0, 3, 1, 2))]
    tried += edges(*_pictures(side)[1:]) if network.edges else ()
    if not all(np.isfinite(values).all() for values in tried):
        raise ModelError(f"{uri}: gives NaN or Inf. It is damaged; export it again: cropreg export RUN")
    return Predictor(network, info)


def _names(info: CheckpointInfo) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs: those of spread, kinds and the second look only where there are such."""
    second, spread = info.architecture.refine, info.architecture.numbers > 1
    outputs = [*_FIRST, *(_SPREAD if spread else ()), *(_KIND if _knows_kinds(info) else ()), *(_SECOND if second else ())]
    return list(_INPUTS if second else _INPUTS[:1]), outputs


def _knows_kinds(info: CheckpointInfo) -> bool:
    return info.calibration is not None and info.calibration.novelty is not None


def is_onnx(uri: str) -> bool:
    """Whether a model is named by a file of this kind, and not by a run's folder."""
    return uri.lower().endswith(".onnx")


def read_onnx(uri: str) -> bytes:
    """The bytes of a model file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise InputError(f"{uri}: this model cannot be read ({error}). Make one: cropreg export RUN --out {uri}") from error


def _metadata(info: CheckpointInfo, difference: float) -> dict[str, str]:
    """What the file says of itself, for a reader in any language; the last two are all that ``predict`` reads."""
    side = info.architecture.image_side
    return {
        "cropreg_version": __version__,
        "image_side": str(side),
        "colour_order": "RGB",
        "input": f"pixels: uint8 (N, {side}, {side}, 3), 0..255: the upright picture (EXIF orientation applied), first shrunk to a "
        f"long side of {info.seen_px} px, then squashed to the square by antialiased bilinear resizing; normalisation is inside",
        "margins": "float32 (N, 4): shares cut from left, top, right, bottom; not clamped",
        "box_norm": "float32 (N, 4): x1, y1, x2, y2 in shares of the upright picture's width and height, within it; edges are pixel "
        "corners, half-open",
        "margins_unsure": ""
        if info.architecture.numbers == 1
        else "float32 (N, 4): how unsure each margin is, its standard deviation or Laplace scale; shares of the picture's side",
        "kind": ""
        if not _knows_kinds(info)
        else f"float32 (N, {KIND_CHANNELS}): what kind of picture it is; its distance from calibration.novelty.centre along axes, and in "
        "what they leave divided by rest, is beyond limit for pictures unlike those learned from",
        "num_looks": str(1 + len(LOOKS)),
        "looks": f"cropreg averages {1 + len(LOOKS)} boxes: of the whole picture, and of the picture cut to the first box's margins times "
        + " and ".join(f"{cut:g}" for cut in LOOKS),
        "strips": ""
        if not info.architecture.refine
        else f"strips: uint8 (M, 4, {ALONG_PX}, {ACROSS_PX}, 3): along the left, top, right and bottom edge of a first box, {REACH:g} of "
        f"the picture's width or height to either side, turned so that the inside is on the right; inward: how far the edge lies inward "
        f"of the middle, in shares of {REACH:g}; unsure: its standard deviation. extents: float32 (M, 4, {EXTENTS}), natural "
        "logarithms of shares of the picture's long side: the edge's length, the way to the opposite edge, the strip's reach to one side. "
        "cropreg does this twice",
        "proportion": ""
        if not info.proportion
        else f"all crops learned from have about the aspect {info.proportion.aspect:.4g} or its inverse (deviation of its logarithm "
        f"{info.proportion.deviation:.2g}): " + _how_held(info.architecture.trims_to is not None),
        "max_difference": f"{difference:.3g}",
        "calibration": info.calibration.model_dump_json() if info.calibration else "",
        "checkpoint": info.model_dump_json(exclude={"calibration"}),
    }


def _how_held(untrimmed: bool) -> str:
    if untrimmed:
        return (
            f"what is found is the box before it was trimmed to that aspect; strips are first cut about edges {FROM_OUTSIDE:g} of the side "
            "further out than the first look's, and trimming is done at the end: by the shares (left, top) in "
            "checkpoint.proportion, to a lying box where the logarithm of its width over its height in px is above turn"
        )
    return "cropreg moves boxes onto it, each edge by as much as it is unsure, after the first look and after each second one"


def _info_of(session: Any, uri: str) -> CheckpointInfo:
    said: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    if "checkpoint" not in said:
        raise ModelError(f"{uri}: an ONNX file, but none that cropreg exported. Make one: cropreg export RUN")
    try:
        checkpoint = json.loads(said["checkpoint"])
        version = checkpoint.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"{uri}: schema version {version}, this cropreg reads {SCHEMA_VERSION}. Use the cropreg that wrote it."
            )
        info = CheckpointInfo.model_validate(checkpoint)
        text = said.get("calibration", "")
        return info.model_copy(update={"calibration": Calibration.model_validate_json(text) if text else None})
    except (ValidationError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{uri}: what this model says of itself is damaged ({error}). Export it again: cropreg export RUN"
        ) from error


def _session(data: bytes, uri: str, device: str) -> Any:
    runtime = _import("onnxruntime")
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            raise ClusterError(
                f"--use-gpu: this onnxruntime has no CUDA, so {uri} cannot run on a GPU. pip install onnxruntime-gpu"
            )
        providers.insert(0, "CUDAExecutionProvider")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # by default as many as cores, in every worker
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # a dozen kinds of its own, below no common one
        raise ModelError(f"{uri}: no ONNX model that onnxruntime opens ({error}).") from error


def _difference(whole: _FromPixels, data: bytes, info: CheckpointInfo) -> float:
    """The largest difference over all outputs, for a batch and for one picture alone; relative where a margin lies far outside."""
    session, pictures = _session(data, "the exported file", "cpu"), _pictures(info.architecture.image_side)
    inputs, outputs = _names(info)
    largest = 0.0
    for count in (len(pictures[0]), 1):
        batch = [values[:count] for values in pictures][: len(inputs)]
        with torch.inference_mode():
            wanted = whole(*map(torch.from_numpy, batch))
        found = session.run(outputs, dict(zip(inputs, batch, strict=True)))
        for name, ours, theirs in zip(outputs, found, (values.numpy() for values in wanted), strict=True):
            least = (
                max(1, np.abs(theirs).max()) if name in _KIND else 1
            )  # kinds differ by distances, to which small features add little
            largest = max(largest, float((np.abs(ours - theirs) / np.maximum(least, np.abs(theirs))).max()))
    return largest


def _pictures(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Five pictures (5, side, side, 3) uint8: noise, two slopes, black and white; their strips (5, 4, along, across, 3), and extents."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    slope = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], noise.shape)
    pictures = np.stack([noise, slope, slope.swapaxes(0, 1), np.zeros_like(noise), np.full_like(noise, 255)])
    box = np.array([0.2, 0.3, 0.7, 0.8])
    strips = np.stack([cut_strips(picture, box) for picture in pictures])
    return pictures, strips, np.stack([extents_of(box, (side, side))] * len(pictures))


def _import(name: str) -> ModuleType:
    """Imports a package of the extra ``onnx``."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is needed for ONNX models and is not installed: pip install 'cropreg[onnx]'") from error


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter prints its progress and warns of its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
