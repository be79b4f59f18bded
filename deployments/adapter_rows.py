"""Where a model's adapters are, replica by replica: what ``estimate`` adds to the time to a first token for them.

Pure, and sparse: only what some replica has nearer than its disk is kept. Replicas are rows, as in ``estimate``.
Does not cover: finding out (``news``), what crosses the wire (``wire``).
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deployments.wire import AdapterNews

# In the order of nearness; the last is for all that isn't mentioned.
SLOT, HOST, DRAM, ELSEWHERE = range(4)


def adapter_key(digest: str) -> int:
    """Return what an adapter of this content is called in news."""
    return int.from_bytes(hashlib.blake2b(digest.encode(), digest_size=8).digest(), "big")


class AdapterRows:
    """Of one model."""

    def __init__(self) -> None:
        # By adapter: its tier by row.
        self._tiers: dict[int, dict[int, int]] = {}
        self._keys: dict[int, set[int]] = {}
        self._told: dict[int, AdapterNews] = {}

    def hear(self, row: int, news: AdapterNews) -> None:
        """Take what a replica has instead of what it had."""
        if self._told.get(row) == news:
            return
        self.forget(row)
        self._told[row] = news
        # The nearest last: an adapter in a slot is in the host cache too.
        for tier, keys in ((DRAM, news.dram), (HOST, news.host), (SLOT, news.slots)):
            for key in keys:
                self._put(row, key, tier)

    def expect(self, row: int, key: int) -> None:
        """Take an adapter for resident where it was asked for, until what the replica has is told to be otherwise.

        Should the request never get there, the next one makes it true.
        """
        self._put(row, key, SLOT)

    def forget(self, row: int) -> None:
        """Take a replica for one that has none near."""
        self._told.pop(row, None)
        for key in self._keys.pop(row, ()):
            tiers = self._tiers.get(key)
            if tiers is not None:
                tiers.pop(row, None)
                if not tiers:
                    del self._tiers[key]

    def tiers(self, key: int, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return an adapter's tier in each of ``rows``, which are in order."""
        found = np.full(len(rows), ELSEWHERE, np.intp)
        known = self._tiers.get(key)
        if known:
            count = len(known)
            places = np.searchsorted(rows, _array(known, count))
            there = (places < len(rows)) & (rows[np.minimum(places, len(rows) - 1)] == _array(known, count))
            found[places[there]] = _array(known.values(), count)[there]
        return found

    def _put(self, row: int, key: int, tier: int) -> None:
        self._tiers.setdefault(key, {})[row] = tier
        self._keys.setdefault(row, set()).add(key)

    def __len__(self) -> int:
        return len(self._tiers)

    def __repr__(self) -> str:
        return f"<AdapterRows of {len(self._tiers)} adapters, {len(self._keys)} replicas>"


def _array(values: Iterable[int], count: int) -> NDArray[np.intp]:
    return np.fromiter(values, np.intp, count)
