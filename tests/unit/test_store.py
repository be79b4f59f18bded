"""The store: one copy however many ask, budgets, leases and pins, and everything found again after a restart."""

import asyncio
import contextlib
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot_samples import make_snapshot

from storage.errors import (
    CorruptSnapshotError,
    RemoteError,
    SnapshotBusyError,
    SnapshotMissingError,
    TierFullError,
)
from storage.folders import DirectoryFolder, FileInfo
from storage.manifest import MANIFEST_NAME, Manifest
from storage.partial import PartialSnapshot
from storage.promote import CopyPolicy
from storage.store import SnapshotStore, StoreConfig
from storage.tier import LocalTier

COUNT = 6
ONE = 5000  # bytes: every sample has a little less


class CountingFolder(DirectoryFolder):
    """Counts reads; ``gate`` holds them back while it is cleared."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()

    def read_into(self, file: FileInfo, start: int, out: memoryview) -> None:
        self.reads[file.path] += 1
        if file.path != MANIFEST_NAME:
            self.reading.set()
            assert self.gate.wait(10)
        super().read_into(file, start, out)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Manifest, Path]]:
    root = tmp_path_factory.mktemp("published")
    return [(make_snapshot(root / str(seed), seed), root / str(seed)) for seed in range(COUNT)]


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    policy = CopyPolicy(threads=2, attempts=1)
    return StoreConfig(tmp_path / "dram", 2 * ONE, tmp_path / "disk", 3 * ONE, policy)


async def started(config: StoreConfig) -> SnapshotStore:
    store = SnapshotStore(config)
    await store.recover()
    return store


def tiers_of(store: SnapshotStore, manifest: Manifest) -> list[str]:
    described = store.describe()
    return [name for name, tier in described.items() for held in tier["snapshots"] if held["id"] == manifest.id]


async def test_it_fetches_once_into_both_tiers(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    store = await started(config)
    leases = await asyncio.gather(*(store.acquire(manifest.id, f"owner-{n}", source) for n in range(20)))
    assert len({lease.id for lease in leases}) == 20
    assert {(lease.tier, lease.path) for lease in leases} == {("dram", str(config.dram_dir / manifest.id))}
    assert source.reads == Counter({MANIFEST_NAME: 1, "rank-00.safetensors": 1, "config.json": 1})
    assert tiers_of(store, manifest) == ["dram", "disk"]
    await store.verify(manifest.id)
    store.check_integrity()


async def test_a_caller_that_leaves_does_not_end_the_copy(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    source.gate.clear()
    store = await started(config)
    first = asyncio.create_task(store.acquire(manifest.id, "a", source))
    second = asyncio.create_task(store.acquire(manifest.id, "b", source))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    source.gate.set()
    assert (await second).owner == "b"


async def test_it_answers_while_it_copies(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    source.gate.clear()
    store = await started(config)
    copying = asyncio.create_task(store.acquire(manifest.id, "a", source))
    await asyncio.to_thread(source.reading.wait, 10)
    assert store.describe()["dram"]["snapshots"][0]["whole"] is False
    with pytest.raises(SnapshotBusyError):
        await store.remove(manifest.id)
    source.gate.set()
    await copying


async def test_full_tiers_let_the_unused_go(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    for manifest, directory in published[:4]:
        lease = await store.acquire(manifest.id, "a", DirectoryFolder(directory))
        store.release(lease.id)
    described = store.describe()
    assert {name: len(tier["snapshots"]) for name, tier in described.items()} == {"dram": 2, "disk": 3}
    assert all(tier["used_bytes"] <= tier["capacity_bytes"] for tier in described.values())
    assert tiers_of(store, published[3][0]) == ["dram", "disk"]


async def test_leased_ones_stay_and_the_next_is_used_from_disk(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    store = await started(config)
    leases = [await store.acquire(m.id, "a", DirectoryFolder(directory)) for m, directory in published[:5]]
    assert [lease.tier for lease in leases] == ["dram", "dram", "disk", "disk", "disk"]
    manifest, directory = published[5]
    with pytest.raises(TierFullError):
        await store.acquire(manifest.id, "b", DirectoryFolder(directory))
    store.release_owner("a")
    assert (await store.acquire(manifest.id, "b", DirectoryFolder(directory))).tier == "dram"


async def test_pins_outlive_the_store(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    pinned = published[0][0]
    store.release((await store.acquire(pinned.id, "a", DirectoryFolder(published[0][1]))).id)
    await store.pin(pinned.id, "dram")
    again = await started(config)
    for manifest, directory in published[1:]:
        again.release((await again.acquire(manifest.id, "a", DirectoryFolder(directory))).id)
    assert "dram" in tiers_of(again, pinned)
    await again.pin(pinned.id, None)
    for manifest, directory in published[1:]:
        again.release((await again.acquire(manifest.id, "a", DirectoryFolder(directory))).id)
    assert "dram" not in tiers_of(again, pinned)
    with pytest.raises(SnapshotMissingError):
        await again.pin("0" * 64, "dram")


async def test_a_restart_finds_everything_and_reads_nothing_again(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, "a", DirectoryFolder(directory))
    again = await started(config)
    assert (await again.acquire(manifest.id, "b")).tier == "dram"
    assert tiers_of(again, manifest) == ["dram", "disk"]


async def test_a_lost_dram_is_filled_from_disk(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, "a", DirectoryFolder(directory))
    LocalTier("dram", config.dram_dir).remove(manifest.id)
    again = await started(config)
    assert tiers_of(again, manifest) == ["disk"]
    assert (await again.acquire(manifest.id, "b")).tier == "dram"


async def test_an_unreadable_snapshot_is_dropped_at_the_start(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, "a", DirectoryFolder(directory))
    (config.dram_dir / manifest.id / MANIFEST_NAME).write_text("{")
    again = await started(config)
    assert tiers_of(again, manifest) == ["disk"]
    assert not (config.dram_dir / manifest.id).exists()


async def test_damage_on_disk_never_reaches_dram(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, "a", DirectoryFolder(directory))
    LocalTier("dram", config.dram_dir).remove(manifest.id)
    weights = config.disk_dir / manifest.id / "rank-00.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = await started(config)
    with pytest.raises(CorruptSnapshotError, match="rank-00"):
        await again.acquire(manifest.id, "b")
    assert tiers_of(again, manifest) == ["disk"]
    with pytest.raises(CorruptSnapshotError):
        await again.verify(manifest.id)


async def test_a_failed_copy_leaves_nothing_and_the_next_works(
    config: StoreConfig, published: list[tuple[Manifest, Path]], tmp_path: Path
) -> None:
    manifest, directory = published[0]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / MANIFEST_NAME).write_bytes((directory / MANIFEST_NAME).read_bytes())
    store = await started(config)
    with pytest.raises(CorruptSnapshotError):
        await store.acquire(manifest.id, "a", DirectoryFolder(broken))
    with pytest.raises(RemoteError):
        await store.acquire(manifest.id, "a", DirectoryFolder(tmp_path / "nowhere"))
    with pytest.raises(SnapshotMissingError):
        await store.acquire(manifest.id, "a", DirectoryFolder(published[1][1]))
    assert tiers_of(store, manifest) == []
    assert (await store.acquire(manifest.id, "a", DirectoryFolder(directory))).tier == "dram"


@pytest.mark.parametrize("full", ["dram", "disk"])
async def test_a_tier_that_others_have_filled_is_left_out(
    config: StoreConfig, published: list[tuple[Manifest, Path]], monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    allocate = PartialSnapshot.allocate

    def allocate_unless_full(partial: PartialSnapshot) -> None:
        if partial.tier == full:
            raise OSError(28, "No space left on device")
        allocate(partial)

    monkeypatch.setattr(PartialSnapshot, "allocate", allocate_unless_full)
    manifest, directory = published[0]
    store = await started(config)
    lease = await store.acquire(manifest.id, "a", DirectoryFolder(directory))
    assert lease.tier != full
    assert tiers_of(store, manifest) == [lease.tier]


async def test_removal(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    store = await started(config)
    lease = await store.acquire(manifest.id, "a", DirectoryFolder(directory))
    with pytest.raises(SnapshotBusyError, match="1 leases"):
        await store.remove(manifest.id)
    store.release(lease.id)
    await store.remove(manifest.id)
    assert tiers_of(store, manifest) == []
    with pytest.raises(SnapshotMissingError):
        await store.remove(manifest.id)


actions = st.lists(
    st.tuples(st.sampled_from(["acquire", "release", "pin", "unpin", "remove", "restart"]), st.integers(0, COUNT - 1)),
    max_size=25,
)


@given(actions, st.tuples(st.integers(0, 4), st.integers(0, 4)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_budgets_and_leases_hold(
    config: StoreConfig,
    published: list[tuple[Manifest, Path]],
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int]],
    capacities: tuple[int, int],
) -> None:
    root = tmp_path_factory.mktemp("any")
    dram_bytes, disk_bytes = (count * ONE for count in capacities)
    config = replace(config, dram_dir=root / "m", dram_bytes=dram_bytes, disk_dir=root / "d", disk_bytes=disk_bytes)

    async def play() -> None:
        store = await started(config)
        leases: list[tuple[int, str]] = []
        for action, index in steps:
            manifest, directory = published[index]
            with contextlib.suppress(TierFullError, SnapshotMissingError, SnapshotBusyError):
                if action == "acquire":
                    lease = await store.acquire(manifest.id, "a", DirectoryFolder(directory))
                    leases.append((index, lease.id))
                elif action == "release" and leases:
                    store.release(leases.pop()[1])
                elif action in {"pin", "unpin"}:
                    await store.pin(manifest.id, "dram" if action == "pin" else None)
                elif action == "remove":
                    await store.remove(manifest.id)
                elif action == "restart":
                    store, leases = await started(config), []
            store.check_integrity()
            described = store.describe()
            assert all(tier["used_bytes"] <= tier["capacity_bytes"] for tier in described.values())
            assert all(tiers_of(store, published[index][0]) for index, _ in leases), "a leased one is gone"

    asyncio.run(play())
