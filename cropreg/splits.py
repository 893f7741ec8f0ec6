"""Which rows train and which judge: by a hash of the group, so it depends on nothing else that is in the dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cropreg.errors import UsageError
from cropreg.schema import SPLITS

DEFAULT_SHARES = "70/10/10/10"


def parse_shares(text: str) -> tuple[float, ...]:
    """Reads ``train/val/calib/test`` shares, which must add up to 100.

    >>> parse_shares("70/10/10/10")
    (0.7, 0.1, 0.1, 0.1)
    """
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) != len(SPLITS) or min(shares) < 0 or not abs(sum(shares) - 100) <= 1e-6:  # not >, which lets NaN pass
        raise UsageError(
            f"--split {text!r}: give four shares train/val/calib/test that add up to 100, for example {DEFAULT_SHARES}."
        )
    return tuple(share / 100 for share in shares)


def is_within(group: str, share: float, seed: int) -> bool:
    """Whether a group is in a share of all: by a hash of its own, so that a smaller share lies within a larger one.

    >>> is_within("a", 1.0, 0), is_within("a", 0.0, 0)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"share:{seed}:{group}".encode()).digest()[:8], "big") / 2**64 < share


def split_of(group: str, shares: Sequence[float]) -> str:
    """The split of a group: the same for the same name and shares, whatever else there is.

    >>> split_of("a", (1, 0, 0, 0))
    'train'
    """
    place = int.from_bytes(hashlib.sha256(b"split:" + group.encode()).digest()[:8], "big") / 2**64
    for name, share in zip(SPLITS, shares, strict=True):
        if place < share:
            return name
        place -= share
    return SPLITS[0]  # only a rounding error of the shares' sum comes here
