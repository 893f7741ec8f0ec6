"""Looking at a folder again and again for files that are whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from cropreg.errors import InputError
from cropreg.storage import Entry

log = logging.getLogger(__name__)


def settled(look: Callable[[], list[Entry]], interval_s: float, sleep: Callable[[float], object]) -> Iterator[list[Entry]]:
    """Yields, look after look, the files that have not changed since the look before; ends at Ctrl-C, if that comes between two rounds.

    A folder that cannot be listed for a while, as on a network disk, is waited for.
    """
    before: dict[str, str] = {}
    reachable = True
    try:
        while True:
            try:
                seen, reachable = look(), True
            except InputError as error:
                if reachable:
                    log.warning("%s I keep looking.", error)
                seen, reachable = [], False
            yield [entry for entry in seen if before.get(entry.uri) == entry.stamp]
            before = {entry.uri: entry.stamp for entry in seen}
            sleep(interval_s)
    except KeyboardInterrupt:
        return
