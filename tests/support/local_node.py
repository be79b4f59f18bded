"""Stands for ``NodeClient`` where a test has a store in its own process."""

from storage.lease import Lease, hold
from storage.store import SnapshotStore, StoreConfig
from storage.tier import Place


class LocalNode:
    """A node with a store; subclasses say what else it has."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.store = SnapshotStore(config)

    def tier_of(self, snapshot_id: str) -> str:
        if (self.config.dram_dir / snapshot_id).is_dir():
            return "dram"
        return "disk" if (self.config.disk_dir / snapshot_id).is_dir() else "remote"

    async def hold(self, snapshot_id: str, owner: str, source_url: str | None = None) -> tuple[Lease, Place]:
        assert source_url is None
        lease = Lease(self.config.disk_dir, snapshot_id, owner)
        return lease, await hold(lease, self.acquire(snapshot_id))

    async def acquire(self, snapshot_id: str) -> Place:
        return await self.store.acquire(snapshot_id)
