"""Stores of snapshots with tiers so small that few fit, for tests of what is where."""

import time
from collections.abc import Callable
from pathlib import Path

from storage.manifest import Manifest
from storage.promote import CopyPolicy
from storage.store import SnapshotStore, StoreConfig

ONE = 5000  # bytes: every sample has a little less


def small_tiers(root: Path) -> StoreConfig:
    """Room for two snapshots in dram and for three on disk."""
    policy = CopyPolicy(threads=2, attempts=1)
    return StoreConfig(root / "dram", 2 * ONE, root / "disk", 3 * ONE, copy=policy)


async def started(config: StoreConfig, clock: Callable[[], float] = time.time) -> SnapshotStore:
    store = SnapshotStore(config, clock)
    await store.recover()
    return store


def tiers_of(store: SnapshotStore, snapshot: Manifest | str) -> list[str]:
    snapshot_id = snapshot if isinstance(snapshot, str) else snapshot.id
    described = store.describe()
    return [name for name, tier in described.items() for held in tier["snapshots"] if held["id"] == snapshot_id]
