"""One sitting of one reviewer: the items, what is decided about them here and elsewhere, and who else is at it."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cropreg import reviews, storage
from cropreg.errors import CropregError
from cropreg.review.pictures import Pictures
from cropreg.review.queue import Corners, Item, ordered, state_of
from cropreg.reviews import ACCEPT, CORRECT, REJECT, UNDO, Review

log = logging.getLogger(__name__)

LABELS, PREDICTIONS = "labels", "predictions"
_BEAT_S, _GONE_S = 15.0, 50.0  # a reviewer says so often that they are there; silent so long, they have gone
_LOOK_S = 4.0  # between looks for what others decided


class Refused(Exception):
    """A decision that cannot be kept; the text is for the reviewer."""


class Overtaken(Refused):
    """Somebody else decided about the same row in the meantime."""


@dataclass(frozen=True)
class Wanted:
    """A decision as the page sends it.

    Attributes:
        review_id: chosen by the page, so that a request sent twice is one decision.
        item: the item's id.
        box: px of the upright original; None with ``reject`` and ``undo``.
        seen: the ``review_id`` of the decision that the reviewer saw in effect; None if there was none.
        undoes: with ``undo``, the ``review_id`` to take back.
    """

    review_id: str
    item: str
    decision: str
    box: Corners | None = None
    angle_deg: float = 0.0
    seen: str | None = None
    undoes: str | None = None


class Session:
    """What the page works on.  All methods may be called from several threads.

    Args:
        uri: folder of the box dataset or of the predictions; decisions go into its ``reviews/``.
        kind: ``labels`` or ``predictions``.
        items: in any order.
        who: the reviewer.
        read_only: nothing is written, not even who is here.
    """

    def __init__(self, uri: str, kind: str, items: Sequence[Item], pictures: Pictures, *, who: str, read_only: bool) -> None:
        self.uri, self.kind, self.pictures, self.who, self.read_only = uri, kind, pictures, who, read_only
        self.items: dict[str, Item] = {}
        self.version = 0  # grows with the list of items
        self.changes = 0  # grows with the decisions, whoever takes them
        self.decided = 0  # here, in this sitting
        self._id, self._lock = uuid.uuid4().hex[:12], threading.RLock()
        self._reviews: dict[str, dict[str, Review]] = defaultdict(dict)  # by row, then by review_id
        self._effective: dict[str, Review] = {}
        self._files: set[str] = set()
        self._looked_s, self._beat_s = -math.inf, -math.inf
        self._others: list[str] = []
        self.add(items)
        if not read_only:
            reviews.gather(uri)
        self.look()

    def add(self, items: Iterable[Item]) -> None:
        """Takes more items into the list, in their place by benefit."""
        with self._lock:
            new = list(items)
            self.pictures.locate(new)
            self.items = {item.id: item for item in ordered([*self.items.values(), *new])}
            self.version += 1

    def changed(self) -> None:
        """Says that items have changed: their suggestions or bands."""
        with self._lock:
            self.version += 1

    def item(self, item_id: str) -> Item:
        """The item of that id.

        Raises:
            KeyError: there is none.
        """
        return self.items[item_id]

    def look(self) -> None:
        """Takes in what others have decided since the last look, and who they are; at most every few seconds."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._looked_s < _LOOK_S:
                return
            self._looked_s = now_s
            fresh, names = reviews.read_new(self.uri, self._files)
            self._take(fresh)
            self._files.update(names)
            self._beat(now_s)
            self._others = self._who_else()

    def others(self) -> list[str]:
        """The other reviewers of the same folder, by name; two sittings of one name are two."""
        return list(self._others)

    def review_of(self, item: Item) -> Review | None:
        """The decision in effect about an item, if it still holds for its files."""
        review = self._effective.get(item.key)
        return review if review is not None and reviews.applies(review, item.stamp) else None

    def states(self) -> list[tuple[Item, str]]:
        """Every item, in order, with what was decided about it."""
        with self._lock:
            return [(item, state_of(item, self._effective.get(item.key))) for item in self.items.values()]

    def mine(self) -> list[tuple[str, str]]:
        """What this reviewer has decided, oldest first, in this sitting or before: item id and review id, to be taken back."""
        with self._lock:
            ours = [(review, item) for item in self.items.values() if (review := self.review_of(item)) and review.who == self.who]
        return [(item.id, review.review_id) for review, item in sorted(ours, key=lambda pair: pair[0].decided_at)]

    def decide(self, wanted: Sequence[Wanted]) -> list[Review]:
        """Keeps decisions; when this returns they are on disk.  All of a batch are kept, or none.

        Raises:
            KeyError: an item that is not in the list.
            Refused: one of them makes no sense, or this sitting is read-only.  Overtaken: somebody was faster.
            OutputError: the place cannot be written.
        """
        if self.read_only:
            raise Refused("This page is read-only.")
        with self._lock:
            known = [self._reviews[self.item(want.item).key].get(want.review_id) for want in wanted]
            if wanted and all(known):  # sent again because the first answer was lost
                return [review for review in known if review is not None]
            made = [self._checked(want) for want in wanted]
            if len({review.subject for review in made}) < len(made):
                raise Refused("One request holds two decisions about the same picture.")
            self._files.add(reviews.write(self.uri, made))
            self._take(made)
            self.decided += sum(1 if review.decision != UNDO else -1 for review in made)
            return made

    def leave(self) -> None:
        """Says that this reviewer has gone."""
        if not self.read_only:
            storage.remove(self._presence())

    def _checked(self, want: Wanted) -> Review:
        item = self.item(want.item)
        now = self.review_of(item)
        if (now.review_id if now else None) != want.seen:
            what = f"{now.who}: {now.decision}" if now else "taken back"
            raise Overtaken(f"{item.name} was decided in the meantime ({what}). Look again.")
        box = None
        if want.decision == UNDO:
            if want.undoes not in self._reviews[item.key]:
                raise Refused("There is no such decision to take back.")
        elif want.decision in (ACCEPT, CORRECT):
            box = _inside(want.box, want.angle_deg, item)
        elif want.decision != REJECT:
            raise Refused(f"{want.decision!r} is no decision.")
        x1, y1, x2, y2 = box or (None,) * 4
        labels = self.kind == LABELS
        return Review(
            review_id=want.review_id, pair_id=item.key if labels else None, image_uri=None if labels else item.key,
            decision=want.decision, x1=x1, y1=y1, x2=x2, y2=y2, angle_deg=float(want.angle_deg) if box else None, who=self.who,
            decided_at=datetime.now(UTC), stamp=item.stamp, undoes=want.undoes if want.decision == UNDO else None,
        )  # fmt: skip

    def _take(self, made: Iterable[Review]) -> None:
        changed = set()
        for review in made:
            self._reviews[review.subject][review.review_id] = review
            changed.add(review.subject)
        self.changes += len(changed)
        for subject in changed:
            now = reviews.in_effect(self._reviews[subject].values()).get(subject)
            if now is None:
                self._effective.pop(subject, None)
            else:
                self._effective[subject] = now

    def _presence(self) -> str:
        return storage.join(self.uri, reviews.FOLDER, f"open-{self._id}.json")

    def _beat(self, now_s: float) -> None:
        if self.read_only or now_s - self._beat_s < _BEAT_S:
            return
        self._beat_s = now_s
        word = {"who": self.who, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        storage.write_whole(self._presence(), json.dumps(word).encode())

    def _who_else(self) -> list[str]:
        folder = storage.join(self.uri, reviews.FOLDER)
        if not storage.is_folder(folder):
            return []
        names = []
        for entry in storage.list_files(folder, (".json",)):
            try:
                word = json.loads(storage.read_bytes(entry.uri))
                silent_s = (datetime.now(UTC) - datetime.fromisoformat(word["at"])).total_seconds()
                if silent_s < _GONE_S and not entry.relative.endswith(f"{self._id}.json"):
                    names.append(str(word["who"]))
            except (OSError, ValueError, KeyError, TypeError, CropregError) as error:  # gone, or somebody else's file
                log.debug("presence=%s: %s", entry.uri, error)
        return sorted(names)


def _inside(box: Corners | None, angle_deg: float, item: Item) -> Corners:
    """The box, if it can be one of this picture's."""
    width, height = item.size_wh
    if box is None or not all(map(math.isfinite, (*box, angle_deg))):
        raise Refused("A box needs four numbers.")
    x1, y1, x2, y2 = map(float, box)
    if x2 - x1 < 1 or y2 - y1 < 1 or abs(angle_deg) > 180:
        raise Refused("A box needs at least one pixel each way, and an angle of at most 180 degrees.")
    if angle_deg:  # turned, it may stick out; its centre may not
        if not (0 <= (x1 + x2) / 2 <= width and 0 <= (y1 + y2) / 2 <= height and x2 - x1 <= 2 * width and y2 - y1 <= 2 * height):
            raise Refused(f"The box lies outside the picture ({width} x {height}).")
    elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise Refused(f"The box sticks out of the picture ({width} x {height}).")
    return x1, y1, x2, y2


def detail(session: Session, item: Item) -> dict[str, Any]:
    """Everything the page shows of an item, for JSON."""
    review = session.review_of(item)
    return {
        "id": item.id,
        "name": item.name,
        "size": item.size_wh,
        "box": item.box,
        "angle": item.angle_deg,
        "verdict": item.verdict,
        "why": item.why,
        "has_crop": item.crop_uri is not None,
        "bands": item.bands,
        "suggestions": [{"source": s.source, "box": s.box, "angle": s.angle_deg} for s in item.suggestions],
        "review": None
        if review is None
        else {"id": review.review_id, "decision": review.decision, "box": review.box, "angle": review.angle_deg, "who": review.who},
    }
