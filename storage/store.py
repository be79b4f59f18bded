"""The snapshot store: which snapshots of a node are in which tier, who uses them, and how they get there.

Covers: leases, pins, budgets, single-flight promotion, finding everything again after a crash. A plain class whose
decisions are ``cache.make_room``; every blocking step runs in a thread, so the store answers while it copies. Does not
cover: being an actor (``actor``), copying itself (``promote``).
"""

import asyncio
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.cache import Kept, make_room
from storage.errors import SnapshotBusyError, SnapshotMissingError, StorageError, TierFullError
from storage.folders import DirectoryFolder, Folder
from storage.manifest import Manifest
from storage.partial import PartialSnapshot, TierName
from storage.promote import CopyPolicy, copy_snapshot
from storage.snapshot import open_published, verify
from storage.tier import LocalTier

logger = logging.getLogger(__name__)

_PINS_NAME = "pins.json"
# Before anything has been measured; only their order matters.
_FIRST_BYTES_PER_S = {"remote": 100e6, "disk": 1e9}
_SMOOTHING = 0.3


@dataclass(frozen=True)
class StoreConfig:
    """Where the tiers are and how much they may hold, in bytes."""

    dram_dir: Path
    dram_bytes: int
    disk_dir: Path
    disk_bytes: int
    copy: CopyPolicy = field(default_factory=CopyPolicy)


@dataclass(frozen=True)
class Lease:
    """The right to use a snapshot's files until it is released; ``tier`` is where ``path`` is."""

    id: str
    snapshot_id: str
    tier: TierName
    path: str
    owner: str


@dataclass
class _Entry:
    """A snapshot in a tier; with ``whole`` false its bytes are spoken for but not there yet."""

    manifest: Manifest
    since_s: float
    whole: bool = True
    uses: int = 0
    last_used_s: float = 0.0


