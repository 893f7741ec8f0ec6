"""Checkpoints: folders that hold all it takes to use a model, and beside them, in ``last``, what it takes to train on.

``model.safetensors`` and ``checkpoint.json`` need no unpickling.  ``state.pt`` (only for resuming, only in ``last``) is read with
``weights_only``.  Every file is checked against its checksum in ``checkpoint.json``, which is written last.

A save that is cut short at any point leaves the checkpoint before it, under its own name or a hidden one beside it: on a disk the new
folder takes the old one's place by renaming; on an object store the old files are copied aside until the new ones are whole.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from typing import Any

import safetensors.torch
import torch
from pydantic import Field, ValidationError

from cropreg import __version__, storage
from cropreg.errors import InputError, ModelError
from cropreg.model import Architecture, CropRegressor
from cropreg.schema import SCHEMA_VERSION
from cropreg.settings import Settings

_MODEL, _STATE, _INFO = "model.safetensors", "state.pt", "checkpoint.json"


class Outcomes(Settings):
    """How the boxes of pictures with a known truth came out: a row a picture, in it left, top, right, bottom, in shares of the side.

    Attributes:
        inside: how far each edge lies inside the true box; negative: outside.
        spread: how unsure the model was of it.
    """

    inside: tuple[tuple[float, float, float, float], ...]
    spread: tuple[tuple[float, float, float, float], ...]


class Novelty(Settings):
    """Where the model's features of the pictures it knows lie; see :mod:`cropreg.novelty`.

    Attributes:
        centre: (F,) mean of the features.
        axes: (K, F) their principal axes, each divided by its standard deviation.
        rest: standard deviation of what those leave, per direction.
        limit: the distance beyond which a picture is unlike them.
        rows: pictures kept aside that the limit was learned from.
    """

    centre: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]
    rest: float
    limit: float
    rows: int


class Proportion(Settings):
    """The aspect that all crops have; see :mod:`cropreg.proportions`.

    Attributes:
        aspect: long side over short side.
        deviation: standard deviation of its natural logarithm.
        rows: labels it was learned from.
        shares, turn: how untrimmed boxes are trimmed to it, see :class:`cropreg.trimming.Trimming`.
    """

    aspect: float = Field(ge=1)
    deviation: float = Field(gt=0)
    rows: int
    shares: tuple[float, float] = (0.5, 0.5)
    turn: float = 0.0


class Calibration(Settings):
    """What the ``calib`` split taught about the model's errors; see :mod:`cropreg.calibration`.

    ``val`` and ``calib`` are what :mod:`cropreg.promise` promises by.
    """

    rows: int
    coverage: float
    spread_floor: float
    edge_factors: tuple[float, float, float, float] | None
    confidence_spreads: tuple[float, ...]
    confidence_values: tuple[float, ...]
    val: Outcomes | None = None
    calib: Outcomes | None = None
    novelty: Novelty | None = None


class CheckpointInfo(Settings):
    """What ``checkpoint.json`` says of the model beside it."""

    schema_version: int = SCHEMA_VERSION
    cropreg_version: str = __version__
    architecture: Architecture
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seen_px: int = 512  # long side of the pictures it learned from; it is shown others in the same size
    prior_margins: tuple[float, float, float, float]
    baselines: dict[str, tuple[float, float, float, float]]
    proportion: Proportion | None = None
    epoch: int
    metrics: dict[str, float]
    calibration: Calibration | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


def save(uri: str, model: CropRegressor, info: CheckpointInfo, state: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint folder in place of the one that is there, which stays until the new one is whole.

    Raises:
        OutputError: the place cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    files = {_MODEL: safetensors.torch.save(weights)}
    if state is not None:
        buffer = io.BytesIO()  # torch.save on a full disk raises no OSError and leaves a torn file; bytes are written by storage
        torch.save(state, buffer)
        files[_STATE] = buffer.getvalue()
    info = info.model_copy(update={"sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}})
    files[_INFO] = info.model_dump_json(indent=1).encode()
    if storage.is_remote(uri):
        _put_aside(uri)
        _write(uri, files)
        _drop(_beside(uri, "old"))
        return
    new = _beside(uri, "new")
    storage.remove(new)  # left by a save that was killed
    try:
        _write(new, files)
    except BaseException:
        storage.remove(new)
        raise
    _take_place(new, uri)


def best_of(run: str) -> str:
    """The folder of a run's best checkpoint; ``run`` itself if that is a checkpoint."""
    best = storage.join(run, "checkpoints/best")
    return best if is_there(best) else run


