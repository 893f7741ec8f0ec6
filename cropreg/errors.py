"""The errors a user can meet, each with the exit code its verb ends with.

::

    CropregError
    ├── UsageError        2   a wrong argument or configuration
    ├── InputError        3   nothing usable to read
    │   └── UnreadableImage   one picture that cannot be decoded whole
    ├── OutputError       4   the output exists already, or cannot be written
    ├── ClusterError      5   Ray or the cluster failed
    ├── TooManyBadError   6   more of the input is bad than allowed
    ├── LockedError       7   another run is writing this output
    └── ModelError        8   training diverged, or a model file is invalid

A message says what, whose, got, wanted, and what to do.  ``ValueError`` stays for a programmer's wrong argument and ``assert`` for
our own invariants.
"""

from __future__ import annotations


class CropregError(Exception):
    """An error about the user's data or set-up; its text is meant to be read by the user."""

    exit_code = 1


class UsageError(CropregError):
    """A wrong argument, or a configuration that does not say what it means."""

    exit_code = 2


class InputError(CropregError):
    """The input holds nothing usable, or is not what it claims to be."""

    exit_code = 3


class UnreadableImage(InputError):
    """One picture cannot be decoded whole.

    Args:
        uri: the file, as the user knows it.
        cause: what is wrong with it, without a full stop: ``"is cut short"``.
        cure: what the user can do, one sentence; may be empty.
    """

    def __init__(self, uri: str, cause: str, cure: str = "") -> None:
        super().__init__(f"{uri}: {cause}." + (f" {cure}" if cure else ""))
        self.uri, self.cause, self.cure = uri, cause, cure

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str, str]]:
        return type(self), (self.uri, self.cause, self.cure)  # Ray moves errors between processes by pickling them


class OutputError(CropregError):
    """The output exists already, or cannot be written."""

    exit_code = 4


class ClusterError(CropregError):
    """Ray did not start, or the cluster lost what the run needed."""

    exit_code = 5


class TooManyBadError(CropregError):
    """The run finished, but a larger share of its input is bad than ``--max-bad-share`` allows."""

    exit_code = 6


class LockedError(CropregError):
    """Another run is writing this output."""

    exit_code = 7


class ModelError(CropregError):
    """Training diverged, or a model file is invalid or untrusted."""

    exit_code = 8
