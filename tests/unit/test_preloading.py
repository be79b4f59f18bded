"""What the store brings to dram ahead of requests, and what makes room for it."""

from pathlib import Path

import pytest
from snapshot_samples import make_snapshot

from storage.folders import DirectoryFolder
from storage.lease import Lease
from storage.manifest import Manifest
from storage.store import SnapshotStore, StoreConfig
from tests.support.stores import small_tiers, started, tiers_of


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Manifest, Path]]:
    root = tmp_path_factory.mktemp("published")
    return [(make_snapshot(root / str(seed), seed), root / str(seed)) for seed in range(3)]


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return small_tiers(tmp_path)


async def full(store: SnapshotStore, published: list[tuple[Manifest, Path]]) -> tuple[str, str, str]:
    """Fill the store; return the snapshots in dram, and the one on disk alone."""
    for manifest, directory in published:
        await store.acquire(manifest.id, DirectoryFolder(directory))
    ids = [manifest.id for manifest, _ in published]
    (below,) = [key for key in ids if tiers_of(store, key) == ["disk"]]
    first, second = [key for key in ids if key != below]
    return first, second, below


async def test_what_is_expected_is_brought_to_dram_and_what_is_not_makes_room(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    store = await started(config)
    first, second, below = await full(store, published)
    store.expect("replica", {first: 0.0, second: 2.0, below: 1.0})
    await store.preload()
    assert [tiers_of(store, key) for key in (first, second, below)] == [["disk"], ["dram", "disk"], ["dram", "disk"]]


async def test_a_little_more_is_no_reason_to_copy(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    first, second, below = await full(store, published)
    store.expect("replica", {first: 1.0, second: 1.0, below: 1.2})
    await store.preload()
    assert tiers_of(store, below) == ["disk"]
    store.expect("another replica", {below: 1.2})
    await store.preload()
    assert tiers_of(store, below) == ["dram", "disk"], "together they expect it twice as often"


async def test_a_replica_that_is_silent_expects_nothing(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    clock = iter(float(at) for at in range(0, 1_000_000, 10)).__next__
    store = await started(config, clock)
    first, second, below = await full(store, published)
    store.expect("replica", {first: 0.0, second: 0.0, below: 9.0})
    for _ in range(4):
        clock()
    await store.preload()
    assert tiers_of(store, below) == ["disk"], "it has never been used in dram, and the others have"


async def test_what_is_leased_does_not_make_room(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    first, second, below = await full(store, published)
    leases = [Lease(config.disk_dir, key, "test") for key in (first, second)]
    store.expect("replica", {first: 0.0, second: 0.0, below: 9.0})
    await store.preload()
    assert tiers_of(store, below) == ["disk"]
    leases[0].release()
    await store.preload()
    assert [tiers_of(store, key) for key in (first, below)] == [["disk"], ["dram", "disk"]]
    leases[1].release()
