"""What a trained model adds to the review: its box for what is in doubt, and the labels that it contradicts."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import framed_print, save

from cropreg.proxies import Proxies
from cropreg.review import opinion, queue
from cropreg.review.pictures import Pictures
from cropreg.review.session import LABELS, PREDICTIONS, Session
from cropreg.schema import BoxDataset

pytestmark = pytest.mark.long  # imports PyTorch


class SeesDark:
    """A model that finds what is darker than the bed, and doubts itself by 2%."""

    info = SimpleNamespace(seen_px=512)

    def predict(self, pictures: list[Any]) -> Any:
        boxes = []
        for pixels in pictures:
            dark = pixels.mean(axis=2) < 160
            xs, ys = np.flatnonzero(dark.mean(axis=0) > 0.2), np.flatnonzero(dark.mean(axis=1) > 0.2)
            boxes.append([xs[0] / 240, ys[0] / 180, (xs[-1] + 1) / 240, (ys[-1] + 1) / 180])
        return SimpleNamespace(boxes_norm=np.array(boxes))

    def intervals(self, predictions: Any) -> Any:
        return np.stack([predictions.boxes_norm - 0.02, predictions.boxes_norm + 0.02], axis=-1).clip(0, 1)


@pytest.fixture
def boxes(made_boxes: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_boxes, tmp_path / "boxes")
    return tmp_path / "boxes"


def asked(session: Session, dataset: BoxDataset | None) -> int:
    predictor: Any = SeesDark()
    return opinion.ask(session, predictor, dataset, threading.Event())


def test_model_is_a_suggestion_for_what_is_in_doubt_and_doubts_labels_that_are_wrong(
    boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = BoxDataset.pairs

    def with_a_wrong_label(self: BoxDataset, columns: Any = None) -> Any:
        table = pairs(self, columns)
        rows = table.to_pylist()
        for row in rows:
            if row["pair_id"] == "0007" and row.get("x1") is not None:
                row["x1"] = row["x1"] + 40
        return table.from_pylist(rows, schema=table.schema)

    monkeypatch.setattr(BoxDataset, "pairs", with_a_wrong_label)
    dataset = BoxDataset.open(str(boxes))
    session = Session(
        str(boxes), LABELS, queue.of_labels(dataset), Pictures(Proxies(dataset)), who="ann", read_only=True
    )  # fmt: skip
    before = len(session.items)
    version = session.version
    added = asked(session, dataset)
    items = {item.key: item for item in session.items.values()}
    assert added == len(items) - before and session.version > version
    assert items["0007"].verdict == "suspicious" and "The model puts the left edge" in items["0007"].why
    assert [s.source for s in items["0007"].suggestions] == ["the matcher's place", "the model's box"]
    doubted = items["0020"]
    truth = framed_print(20)[1]
    found = [s for s in doubted.suggestions if s.source == "the model's box"]
    assert doubted.bands is not None
    assert not found or np.allclose(found[0].box, truth, atol=4), "left out only where the matcher said the same"


def test_model_is_asked_about_predictions_from_the_pictures_themselves(tmp_path: Path) -> None:
    picture, truth = framed_print(3)
    save(picture, tmp_path / "a.png")
    item = queue.Item(
        "k", "a", str(tmp_path / "a.png"), None, None, (240, 180), (5.0, 5.0, 50.0, 50.0), 0.0, "review", "", 0, 0.5, None
    )  # fmt: skip
    item.suggest(queue.Suggestion("the box as decided", item.box or (0, 0, 1, 1)))
    gone = queue.Item("g", "g", str(tmp_path / "gone.png"), None, None, (240, 180), None, 0.0, "review", "", 0, 0.5, None)
    session = Session(str(tmp_path), PREDICTIONS, [item, gone], Pictures(), who="ann", read_only=True)
    assert asked(session, None) == 0
    assert [s.source for s in item.suggestions] == ["the box as decided", "the model's box"]
    assert np.allclose(item.suggestions[1].box, truth, atol=4)
    assert gone.suggestions == [], "what cannot be read is left as it was"
