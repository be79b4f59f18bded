"""What is in which tier of a node: entries, pins, bytes, and the speeds that were measured.

Covers: keeping the books and asking ``cache`` and ``preload`` what they mean. Does not cover: moving bytes (``store``).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from storage.cache import Kept, Room, make_room, worth_per_byte
from storage.expected import ExpectedRates
from storage.lease import HeldLease
from storage.manifest import Manifest
from storage.partial import TierName
from storage.preload import Candidate, choose

# Before anything has been measured; only their order matters.
_FIRST_BYTES_PER_S = {"remote": 100e6, "disk": 1e9}
_SMOOTHING = 0.3
# So many times more waiting than what is held has to be saved by what would take its place: copies cost something too.
_RELUCTANCE = 1.5


@dataclass
class Entry:
    """A snapshot in a tier; with ``whole`` false its bytes are spoken for but not there yet."""

    manifest: Manifest
    since_s: float
    whole: bool = True
    uses: int = 0
    last_used_s: float = 0.0


class Ledger:
    """The books of a node's tiers; ``capacity`` are bytes."""

    def __init__(self, capacity: Mapping[TierName, int], clock: Callable[[], float] = time.time) -> None:
        self.capacity = dict(capacity)
        self.pins: dict[str, TierName] = {}
        self.expected = ExpectedRates()
        self._clock = clock
        self._entries: dict[TierName, dict[str, Entry]] = {name: {} for name in capacity}
        self._waiting: Counter[str] = Counter()
        self._bytes_per_s = dict(_FIRST_BYTES_PER_S)

    def add(self, name: TierName, manifest: Manifest, *, whole: bool) -> None:
        """Write a snapshot down as being in a tier, or with ``whole`` false as on its way into it."""
        self._entries[name][manifest.id] = Entry(manifest, self._clock(), whole)

    def remove(self, name: TierName, snapshot_id: str) -> None:
        """Strike a snapshot out; harmless when it is not there."""
        self._entries[name].pop(snapshot_id, None)

    def complete(self, name: TierName, snapshot_id: str) -> None:
        """Note that every byte is there."""
        self._entries[name][snapshot_id].whole = True

    def use(self, name: TierName, snapshot_id: str) -> None:
        """Note that somebody uses a snapshot."""
        entry = self._entries[name][snapshot_id]
        entry.uses += 1
        entry.last_used_s = self._clock()

    def manifest(self, name: TierName, snapshot_id: str) -> Manifest:
        """Return a snapshot's manifest. Raises KeyError."""
        return self._entries[name][snapshot_id].manifest

    def is_whole(self, name: TierName, snapshot_id: str) -> bool:
        """Tell whether every byte of a snapshot is in a tier."""
        entry = self._entries[name].get(snapshot_id)
        return entry is not None and entry.whole

    def holding(self, snapshot_id: str) -> list[TierName]:
        """Return the tiers that a snapshot is in, or on its way into."""
        return [name for name, entries in self._entries.items() if snapshot_id in entries]

    @contextmanager
    def waiting_for(self, snapshot_id: str) -> Iterator[None]:
        """Keep a snapshot that somebody waits for from being evicted before it is used."""
        self._waiting[snapshot_id] += 1
        try:
            yield
        finally:
            self._waiting[snapshot_id] -= 1

    def is_waited_for(self, snapshot_id: str) -> bool:
        """Tell whether somebody waits for a snapshot."""
        return self._waiting[snapshot_id] > 0

    def make_room(self, name: TierName, needed_bytes: int, leases: Iterable[HeldLease]) -> Room:
        """Decide what has to leave a tier for ``needed_bytes``."""
        held = list(leases)
        kept = [self._kept(name, snapshot_id, entry, held) for snapshot_id, entry in self._entries[name].items()]
        return make_room(kept, needed_bytes, self.capacity[name], self._clock())

    def expect(self, replica_id: str, rates_per_s: Mapping[str, float]) -> None:
        """Take note of how often a replica expects snapshots to be asked for."""
        self.expected.hear(replica_id, rates_per_s, self._clock())

    def preloads(self, leases: Iterable[HeldLease]) -> tuple[str, ...]:
        """Return which snapshots on disk are worth being in dram rather than what is there, best first."""
        held, now_s, dram = list(leases), self._clock(), self._entries["dram"]
        waiting = {key: entry for key, entry in self._entries["disk"].items() if entry.whole and key not in dram}
        if not waiting:
            return ()
        kept = [self._kept("dram", snapshot_id, entry, held) for snapshot_id, entry in dram.items()]
        movable = [each for each in kept if not each.leases and not each.pinned]
        room_bytes = self.capacity["dram"] - sum(each.size_bytes for each in kept)
        room_bytes += sum(each.size_bytes for each in movable)
        # As if it were in dram already.
        wanted = [self._kept("dram", snapshot_id, entry, []) for snapshot_id, entry in waiting.items()]
        offered = [_candidate(each, now_s, 1.0) for each in movable]
        offered += [_candidate(each, now_s, 1 / _RELUCTANCE) for each in wanted if self._waiting[each.snapshot_id] == 0]
        return tuple(name for name in choose(offered, room_bytes) if name in waiting)

    def measured(self, origin: str, bytes_per_s: float) -> None:
        """Take note of how fast a copy from ``origin`` was."""
        self._bytes_per_s[origin] += _SMOOTHING * (bytes_per_s - self._bytes_per_s[origin])

    def used_bytes(self, name: TierName) -> int:
        """Return the bytes that are there or spoken for."""
        return sum(entry.manifest.size_bytes for entry in self._entries[name].values())

    def count(self, name: TierName) -> int:
        """Return how many snapshots are there or on their way."""
        return len(self._entries[name])

    def describe(self, leases: Iterable[HeldLease]) -> dict[str, Any]:
        """Return what is where, as builtin types."""
        held = list(leases)
        return {
            name: {
                "capacity_bytes": self.capacity[name],
                "used_bytes": self.used_bytes(name),
                "snapshots": [self._describe(name, snapshot_id, entry, held) for snapshot_id, entry in entries.items()],
            }
            for name, entries in self._entries.items()
        }

    def _kept(self, name: TierName, snapshot_id: str, entry: Entry, leases: list[HeldLease]) -> Kept:
        below = "disk" if name == "dram" else "remote"
        held = sum(lease.holds(snapshot_id, name) for lease in leases)
        return Kept(
            snapshot_id=snapshot_id,
            size_bytes=entry.manifest.size_bytes,
            # One that is waited for, or under way, can't be evicted either.
            leases=held + self._waiting[snapshot_id] + (0 if entry.whole else 1),
            pinned=self.pins.get(snapshot_id) == name,
            uses=entry.uses,
            since_s=entry.since_s,
            last_used_s=entry.last_used_s,
            saved_s=entry.manifest.size_bytes / self._bytes_per_s[below],
            rate_per_s=self.expected.per_s(snapshot_id, self._clock()),
        )

    def _describe(self, name: TierName, snapshot_id: str, entry: Entry, leases: list[HeldLease]) -> dict[str, Any]:
        return {
            "id": snapshot_id,
            "name": entry.manifest.name,
            "size_bytes": entry.manifest.size_bytes,
            "whole": entry.whole,
            "leases": [lease.owner for lease in leases if lease.holds(snapshot_id, name)],
            "pinned": self.pins.get(snapshot_id) == name,
            "uses": entry.uses,
            "last_used_s": entry.last_used_s or None,
        }

    def __repr__(self) -> str:
        used = ", ".join(f"{name} {self.used_bytes(name)}/{size} bytes" for name, size in self.capacity.items())
        return f"<Ledger {used}>"


def _candidate(kept: Kept, now_s: float, share: float) -> Candidate:
    """Return a snapshot as the knapsack sees it; only ``share`` of what it saves counts."""
    saved_per_s = worth_per_byte(kept, now_s) * kept.size_bytes
    return Candidate(kept.snapshot_id, kept.size_bytes, saved_s=share, rate_per_s=saved_per_s)
