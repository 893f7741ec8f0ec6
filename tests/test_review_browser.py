"""The review page in a real browser: the whole way by keyboard, by mouse and by touch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import framed_print, save, textured

from cropreg import reviews
from cropreg.schema import PAIRS, PREDICTIONS, BoxDataset, Part, commit_manifest, parquet_bytes

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'cropreg[dev]'")

MARKUP = "<img src=x onerror=alert(1)>.png"
"""A name that would be markup if it were not text."""


@pytest.fixture(scope="module")  # while it is open, no other test of the process can have an event loop
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def boxes(made_boxes: Path, tmp_path: Path) -> Path:
    """60 pairs with real originals and crops: 12 ambiguous, one without a place, one of a strange name, the others found."""
    folder = tmp_path / "boxes"
    shutil.copytree(made_boxes, folder)
    dataset = BoxDataset.open(str(folder))
    rows = dataset.pairs().to_pylist()
    (tmp_path / "originals").mkdir()
    for n, row in enumerate(rows):
        picture, (x1, y1, x2, y2) = framed_print(n)
        row["crop_uri"] = str(tmp_path / "crops" / f"{row['pair_id']}.png")
        save(picture[y1:y2, x1:x2], Path(row["crop_uri"]))
        row.update(stamp=f"{n}", angle_deg=0.0, crop_w=x2 - x1, crop_h=y2 - y1, verdict="found")
        row["original_uri"] = str(shutil.copy(row["original_uri"], tmp_path / "originals"))
        if n >= 12:
            row.update(x1=24.0, y1=18.0, x2=216.0, y2=162.0)  # all alike, so that none is suspicious
        else:
            row.update(verdict="ambiguous", probability=0.1 + n / 20, reason="The crop fits in two places.", x1=row["x1"] + 3)
    rows[20].update(verdict="flat", reason="Too little texture.", x1=None, y1=None, x2=None, y2=None, angle_deg=None)
    rows[5]["original_uri"] = str(Path(rows[5]["original_uri"]).rename(tmp_path / "originals" / MARKUP))
    data = parquet_bytes(rows, PAIRS)
    (folder / "pairs/part-b.parquet").write_bytes(data)
    parts = [Part.of("pairs", "pairs/part-b.parquet", len(rows), data), *dataset.parts("proxies")]
    commit_manifest(str(folder), parts, config={}, counts={}, parent=dataset.number, version="0")
    return folder


class Served:
    """``cropreg review`` in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "cropreg.cli", "review", str(folder), "--no-browser", *flags]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "USER": "ann", "LOGNAME": "ann"}
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/\S+", line):
                self.address = found[0]
                return
        raise AssertionError(f"the page did not start: {self.process.wait()}")

    def stop(self, how: int = signal.SIGINT) -> tuple[int, str]:
        """Ends it as Ctrl+C does; returns its exit code and what it printed."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@pytest.fixture
def served(boxes: Path) -> Iterator[Served]:
    page = Served(boxes)
    yield page
    page.stop(signal.SIGKILL)


def until(page: Any, script: str, argument: Any = None) -> None:
    """Waits for a script to say yes.  Playwright's own waiting evaluates text within the page, which the page forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never: {script}"
        page.wait_for_timeout(20)


