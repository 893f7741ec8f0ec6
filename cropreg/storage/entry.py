"""What a listing gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One file found below a folder: its path relative to it (``/`` between parts), its URI, and what changes when it changes."""

    relative: str
    uri: str
    size: int
    mtime_ns: int

    @property
    def stamp(self) -> str:
        """Size and modification time as one string: another stamp means other content."""
        return f"{self.size}-{self.mtime_ns}"
