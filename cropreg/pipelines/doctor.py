"""``cropreg doctor``: what this installation has and lacks, before a long run finds out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropreg import __version__, storage
from cropreg.errors import CropregError

_PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "pyarrow",
    "pyvips",
    "pydantic",
    "safetensors",
)
_EXTRAS = {"heif": "pi_heif", "raw": "rawpy", "tiff": "imagecodecs", "onnx": "onnxruntime", "mlflow": "mlflow", "wandb": "wandb"}
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``cure`` is None when it is well."""

    what: str
    found: str
    cure: str | None = None


def run(uri: str | None) -> dict[str, Any]:
    """Looks at versions, devices, codecs, Ray and, if given, whether ``uri`` can be written and read.

    Returns:
        the summary; its exit code is 2 when something needs a cure.
    """
    looks: list[Callable[[], Iterator[Finding]]] = [_versions, _opencv, _devices, _codecs, _ray]
    findings = [finding for look in looks for finding in look()]
    if uri is not None:
        findings.append(_writes(uri))
    lines = [
        f"{'needs care' if f.cure else 'ok':11s}{f.what:24s}{f.found}" + (f"\n{'':11s}{f.cure}" if f.cure else "") for f in findings
    ]
    return {
        "verb": "doctor",
        "code": 2 if any(f.cure for f in findings) else 0,
        "findings": [{"what": f.what, "found": f.found, "cure": f.cure} for f in findings],
        "text": "\n".join(lines),
    }


def _versions() -> Iterator[Finding]:
    yield Finding("cropreg", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "absent", "Install cropreg again: pip install cropreg")
    there = [extra for extra, module in _EXTRAS.items() if importlib.util.find_spec(module)]
    yield Finding("extras", ", ".join(there) or "none")


def _opencv() -> Iterator[Finding]:
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    there = [name for name in names if any(importlib.metadata.distributions(name=name))]
    cure = "They overwrite each other: pip uninstall all of them, then pip install opencv-python-headless"
    yield Finding("OpenCV packages", ", ".join(there), cure if len(there) != 1 else None)


def _devices() -> Iterator[Finding]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none: training runs on CPUs")
    yield Finding("CPUs", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")


def _codecs() -> Iterator[Finding]:
    import io

    import numpy as np
    from PIL import Image

    from cropreg.boxes import Box
    from cropreg.images import decode_color
    from cropreg.writing import cut

    picture = Image.fromarray(np.arange(32 * 24 * 3, dtype=np.uint8).reshape(24, 32, 3))
    for kind in _FORMATS:
        try:
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            size = decode_color(cut(buffer.getvalue(), f"probe.{kind.lower()}", Box(2, 2, 18, 12)), "probe").shape[:2]
            assert size == (10, 16), size
            yield Finding(kind, "read, cut and written")
        except Exception as error:  # whatever a broken library raises is what is to be told
            yield Finding(
                kind, f"{type(error).__name__}: {error}", "Install again: pip install --force-reinstall pillow pyvips-binary"
            )


def _ray() -> Iterator[Finding]:
    yield Finding("Ray address", os.environ.get("RAY_ADDRESS", "none: Ray starts on this machine"))
    token = os.environ.get("RAY_AUTH_TOKEN") or os.path.exists(
        os.environ.get("RAY_AUTH_TOKEN_PATH", os.path.expanduser("~/.ray/auth_token"))
    )
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    cure = None
    if mode != "token" and {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & os.environ.keys():
        cure = "A cluster with token authentication refuses `cropreg submit` without: export RAY_AUTH_MODE=token"
    yield Finding("Ray token", f"{'there' if token else 'none'}, RAY_AUTH_MODE {mode}", cure)


def _writes(uri: str) -> Finding:
    folder = storage.absolute(uri)
    probe = storage.join(folder, f".cropreg-probe-{uuid.uuid4().hex}")
    made: list[Path] = []
    if not storage.is_remote(folder):
        path = Path(storage.local_path(folder))
        made = [p for p in (path, *path.parents) if not os.path.lexists(p)]  # deepest first
    try:
        storage.write_whole(probe, b"cropreg")
        same = storage.read_bytes(probe) == b"cropreg"
        storage.remove(probe)
    except (CropregError, OSError) as error:
        return Finding(uri, str(error), "Check the path, its rights, and your credentials.")
    finally:
        for p in made:
            with contextlib.suppress(OSError):
                p.rmdir()
    return Finding(
        uri, "written, read and removed" if same else "reads other bytes than were written", None if same else "Do not use it."
    )
