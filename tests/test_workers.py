"""How many training workers, and what each reserves: read from the flags, looked at before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cropreg import learning
from cropreg.errors import ClusterError, UsageError
from cropreg.pipelines import train
from cropreg.settings import TrainSettings, read_resources


@pytest.mark.parametrize(
    ("given", "kept", "least", "most"), [(3, 3, 3, 3), ("2", 2, 2, 2), ("2:5", "2:5", 2, 5), ("4:4", 4, 4, 4), (0, 0, 0, 0)]
)
def test_number_of_workers_is_one_number_or_two(given: Any, kept: Any, least: int, most: int) -> None:
    settings = TrainSettings(num_workers=given)
    assert (settings.num_workers, settings.least_workers, settings.most_workers) == (kept, least, most)
    assert TrainSettings(**settings.model_dump()) == settings, "as a worker gets them"


@pytest.mark.parametrize("given", [-1, "a", "3:2", "0:2", "1:2:3", "1:", True, 1.5])
def test_number_of_workers_that_says_nothing_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="MIN:MAX"):
        TrainSettings(num_workers=given)


@pytest.mark.parametrize("text", ["CPU", "CPU=", "=1", "CPU=-1", "CPU=nan", "CPU=1,CPU=2", "CPU:1"])
def test_resources_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of NAME=NUMBER"):
        read_resources(text)


def test_resource_that_ray_spells_otherwise_is_named() -> None:
    with pytest.raises(ValueError, match="Ray knows GPU, not gpu"):
        TrainSettings(resources="gpu=1")


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the cluster has, to be changed by a test."""
    have = {"CPU": 8.0, "GPU": 0.0}
    monkeypatch.setattr(train.cluster, "total", lambda name: have.get(name, 0.0))
    monkeypatch.setattr(train.cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": have}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return have


def scaling(**flags: Any) -> tuple[Any, dict[str, float]]:
    made = train._scaling(TrainSettings(**flags), None)
    return made.num_workers, made.resources_per_worker


def test_workers_share_the_cpus_unless_they_have_gpus(has: dict[str, float]) -> None:
    assert scaling(num_workers=2) == (2, {"CPU": 4.0})
    assert scaling(num_workers="1:3") == ((1, 3), {"CPU": 2.0})
    has["GPU"] = 2.0
    assert scaling(num_workers=2) == (2, {"CPU": 1.0, "GPU": 1.0})
    assert scaling(num_workers=3) == (3, {"CPU": 2.0}), "not every worker could have one"
    assert scaling(num_workers=2, use_gpu=False) == (2, {"CPU": 4.0})


@pytest.mark.parametrize(
    ("machines", "count", "share"),
    [([8], 3, 2), ([4, 4, 4], 2, 4), ([4, 4, 4], 4, 2), ([8, 2], 2, 4), ([2, 2, 1], 3, 1), ([1], 2, 1), ([0], 1, 1), ([], 2, 1)],
)
def test_share_of_the_cpus_fits_on_one_machine(
    machines: list[int], count: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in machines]
    monkeypatch.setattr(train.cluster.ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])
    assert train.cluster.share_of_cpus(count) == share


def test_ray_is_told_how_long_to_wait_for_room_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.delenv(name, raising=False)
    with train._waiting_for_room(60):
        assert os.environ[name] == "60"
    assert name not in os.environ
    monkeypatch.setenv(name, "7")
    with train._waiting_for_room(60):
        assert os.environ[name] == "7", "the user's own word"
    assert os.environ[name] == "7"


def test_resources_are_what_a_worker_reserves(has: dict[str, float]) -> None:
    has |= {"GPU": 1.0, "accelerator_type:A100": 1.0}
    wanted = {"CPU": 2.0, "GPU": 0.5, "accelerator_type:A100": 0.001}
    assert scaling(num_workers=2, resources="CPU=2,GPU=0.5,accelerator_type:A100=0.001") == (2, wanted)


def test_flags_that_contradict_each_other_are_refused(has: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--resources GPU=1 and --no-use-gpu contradict"):
        scaling(resources="GPU=1", use_gpu=False)


def test_what_does_not_fit_is_named_unless_the_cluster_may_grow(has: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"3 workers want 9 CPU \(there are 8\): .*--num-workers"):
        scaling(num_workers=3, resources="CPU=3")
    assert scaling(num_workers="2:3", resources="CPU=3") == ((2, 3), {"CPU": 3.0}), "the fewest that will do have room"
    with pytest.raises(ClusterError, match=r"1 workers want 1 GPU \(there are 0\)"):
        scaling(use_gpu=True)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert scaling(use_gpu=True) == (1, {"CPU": 1.0, "GPU": 1.0})


def test_batch_too_small_for_the_most_workers_is_refused(made_boxes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 workers need at least 16 pictures a step, 4 each"):
        train.run(str(made_boxes), out=str(tmp_path / "run"), settings=TrainSettings(batch_size=15, num_workers="1:4"))


def test_compiler_that_is_missing_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("Failed to find a C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UsageError, match=r"--compile: .*\(Failed to find a C\+\+ compiler\)\. Install"):
        learning._check_compiler(torch.device("cpu"))


@pytest.mark.parametrize(("amp", "device", "bf16", "expected"), [
    ("auto", "cpu", True, None), ("auto", "cuda", True, torch.bfloat16), ("auto", "cuda", False, torch.float16),
    ("off", "cuda", True, None), ("fp16", "cpu", True, torch.float16), ("bf16", "cpu", True, torch.bfloat16),
])  # fmt: skip
def test_precision_is_that_of_the_device_or_of_the_flag(
    amp: Any, device: str, bf16: bool, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert learning._precision(TrainSettings(amp=amp), torch.device(device)) is expected
