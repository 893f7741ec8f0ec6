"""``cropreg predict --watch``: new pictures are cropped when they are whole, and Ctrl-C ends it with everything kept.

What happens between two looks is a list of steps that the tests hand in as ``sleep``; no test waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import framed_print
from PIL import Image
from test_prediction import Made, made, predictor

from cropreg import cli
from cropreg.errors import InputError, LockedError, UsageError
from cropreg.pipelines import predict
from cropreg.schema import read_predictions
from cropreg.settings import PredictSettings
from cropreg.storage import Entry
from cropreg.watching import settled

pytestmark = pytest.mark.long
__all__ = ["made", "predictor"]  # fixtures

Step = Callable[[], object]


def steps(*todo: Step) -> Callable[[float], None]:
    """A sleep that does the next step instead, and presses Ctrl-C after the last."""
    waiting = iter(todo)

    def sleep(interval_s: float) -> None:
        step = next(waiting, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    return sleep


def nothing() -> None:
    pass


def watch(made: Made, *todo: Step, **settings: Any) -> dict[str, Any]:
    how = PredictSettings(min_confidence=0.0, watch=True, **settings)
    return predict.run("/run", str(made.images), out=str(made.out), settings=how, sleep=steps(*todo))


def rows_of(made: Made) -> dict[str, dict[str, Any]]:
    return {Path(row["image_uri"]).name: row for row in read_predictions(str(made.out / "predictions.parquet"))}


def put(made: Made, name: str, seed: int) -> None:
    Image.fromarray(framed_print(seed)[0]).save(made.images / name)


def test_pictures_that_come_are_cropped_and_the_table_holds_all_after_each_round(made: Made) -> None:
    seen: list[list[str]] = []

    def look_then_add() -> None:
        seen.append(sorted(rows_of(made)))
        put(made, "new.png", 7)

    summary = watch(made, nothing, look_then_add, nothing, nothing)
    assert seen == [[f"{i}.png" for i in range(4)]]
    assert (summary["code"], summary["pictures"], summary["counts"]) == (0, 5, {"accept": 5})
    assert sorted(rows_of(made)) == [*(f"{i}.png" for i in range(4)), "new.png"]
    assert (made.out / "new.png").exists() and not (made.out / ".parts").exists() and not (made.out / ".lease.json").exists()


def test_file_that_is_still_being_written_is_waited_for(made: Made) -> None:
    whole = (made.images / "0.png").read_bytes()
    slow = made.images / "slow.png"

    def grow(to: float) -> Step:
        return lambda: slow.write_bytes(whole[: int(to * len(whole))])

    asked: list[str] = []
    real = predict._predict
    made_predict = lambda todo, *rest: asked.extend(e.relative for e in todo) or real(todo, *rest)  # noqa: E731
    predict._predict = made_predict  # type: ignore[assignment]  # the fixture puts it back
    watch(made, grow(0.3), grow(0.7), grow(1.0), nothing, nothing)
    assert asked.count("slow.png") == 1
    assert rows_of(made)["slow.png"]["verdict"] == "accept"


def test_file_that_stood_still_half_written_is_tried_again_when_it_grows(made: Made) -> None:
    whole = (made.images / "0.png").read_bytes()
    slow = made.images / "slow.png"
    slow.write_bytes(whole[:900])
    verdicts: list[str] = []
    summary = watch(
        made,
        nothing,
        lambda: verdicts.append(rows_of(made)["slow.png"]["verdict"]) or slow.write_bytes(whole),  # type: ignore[func-returns-value]
        nothing,
        nothing,
    )
    assert verdicts == ["failed"]
    assert rows_of(made)["slow.png"]["verdict"] == "accept" and summary["counts"] == {"accept": 5}


def test_broken_picture_is_told_once_and_not_tried_at_every_look(made: Made) -> None:
    (made.images / "bad.png").write_bytes(b"no picture")
    rounds = 0
    real = predict._predict

    def count(todo: Any, *rest: Any) -> Any:
        nonlocal rounds
        rounds += 1
        return real(todo, *rest)

    predict._predict = count  # type: ignore[assignment]  # the fixture puts it back
    summary = watch(made, *[nothing] * 6)
    assert rounds == 1 and summary["counts"] == {"accept": 4, "failed": 1}


def test_picture_that_was_moved_away_after_it_was_cropped_keeps_its_row_and_crop(made: Made) -> None:
    watch(made, nothing, lambda: os.rename(made.images / "1.png", made.images.parent / "elsewhere.png"), lambda: put(made, "n.png", 9),
          nothing, nothing)  # fmt: skip
    assert {"1.png", "n.png"} <= set(rows_of(made)) and (made.out / "1.png").exists()


def test_watch_goes_on_from_an_earlier_run_and_a_later_run_from_the_watch(made: Made) -> None:
    made.run()
    summary = watch(made, lambda: put(made, "new.png", 7), nothing, nothing)
    assert summary["computed"] == 1
    assert made.run()["computed"] == 0


def test_ctrl_c_in_the_middle_of_a_round_keeps_what_was_finished(made: Made) -> None:
    made.batches = 2
    with pytest.raises(KeyboardInterrupt):
        watch(made, nothing, nothing)
    made.batches = 99
    assert made.run()["computed"] == 2


def test_watch_with_overwrite_writes_anew_once(made: Made) -> None:
    made.run()
    (made.out / "3.png").write_bytes(b"old")
    summary = watch(made, nothing, lambda: put(made, "new.png", 7), nothing, nothing, overwrite=True)
    assert summary["counts"] == {"accept": 5} and (made.out / "3.png").read_bytes() != b"old"


def test_empty_folder_may_be_watched_and_its_first_pictures_are_cropped(made: Made) -> None:
    for path in made.images.iterdir():
        path.unlink()
    assert watch(made)["code"] == 0
    summary = watch(made, lambda: put(made, "first.png", 1), nothing, nothing)
    assert summary["counts"] == {"accept": 1}


def test_two_watches_do_not_share_an_output(made: Made) -> None:
    def second() -> None:
        with pytest.raises(LockedError):
            watch(made)

    watch(made, second)


def test_list_of_pictures_cannot_be_watched(made: Made) -> None:
    with pytest.raises(UsageError, match="--watch needs a folder"):
        predict.run("/run", [str(made.images / "0.png")], out=str(made.out), settings=PredictSettings(watch=True))


def test_command_line_ends_a_watch_with_0_and_leaves_its_result(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    real = predict.run
    monkeypatch.setattr(predict, "run", lambda *args, **more: real(*args, **more, sleep=steps(nothing, nothing)))
    arguments = ["predict", "/run", str(made.images), "--out", str(made.out), "--min-confidence", "0", "--watch", "--quiet"]
    assert cli.run(arguments) == 0
    assert '"code": 0' in (made.out / "result.json").read_text()


def test_folder_that_cannot_be_listed_for_a_while_is_waited_for() -> None:
    entry = Entry("a.png", "/a.png", 1, 1)

    def answers() -> Iterator[list[Entry] | InputError]:
        yield from ([entry], InputError("/x: gone."), InputError("/x: gone."), [entry], [entry])

    coming = answers()

    def look() -> list[Entry]:
        answer = next(coming)
        if isinstance(answer, InputError):
            raise answer
        return answer

    assert list(settled(look, 1, steps(*[nothing] * 4))) == [[], [], [], [], [entry]]