def opened(browser: Any, address: str, **context: Any) -> Any:
    """A page that is ready; whatever it complains of fails the test when it is closed."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **context).new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    until(page, "document.getElementById('stage').dataset.sharpened === document.body.dataset.shown")
    return page


def shown(page: Any) -> str:
    return str(page.locator("#name").text_content())


def press(page: Any, *keys: str) -> None:
    for key in keys:
        before = page.evaluate("document.body.dataset.shown")
        page.keyboard.press(key)
        if key in ("Enter", "r", "s", "z", "p"):
            until(page, "b => !document.body.dataset.busy && document.body.dataset.shown !== b", before)


def edge(page: Any, name: str) -> float:
    return float(page.locator(f"#edges input[name={name}]").input_value())


def kept(boxes: Path) -> dict[str, reviews.Review]:
    return reviews.in_effect(reviews.read(str(boxes)))


def test_whole_way_by_keyboard(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    assert shown(page) == "0000.png" and page.locator("#position").text_content() == "1 of 13"
    press(page, "Enter")  # accept
    assert kept(boxes)["0000"].decision == "accept"
    assert shown(page) == "0001.png"
    left = edge(page, "x1")
    press(page, "e", "ArrowLeft", "ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "Shift+ArrowLeft")
    assert edge(page, "x1") == left - 3 and page.locator("#edge-badge").text_content() == f"left edge at {left - 3:g} px"
    assert page.locator("#accept-word").text_content() == "Save correction"
    press(page, "Enter")
    assert (kept(boxes)["0001"].decision, kept(boxes)["0001"].x1) == ("correct", left - 3)
    press(page, "r")
    assert kept(boxes)["0002"].decision == "reject"
    press(page, "s")
    assert shown(page) == "0004.png" and len(kept(boxes)) == 3, "skipping decides nothing"
    press(page, "p")
    assert shown(page) == "0003.png"
    press(page, "z")
    assert shown(page) == "0002.png" and set(kept(boxes)) == {"0000", "0001"}
    press(page, "z", "z")
    assert shown(page) == "0000.png" and kept(boxes) == {}
    assert len(reviews.read(str(boxes))) == 6, "nothing is ever taken out of the folder"
    press(page, "2")
    assert page.locator("#choices button").nth(1).get_attribute("aria-pressed") == "true"
    press(page, "]", "[", "1")
    assert page.locator("#accept-word").text_content() == "Accept"
    page.keyboard.press("g")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('position').textContent === '12 of 13'")
    page.keyboard.press("/")
    page.keyboard.type("0007")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('name').textContent === '0007.png'")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press(" ")
    assert page.locator("#view-badge").text_content() == "1:1"
    page.keyboard.press("f")
    assert "fit" in str(page.locator("#view-badge").text_content())
    assert page.complaints == []
    code, printed = served.stop()
    assert code == 0 and "0 decided, 13 left" in printed and "cropreg train" in printed


def test_what_was_decided_trains(browser: Any, served: Served, boxes: Path) -> None:
    before = BoxDataset.open(str(boxes)).fingerprint
    page = opened(browser, served.address)
    press(page, "e", "ArrowLeft", "Enter", "r")
    dataset = BoxDataset.open(str(boxes))
    rows = {row["pair_id"]: row for row in dataset.pairs().to_pylist()}
    assert (rows["0000"]["verdict"], rows["0000"]["method"]) == ("found", "reviewed")
    assert (rows["0001"]["verdict"], rows["0001"]["reason"]) == ("no_match", "rejected by ann")
    assert dataset.fingerprint != before


def test_by_mouse(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    box = [edge(page, name) for name in ("x1", "y1", "x2", "y2")]
    bounds = page.locator("#stage").bounding_box()
    scale = min((bounds["width"] - 88) / 240, (bounds["height"] - 88) / 180)
    left, top = (bounds["x"] + (bounds["width"] - 240 * scale) / 2, bounds["y"] + (bounds["height"] - 180 * scale) / 2)

    def drag(start: tuple[float, float], end: tuple[float, float], *, key: str | None = None) -> None:
        if key:
            page.keyboard.down(key)
        page.mouse.move(left + start[0] * scale, top + start[1] * scale)
        page.mouse.down()
        page.mouse.move(left + end[0] * scale, top + end[1] * scale, steps=4)
        page.mouse.up()
        if key:
            page.keyboard.up(key)

    drag((box[2], box[3]), (box[2] - 20, box[3] - 10))  # the handle of a corner
    assert [edge(page, name) for name in ("x1", "y1", "x2", "y2")] == pytest.approx([*box[:2], box[2] - 20, box[3] - 10], abs=1)
    middle = (box[0] + 30, box[1] + 30)
    drag(middle, (middle[0] + 5, middle[1] - 4))  # the whole box
    assert edge(page, "x1") == pytest.approx(box[0] + 5, abs=1) and edge(page, "y1") == pytest.approx(box[1] - 4, abs=1)
    drag((20, 10), (120, 90), key="Shift")  # a new one
    assert [edge(page, name) for name in ("x1", "y1", "x2", "y2")] == pytest.approx([20, 10, 120, 90], abs=1)
    page.mouse.wheel(0, -400)
    assert "fit" not in str(page.locator("#view-badge").text_content())
    page.locator("#accept").click()
    until(page, "document.getElementById('name').textContent === '0001.png'")
    assert kept(boxes)["0000"].box == pytest.approx((20, 10, 120, 90), abs=1)
    page.locator("#reject").click()
    until(page, "document.getElementById('name').textContent === '0002.png'")
    assert page.evaluate("document.activeElement.id") == "stage", "after a click the keys belong to the picture again"
    page.locator("#filters button", has_text="Flat").click()
    until(page, "document.getElementById('verdict').textContent === 'Flat'")
    page.locator("#undo").click()
    until(page, "document.getElementById('name').textContent === '0001.png'")
    assert page.complaints == []


def test_picture_without_a_place_cannot_be_accepted_before_it_has_one(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    page.locator("#filters button", has_text="Flat").click()
    until(page, "document.getElementById('verdict').textContent === 'Flat'")
    page.keyboard.press("Enter")
    assert "There is no box yet" in str(page.locator("#notices").text_content()) and kept(boxes) == {}
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#done:not([hidden])")
    assert kept(boxes)["0020"].decision == "correct"
    page.locator("#done-all").click()
    until(page, "document.getElementById('name').textContent === '0000.png'")


def test_turned_box_keeps_its_other_edges_when_one_is_moved(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    corner = """() => {
      const value = (name) => Number(document.querySelector(`#edges input[name=${name}]`).value);
      const [x1, y1, x2, y2, turn] = [value('x1'), value('y1'), value('x2'), value('y2'), value('angle') * Math.PI / 180];
      const [a, b] = [(x2 - x1) / 2, (y2 - y1) / 2];
      return [(x1 + x2) / 2 + a * Math.cos(turn) - b * Math.sin(turn), (y1 + y2) / 2 + a * Math.sin(turn) + b * Math.cos(turn)];
    }"""
    press(page, *["]"] * 30)
    assert edge(page, "angle") == 3
    before = page.evaluate(corner)
    press(page, "e", "Shift+ArrowRight", "e", "Shift+ArrowDown")  # left, then top
    assert page.evaluate(corner) == pytest.approx(before, abs=0.02), "the lower right corner stays"
    press(page, "Enter")
    assert kept(boxes)["0000"].angle_deg == 3


def test_contact_sheet_accepts_all_but_what_is_marked(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    page.keyboard.press("c")
    page.wait_for_selector("#cards[data-ready]")
    assert page.locator(".card").count() == 12, "what has no place is not on it"
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.locator(".card").nth(3).click()
    assert str(page.locator("#sheet-accept").text_content()).startswith("Accept the other 10")
    page.keyboard.press("Enter")
    page.wait_for_selector("#single:not([hidden])")
    assert shown(page) == "0001.png" and set(kept(boxes)) == {f"{n:04d}" for n in range(12)} - {"0001", "0003"}
    assert len(list((boxes / "reviews").glob("*.parquet"))) == 1, "a sheet is one file"
    assert page.locator("#pace").text_content() == "10 of 13 decided"


def test_name_of_a_file_is_text_never_markup(browser: Any, served: Served) -> None:
    page = opened(browser, served.address)
    page.keyboard.press("/")
    page.keyboard.type("onerror")
    page.keyboard.press("Enter")
    until(page, "name => document.getElementById('name').textContent.endsWith(name)", MARKUP)
    page.keyboard.press("c")
    page.wait_for_selector("#cards[data-ready]")
    assert page.locator("img[onerror]").count() == 0 and page.complaints == []


def test_crash_of_the_server_loses_nothing_and_is_told(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address)
    press(page, "Enter", "Enter")
    served.stop(signal.SIGKILL)
    page.keyboard.press("Enter")
    until(page, "document.getElementById('notices').textContent.includes('Not saved')")
    assert shown(page) == "0002.png", "the page does not move on from what is not saved"
    assert set(kept(boxes)) == {"0000", "0001"}
    again = Served(boxes)
    later = opened(browser, again.address)
    assert shown(later) == "0002.png" and later.locator("#pace").text_content() == "2 of 13 decided"
    press(later, "z")
    assert shown(later) == "0001.png", "what was decided before the crash can be undone after it"
    again.stop()


def test_second_reviewer_is_told_so(browser: Any, served: Served, boxes: Path) -> None:
    other = Served(boxes)
    page = opened(browser, other.address)
    assert "is reviewing the same folder now" in str(page.locator("#notices").text_content())
    other.stop()


def test_read_only_page_says_so_and_decides_nothing(browser: Any, boxes: Path) -> None:
    before = sorted(boxes.rglob("*"))
    served = Served(boxes, "--read-only")
    page = opened(browser, served.address)
    assert "Read-only" in str(page.locator("#notices").text_content())
    page.keyboard.press("Enter")
    page.keyboard.press("r")
    page.wait_for_timeout(200)
    assert shown(page) == "0000.png" and page.locator("#accept").is_disabled()
    served.stop()
    assert sorted(boxes.rglob("*")) == before


def test_everything_is_reached_by_tab_and_has_a_name(browser: Any, served: Served) -> None:
    page = opened(browser, served.address)
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(e => e === document.body ? '' : e.id || e.name || e.textContent)(document.activeElement)"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or seen[-1] == "", f"the focus is not seen on {seen[-1]}"
    assert {"stage", "accept", "reject", "skip", "x1", "angle", "open-sheet"} <= set(seen)
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, canvas')].filter(e => e.checkVisibility() && !(e.textContent.trim() || "
        "e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert nameless == 0


def test_tab_goes_through_the_header_in_the_order_it_is_read_in(browser: Any, served: Served) -> None:
    page = opened(browser, served.address)
    places = page.evaluate(
        "[...document.querySelectorAll('header button')].map(e => e.getBoundingClientRect()).map(r => [Math.round(r.top), r.left])"
    )
    assert len(places) > 5 and places == sorted(places)


@pytest.mark.parametrize("size", [(320, 568), (390, 844), (640, 400)], ids=["small phone", "phone", "zoomed to 200%"])
def test_small_window_shows_everything_without_scrolling_sideways(browser: Any, served: Served, size: tuple[int, int]) -> None:
    page = opened(browser, served.address, has_touch=True, is_mobile=True, screen={"width": size[0], "height": size[1]})
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.wait_for_timeout(300)
    page.keyboard.press("ArrowLeft")  # the longest word on the button
    seen = "e => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= innerWidth && r.bottom <= innerHeight }"
    for name in ("stage", "verdict", "name", "accept", "reject", "skip", "undo"):
        assert page.locator(f"#{name}").evaluate(seen), f"{name} is there without scrolling"
    before = shown(page)
    page.locator("#skip").tap()
    until(page, "b => document.getElementById('name').textContent !== b", before)
    page.locator("#open-sheet").tap()
    page.wait_for_selector("#cards[data-ready]")
    assert page.evaluate("[...document.querySelectorAll('.card')].every(e => e.getBoundingClientRect().right <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_what_is_behind_it(browser: Any, served: Served, scheme: str) -> None:
    page = opened(browser, served.address, color_scheme=scheme)
    assert page.evaluate(_PALE) == []
    page.keyboard.press("?")
    assert page.evaluate(_PALE) == []
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.wait_for_selector("#cards[data-ready]")
    page.keyboard.press(" ")
    assert page.evaluate(_PALE) == []


_PALE = """() => {  // texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3)
  const light = (c) => [.2126, .7152, .0722].reduce((sum, w, i) => {
    const v = c[i] / 255;
    return sum + w * (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  }, 0);
  const color = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, alpha, back) => back.map((v, i) => top[i] * alpha + v * (1 - alpha));
  const pale = [];
  for (const e of document.querySelectorAll('body *')) {
    const speaks = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!speaks || !e.checkVisibility() || e.closest('.unseen, button:disabled, .stage')) continue;
    let [back, opacity] = [[255, 255, 255], 1];
    const chain = [];
    for (let p = e; p; p = p.parentElement) chain.unshift(getComputedStyle(p));
    for (const style of chain) {
      const c = color(style.backgroundColor);
      back = over(c, c[3], back);
      opacity *= Number(style.opacity);
    }
    const c = color(getComputedStyle(e).color);
    const [dark, bright] = [light(back), light(over(c, c[3] * opacity, back))].sort((a, b) => a - b);
    if ((bright + .05) / (dark + .05) < 4.5) pale.push(`${e.tagName} ${e.id} ${e.textContent.trim()}`);
  }
  return pale;
}"""


def test_other_places_of_an_ambiguous_crop_are_chosen_with_one_key(browser: Any, boxes: Path, tmp_path: Path) -> None:
    page_px = np.full((400, 620, 3), 235, np.uint8)
    for x in (20, 320):
        page_px[60:320, x : x + 280] = textured(5, 280, 260)
    page_px = np.clip(page_px + np.random.default_rng(1).normal(0, 1.5, page_px.shape), 0, 255).astype(np.uint8)
    row = BoxDataset.open(str(boxes)).pairs().to_pylist()[0]
    row.update(verdict="ambiguous", original_w=620, original_h=400, crop_w=280, crop_h=260, x1=20.0, y1=60.0, x2=300.0, y2=320.0)
    save(page_px, Path(row["original_uri"]).with_name("twice.png"))
    save(page_px[60:320, 320:600], Path(row["crop_uri"]))
    row["original_uri"] = str(Path(row["original_uri"]).with_name("twice.png"))
    data = parquet_bytes([row], PAIRS)
    (boxes / "pairs/part-c.parquet").write_bytes(data)
    dataset = BoxDataset.open(str(boxes))
    parts = [Part.of("pairs", "pairs/part-c.parquet", 1, data), *dataset.parts("proxies")]
    commit_manifest(str(boxes), parts, config={}, counts={}, parent=dataset.number, version="0")
    served = Served(boxes)
    page = opened(browser, served.address)
    until(page, "document.getElementById('choices').textContent.includes('Another place that fits')")
    press(page, "2")
    assert edge(page, "x1") == pytest.approx(320, abs=0.5)
    page.keyboard.press("Enter")
    page.wait_for_selector("#done:not([hidden])")
    assert kept(boxes)["0000"].box == pytest.approx((320, 60, 600, 320), abs=0.5)
    assert page.complaints == []
    served.stop(signal.SIGKILL)


def test_by_touch(browser: Any, served: Served, boxes: Path) -> None:
    page = opened(browser, served.address, has_touch=True)
    x2, y2 = edge(page, "x2"), edge(page, "y2")
    bounds = page.locator("#stage").bounding_box()
    scale = min((bounds["width"] - 88) / 240, (bounds["height"] - 88) / 180)
    x = bounds["x"] + (bounds["width"] - 240 * scale) / 2 + x2 * scale
    y = bounds["y"] + (bounds["height"] - 180 * scale) / 2 + y2 * scale
    device = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        device.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(points)]},
        )

    touch("touchStart", (x + 12, y + 12))  # a finger is not exact, and the edge does not jump to it
    for step in range(1, 5):
        touch("touchMove", (x + 12 - step * 5 * scale, y + 12 - step * 3 * scale))
    touch("touchEnd")
    assert edge(page, "x2") == pytest.approx(x2 - 20, abs=1.5) and edge(page, "y2") == pytest.approx(y2 - 12, abs=1.5)
    assert "fit" in str(page.locator("#view-badge").text_content())
    middle = (bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2)
    touch("touchStart", (middle[0] - 40, middle[1]), (middle[0] + 40, middle[1]))
    for step in range(1, 5):
        touch("touchMove", (middle[0] - 40 - 20 * step, middle[1]), (middle[0] + 40 + 20 * step, middle[1]))
    touch("touchEnd")
    percent = int(str(page.locator("#view-badge").text_content()).rstrip("%"))
    assert percent > 150 * scale, "two fingers that part look closer"
    page.locator("#accept").tap()
    until(page, "document.getElementById('name').textContent === '0001.png'")
    assert kept(boxes)["0000"].decision == "correct"
    assert page.complaints == []


def test_predictions_show_their_intervals_and_the_crop_as_it_would_be_written(browser: Any, tmp_path: Path) -> None:
    rows = []
    for n in range(3):
        original, (x1, y1, x2, y2) = framed_print(n)
        save(original, tmp_path / "in" / f"{n}.png")
        row: dict[str, Any] = {
            "image_uri": str(tmp_path / "in" / f"{n}.png"),
            "verdict": "review",
            "stamp": f"m/{n}",
            "angle_deg": 0.0,
        }
        row |= {"width": 240, "height": 180, "x1": x1, "y1": y1, "x2": x2, "y2": y2, "confidence": 0.1 + n / 10}
        row |= {f"{name}_lo": v - 4.0 for name, v in zip(("left", "top", "right", "bottom"), (x1, y1, x2, y2), strict=True)}
        row |= {f"{name}_hi": v + 4.0 for name, v in zip(("left", "top", "right", "bottom"), (x1, y1, x2, y2), strict=True)}
        rows.append(row)
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.parquet").write_bytes(parquet_bytes(rows, PREDICTIONS))
    served = Served(out)
    page = opened(browser, served.address)
    assert page.locator("#held-caption").text_content() == "The crop as it would be written"
    assert page.locator("#crop-figure").is_hidden()
    press(page, "Enter", "r")
    page.keyboard.press("Enter")
    page.wait_for_selector("#done:not([hidden])")
    assert sorted(review.decision for review in kept(out).values()) == ["accept", "accept", "reject"]
    assert page.complaints == []
    code, printed = served.stop()
    assert code == 0 and "--apply-reviews" in printed


def test_next_picture_is_there_at_once(browser: Any, served: Served) -> None:
    """Not a measurement (see benchmarks/review.py): the next ten are simply no longer asked for when they are shown."""
    page = opened(browser, served.address)
    deadline = time.monotonic() + 20
    while page.evaluate("performance.getEntriesByType('resource').filter(e => e.name.includes('/screen')).length") < 11:
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    item = page.evaluate("document.body.dataset.shown")
    press(page, "s")
    assert page.evaluate("document.body.dataset.shown") != item
    upcoming = page.evaluate("document.body.dataset.shown")
    assert not [url for url in asked if upcoming in url and "/picture/" in url]
