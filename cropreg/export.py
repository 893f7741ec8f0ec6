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
from cropreg.model import CropRegressor
from cropreg.prediction import LOOKS, Predictor
from cropreg.schema import SCHEMA_VERSION

MAX_DIFFERENCE = 1e-5  # between the file's answers and the model's: a hundredth of a pixel in 1,000
_INPUT, _OUTPUTS = "pixels", ("margins", "box_norm")
_EXAMPLES = 2  # pictures the graph is traced with; one would be taken for a constant


class _FromPixels(torch.nn.Module):
    """The regressor between what a user has and what a user wants."""

    def __init__(self, model: CropRegressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, side, side, 3) uint8 RGB to margins (N, 4) as they come, and boxes (N, 4) in shares, within the picture."""
        margins = self.model(normalise(pixels.permute(0, 3, 1, 2)))
        low = margins[:, :2].clamp(0.0, 0.999)  # the exporter wants both of one type
        high = torch.maximum(1 - margins[:, 2:].clamp(0.0, 1.0), low + 0.001).clamp(max=1.0)
        return margins, torch.cat([low, high], dim=1)


def to_onnx(model: CropRegressor, info: CheckpointInfo) -> tuple[bytes, float]:
    """Exports a model, and compares the file with it.

    Returns:
        the file; the largest difference between its answers and the model's over pictures of noise, slopes and plain colours.

    Raises:
        UsageError: the extra ``onnx`` is not installed. ModelError: the file answers otherwise than the model.
    """
    onnx, side = _import("onnx"), info.architecture.image_side
    _import("onnxscript"), _import("onnxruntime")
    whole = _FromPixels(model.eval())
    examples = torch.zeros(_EXAMPLES, side, side, 3, dtype=torch.uint8)
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            whole,
            (examples,),
            dynamo=True,
            input_names=[_INPUT],
            output_names=list(_OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None  # what the legacy exporter returns
    proto = program.model_proto
    difference = _difference(whole, proto.SerializeToString(), side)
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
    expected = [(_INPUT, [side, side, 3]), *((name, [4]) for name in _OUTPUTS)]
    if [(item.name, item.shape[1:]) for item in (*session.get_inputs(), *session.get_outputs())] != expected:
        raise ModelError(f"{uri}: its inputs and outputs are not those it names. Export it again: cropreg export RUN")

    def margins(pixels: torch.Tensor) -> NDArray[np.float64]:
        (found,) = session.run(["margins"], {_INPUT: pixels.permute(0, 2, 3, 1).contiguous().numpy()})
        return np.asarray(found, np.float64)

    if not np.isfinite(margins(_pictures(side).permute(0, 3, 1, 2))).all():
        raise ModelError(f"{uri}: gives NaN or Inf. It is damaged; export it again: cropreg export RUN")
    return Predictor(margins, info)


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
        "input": f"{_INPUT}: uint8 (N, {side}, {side}, 3), 0..255: the upright picture (EXIF orientation applied), first shrunk to a "
        f"long side of {info.seen_px} px, then squashed to the square by antialiased bilinear resizing; normalisation is inside",
        "margins": "float32 (N, 4): shares cut from left, top, right, bottom; not clamped",
        "box_norm": "float32 (N, 4): x1, y1, x2, y2 in shares of the upright picture's width and height, within it; edges are pixel "
        "corners, half-open",
        "num_looks": str(1 + len(LOOKS)),
        "looks": f"cropreg averages {1 + len(LOOKS)} boxes: of the whole picture, and of the picture cut to the first box's margins times "
        + " and ".join(f"{cut:g}" for cut in LOOKS),
        "max_difference": f"{difference:.3g}",
        "calibration": info.calibration.model_dump_json() if info.calibration else "",
        "checkpoint": info.model_dump_json(exclude={"calibration"}),
    }


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


def _difference(whole: _FromPixels, data: bytes, side: int) -> float:
    """The largest difference over both outputs, for a batch and for one picture alone; relative where a margin lies far outside."""
    session, pictures = _session(data, "the exported file", "cpu"), _pictures(side)
    largest = 0.0
    for batch in (pictures, pictures[:1]):
        with torch.inference_mode():
            wanted = whole(batch)
        found = session.run(list(_OUTPUTS), {_INPUT: batch.numpy()})
        for ours, theirs in zip(found, wanted, strict=True):
            largest = max(largest, float((np.abs(ours - theirs.numpy()) / np.maximum(1, np.abs(theirs.numpy()))).max()))
    return largest


def _pictures(side: int) -> torch.Tensor:
    """Five pictures (5, side, side, 3) uint8: noise, two slopes, black and white."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    slope = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], noise.shape)
    return torch.from_numpy(np.stack([noise, slope, slope.swapaxes(0, 1), np.zeros_like(noise), np.full_like(noise, 255)]))


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
