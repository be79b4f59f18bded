"""The snapshot store as a Ray actor, one on each node, and the way processes of that node reach it.

Covers: being called, sources by URL, errors as this package's own across processes, waiting for an actor that is being
started again. Does not cover: who creates the actors (``deployments.nodes``), and every decision (``store``).
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayTaskError

from storage.errors import RemoteMissingError, StorageError, StoreUnreachableError
from storage.exchange import Exchange
from storage.folders import Folder
from storage.lease import Lease, hold
from storage.partial import DirectoryLock, TierName, write_error
from storage.peer import Neighbours, Progress
from storage.ray_peers import RayNeighbours
from storage.remote import open_folder
from storage.store import SnapshotStore, StoreConfig
from storage.store_metrics import StoreMetrics
from storage.tier import Place

logger = logging.getLogger(__name__)

NAMESPACE = "flashserve"
_TEND_PERIOD_S = 5.0
_TELL_PERIOD_S = 0.5
_CALL_DEADLINE_S = 60.0
_RETRY_S = 0.2


def store_name(application: str, node_id: str) -> str:
    """Return the name of the actor that is a node's store."""
    return f"snapshot-store:{application}:{node_id}"


class StoreActor:
    """What Ray runs. The tiers' directories belong to one store at a time."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._store = SnapshotStore(config, watch=StoreMetrics(), neighbours=self.neighbours())
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._loops: list[asyncio.Task[None]] = []

    def neighbours(self) -> Neighbours | None:
        """Return the stores of the other nodes; one without a name has none."""
        name = ray.get_runtime_context().get_actor_name()
        return RayNeighbours(name, NAMESPACE) if name else None

    def source(self, url: str) -> Folder:
        """Return the folder at a URL."""
        return open_folder(url, self._config.s3_endpoint_url)

    async def acquire(self, snapshot_id: str, source_url: str | None) -> Place:
        """See ``SnapshotStore.acquire``."""
        store = await self._started()
        source = await asyncio.to_thread(self.source, source_url) if source_url else None
        return await store.acquire(snapshot_id, source)

    async def pin(self, snapshot_id: str, tier: TierName | None) -> None:
        """See ``SnapshotStore.pin``."""
        await (await self._started()).pin(snapshot_id, tier)

    async def expect(self, replica_id: str, rates_per_s: dict[str, float]) -> None:
        """See ``SnapshotStore.expect``."""
        (await self._started()).expect(replica_id, rates_per_s)

    async def remove(self, snapshot_id: str) -> None:
        """See ``SnapshotStore.remove``."""
        await (await self._started()).remove(snapshot_id)

    async def describe(self) -> dict[str, Any]:
        """See ``SnapshotStore.describe``."""
        return (await self._started()).describe()

    async def peer_progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        """See ``Peer.progress``; while it is starting a store has nothing to tell."""
        exchange = self._exchange()
        return await exchange.progress(snapshot_id, after, asker) if exchange else None

    async def peer_manifest(self, snapshot_id: str) -> bytes:
        """See ``Peer.manifest``."""
        return await self._asked(snapshot_id).manifest(snapshot_id)

    async def peer_read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        """See ``Peer.read``."""
        return await self._asked(snapshot_id).read(snapshot_id, chunk, start, end)

    def _exchange(self) -> Exchange | None:
        return self._store.exchange if self._starting.done() else None

    def _asked(self, snapshot_id: str) -> Exchange:
        exchange = self._exchange()
        if exchange is None:
            raise RemoteMissingError(f"peer://{snapshot_id}", "this store gives nothing to others")
        return exchange

    async def _started(self) -> SnapshotStore:
        await asyncio.shield(self._starting)
        return self._store

    async def _start(self) -> None:
        owned = self._config.disk_dir / ".store"
        try:
            owned.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error("disk", self._config.disk_dir, error) from error
        self._lock = DirectoryLock(owned, wait=True)
        # The one before, of this application's last version for instance, may be ending just now.
        await asyncio.to_thread(self._lock.__enter__)
        await self._store.recover()
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._tend()), loop.create_task(self._preload())]

    async def _preload(self) -> None:
        # Beside the tending, because it may copy for long.
        while True:
            await asyncio.sleep(_TEND_PERIOD_S)
            try:
                await self._store.preload()
            except StorageError as error:
                logger.warning("a snapshot was not brought ahead of requests: %s", error)

    async def _tend(self) -> None:
        while True:
            try:
                await self._store.tend()
            except StorageError as error:
                logger.warning("a pinned snapshot is not where it should be: %s", error)
            for _ in range(round(_TEND_PERIOD_S / _TELL_PERIOD_S)):
                self._store.tell()
                await asyncio.sleep(_TELL_PERIOD_S)

    def __repr__(self) -> str:
        return f"<StoreActor {self._store!r}>"


class StoreClient:
    """The store of this node, for one of its processes."""

    def __init__(self, application: str, config: StoreConfig) -> None:
        self.config = config
        self._name = store_name(application, ray.get_runtime_context().get_node_id())

    async def hold(self, snapshot_id: str, owner: str, source_url: str | None = None) -> tuple[Lease, Place]:
        """Return a lease on a snapshot and where it is; see ``SnapshotStore.acquire``.

        Raises:
            StoreUnreachableError: there is no store on this node, for longer than it takes to start one.
            StorageError: as ``SnapshotStore.acquire``.
        """
        lease = Lease(self.config.disk_dir, snapshot_id, owner)
        return lease, await hold(lease, self._call("acquire", snapshot_id, source_url))

    def tier_of(self, snapshot_id: str) -> TierName | Literal["remote"]:
        """Return the fastest tier of this node that has a snapshot, ``remote`` if none: a look at two directories."""
        if (self.config.dram_dir / snapshot_id).is_dir():
            return "dram"
        return "disk" if (self.config.disk_dir / snapshot_id).is_dir() else "remote"

    async def expect(self, replica_id: str, rates_per_s: Mapping[str, float]) -> None:
        """Tell the store what a replica expects; see ``SnapshotStore.expect``. Raises StoreUnreachableError."""
        await self._call("expect", replica_id, dict(rates_per_s))

    async def _call(self, method: str, *arguments: Any) -> Any:
        until_s = time.monotonic() + _CALL_DEADLINE_S
        while True:
            try:
                actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
                return await getattr(actor, method).remote(*arguments)
            except RayTaskError as error:
                raise _own(error) from error
            except (ValueError, RayActorError) as error:
                # Not there yet, or being started again: everything that is asked of it may be asked twice.
                if time.monotonic() > until_s:
                    raise StoreUnreachableError(self._name, str(error)) from error
                await asyncio.sleep(_RETRY_S)

    def __repr__(self) -> str:
        return f"<StoreClient {self._name}>"


def _own(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, StorageError) else error