def is_there(uri: str) -> bool:
    """Whether there is a whole checkpoint to be read at ``uri``."""
    return storage.exists(storage.join(_standing(uri), _INFO))


def load(uri: str) -> tuple[CropRegressor, CheckpointInfo]:
    """Opens a checkpoint folder: the model on the CPU, in evaluation mode, and what is known of it.

    Raises:
        InputError: there is no checkpoint. ModelError: it is damaged, of another version, or its weights are not those of its architecture.
    """
    info = load_info(uri)
    try:
        weights = safetensors.torch.load(_read(uri, _MODEL, info))
    except safetensors.SafetensorError as error:
        raise ModelError(f"{storage.join(uri, _MODEL)}: no safetensors file ({error}).") from error
    model = CropRegressor(info.architecture, info.prior_margins)
    wanted = model.state_dict()
    wrong = [
        n for n in wanted.keys() | weights.keys() if n not in wanted or n not in weights or wanted[n].shape != weights[n].shape
    ]
    if wrong:
        raise ModelError(f"{uri}: {len(wrong)} tensors do not fit the architecture it names, first {min(wrong)}. Train again.")
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ModelError(f"{uri}: the weights hold NaN or Inf. Use another checkpoint, or train again.")
    model.load_state_dict(weights)
    return model.eval(), info


def load_info(uri: str) -> CheckpointInfo:
    """Reads ``checkpoint.json`` alone."""
    name = storage.join(_standing(uri), _INFO)
    try:
        data = storage.read_bytes(name)
    except FileNotFoundError as error:
        raise InputError(f"{uri}: no checkpoint here. Train one: cropreg train BOXES --out RUN") from error
    try:
        info = CheckpointInfo.model_validate_json(data)
    except ValidationError as error:
        raise ModelError(
            f"{name}: not a description of a checkpoint that this cropreg knows ({error.errors()[0]['msg']})."
        ) from error
    if info.schema_version != SCHEMA_VERSION:
        raise ModelError(
            f"{name}: schema version {info.schema_version}, this cropreg reads {SCHEMA_VERSION}. Use the cropreg that wrote it."
        )
    return info


def load_state(uri: str, info: CheckpointInfo) -> dict[str, Any]:
    """Reads what it takes to resume, as it was given to :func:`save`; tensors on the CPU."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(_read(uri, _STATE, info)), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{storage.join(uri, _STATE)}: cannot be read ({error}). Train again with --overwrite.") from error
    return state


def _read(uri: str, name: str, info: CheckpointInfo) -> bytes:
    file = storage.join(_standing(uri), name)
    try:
        data = storage.read_bytes(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error}).") from error
    if hashlib.sha256(data).hexdigest() != info.sha256.get(name):
        raise ModelError(f"{file}: not the file that {_INFO} names (checksum). It is damaged, or half copied; copy it again.")
    return data


def _beside(uri: str, suffix: str) -> str:
    folder, _, name = uri.rstrip("/").rpartition("/")
    return storage.join(folder, f".{name}-{suffix}")


def _standing(uri: str) -> str:
    """Where the newest whole checkpoint of that name lies: there, or, when a save was cut short, under the old one's hidden name."""
    old = _beside(uri, "old")
    if storage.is_remote(uri):
        return old if storage.exists(storage.join(old, _INFO)) else uri
    return old if not storage.exists(uri) and storage.exists(old) else uri


def _write(folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():  # the description comes last
        storage.write_whole(storage.join(folder, name), data)


def _take_place(new: str, uri: str) -> None:
    """Puts folder ``new`` where ``uri`` is, on a disk."""
    old, path = storage.local_path(_beside(uri, "old")), storage.local_path(uri)
    if os.path.exists(path):
        storage.remove(old)
        os.rename(path, old)
    os.rename(storage.local_path(new), path)
    storage.remove(old)


def _put_aside(uri: str) -> None:
    """Copies the checkpoint at ``uri`` aside, on an object store, unless a save that was cut short has left one there."""
    if storage.exists(storage.join(uri, _INFO)) and _standing(uri) == uri:
        old, names = _beside(uri, "old"), [entry.relative for entry in storage.list_files(uri)]
        for name in sorted(names, key=lambda name: name == _INFO):  # the description last
            storage.copy_file(storage.join(uri, name), storage.join(old, name))


def _drop(folder: str) -> None:
    """Removes a checkpoint on an object store, its description first, so that no half of it is taken for whole."""
    storage.remove(storage.join(folder, _INFO))
    storage.remove(folder)
