"""Log lines and progress: a bar on a terminal, one line about every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

EVERY_S = 10.0


class _Plain(logging.Formatter):
    """Facts as they are; everything else with its level and where it comes from."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()} {record.name}: {text}"


def set_up(verbosity: int) -> None:
    """Sends log lines to standard error: warnings (-1), facts (0), or everything of cropreg (1)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("cropreg").setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))


class Progress:
    """Tells how far a verb has come.  Use it as a context manager and call :meth:`advance`.

    Args:
        verb: the first word of every line.
        total: how many steps there are; 0 when it is not known.
        unit: what is counted, in the plural.
        stream: where to write; a terminal gets a bar, anything else a line every ``EVERY_S`` seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self, verb: str, total: int, unit: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._verb, self._total, self._unit = verb, total, unit
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._done, self._told_done = 0, -1
        self._counts: dict[str, int] = {}
        self._bar: Any = None
        self._silent = not logging.getLogger("cropreg").isEnabledFor(logging.INFO)

    def __enter__(self) -> Progress:
        self._began = self._told = self._clock()
        if not self._silent and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn(self._verb),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = RichProgress(*columns, console=Console(file=self._stream), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total or None)
        return self

    def advance(self, steps: int = 1, **counts: int) -> None:
        """Counts ``steps`` more, and adds ``counts`` to what is told at the end of the line."""
        self._done += steps
        for name, number in counts.items():
            self._counts[name] = self._counts.get(name, 0) + number
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=f"{self._speed()} {self._tail()}".rstrip())
        elif not self._silent and self._clock() - self._told >= EVERY_S:
            self._print_line()

    def reach(self, done: int) -> None:
        """Tells that ``done`` steps are done in all."""
        self.advance(done - self._done)

    def note(self, text: str) -> None:
        """Prints a line that stays, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._silent:
            self._told = self._clock()
            print(text, file=self._stream, flush=True)

    def _print_line(self) -> None:
        self._told, self._told_done = self._clock(), self._done
        print(self.line(), file=self._stream, flush=True)

    def line(self) -> str:
        """The line as it stands: ``match 1,200/5,000 24% 85.0 pairs/s eta 45s found 1,180``."""
        rate = self._rate()
        parts = [
            self._verb,
            f"{self._done:,}/{self._total:,} {100 * self._done // self._total}%" if self._total else f"{self._done:,}",
        ]
        parts.append(self._speed())
        if self._total and rate > 0:
            parts.append(f"eta {(self._total - self._done) / rate:.0f}s")
        return " ".join([*parts, self._tail()]).rstrip()

    def _rate(self) -> float:
        return self._done / max(self._clock() - self._began, 1e-9)

    def _speed(self) -> str:
        rate = self._rate()
        return f"{rate:.{2 if 0 < rate < 1 else 1}f} {self._unit}/s"

    def _tail(self) -> str:
        return " ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in self._counts.items() if number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._silent and kind is None and self._told_done != self._done:
            self._print_line()
