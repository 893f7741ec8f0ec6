"""The files for a cluster: Ray's own check of cluster.yaml without a cloud, what that check misses, and what a job uploads."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from cropreg.pipelines import cluster

ROOT = Path(__file__).parents[1]
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    """cluster.yaml as it is written, a copy of its own for every test."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_cluster_yaml(config: Config) -> None:
    validate_config(prepare_config(config))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c.update(head_node_type="heads"),
        lambda c: c["available_node_types"]["match"].pop("resources"),
        lambda c: c["available_node_types"]["train"]["resources"].update(GPU=0.5),
        lambda c: c["available_node_types"]["match"].update(min_workers=c["max_workers"] + 1),
        lambda c: c.update(setup_commands="pip install ray"),
    ],
)
def test_ray_refuses_cluster_yaml_when_it_is_broken(config: Config, spoil: Callable[[Config], Any]) -> None:
    spoil(config)
    with pytest.raises((ValueError, TypeError, jsonschema.ValidationError)):
        validate_config(prepare_config(config))


def faults(config: Config) -> list[str]:
    """Says what is wrong in ways that Ray's own check does not see."""
    found = []
    pools = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    for name, node in config["available_node_types"].items():
        if not re.fullmatch(r"[a-z]\w*\.\w+", str(node["node_config"].get("InstanceType"))):
            found.append(f"{name} names no InstanceType")
    if config["available_node_types"][config["head_node_type"]]["resources"].get("CPU") != 0:
        found.append("the head offers CPUs, so tasks would crowd it")
    if not any(node["resources"].get("GPU", 0) >= 1 for node in pools.values()):
        found.append("no pool offers a GPU")
    if not any(node["resources"].get("GPU", 0) == 0 and node["resources"].get("CPU", 0) >= 1 for node in pools.values()):
        found.append("no pool offers CPUs alone")
    found += [f"{name} costs money while no job runs" for name, node in pools.items() if node.get("min_workers") != 0]
    found += [f"{name} can never come" for name, node in pools.items() if not node.get("max_workers")]
    if len(ray_versions(config)) != 1:
        found.append(f"setup and images name several Rays or none: {sorted(ray_versions(config))}")
    if not any("ray[" in command and "==" in command for command in config.get("setup_commands", [])):
        found.append("setup_commands do not pin Ray: Ray's default would install a nightly wheel")
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        found.append("the dashboard listens to the world")
    options = config["docker"]["run_options"]
    if not any("RAY_AUTH_MODE=token" in option for option in options) or not any(
        "auth_token" in path for path in config["file_mounts"]
    ):
        found.append("the nodes ask for no token")
    shm_bytes = [int(match[1]) * 10**9 for option in options if (match := re.fullmatch(r"--shm-size=(\d+)g", option))]
    stores = re.findall(
        r"--object-store-memory=(\d+)", " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    )
    if len(stores) != 2 or not shm_bytes or max(map(int, stores)) >= shm_bytes[0]:
        found.append("the object store does not fit into /dev/shm")
    return found


def ray_versions(config: Config) -> set[str]:
    """Every version of Ray that the file names, in its images and in its commands."""
    return set(re.findall(r"(?:rayproject/ray:|ray\[[\w,]+\]==)(\d+\.\d+\.\d+)", json.dumps(config)))


def test_cluster_yaml_has_none_of_the_faults_that_ray_does_not_see(config: Config) -> None:
    assert faults(config) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: c["available_node_types"]["match"]["node_config"].update(InstanceType=None), "InstanceType"),
        (lambda c: c["available_node_types"]["head"]["resources"].update(CPU=4), "crowd"),
        (lambda c: c["available_node_types"].pop("train"), "no pool offers a GPU"),
        (lambda c: c["available_node_types"]["match"].update(min_workers=1), "costs money"),
        (lambda c: c["docker"].update(image="rayproject/ray:2.50.0-py311"), "several Rays"),
        (lambda c: c.update(setup_commands=["pip install ray"]), "do not pin"),
        (
            lambda c: c["head_start_ray_commands"].append(c["head_start_ray_commands"].pop().replace("127.0.0.1", "0.0.0.0")),
            "world",
        ),
        (lambda c: c["docker"]["run_options"].remove("--env=RAY_AUTH_MODE=token"), "token"),
        (lambda c: c["docker"]["run_options"].remove("--shm-size=10g"), "/dev/shm"),
    ],
)
def test_fault_is_seen_when_a_copy_has_it(config: Config, spoil: Callable[[Config], Any], fault: str) -> None:
    broken = copy.deepcopy(config)
    spoil(broken)
    assert fault in "; ".join(faults(broken))


def test_cluster_runs_a_ray_that_the_package_allows_and_that_these_tests_have_reached(config: Config) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    (pinned,) = ray_versions(config)
    assert pinned in wanted.specifier
    assert Version(pinned) <= Version(ray.__version__), "cluster.yaml is ahead of the Ray that runs these tests"


@pytest.mark.parametrize(("nodes", "cpus", "looked"), [(1, 4.0, False), (1, 0.0, True), (2, 4.0, True)])
def test_disk_is_looked_at_unless_the_only_node_runs_all_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, cpus: float, looked: bool
) -> None:
    asked: list[tuple[list[str], str | None]] = []
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True}] * nodes + [{"Alive": False}])
    monkeypatch.setattr(cluster, "total", lambda _: cpus)
    monkeypatch.setattr(cluster, "_look_from_every_node", lambda _, uris, probe: asked.append((uris, probe)))
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [f"{tmp_path}/{name}" for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "c/gone.jpg")]
    cluster.check_shared([*files, "s3://b/a.jpg"], str(tmp_path))
    assert bool(asked) is looked
    if asked:
        ((uris, probe),) = asked
        assert uris == [files[0], files[2]], "one of each folder that this machine sees itself"
        assert probe is not None and Path(probe).parent == tmp_path
    assert not list(tmp_path.glob(".tmp-*"))
    cluster.check_shared(["s3://b/a.jpg"], "s3://b/out")
    assert len(asked) == looked, "an object store needs no look"


def test_ray_accepts_runtime_env() -> None:
    env = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert RuntimeEnv(**env).env_vars() == env["env_vars"]


def test_job_uploads_code_and_demo_photographs_but_no_data(tmp_path: Path) -> None:
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    travels = ["cropreg/cli/verbs.py", "ray_jobs/match.py", "cropreg/demo/photos/cat.jpg", "pyproject.toml"]
    stays = [
        "scan.jpg",
        "deep/er/scan.jpg",
        "boxes/pairs/part-1.parquet",
        ".venv/bin/python",
        "cropreg-demo/run/run.json",
        "m.onnx",
    ]
    for name in travels + stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (excluded,) = get_excludes_from_ignore_files(tmp_path, include_gitignore=False)
    assert [name for name in travels if excluded(tmp_path / name)] == []
    assert [name for name in stays if not excluded(tmp_path / name)] == []
