"""The snapshot store: brings a node's snapshots into its tiers, keeps them within budgets, lets them go.

Covers: single-flight promotion, eviction, pins, finding everything again after a crash. A plain class whose decisions
are ``cache.make_room`` over the ``ledger``; every blocking step runs in a thread, so the store answers while it copies.
Does not cover: being an actor (``actor``), copying itself (``promote``), who uses what (``lease``).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.errors import (
    CorruptSnapshotError,
    RemoteError,
    SnapshotBusyError,
    SnapshotMissingError,
    StorageError,
    TierFullError,
)
from storage.exchange import Exchange, Shelves
from storage.folders import DirectoryFolder, Folder
from storage.lease import HeldLease, held_leases
from storage.ledger import Ledger
from storage.manifest import Manifest
from storage.partial import PartialSnapshot, TierName
from storage.peer import Neighbours
from storage.peer_folder import PeerPolicy
from storage.pins import read_pins, write_pin
from storage.promote import CopyPolicy, copy_snapshot
from storage.snapshot import open_published, verify
from storage.store_watch import Unwatched
from storage.tier import LocalTier, Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreConfig:
    """Where the tiers are and how much they may hold, in bytes; with ``peers`` false other nodes are left alone."""

    dram_dir: Path
    dram_bytes: int
    disk_dir: Path
    disk_bytes: int
    s3_endpoint_url: str | None = None
    copy: CopyPolicy = field(default_factory=CopyPolicy)
    peers: bool = True
    peer: PeerPolicy = field(default_factory=PeerPolicy)
    # Beside the tier's own budget: adapters are many, small, and the node's rather than a snapshot's.
    adapter_dram_bytes: int = 1 << 30

    @property
    def adapters_in(self) -> Path:
        """Where adapters are in host memory."""
        return self.dram_dir / ".adapters"


class SnapshotStore:
    """One node's ``dram`` and ``disk`` tiers; belongs to one event loop. ``recover`` comes first."""

    def __init__(
        self,
        config: StoreConfig,
        clock: Callable[[], float] = time.time,
        watch: Unwatched | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._config = config
        self._watch = watch or Unwatched()
        self._tiers: dict[TierName, LocalTier] = {
            "dram": LocalTier("dram", config.dram_dir),
            "disk": LocalTier("disk", config.disk_dir),
        }
        self._ledger = Ledger({"dram": config.dram_bytes, "disk": config.disk_bytes}, clock)
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._partials: dict[str, dict[TierName, PartialSnapshot]] = {}
        # None where there are no other stores, or nobody wants to hear of them.
        self.exchange: Exchange | None = None
        if neighbours is not None and config.peers:
            shelves = Shelves(self._whole_manifest, self._places, self._partial_places)
            limits = replace(config.peer.limits, at_once=config.copy.threads)
            self.exchange = Exchange(neighbours, shelves, replace(config.peer, limits=limits), self._watch)
        # Held from the decision to evict until the bytes are gone and the newcomer's are spoken for.
        self._rooms: dict[TierName, asyncio.Lock] = {"dram": asyncio.Lock(), "disk": asyncio.Lock()}

    async def recover(self) -> None:
        """Drop what was half written and find what is whole. A snapshot whose manifest can't be read is removed."""
        for name, tier in self._tiers.items():
            await asyncio.to_thread(tier.recover)
            for snapshot_id in tier.ids():
                await self._look_for(snapshot_id, name)
        self._ledger.pins = read_pins(self._config.disk_dir)

    async def _look_for(self, snapshot_id: str, name: TierName) -> None:
        """Bring the books in line with a tier's directory, which others may have changed."""
        tier = self._tiers[name]
        if snapshot_id not in tier:
            if self._ledger.is_whole(name, snapshot_id):
                self._ledger.remove(name, snapshot_id)
        elif name not in self._ledger.holding(snapshot_id):
            try:
                manifest = await asyncio.to_thread(tier.manifest, snapshot_id)
            except StorageError as error:
                logger.warning("removing a snapshot from %s: %s", name, error)
                await asyncio.to_thread(tier.remove, snapshot_id)
            else:
                async with self._rooms[name]:
                    self._ledger.add(name, manifest, whole=True)
                    await self._make_room(name, 0)

    async def acquire(self, snapshot_id: str, source: Folder | None = None) -> Place:
        """Return where a snapshot is, in the fastest tier that has room for it, bringing it there first.

        However many ask, it is brought once. Without room in dram the place is on disk. It stays there for who holds a
        ``Lease``, which is taken before this is called.

        Args:
            snapshot_id: which one.
            source: where to fetch it from when neither the node nor one of its peers has it.

        Raises:
            SnapshotMissingError: it is nowhere: ``source`` is none or holds another one.
            TierFullError: no tier has room.
            StorageError: it could not be copied.
        """
        with self._ledger.waiting_for(snapshot_id):
            self._watch.asked(self._found_in(snapshot_id))
            await self._once(snapshot_id, lambda: self._bring(snapshot_id, source))
            name: TierName = "dram" if self._ledger.is_whole("dram", snapshot_id) else "disk"
            self._ledger.use(name, snapshot_id)
            return Place(name, str(self._tiers[name].path(snapshot_id)))

    async def pin(self, snapshot_id: str, tier: TierName | None) -> None:
        """Keep a snapshot in a tier, also across restarts, or with None no longer.

        Raises:
            SnapshotMissingError: it is not on this node.
        """
        if not self._ledger.holding(snapshot_id):
            raise SnapshotMissingError(snapshot_id)
        await asyncio.to_thread(write_pin, self._config.disk_dir, snapshot_id, tier)
        await self.tend()

    async def tend(self) -> None:
        """Stage what is pinned; pins may have been written by others, so this is asked for now and then."""
        self._ledger.pins = await asyncio.to_thread(read_pins, self._config.disk_dir)
        for snapshot_id in list(self._ledger.pins):
            if self._ledger.holding(snapshot_id):
                with self._ledger.waiting_for(snapshot_id):
                    await self._once(snapshot_id, lambda: self._bring(snapshot_id, None))  # noqa: B023 - awaited here

    def expect(self, replica_id: str, rates_per_s: Mapping[str, float]) -> None:
        """Take what a replica expects: requests a second by snapshot; it is believed for half a minute.

        What is expected goes before past use in what is kept, and is brought to dram ahead by ``preload``.
        """
        self._ledger.expect(replica_id, rates_per_s)

    async def preload(self) -> None:
        """Bring from disk to dram what saves more waiting there than what is there. Raises as ``acquire``."""
        for snapshot_id in self._ledger.preloads(self._leases()):
            logger.info("bringing snapshot %s to dram ahead of requests", snapshot_id)
            with self._ledger.waiting_for(snapshot_id):
                await self._once(snapshot_id, lambda: self._bring(snapshot_id, None))  # noqa: B023 - awaited here

    async def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot from every tier.

        Raises:
            SnapshotMissingError: it is not on this node.
            SnapshotBusyError: somebody holds a lease on it.
        """
        leases = sum(lease.snapshot_id == snapshot_id for lease in self._leases())
        if leases or self._ledger.is_waited_for(snapshot_id) or snapshot_id in self._under_way:
            raise SnapshotBusyError(snapshot_id, leases)
        holding = self._ledger.holding(snapshot_id)
        if not holding:
            raise SnapshotMissingError(snapshot_id)
        await asyncio.to_thread(write_pin, self._config.disk_dir, snapshot_id, None)
        self._ledger.pins.pop(snapshot_id, None)
        for name in holding:
            self._ledger.remove(name, snapshot_id)
            await asyncio.to_thread(self._tiers[name].remove, snapshot_id)

    async def verify(self, snapshot_id: str) -> None:
        """Read every copy of a snapshot and compare it with its manifest.

        Raises:
            SnapshotMissingError, CorruptSnapshotError, RemoteError.
        """
        holding = self._ledger.holding(snapshot_id)
        if not holding:
            raise SnapshotMissingError(snapshot_id)
        for name in holding:
            manifest = self._ledger.manifest(name, snapshot_id)
            await asyncio.to_thread(verify, manifest, self._tiers[name].path(snapshot_id))

    def describe(self) -> dict[str, Any]:
        """Return what is where, as builtin types."""
        return self._ledger.describe(self._leases())

    def _found_in(self, snapshot_id: str) -> str:
        return next((name for name in self._tiers if self._ledger.is_whole(name, snapshot_id)), "remote")

    def tell(self) -> None:
        """Tell whoever watches what the tiers hold; again and again, for Ray exports gauges only while they are set."""
        for name, capacity_bytes in self._ledger.capacity.items():
            self._watch.holds(name, self._ledger.used_bytes(name), capacity_bytes, self._ledger.count(name))

    def _leases(self) -> list[HeldLease]:
        return held_leases(self._config.disk_dir)

    async def _once(self, snapshot_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._under_way.get(snapshot_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._under_way[snapshot_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(snapshot_id, None))
        # Shielded: one caller's leaving must not end what others wait for.
        await asyncio.shield(task)

    async def _bring(self, snapshot_id: str, source: Folder | None) -> None:
        for name in self._tiers:
            await self._look_for(snapshot_id, name)
        if self._ledger.is_whole("dram", snapshot_id):
            return
        if self._ledger.is_whole("disk", snapshot_id):
            manifest = self._ledger.manifest("disk", snapshot_id)
            folder = DirectoryFolder(self._tiers["disk"].path(snapshot_id))
            await self._copy(manifest, folder, "disk", wanted=("dram",), needed=False)
            return
        if self.exchange is None:
            if source is None:
                raise SnapshotMissingError(snapshot_id)
            manifest = await self._published(snapshot_id, source)
            await self._copy(manifest, source, "remote", wanted=("dram", "disk"), needed=True)
        elif source is not None:
            await self._bring_from_all(snapshot_id, source, self.exchange)
        else:
            try:
                await self._bring_from_all(snapshot_id, None, self.exchange)
            except (RemoteError, CorruptSnapshotError, TierFullError) as error:
                # It was worth trying; who asks without a source has another way.
                logger.warning("peers could not give %s: %s", snapshot_id, error)
                raise SnapshotMissingError(snapshot_id) from error

    async def _bring_from_all(self, snapshot_id: str, source: Folder | None, exchange: Exchange) -> None:
        try:
            manifest = await self._published(snapshot_id, source) if source else await exchange.find(snapshot_id)
        except RemoteError as error:
            manifest = await exchange.find(snapshot_id)
            if manifest is None:
                raise
            logger.warning("only peers are asked for %s: %s", snapshot_id, error)
            source = None
        if manifest is None:
            raise SnapshotMissingError(snapshot_id)
        async with exchange.filling(manifest, source) as folder:
            await self._copy(manifest, folder, "remote", wanted=("dram", "disk"), needed=True)

    @staticmethod
    async def _published(snapshot_id: str, source: Folder) -> Manifest:
        manifest = await asyncio.to_thread(open_published, source)
        if manifest.id != snapshot_id:
            raise SnapshotMissingError(snapshot_id)
        return manifest

    def _whole_manifest(self, snapshot_id: str) -> Manifest | None:
        names = (name for name in self._tiers if self._ledger.is_whole(name, snapshot_id))
        return next((self._ledger.manifest(name, snapshot_id) for name in names), None)

    def _places(self, snapshot_id: str) -> list[Path]:
        return [tier.path(snapshot_id) for tier in self._tiers.values()]

    def _partial_places(self, snapshot_id: str) -> list[Path]:
        return [partial.directory for partial in self._partials.get(snapshot_id, {}).values()]

    async def _copy(
        self, manifest: Manifest, source: Folder, origin: str, *, wanted: tuple[TierName, ...], needed: bool
    ) -> None:
        reserved = [name for name in wanted if await self._reserve(name, manifest)]
        partials = self._partials[manifest.id] = {}
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
                    raise full or TierFullError(wanted[-1], manifest.size_bytes, self._ledger.capacity[wanted[-1]])
                return
            await self._fill(manifest, source, partials, needed=needed)
            for name, partial in partials.items():
                await asyncio.to_thread(partial.commit)
                self._ledger.complete(name, manifest.id)
        except StorageError:
            self._watch.failed(origin)
            raise
        finally:
            del self._partials[manifest.id]
            for partial in partials.values():
                await asyncio.to_thread(partial.abandon)
            for name in reserved:
                if not self._ledger.is_whole(name, manifest.id):
                    self._ledger.remove(name, manifest.id)
        took_s = time.monotonic() - begin_s
        self._ledger.measured(origin, manifest.size_bytes / max(1e-6, took_s))
        self._watch.copied(origin, list(partials), manifest.size_bytes, took_s)

    async def _fill(
        self, manifest: Manifest, source: Folder, partials: dict[TierName, PartialSnapshot], *, needed: bool
    ) -> None:
        """Copy into ``partials``; one that others fill up meanwhile is given up, and taken out."""
        while partials:
            try:
                await asyncio.to_thread(copy_snapshot, manifest, source, list(partials.values()), self._config.copy)
            except TierFullError as error:
                full = next((name for name in partials if name == error.tier), None)
                if full is None or (needed and len(partials) == 1):
                    raise
                logger.warning("%s", error)
                await asyncio.to_thread(partials.pop(full).abandon)
            else:
                return

    async def _reserve(self, name: TierName, manifest: Manifest) -> bool:
        """Make room and speak for it; false when there is none to be had."""
        async with self._rooms[name]:
            if not await self._make_room(name, manifest.size_bytes):
                return False
            self._ledger.add(name, manifest, whole=False)
            return True

    async def _make_room(self, name: TierName, needed_bytes: int) -> bool:
        room = self._ledger.make_room(name, needed_bytes, self._leases())
        logger.info("%s: %d bytes wanted, %s: evicting %s", name, needed_bytes, room.reason, room.evict or "nothing")
        # All at once, before anything is awaited: nobody may be given what is about to go.
        for snapshot_id in room.evict:
            self._ledger.remove(name, snapshot_id)
        self._watch.evicted(name, len(room.evict))
        for snapshot_id in room.evict:
            await asyncio.to_thread(self._tiers[name].remove, snapshot_id)
        return room.fits

    def __repr__(self) -> str:
        return f"<SnapshotStore {self._ledger!r}>"
