"""The server of the review page: what it gives, what it refuses, and that a decision is on disk before it answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from conftest import framed_print, save

from cropreg import reviews
from cropreg.proxies import Proxies
from cropreg.review import app, queue
from cropreg.review.pictures import Pictures
from cropreg.review.session import LABELS, PREDICTIONS, Session
from cropreg.schema import PREDICTIONS as PREDICTIONS_SCHEMA
from cropreg.schema import BoxDataset, parquet_bytes

TOKEN, PORT = "t0ken", 8123
Client = Callable[..., httpx.Response]


@pytest.fixture
def boxes(made_boxes: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    return tmp_path / "boxes"


def session_of(boxes: Path, *, who: str = "ann", read_only: bool = False) -> Session:
    dataset = BoxDataset.open(str(boxes))
    return Session(
        str(boxes), LABELS, queue.of_labels(dataset), Pictures(Proxies(dataset)), who=who, read_only=read_only
    )  # fmt: skip


def client_of(session: Session) -> Client:
    """Sends one request through the whole application, without a socket."""
    transport = httpx.ASGITransport(app.make(session, TOKEN, PORT))  # type: ignore[arg-type]

    def send(method: str, path: str, *, base: str = f"http://127.0.0.1:{PORT}", token: str = TOKEN, **rest: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, f"/{token}/{path}", **rest)

        return asyncio.run(once())

    return send


@pytest.fixture
def session(boxes: Path) -> Session:
    return session_of(boxes)


@pytest.fixture
def send(session: Session) -> Client:
    return client_of(session)


def decision(item: str, kind: str = "accept", **rest: Any) -> dict[str, Any]:
    box = {"box": [10, 20, 100, 120]} if kind in ("accept", "correct") else {}
    return {"review_id": str(uuid.uuid4()), "item": item, "decision": kind, **box, **rest}


def post(send: Client, *decisions: dict[str, Any], **rest: Any) -> httpx.Response:
    return send("POST", "api/decisions", json={"decisions": list(decisions)}, **rest)


def first_item(send: Client) -> str:
    return str(send("GET", "api/queue").json()["items"][0][0])


# --- the list


def test_queue_holds_what_was_not_settled(send: Client) -> None:
    facts = send("GET", "api/queue").json()
    assert (facts["kind"], facts["who"], facts["read_only"], facts["others"]) == ("labels", "ann", False, [])
    ambiguous = [row for row in facts["items"] if row[2] == "ambiguous"]
    assert sorted(row[1] for row in ambiguous) == ["0000.png", "0020.png", "0040.png"]
    assert {row[3] for row in facts["items"]} == {"open"}


def test_least_probable_but_plausible_comes_first() -> None:
    probabilities = [0.9, 0.01, 0.5, None, 0.1]
    tiers = [queue._benefit(True, p) for p in probabilities]
    order = sorted(range(5), key=lambda i: (tiers[i][0], -tiers[i][1]))
    assert [probabilities[i] for i in order] == [0.1, 0.5, None, 0.9, 0.01]
    assert queue._benefit(False, None) == (2, 0.0), "what has no place comes last"


def test_label_far_from_its_neighbours_is_listed_with_the_edge_that_is_off(boxes: Path) -> None:
    dataset = BoxDataset.open(str(boxes))
    rows = dataset.pairs().to_pylist()
    even = [{**row, "x1": 24.0, "y1": 18.0, "x2": 216.0, "y2": 162.0, "verdict": "found"} for row in rows]
    even[30]["y1"] = 150.0
    items = queue.of_labels(_with_rows(dataset, even))
    assert [item.key for item in items] == ["0030"]
    assert items[0].verdict == "suspicious" and "top edge lies 73% of the height lower" in items[0].why
    assert [s.source for s in items[0].suggestions] == ["the matcher's place", "its neighbours' box"], "the median box is the same"


def test_neighbours_are_those_beside_it_in_the_same_folder() -> None:
    uris = [f"/a/{i:03}.jpg" for i in range(20)] + [f"/b/{i:03}.jpg" for i in range(20)]
    margins = np.repeat([[0.1, 0.1, 0.9, 0.9], [0.3, 0.3, 0.7, 0.7]], 20, axis=0)
    order = np.random.default_rng(0).permutation(40)
    neighbours = queue._Neighbours([uris[i] for i in order], margins[order])
    assert neighbours.middles().tolist() == margins[order].tolist()
    assert neighbours.around("/a/999.jpg").tolist() == [0.1, 0.1, 0.9, 0.9]
    assert neighbours.around("/c/000.jpg").tolist() == neighbours.median.tolist()


def test_model_that_contradicts_a_label_makes_it_suspicious() -> None:
    row = {
        "pair_id": "a", "original_uri": "/a.jpg", "crop_uri": "/c.jpg", "original_id": "i", "original_w": 100, "original_h": 100,
        "x1": 10.0, "y1": 10.0, "x2": 90.0, "y2": 90.0, "angle_deg": 0.0, "stamp": "",
    }  # fmt: skip
    predicted = np.array([0.1, 0.1, 0.7, 0.9])
    limits = np.stack([predicted - 0.05, predicted + 0.05], axis=1)
    item = queue.far_from_model(row, predicted, limits)
    assert item is not None and item.why == "The model puts the right edge 20% of the width further left (overlap 0.75)."
    assert queue.far_from_model(row, np.array([0.1, 0.1, 0.85, 0.9]), limits) is None


def _with_rows(dataset: BoxDataset, rows: list[dict[str, Any]]) -> BoxDataset:
    from cropreg.schema import PAIRS, Part, commit_manifest

    data = parquet_bytes(rows, PAIRS)
    (Path(dataset.uri) / "pairs/part-b.parquet").write_bytes(data)
    parts = [Part.of("pairs", "pairs/part-b.parquet", len(rows), data), *dataset.parts("proxies")]
    commit_manifest(dataset.uri, parts, config={}, counts={}, parent=dataset.number, version="0")
    return BoxDataset.open(dataset.uri)


# --- decisions


def test_decision_is_on_disk_when_the_answer_comes(send: Client, boxes: Path) -> None:
    item = first_item(send)
    answer = post(send, decision(item, "correct", angle_deg=1.5))
    assert answer.status_code == 200, answer.text
    assert answer.json()[0]["review"]["decision"] == "correct"
    kept = reviews.read(str(boxes))
    assert [(r.pair_id, r.decision, r.box, r.angle_deg, r.who) for r in kept] == [
        (kept[0].pair_id, "correct", (10.0, 20.0, 100.0, 120.0), 1.5, "ann")
    ]
    row = next(r for r in BoxDataset.open(str(boxes)).pairs().to_pylist() if r["pair_id"] == kept[0].pair_id)
    assert (row["verdict"], row["method"], row["x2"]) == ("found", "reviewed", 100.0)


def test_decision_is_still_there_for_the_next_session_and_can_be_undone_there(send: Client, boxes: Path) -> None:
    item = first_item(send)
    made = decision(item, "reject")
    post(send, made)
    later = client_of(session_of(boxes))
    facts = later("GET", "api/queue").json()
    assert next(row for row in facts["items"] if row[0] == item)[3] == "reject"
    assert facts["mine"] == [[item, made["review_id"]]]
    undone = post(later, decision(item, "undo", undoes=made["review_id"], seen=made["review_id"]))
    assert undone.status_code == 200 and undone.json()[0]["review"] is None
    assert reviews.in_effect(reviews.read(str(boxes))) == {}


def test_request_sent_twice_is_one_decision(send: Client, boxes: Path) -> None:
    made = decision(first_item(send))
    assert post(send, made).json() == post(send, made).json()
    assert len(reviews.read(str(boxes))) == 1


def test_batch_is_kept_whole_or_not_at_all(send: Client, boxes: Path) -> None:
    ids = [row[0] for row in send("GET", "api/queue").json()["items"]]
    assert post(send, decision(ids[0]), decision(ids[1], box=[5, 5, 1e9, 9])).status_code == 422
    assert post(send, decision(ids[0]), decision("0" * 16)).status_code == 404
    assert post(send, decision(ids[0]), decision(ids[0])).status_code == 422
    assert reviews.read(str(boxes)) == []
    assert post(send, decision(ids[0]), decision(ids[1])).status_code == 200
    assert len(list((boxes / "reviews").glob("*.parquet"))) == 1


def test_of_two_who_decide_about_one_picture_the_later_is_asked_again(boxes: Path) -> None:
    ann, bob = session_of(boxes, who="ann"), session_of(boxes, who="bob")
    item = next(iter(ann.items))
    assert post(client_of(ann), decision(item, "reject")).status_code == 200
    bob._looked_s = -1e9  # as if some seconds had passed
    client_of(bob)("GET", "api/news")
    late = post(client_of(bob), decision(item))
    assert late.status_code == 409 and "decided in the meantime (ann: reject)" in late.json()["detail"]
    seen = client_of(bob)("GET", f"api/items?ids={item}").json()[0]["review"]["id"]
    assert post(client_of(bob), decision(item, seen=seen)).status_code == 200, "having seen it, bob may decide otherwise"


def test_second_reviewer_is_told_of_the_first_and_the_first_of_the_second(boxes: Path) -> None:
    ann, bob = session_of(boxes, who="ann"), session_of(boxes, who="bob")
    assert client_of(bob)("GET", "api/queue").json()["others"] == ["ann"]
    ann._looked_s = -1e9
    assert client_of(ann)("GET", "api/news").json()["others"] == ["bob"]
    bob.leave()
    ann._looked_s = -1e9
    assert client_of(ann)("GET", "api/news").json()["others"] == []


def test_reviewer_who_crashed_is_gone_after_a_while(session: Session, boxes: Path) -> None:
    at = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    (boxes / "reviews" / "open-x.json").write_text(json.dumps({"who": "eve", "at": at}))
    session._looked_s = -1e9
    session.look()
    assert session.others() == []


def test_many_writers_at_once_lose_nothing(boxes: Path) -> None:
    sessions = [session_of(boxes, who=f"w{n}") for n in range(4)]
    ids = list(sessions[0].items)[:3]
    clients = [client_of(session) for session in sessions]  # made here: FastAPI's filter of warnings is the process's own
    answers: list[int] = []

    def work(send: Client) -> None:
        answers.extend(post(send, decision(item, "correct")).status_code for item in ids)

    threads = [threading.Thread(target=work, args=(send,)) for send in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 409}
    assert len(reviews.read(str(boxes))) == answers.count(200)
    assert len(reviews.in_effect(reviews.read(str(boxes)))) == len(ids)


def test_read_only_page_refuses_decisions_and_writes_nothing(boxes: Path) -> None:
    before = sorted(boxes.rglob("*"))
    session = session_of(boxes, read_only=True)
    send = client_of(session)
    assert send("GET", "api/queue").json()["read_only"] is True
    answer = post(send, decision(first_item(send)))
    assert answer.status_code == 403 and answer.json()["detail"] == "This page is read-only."
    session.leave()
    assert sorted(boxes.rglob("*")) == before


# --- what is refused


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"item": "nonsense"}, 404),
        ({"item": "../../etc/passwd"}, 404),
        ({"box": [10, 20, 5, 30]}, 422),
        ({"box": [-5, 0, 50, 50]}, 422),
        ({"box": [0, 0, 50]}, 422),
        ({"box": None}, 422),
        ({"box": [0, 0, 50, "x"]}, 422),
        ({"box": [-900, 0, -100, 50], "angle_deg": 3}, 422),
        ({"angle_deg": 400}, 422),
        ({"decision": "maybe"}, 422),
        ({"decision": "undo", "undoes": "0" * 16}, 422),
        ({"review_id": "../x"}, 422),
        ({"seen": "0" * 16}, 409),
        ({"more": 1}, 422),
    ],
)
def test_decision_that_makes_no_sense_is_refused_and_not_kept(
    send: Client, boxes: Path, change: dict[str, Any], status: int
) -> None:
    answer = post(send, {**decision(first_item(send)), **change})
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert reviews.read(str(boxes)) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"decisions": []}', b'{"decisions": [NaN]}', b"\xff\xfe"])
def test_body_that_is_no_json_of_decisions_is_refused(send: Client, body: bytes) -> None:
    assert send("POST", "api/decisions", content=body, headers={"content-type": "application/json"}).status_code == 422


def test_box_that_is_no_number_is_refused(send: Client) -> None:
    body = json.dumps({"decisions": [decision(first_item(send), box=[float("nan"), 0, 9, 9])]})
    answer = send("POST", "api/decisions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_form_of_another_page_is_refused(send: Client) -> None:
    body = json.dumps({"decisions": [decision(first_item(send))]})
    assert send("POST", "api/decisions", content=body, headers={"content-type": "text/plain"}).status_code == 415
    other = {"origin": "http://evil.example", "content-type": "application/json"}
    assert send("POST", "api/decisions", content=body, headers=other).status_code == 403
    own = {"origin": f"http://127.0.0.1:{PORT}", "content-type": "application/json"}
    assert send("POST", "api/decisions", content=body, headers=own).status_code == 200


def test_large_body_is_refused_while_it_comes_in(send: Client) -> None:
    given = 0

    async def endless() -> Any:
        nonlocal given
        for _ in range(10_000):
            given += 65536
            yield b" " * 65536

    answer = send("POST", "api/decisions", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert given < 10 * app._MAX_BODY_BYTES, "and not read to its end"


def test_body_that_never_ends_is_given_up(send: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_BODY_WITHIN_S", 0.05)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    assert send("POST", "api/decisions", content=slow(), headers={"content-type": "application/json"}).status_code == 408


@pytest.mark.parametrize("token", ["", "x", TOKEN + "x", TOKEN[:-1], "%2e%2e", "ä"])
def test_nothing_is_told_without_the_right_token(send: Client, token: str) -> None:
    for path in ("", "api/queue", "static/main.js"):
        answer = send("GET", path, token=token)
        assert answer.status_code == 403 and "cropreg printed" in answer.text


@pytest.mark.parametrize(
    "base", ["http://evil.example", f"http://evil.example:{PORT}", "http://127.0.0.1:1", f"http://0.0.0.0:{PORT}"]
)
def test_name_that_was_turned_to_this_machine_is_refused(send: Client, base: str) -> None:
    assert send("GET", "api/queue", base=base).status_code == 421


@pytest.mark.parametrize(
    "path",
    ["static/../app.py", "static/..%2fapp.py", "static/%2e%2e/%2e%2e/schema.py", "static//etc/passwd", "static/none.js", "docs"],
)
def test_path_leads_nowhere_else(send: Client, path: str) -> None:
    answer = send("GET", path)
    assert answer.status_code == 404 and "import" not in answer.text


def test_every_answer_carries_the_rules_for_browsers_and_lets_no_other_page_in(send: Client) -> None:
    for answer in (send("GET", ""), send("GET", "api/queue"), send("GET", "none"), send("GET", "", token="x")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    answer = send("OPTIONS", "api/decisions", headers={"access-control-request-method": "POST"})
    assert answer.status_code == 405


def test_page_and_all_that_it_loads_come_from_the_package(send: Client) -> None:
    page = send("GET", "")
    assert page.headers["content-type"].startswith("text/html") and "http" not in page.text.replace("http-equiv", "")
    for name in ("main.js", "stage.js", "geometry.js", "style.css", "icon.svg"):
        assert send("GET", f"static/{name}").status_code == 200
    script = send("GET", "static/main.js")
    assert script.headers["content-type"].startswith("text/javascript") and "innerHTML" not in script.text


# --- pictures


def picture(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    return cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pictures_are_small_then_as_large_as_the_window_then_a_piece_at_full_size(send: Client) -> None:
    item = first_item(send)
    width, height = send("GET", f"api/items?ids={item}").json()[0]["size"]
    assert picture(send("GET", f"api/picture/{item}/small")).shape == (height, width, 3)
    assert picture(send("GET", f"api/picture/{item}/screen?long=120")).shape == (90, 120, 3)
    assert picture(send("GET", f"api/picture/{item}/region?x=-5&y=10&w=25&h=30")).shape == (30, 20, 3)
    assert send("GET", f"api/picture/{item}/region?x=9999&y=10&w=25&h=30").status_code == 422
    assert send("GET", f"api/picture/{item}/region?x=0&y=0&w=99999&h=30").status_code == 422
    assert send("GET", f"api/picture/{item}/screen?long=99999").status_code == 422
    assert send("GET", "api/picture/nonsense/small").status_code == 404


def test_shrunk_picture_shows_what_stands_where_in_the_original(tmp_path: Path) -> None:
    original = np.zeros((1003, 1501, 3), np.uint8)
    original[401:802, 600:] = 255
    save(original, tmp_path / "a.png")
    item = _item(str(tmp_path / "a.png"), (1501, 1003))
    shown = cv2.imdecode(np.frombuffer(Pictures().screen(item, 300), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shown.shape == (200, 300)
    edges_y = np.flatnonzero(np.abs(np.diff(shown[:, 250].astype(int))) > 100)
    assert np.allclose(edges_y * 1003 / 200, [401, 802], atol=8)


def test_picture_that_is_gone_is_an_error_that_names_it(send: Client, session: Session, tmp_path: Path) -> None:
    item = session.item(first_item(send))
    item.original_uri = str(tmp_path / "gone<b>.jpg")
    answer = send("GET", f"api/picture/{item.id}/screen?long=100")
    assert answer.status_code == 404 and "gone<b>.jpg: cannot be read any more" in answer.json()["detail"]
    assert picture(send("GET", f"api/picture/{item.id}/small")).size, "the dataset's own copy is there still"


def test_other_places_of_a_crop_that_is_gone_are_an_error_that_names_it(send: Client) -> None:
    ambiguous = next(row[0] for row in send("GET", "api/queue").json()["items"] if row[2] == "ambiguous")
    answer = send("GET", f"api/places/{ambiguous}")
    assert answer.status_code == 404 and "/0000.png" in answer.json()["detail"]
    assert send("GET", "api/places/nobody").status_code == 404


def test_pictures_kept_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cropreg.review import pictures

    monkeypatch.setattr(pictures, "_ENCODED_BYTES", 30_000)
    save(framed_print(1)[0], tmp_path / "a.png")
    kept = Pictures()
    for n in range(20):
        kept.screen(_item(str(tmp_path / "a.png"), (240, 180), key=f"{n}"), 200)
    assert 0 < kept._encoded._bytes <= 30_000


def _item(uri: str, size_wh: tuple[int, int], key: str = "k") -> queue.Item:
    return queue.Item(key, "a", uri, None, None, size_wh, None, 0.0, "flat", "", 0, 0.0, None)


# --- predictions


@pytest.fixture
def predictions(tmp_path: Path) -> Iterator[Path]:
    rows = []
    for n, (verdict, confidence) in enumerate(
        [("accept", 0.9), ("review", 0.4), ("review", 0.1), ("failed", None), ("accept", 0.6)]
    ):
        original, (x1, y1, x2, y2) = framed_print(n)
        save(original, tmp_path / "in" / f"{n}.png")
        row: dict[str, Any] = {"image_uri": str(tmp_path / "in" / f"{n}.png"), "verdict": verdict, "stamp": f"m/{n}"}
        if verdict != "failed":
            row |= {"width": 240, "height": 180, "x1": x1, "y1": y1, "x2": x2, "y2": y2, "angle_deg": 0.0, "confidence": confidence}
            row |= {f"{edge}_{end}": float(n) for edge in ("left", "top", "right", "bottom") for end in ("lo", "hi")}
        rows.append(row)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.parquet").write_bytes(parquet_bytes(rows, PREDICTIONS_SCHEMA))
    yield tmp_path / "out"


def test_predictions_left_for_review_come_first_and_what_was_never_decoded_not_at_all(predictions: Path) -> None:
    items = queue.of_predictions(queue.open_predictions(str(predictions)))
    assert [(item.name, item.verdict) for item in items] == [
        ("2.png", "review"),
        ("1.png", "review"),
        ("4.png", "accept"),
        ("0.png", "accept"),
    ]
    assert items[0].bands == ((2.0, 2.0),) * 4 and items[0].suggestions[0].source == "the model's box"


def test_decision_about_a_prediction_is_kept_beside_the_predictions(predictions: Path) -> None:
    items = queue.of_predictions(queue.open_predictions(str(predictions)))
    session = Session(str(predictions), PREDICTIONS, items, Pictures(), who="ann", read_only=False)
    send = client_of(session)
    assert post(send, decision(items[0].id, "correct")).status_code == 200
    (kept,) = reviews.read(str(predictions))
    assert (kept.image_uri, kept.pair_id, kept.stamp) == (items[0].key, None, "m/2")
    assert picture(send("GET", f"api/picture/{items[0].id}/small")).shape == (180, 240, 3)
    assert send("GET", f"api/picture/{items[0].id}/crop").status_code == 404
