"""How fast the review page is: 10,000 rows over originals of 12 MP; memory of the server, first screen, key to next picture.

    python benchmarks/review.py [--rows 10000] [--steps 60] [--folder DIR]

Prints, measured on a server of its own in another process:

- ``ready_s``: from starting the command to its address (imports, dataset, queue); ``first_screen_s``: from asking for the page to the
  first picture drawn, in a browser where Debian's chromium is there;
- ``next_ms``: from the key to the next picture painted, median and 95th percentile, one key every ``--think`` seconds; ``sharp``: how
  many of those were sharp at once, the others with the small copy first;
- ``rss_mb``: resident memory of the server after the first screen and after ``--sweep`` pictures of a window's size were asked for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cropreg.images import encode_jpeg
from cropreg.schema import PAIRS, Part, commit_manifest, parquet_bytes, proxies_bytes

NUM_ORIGINALS, SIZE_WH = 40, (4000, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--think", type=float, default=1.0, help="seconds between two keys")
    parser.add_argument("--sweep", type=int, default=300)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cropreg-review-"))
    boxes = folder / f"boxes-{arguments.rows}"
    if not boxes.exists():
        make(folder, boxes, arguments.rows)
    try:
        measure(boxes, arguments)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def make(folder: Path, boxes: Path, rows: int) -> None:
    """Writes a dataset of ambiguous pairs that share a few originals; every row has a proxy."""
    rng = np.random.default_rng(0)
    width, height = SIZE_WH
    (folder / "originals").mkdir(parents=True, exist_ok=True)
    (folder / "crops").mkdir(exist_ok=True)
    proxies = []
    for n in range(NUM_ORIGINALS):
        picture = np.zeros((height, width, 3), np.float32)
        for cells in (5, 17, 80, 400):
            picture += cv2.resize(rng.normal(0, 1, (cells, cells, 3)).astype(np.float32), SIZE_WH, interpolation=cv2.INTER_CUBIC)
        picture8 = np.clip(picture * 26 + 128, 0, 255).astype(np.uint8)
        (folder / "originals" / f"{n:03}.jpg").write_bytes(encode_jpeg(picture8, 92))
        (folder / "crops" / f"{n:03}.jpg").write_bytes(encode_jpeg(np.ascontiguousarray(picture8[400:2600, 500:3500]), 92))
        jpeg = encode_jpeg(np.asarray(cv2.resize(picture8, (512, 384), interpolation=cv2.INTER_AREA), np.uint8), 90)
        proxies.append({"original_id": f"{n:03}", "proxy_w": 512, "proxy_h": 384, "jpeg": jpeg})
    table: list[dict[str, Any]] = []
    for n in range(rows):
        x, y = rng.integers(50, 900, 2)
        k = n % NUM_ORIGINALS
        table.append(
            {
                "pair_id": f"{n:07}", "original_uri": str(folder / "originals" / f"{k:03}.jpg"), "original_id": f"{k:03}",
                "crop_uri": str(folder / "crops" / f"{k:03}.jpg"), "group": f"{k:03}", "split": "train", "orientation": 1,
                "original_w": width, "original_h": height, "crop_w": 3000, "crop_h": 2200, "x1": float(x), "y1": float(y),
                "x2": float(x) + 3000, "y2": float(y) + 2000, "angle_deg": 0.0, "verdict": "ambiguous" if n % 5 else "found",
                "probability": float(rng.uniform(0.05, 0.9)), "reason": "The crop fits equally well in more than one place.",
                "stamp": f"{n}",
            }
        )  # fmt: skip
    parts = []
    for name, file, count, data in (
        ("pairs", "pairs/part-a.parquet", len(table), parquet_bytes(table, PAIRS)),
        ("proxies", "proxies/part-a.arrow", len(proxies), proxies_bytes(proxies)),
    ):
        (boxes / file).parent.mkdir(parents=True)
        (boxes / file).write_bytes(data)
        parts.append(Part.of(name, file, count, data))
    commit_manifest(str(boxes), parts, config={}, counts={}, parent=0, version="0")


def measure(boxes: Path, arguments: argparse.Namespace) -> None:
    shutil.rmtree(boxes / "reviews", ignore_errors=True)
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "cropreg.cli", "review", str(boxes), "--no-browser"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
    print(f"rows {arguments.rows}  ready_s {time.perf_counter() - began_s:.2f}  of them on the CPU {cpu_s(server.pid):.2f}")
    try:
        chromium = shutil.which("chromium")
        if chromium:
            in_browser(address, chromium, server.pid, arguments)
        else:
            print("no chromium here: apt-get install chromium")
        sweep(address, server.pid, arguments.sweep)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def in_browser(address: str, chromium: str, server: int, arguments: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.add_init_script(_WATCH)
        page.goto("about:blank")
        page.goto(address)
        page.wait_for_selector("#stage[data-painted]")
        page.wait_for_timeout(3000)
        print(f"first_screen_s {page.evaluate('window.firstPainted') / 1000:.2f}  rss_mb {rss_mb(server):.0f}")
        times, sharp, decided = [], 0, 0
        for n in range(arguments.steps):
            page.wait_for_timeout(int(arguments.think * 1000))
            key = "Enter" if n % 2 else "s"
            took_ms, was_sharp = page.evaluate(_STEP, key)
            times.append(took_ms)
            sharp += was_sharp
            decided += key == "Enter"
        for name, some in (("skip", times[::2]), ("accept", times[1::2])):
            print(f"next_ms {name:6} median {statistics.median(some):.0f}  p95 {np.percentile(some, 95):.0f}  max {max(some):.0f}")
        print(f"sharp at once {sharp} of {len(times)}; {decided} decisions written")
        browser.close()


_WATCH = """
addEventListener('DOMContentLoaded', () => {
  new MutationObserver(() => { window.firstPainted ??= performance.now(); })
    .observe(document.getElementById('stage'), { attributes: true, attributeFilter: ['data-painted'] });
});
"""
_STEP = """async (key) => {
  const stage = document.getElementById('stage');
  const before = stage.dataset.painted;
  const from = performance.now();
  document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  while (stage.dataset.painted === before) await new Promise((done) => requestAnimationFrame(done));
  const took = performance.now() - from;
  return [took, stage.dataset.sharpened === stage.dataset.painted];
}"""


def sweep(address: str, server: int, count: int) -> None:
    """Asks for pictures of a window's size, each of another row, as a long sitting does."""
    import json

    ids = [row[0] for row in json.load(urllib.request.urlopen(address + "api/queue"))["items"]]
    before_mb = rss_mb(server)
    began_s, by_thirds = time.perf_counter(), []
    for n, item in enumerate(ids[-count:], 1):
        urllib.request.urlopen(f"{address}api/picture/{item}/screen?long=1536").read()
        if n % (count // 3) == 0:
            by_thirds.append(f"{rss_mb(server):.0f}")
    each_ms = (time.perf_counter() - began_s) / count * 1000
    print(f"sweep {count} pictures of 1536 px from 12 MP, {each_ms:.0f} ms each")
    print(f"rss_mb {before_mb:.0f}, by thirds of the sweep {' '.join(by_thirds)}", end="")
    for item in ids[: count // 4]:
        urllib.request.urlopen(f"{address}api/picture/{item}/region?x=900&y=900&w=1000&h=800").read()
    print(f", after {count // 4} looks at 1:1 {rss_mb(server):.0f}")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
