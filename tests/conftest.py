"""What tests share: pictures from seeded factories, small box datasets, and one local Ray for all that need it."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

# Before Ray is imported: no calls home, short waits, and a token of our own, so that ~/.ray is neither read nor written.
_TOKEN = tempfile.NamedTemporaryFile("w", prefix="cropreg-test-token-")  # noqa: SIM115  # as long as the tests run
_TOKEN.write(secrets.token_hex(32))
_TOKEN.flush()
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"] = "token", _TOKEN.name
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"  # tests run beside each other, and their models are small
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background; drivers would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

# The same examples every time, so that a commit fails by its own fault; no deadline, since machines are shared.
settings.register_profile("cropreg", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("cropreg")

Picture = NDArray[np.uint8]
_bucket_numbers = count()


def pytest_unconfigure() -> None:
    """Takes the token away: processes of pytest-xdist end without tidying up, and would each leave one in the temporary folder."""
    _TOKEN.close()


def textured(seed: int, width: int, height: int) -> Picture:
    """A picture (H, W, 3) RGB with detail at every scale, the same for the same seed."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 23, 60):
        coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, 0.15, picture.shape)
    return np.asarray(np.clip(picture * 28 + 128, 0, 255), np.uint8)


def save(picture: Picture, path: Path, quality: int = 95) -> None:
    """Saves RGB by the path's ending, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else [])
    assert done
    path.write_bytes(data.tobytes())


def framed_print(seed: int, width: int = 240, height: int = 180) -> tuple[Picture, tuple[int, int, int, int]]:
    """A textured print on a plain bed, and the box of the print: something a regressor can learn."""
    rng = np.random.default_rng([seed, 7])
    w, h = int(width * rng.uniform(0.45, 0.8)), int(height * rng.uniform(0.45, 0.8))
    x, y = int(rng.integers(4, width - w - 4)), int(rng.integers(4, height - h - 4))
    bed = np.full((height, width, 3), rng.integers(200, 250), np.uint8)
    bed[y : y + h, x : x + w] = textured(seed, w, h) // 2
    return bed, (x, y, x + w, y + h)


@pytest.fixture
def fault(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Callable[[], int]]]:
    """Sets faults for a fresh child; what it returns says how often they fired."""
    from cropreg import child

    child.stop()
    marks = tmp_path_factory.mktemp("marks")

    def ask(wanted: str) -> Callable[[], int]:
        monkeypatch.setenv("CROPREG_TESTING", "1")
        monkeypatch.setenv("CROPREG_FAULT", wanted)
        monkeypatch.setenv("CROPREG_FAULT_DIR", str(marks))
        return lambda: len(list(marks.iterdir()))

    yield ask
    child.stop()


@pytest.fixture(scope="session")
def make_pairs() -> Callable[[Path, int], dict[str, tuple[int, int, int, int]]]:
    """Writes ``count`` originals and crops below a folder; returns the true boxes by name."""

    def make(folder: Path, count: int, first_seed: int = 0) -> dict[str, tuple[int, int, int, int]]:
        truth = {}
        for i in range(count):
            original, box = framed_print(first_seed + i)
            name = f"{i:04d}"
            save(original, folder / "originals" / f"{name}.jpg")
            x1, y1, x2, y2 = box
            save(original[y1:y2, x1:x2], folder / "crops" / f"{name}.png")
            truth[name] = box
        return truth

    return make


@pytest.fixture(scope="session")
def made_boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box dataset of 60 framed prints, written through the schema without matching and without Ray."""
    from cropreg.images import encode_jpeg
    from cropreg.schema import PAIRS, Part, commit_manifest, parquet_bytes, proxies_bytes
    from cropreg.splits import split_of

    folder = tmp_path_factory.mktemp("made") / "boxes"
    rows: list[dict[str, Any]] = []
    proxies: list[dict[str, Any]] = []
    for seed in range(60):
        picture, box = framed_print(seed)
        name = f"{seed:04d}"
        save(picture, folder.parent / "originals" / f"{name}.png")
        height, width = picture.shape[:2]
        rows.append(
            {
                "pair_id": name,
                "original_uri": str(folder.parent / "originals" / f"{name}.png"),
                "crop_uri": f"/{name}.png",
                "original_id": name,
                "group": name,
                "split": split_of(name, (0.6, 0.2, 0.1, 0.1)),
                "original_w": width,
                "original_h": height,
                **dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)),
                "verdict": "found" if seed % 20 else "ambiguous",
            }
        )
        proxies.append({"original_id": name, "proxy_w": width, "proxy_h": height, "jpeg": encode_jpeg(picture, 92)})
    parts = []
    for table, file, data in (
        ("pairs", "pairs/part-a.parquet", parquet_bytes(rows, PAIRS)),
        ("proxies", "proxies/part-a.arrow", proxies_bytes(proxies)),
    ):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_bytes(data)
        parts.append(Part.of(table, file, len(rows), data))
    assert commit_manifest(str(folder), parts, config={}, counts={"found": 57, "ambiguous": 3}, parent=0, version="0") == 1
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[int]:
    """An S3 server on a free port, reached as a user reaches one: by environment variables."""
    from cropreg.storage import remote

    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        remote._connect.cache_clear()
        yield port
    remote._connect.cache_clear()
    server.stop()


@pytest.fixture
def bucket(store: int) -> str:
    """The URI of a new, empty bucket."""
    name = f"bucket-{next(_bucket_numbers)}"
    connection = http.client.HTTPConnection("127.0.0.1", store)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray of four logical CPUs for all tests marked ``ray``."""
    import ray

    from cropreg.pipelines import cluster

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    cluster.connect()
    yield
    ray.shutdown()
