"""Progress: a bar on a terminal, a line about every ten seconds elsewhere, nothing when quiet."""

import io
import logging

import pytest

from cropreg import logs
from cropreg.logs import EVERY_S, Progress


class Clock:
    """Seconds that grow only when told to."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def speaking(caplog):
    caplog.set_level(logging.INFO, "cropreg")  # and back again after the test


@pytest.fixture
def stream():
    return io.StringIO()


def test_progress_tells_a_line_every_ten_seconds_when_there_is_no_terminal(speaking, stream, clock):
    with Progress("match", 5000, "pairs", stream=stream, clock=clock) as progress:
        for _ in range(50):
            clock.now_s += 1
            progress.advance(100, found=98, no_match=2)
        assert len(stream.getvalue().splitlines()) == 50 / EVERY_S
    lines = stream.getvalue().splitlines()
    assert lines[0] == "match 1,000/5,000 20% 100.0 pairs/s eta 40s found 980 no match 20"
    assert lines[-1] == "match 5,000/5,000 100% 100.0 pairs/s eta 0s found 4,900 no match 100"


def test_progress_tells_only_the_last_line_when_it_is_quick(speaking, stream, clock):
    with Progress("match", 3, "pairs", stream=stream, clock=clock) as progress:
        for _ in range(3):
            clock.now_s += 1
            progress.advance()
    assert stream.getvalue() == "match 3/3 100% 1.0 pairs/s eta 0s\n"


def test_progress_leaves_out_share_and_eta_when_the_total_is_not_known(speaking, stream, clock):
    with Progress("predict", 0, "pictures", stream=stream, clock=clock) as progress:
        clock.now_s += 2
        progress.advance(7)
    assert stream.getvalue() == "predict 7 3.5 pictures/s\n"


def test_progress_leaves_out_counts_of_nought(speaking, stream, clock):
    with Progress("match", 2, "pairs", stream=stream, clock=clock) as progress:
        clock.now_s += 1
        progress.advance(2, found=2, flat=0)
    assert "flat" not in stream.getvalue()


def test_progress_divides_by_nothing_when_no_time_has_passed(speaking, stream, clock):
    with Progress("match", 0, "pairs", stream=stream, clock=clock):
        pass
    assert stream.getvalue() == "match 0 0.0 pairs/s\n"


def test_progress_says_nothing_at_the_end_when_an_error_ends_it(speaking, stream, clock):
    with pytest.raises(KeyError), Progress("match", 2, "pairs", stream=stream, clock=clock):
        raise KeyError
    assert stream.getvalue() == ""


def test_progress_is_silent_when_quiet(caplog, stream, clock):
    caplog.set_level(logging.WARNING, "cropreg")
    with Progress("match", 100, "pairs", stream=stream, clock=clock) as progress:
        clock.now_s += 100
        progress.advance(50)
    assert stream.getvalue() == ""


def test_progress_draws_a_bar_and_leaves_no_litter_when_on_a_terminal(speaking, clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("match", 4, "pairs", stream=stream, clock=clock) as progress:
        clock.now_s += 6
        progress.advance(3, found=3)
    written = stream.getvalue()
    assert "3/4" in written and "0.50 pairs/s found 3" in written
    assert written.rstrip("\r\n").endswith("\x1b[2K"), "the bar must erase its own line"
    assert "eta" not in written, "a bar, or lines, not both"


@pytest.mark.parametrize(("verbosity", "level"), [(-1, logging.WARNING), (0, logging.INFO), (1, logging.DEBUG)])
def test_verbosity_sets_what_cropreg_tells_and_leaves_others_at_warnings(caplog, verbosity, level):
    caplog.set_level(logging.NOTSET, "cropreg")  # restored after the test
    logs.set_up(verbosity)
    assert logging.getLogger("cropreg.pipelines").getEffectiveLevel() == level
    assert not logging.getLogger("another.library").isEnabledFor(logging.INFO)


def test_last_line_is_not_told_twice(speaking, stream, clock):
    with Progress("match", 2, "pairs", stream=stream, clock=clock) as progress:
        clock.now_s += EVERY_S
        progress.advance(2)
    assert stream.getvalue().count("match 2/2") == 1
