"""``deploy/``: the RayJob by the schema of KubeRay and our own command line, and the image it runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from cropreg.cli import verbs

ROOT = Path(__file__).parents[1]

# The keys of KubeRay's v1 schema, and which of them must be there: ray-operator/config/crd/bases/ray.io_rayjobs.yaml of
# github.com/ray-project/kuberay at feeaf72 (after 1.7.0).  An unknown key is dropped by the API server without a word.
SPEC = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus"),
    *("entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec"),
    *("runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend"),
    "ttlSecondsAfterFinished",
}
CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy", "rayVersion", "suspend", "tlsOptions"),
    *("upgradeStrategy", "workerGroupSpecs"),
}
AUTOSCALER = {
    *("args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext"),
    *("upscalingMode", "version", "volumeMounts"),
}
HEAD = {"enableIngress", "headService", "ingressOptions", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}
WORKERS_REQUIRED = {"groupName", "maxReplicas", "minReplicas", "template"}


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())


@pytest.fixture
def image() -> dict[str, list[str]]:
    """The Dockerfile's instructions: the rest of the line, by the first word."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"\\\n", " ", (ROOT / "deploy/Dockerfile").read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.setdefault(word, []).append(rest)
    return found


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups(job):
        yield from group["template"]["spec"]["containers"]


def ray_of_the_package() -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")


def test_job_has_the_keys_of_kuberays_schema_and_no_others(job: dict[str, Any]) -> None:
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"]), (
        "KubeRay allows 47 characters of a DNS label"
    )
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) <= SPEC and set(cluster) <= CLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert {"template"} <= set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert WORKERS_REQUIRED <= set(group) <= WORKERS
    for group in groups(job):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"


def test_job_runs_one_verb_that_our_own_command_line_accepts(job: dict[str, Any]) -> None:
    lines = [job["spec"]["entrypoint"], *re.findall(r"# .*(cropreg \w+ s3://.*)", (ROOT / "deploy/rayjob.yaml").read_text())]
    assert [shlex.split(line)[:2] for line in lines] == [["cropreg", verb] for verb in ("match", "train", "evaluate", "predict")]
    for line in lines:
        _, verb, *arguments = shlex.split(line)
        paths, config = verbs.look_at(verb, arguments)
        assert paths and config is None
        assert all(path.startswith("s3://CHANGE-ME/") for name, path in paths.items() if name != "weights")


def test_job_has_the_runtime_environment_of_every_other_job(job: dict[str, Any]) -> None:
    ours = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": ours["env_vars"]}


def test_cluster_costs_nothing_when_idle_and_asks_for_a_token(job: dict[str, Any]) -> None:
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True and cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def test_one_group_has_cpus_alone_and_one_has_a_gpu_with_its_image(job: dict[str, Any]) -> None:
    with_gpu = {
        group["groupName"]: "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert with_gpu == {"match": False, "train": True}
    for container in containers(job):
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu") is gpu
        assert container["resources"]["limits"] == container["resources"]["requests"], (
            "Ray counts limits, Kubernetes places by requests"
        )


def test_keys_come_from_a_secret_and_nobody_is_root(job: dict[str, Any]) -> None:
    for container in containers(job):
        assert container["envFrom"] == [{"secretRef": {"name": "cropreg-store"}}] and "env" not in container
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    for group in groups(job):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert not re.search(r"AKIA|(?i:secret_?access_?key[\"']?\s*[:=]\s*\w)", (ROOT / "deploy/rayjob.yaml").read_text())


def test_one_ray_runs_everywhere_and_the_package_allows_it(job: dict[str, Any], image: dict[str, list[str]]) -> None:
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert version in ray_of_the_package().specifier
    assert {re.search(r":ray([\d.]+\d)", container["image"])[1] for container in containers(job)} == {version}  # type: ignore[index]
    assert f"RAY_VERSION={version}" in image["ARG"]
    cluster = (ROOT / "cluster.yaml").read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-(py\d+)", cluster)) == {(version, "py311")}
    documented = re.findall(
        r"cropreg:ray([\d.]+\d)", (ROOT / "deploy/README.md").read_text() + (ROOT / "deploy/Dockerfile").read_text()
    )
    assert set(documented) == {version}


def test_image_is_rays_own_with_the_wheel_in_it_and_is_not_run_by_root(image: dict[str, list[str]]) -> None:
    assert image["FROM"] == ["rayproject/ray:${RAY_VERSION}-${PYTHON}-${DEVICE}"]
    assert {"PYTHON=py311", "DEVICE=cpu"} <= set(image["ARG"])
    assert [user for user in image["USER"] if not re.fullmatch(r"[1-9]\d*", user)] == [], "a number, or Kubernetes cannot tell"
    assert set(image) <= {"ARG", "FROM", "USER", "RUN"}, "nothing is copied or set that could hold a secret"
    (run,) = image["RUN"]
    extras = ",".join(sorted(ray_of_the_package().extras))
    assert f'"ray[{extras}]==${{RAY_VERSION}}" /wheels/cropreg-*.whl' in run and "--no-cache-dir" in run
    for floor in ("torch>=2.10", "torchvision>=0.25"):
        assert f'"{floor}"' in run and f'"{floor}"' in (ROOT / "pyproject.toml").read_text()
