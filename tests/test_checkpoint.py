"""Checkpoints: whole or not at all, and refused when they are not what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cropreg import checkpoint, storage
from cropreg.checkpoint import CheckpointInfo
from cropreg.errors import InputError, ModelError, OutputError
from cropreg.model import Architecture, CropRegressor

pytestmark = pytest.mark.long  # each test opens whole EfficientNets or draws pictures

PRIOR = (0.1, 0.2, 0.3, 0.15)


@pytest.fixture(scope="module")
def regressor() -> CropRegressor:
    torch.manual_seed(0)
    built = CropRegressor(Architecture(image_side=64), PRIOR)
    torch.nn.init.normal_(built.head.last.weight, std=0.01)
    return built.eval()


@pytest.fixture
def saved(regressor: CropRegressor, tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "last"
    checkpoint.save(str(folder), regressor, info(3), {"epoch": 3, "rng": torch.get_rng_state()})
    return folder


def info(epoch: int) -> CheckpointInfo:
    return CheckpointInfo(
        architecture=Architecture(image_side=64),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        prior_margins=PRIOR,
        baselines={"no_crop": (0, 0, 0, 0)},
        epoch=epoch,
        metrics={"val_loss": 0.5},
    )


def test_checkpoint_round_trips(regressor: CropRegressor, saved: Path) -> None:
    model, read = checkpoint.load(str(saved))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), regressor(images))
    assert read.epoch == 3 and read.metrics == {"val_loss": 0.5}
    assert checkpoint.load_state(str(saved), read)["epoch"] == 3


def test_new_checkpoint_takes_the_place_of_the_old_and_leaves_nothing_beside(regressor: CropRegressor, saved: Path) -> None:
    checkpoint.save(str(saved), regressor, info(4))
    assert checkpoint.load_info(str(saved)).epoch == 4
    assert not (saved / "state.pt").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["last"]


def test_failing_save_keeps_the_old_checkpoint(regressor: CropRegressor, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write_whole

    def full(uri: str, data: bytes, *, overwrite: bool = True) -> None:
        if uri.endswith("state.pt"):
            raise OutputError(f"{uri}: cannot be written (No space left on device).")
        write(uri, data, overwrite=overwrite)

    monkeypatch.setattr(storage, "write_whole", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoint.save(str(saved), regressor, info(4), {"epoch": 4})
    assert checkpoint.load(str(saved))[1].epoch == 3
    assert [p.name for p in saved.parent.iterdir()] == ["last"]


def test_save_that_a_kill_cut_short_leaves_the_checkpoint_before_it(regressor: CropRegressor, saved: Path) -> None:
    saved.rename(saved.parent / ".last-old")  # between the two renamings
    (saved.parent / ".last-new").mkdir()
    (saved.parent / ".last-new" / "model.safetensors").write_bytes(b"half")
    before = sorted(saved.parent.rglob("*"))
    assert checkpoint.is_there(str(saved)) and checkpoint.load(str(saved))[1].epoch == 3
    assert sorted(saved.parent.rglob("*")) == before, "who reads changes nothing: the run may be on a disk of somebody else"
    checkpoint.save(str(saved), regressor, info(4))
    assert checkpoint.load_info(str(saved)).epoch == 4
    assert [p.name for p in saved.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:5000] + bytes([d[5000] ^ 1]) + d[5001:]])
def test_damaged_file_is_refused(saved: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (saved / name).write_bytes(damage((saved / name).read_bytes()))
    with pytest.raises(ModelError, match=rf"{name}: not the file that checkpoint\.json names"):
        checkpoint.load_state(str(saved), checkpoint.load_info(str(saved))) if name == "state.pt" else checkpoint.load(str(saved))


def reseal(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Writes other weights, with a checksum that fits them."""
    data = safetensors.torch.save(weights)
    (folder / "model.safetensors").write_bytes(data)
    text = json.loads((folder / "checkpoint.json").read_text())
    text["sha256"]["model.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(text))


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    reseal(saved, {**weights, "head.last.bias": torch.zeros(5)})
    with pytest.raises(ModelError, match=r"1 tensors do not fit the architecture it names, first head\.last\.bias"):
        checkpoint.load(str(saved))


def test_weights_with_nan_are_refused(saved: Path) -> None:
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    reseal(saved, {**weights, "head.last.bias": torch.full((4,), float("nan"))})
    with pytest.raises(ModelError, match="NaN or Inf"):
        checkpoint.load(str(saved))


def test_other_versions_and_strangers_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint here.*cropreg train"):
        checkpoint.load(str(tmp_path / "nowhere"))
    text = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**text, "schema_version": 99}))
    with pytest.raises(ModelError, match="schema version 99"):
        checkpoint.load(str(saved))
    (saved / "checkpoint.json").write_text('{"what": 1}')
    with pytest.raises(ModelError, match="not a description of a checkpoint"):
        checkpoint.load(str(saved))