class SnapshotStore:
    """One node's ``dram`` and ``disk`` tiers; belongs to one event loop. ``recover`` comes first."""

    def __init__(self, config: StoreConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._tiers: dict[TierName, LocalTier] = {
            "dram": LocalTier("dram", config.dram_dir),
            "disk": LocalTier("disk", config.disk_dir),
        }
        self._capacity: dict[TierName, int] = {"dram": config.dram_bytes, "disk": config.disk_bytes}
        self._entries: dict[TierName, dict[str, _Entry]] = {"dram": {}, "disk": {}}
        self._leases: dict[str, Lease] = {}
        self._pins: dict[str, TierName] = {}
        self._waiting: Counter[str] = Counter()
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        # Held from the decision to evict until the bytes are gone and the newcomer's are spoken for.
        self._rooms: dict[TierName, asyncio.Lock] = {"dram": asyncio.Lock(), "disk": asyncio.Lock()}
        self._bytes_per_s = dict(_FIRST_BYTES_PER_S)

    async def recover(self) -> None:
        """Drop what was half written and find what is whole. A snapshot whose manifest can't be read is removed."""
        for name, tier in self._tiers.items():
            await asyncio.to_thread(tier.recover)
            for snapshot_id in tier.ids():
                if snapshot_id not in self._entries[name]:
                    await self._adopt(name, tier, snapshot_id)
        pins = self._config.disk_dir / _PINS_NAME
        if pins.is_file():
            self._pins = json.loads(pins.read_bytes())

    async def _adopt(self, name: TierName, tier: LocalTier, snapshot_id: str) -> None:
        try:
            manifest = await asyncio.to_thread(tier.manifest, snapshot_id)
        except StorageError as error:
            logger.warning("removing a snapshot from %s: %s", name, error)
            await asyncio.to_thread(tier.remove, snapshot_id)
        else:
            self._entries[name][snapshot_id] = _Entry(manifest, self._clock())

    async def acquire(self, snapshot_id: str, owner: str, source: Folder | None = None) -> Lease:
        """Return a lease on a snapshot in the fastest tier that has room for it, bringing it there first.

        However many ask, it is brought once. Without room in dram the lease is on disk.

        Args:
            snapshot_id: which one.
            owner: who holds the lease; ``release_owner`` ends all of its leases.
            source: where to fetch it from when the node doesn't have it.

        Raises:
            SnapshotMissingError: it is not on the node, and ``source`` is none or holds another one.
            TierFullError: no tier has room.
            StorageError: it could not be copied.
        """
        with self._held(snapshot_id):
            await self._once(snapshot_id, lambda: self._bring(snapshot_id, source))
            return self._lease(snapshot_id, owner)

    @contextmanager
    def _held(self, snapshot_id: str) -> Iterator[None]:
        """Who waits holds it already: what has just been brought must not be evicted before the lease is there."""
        self._waiting[snapshot_id] += 1
        try:
            yield
        finally:
            self._waiting[snapshot_id] -= 1

    def _lease(self, snapshot_id: str, owner: str) -> Lease:
        name: TierName = "dram" if self._is_whole("dram", snapshot_id) else "disk"
        entry = self._entries[name][snapshot_id]
        entry.uses += 1
        entry.last_used_s = self._clock()
        lease = Lease(secrets.token_hex(8), snapshot_id, name, str(self._tiers[name].path(snapshot_id)), owner)
        self._leases[lease.id] = lease
        return lease

    def release(self, lease_id: str) -> None:
        """Give a lease back; harmless when it is unknown."""
        self._leases.pop(lease_id, None)

    def release_owner(self, owner: str) -> None:
        """Give back everything that ``owner`` holds."""
        for lease in [lease for lease in self._leases.values() if lease.owner == owner]:
            del self._leases[lease.id]

    async def adopt(self, snapshot_id: str) -> None:
        """Take note of a snapshot that another process has put into the disk tier, making room after the fact.

        Raises:
            SnapshotMissingError, ManifestError: it is not there, or unusable.
        """
        if snapshot_id in self._entries["disk"]:
            return
        manifest = await asyncio.to_thread(self._tiers["disk"].manifest, snapshot_id)
        async with self._rooms["disk"]:
            self._entries["disk"][snapshot_id] = _Entry(manifest, self._clock())
            await self._make_room("disk", 0)

    async def pin(self, snapshot_id: str, tier: TierName | None) -> None:
        """Keep a snapshot in a tier, also across restarts, or with None no longer.

        Raises:
            SnapshotMissingError: it is not on this node.
        """
        if snapshot_id not in self._entries["disk"] and snapshot_id not in self._entries["dram"]:
            raise SnapshotMissingError(snapshot_id)
        self._pins.pop(snapshot_id, None)
        if tier is not None:
            self._pins[snapshot_id] = tier
            with self._held(snapshot_id):
                await self._once(snapshot_id, lambda: self._bring(snapshot_id, None))
        await asyncio.to_thread(_write_atomically, self._config.disk_dir / _PINS_NAME, json.dumps(self._pins))

    async def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot from every tier.

        Raises:
            SnapshotMissingError: it is not on this node.
            SnapshotBusyError: somebody holds a lease on it.
        """
        leases = self._lease_count(snapshot_id)
        if leases or self._waiting[snapshot_id] or snapshot_id in self._under_way:
            raise SnapshotBusyError(snapshot_id, leases)
        holding = [name for name in self._tiers if snapshot_id in self._entries[name]]
        if not holding:
            raise SnapshotMissingError(snapshot_id)
        self._pins.pop(snapshot_id, None)
        for name in holding:
            await self._drop(name, snapshot_id)

    async def verify(self, snapshot_id: str) -> None:
        """Read every copy of a snapshot and compare it with its manifest.

        Raises:
            SnapshotMissingError, CorruptSnapshotError, RemoteError.
        """
        holding = [name for name in self._tiers if snapshot_id in self._entries[name]]
        if not holding:
            raise SnapshotMissingError(snapshot_id)
        for name in holding:
            await asyncio.to_thread(
                verify, self._entries[name][snapshot_id].manifest, self._tiers[name].path(snapshot_id)
            )

    def describe(self) -> dict[str, Any]:
        """Return what is where, as builtin types."""
        return {
            name: {
                "capacity_bytes": self._capacity[name],
                "used_bytes": self._used_bytes(name),
                "snapshots": [self._describe(name, snapshot_id, entry) for snapshot_id, entry in entries.items()],
            }
            for name, entries in self._entries.items()
        }

    def check_integrity(self) -> None:
        """Assert what must always hold: budgets, and that what is leased is there."""
        for name, entries in self._entries.items():
            for snapshot_id, entry in entries.items():
                assert not entry.whole or snapshot_id in self._tiers[name]  # noqa: S101
        for lease in self._leases.values():
            assert lease.snapshot_id in self._entries[lease.tier]  # noqa: S101

    async def _once(self, snapshot_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._under_way.get(snapshot_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._under_way[snapshot_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(snapshot_id, None))
        # Shielded: one caller's leaving must not end what others wait for.
        await asyncio.shield(task)

    async def _bring(self, snapshot_id: str, source: Folder | None) -> None:
        if self._is_whole("dram", snapshot_id):
            return
        if self._is_whole("disk", snapshot_id):
            manifest = self._entries["disk"][snapshot_id].manifest
            folder = DirectoryFolder(self._tiers["disk"].path(snapshot_id))
            await self._copy(manifest, folder, "disk", wanted=("dram",), needed=False)
            return
        if source is None:
            raise SnapshotMissingError(snapshot_id)
        manifest = await asyncio.to_thread(open_published, source)
        if manifest.id != snapshot_id:
            raise SnapshotMissingError(snapshot_id)
        await self._copy(manifest, source, "remote", wanted=("dram", "disk"), needed=True)

    async def _copy(
        self, manifest: Manifest, source: Folder, origin: str, *, wanted: tuple[TierName, ...], needed: bool
    ) -> None:
        reserved = [name for name in wanted if await self._reserve(name, manifest)]
        partials: dict[TierName, PartialSnapshot] = {}
        full: TierFullError | None = None
        begin_s = time.monotonic()
        try:
            for name in reserved:
                try:
                    partials[name] = await asyncio.to_thread(self._tiers[name].begin, manifest)
                except TierFullError as error:
                    # Within its budget, but others fill the same disk or memory: go on without this tier.
                    logger.warning("%s", error)
                    full = error
            if not partials:
                if needed:
                    raise full or TierFullError(wanted[-1], manifest.size_bytes, self._capacity[wanted[-1]])
                return
            await asyncio.to_thread(copy_snapshot, manifest, source, list(partials.values()), self._config.copy)
            for name, partial in partials.items():
                await asyncio.to_thread(partial.commit)
                self._entries[name][manifest.id].whole = True
        finally:
            for partial in partials.values():
                await asyncio.to_thread(partial.abandon)
            for name in reserved:
                if not self._is_whole(name, manifest.id):
                    self._entries[name].pop(manifest.id, None)
        self._measured(origin, manifest.size_bytes / max(1e-6, time.monotonic() - begin_s))

    async def _reserve(self, name: TierName, manifest: Manifest) -> bool:
        """Make room and speak for it; false when there is none to be had."""
        async with self._rooms[name]:
            if not await self._make_room(name, manifest.size_bytes):
                return False
            self._entries[name][manifest.id] = _Entry(manifest, self._clock(), whole=False)
            return True

    async def _make_room(self, name: TierName, needed_bytes: int) -> bool:
        kept = [self._kept(name, snapshot_id, entry) for snapshot_id, entry in self._entries[name].items()]
        room = make_room(kept, needed_bytes, self._capacity[name], self._clock())
        logger.info("%s: %d bytes wanted, %s: evicting %s", name, needed_bytes, room.reason, room.evict or "nothing")
        # All at once, before anything is awaited: nobody may take a lease on what is about to go.
        for snapshot_id in room.evict:
            del self._entries[name][snapshot_id]
        for snapshot_id in room.evict:
            await asyncio.to_thread(self._tiers[name].remove, snapshot_id)
        return room.fits

    async def _drop(self, name: TierName, snapshot_id: str) -> None:
        del self._entries[name][snapshot_id]
        await asyncio.to_thread(self._tiers[name].remove, snapshot_id)

    def _kept(self, name: TierName, snapshot_id: str, entry: _Entry) -> Kept:
        below = "disk" if name == "dram" else "remote"
        return Kept(
            snapshot_id=snapshot_id,
            size_bytes=entry.manifest.size_bytes,
            # One that is waited for, or under way, can't be evicted either.
            leases=self._lease_count(snapshot_id, name) + self._waiting[snapshot_id] + (0 if entry.whole else 1),
            pinned=self._pins.get(snapshot_id) == name,
            uses=entry.uses,
            since_s=entry.since_s,
            last_used_s=entry.last_used_s,
            saved_s=entry.manifest.size_bytes / self._bytes_per_s[below],
        )

    def _describe(self, name: TierName, snapshot_id: str, entry: _Entry) -> dict[str, Any]:
        return {
            "id": snapshot_id,
            "name": entry.manifest.name,
            "size_bytes": entry.manifest.size_bytes,
            "whole": entry.whole,
            "leases": self._lease_count(snapshot_id, name),
            "pinned": self._pins.get(snapshot_id) == name,
            "uses": entry.uses,
            "last_used_s": entry.last_used_s or None,
        }

    def _is_whole(self, name: TierName, snapshot_id: str) -> bool:
        entry = self._entries[name].get(snapshot_id)
        return entry is not None and entry.whole

    def _lease_count(self, snapshot_id: str, name: TierName | None = None) -> int:
        return sum(lease.snapshot_id == snapshot_id and name in {None, lease.tier} for lease in self._leases.values())

    def _used_bytes(self, name: TierName) -> int:
        return sum(entry.manifest.size_bytes for entry in self._entries[name].values())

    def _measured(self, origin: str, bytes_per_s: float) -> None:
        self._bytes_per_s[origin] += _SMOOTHING * (bytes_per_s - self._bytes_per_s[origin])

    def __repr__(self) -> str:
        used = ", ".join(f"{name} {self._used_bytes(name)}/{self._capacity[name]} bytes" for name in self._tiers)
        return f"<SnapshotStore {used}, {len(self._leases)} leases>"


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
