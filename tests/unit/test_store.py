"""The store: one copy however many ask, budgets, leases and pins, and everything found again after a restart."""

import asyncio
import contextlib
import subprocess
import sys
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
from storage.folders import DirectoryFolder, FileInfo, Folder, Pieces
from storage.lease import LEASES_NAME, Lease, held_leases, hold
from storage.manifest import MANIFEST_NAME, FileEntry, Manifest
from storage.partial import PartialSnapshot
from storage.store import SnapshotStore, StoreConfig
from storage.tier import LocalTier, Place
from tests.support.stores import ONE, small_tiers, started, tiers_of

COUNT = 6


class CountingFolder(DirectoryFolder):
    """Counts reads; ``gate`` holds them back while it is cleared."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        self.reads[file.path] += 1
        if file.path != MANIFEST_NAME:
            self.reading.set()
            assert self.gate.wait(10)
        yield from super().read_pieces(file, start, end, buffer)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Manifest, Path]]:
    root = tmp_path_factory.mktemp("published")
    return [(make_snapshot(root / str(seed), seed), root / str(seed)) for seed in range(COUNT)]


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return small_tiers(tmp_path)


async def held(
    store: SnapshotStore, config: StoreConfig, manifest: Manifest, source: Folder | None = None
) -> tuple[Lease, Place]:
    lease = Lease(config.disk_dir, manifest.id, "test")
    return lease, await hold(lease, store.acquire(manifest.id, source))


async def test_it_fetches_once_into_both_tiers(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    store = await started(config)
    places = await asyncio.gather(*(store.acquire(manifest.id, source) for _ in range(20)))
    assert set(places) == {Place("dram", str(config.dram_dir / manifest.id))}
    assert source.reads == Counter({MANIFEST_NAME: 1, "rank-00.safetensors": 1, "config.json": 1})
    assert tiers_of(store, manifest) == ["dram", "disk"]
    await store.verify(manifest.id)


async def test_a_caller_that_leaves_does_not_end_the_copy(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    source.gate.clear()
    store = await started(config)
    first = asyncio.create_task(store.acquire(manifest.id, source))
    second = asyncio.create_task(store.acquire(manifest.id, source))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    source.gate.set()
    assert (await second).tier == "dram"


async def test_it_answers_while_it_copies(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    source = CountingFolder(directory)
    source.gate.clear()
    store = await started(config)
    copying = asyncio.create_task(store.acquire(manifest.id, source))
    await asyncio.to_thread(source.reading.wait, 10)
    assert store.describe()["dram"]["snapshots"][0]["whole"] is False
    with pytest.raises(SnapshotBusyError):
        await store.remove(manifest.id)
    source.gate.set()
    await copying


async def test_full_tiers_let_the_unused_go(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    for manifest, directory in published[:4]:
        await store.acquire(manifest.id, DirectoryFolder(directory))
    described = store.describe()
    assert {name: len(tier["snapshots"]) for name, tier in described.items()} == {"dram": 2, "disk": 3}
    assert all(tier["used_bytes"] <= tier["capacity_bytes"] for tier in described.values())
    assert tiers_of(store, published[3][0]) == ["dram", "disk"]


async def test_leased_ones_stay_and_the_next_is_used_from_disk(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    store = await started(config)
    leases = [await held(store, config, m, DirectoryFolder(directory)) for m, directory in published[:5]]
    assert [place.tier for _, place in leases] == ["dram", "dram", "disk", "disk", "disk"]
    manifest, directory = published[5]
    with pytest.raises(TierFullError):
        await held(store, config, manifest, DirectoryFolder(directory))
    for lease, _ in leases:
        lease.release()
    assert (await held(store, config, manifest, DirectoryFolder(directory)))[1].tier == "dram"
    assert [tier["snapshots"][-1]["leases"] for tier in store.describe().values()] == [["test"], []]


async def test_leases_outlive_the_store(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    lease, _ = await held(await started(config), config, manifest, DirectoryFolder(directory))
    again = await started(config)
    with pytest.raises(SnapshotBusyError, match="1 leases"):
        await again.remove(manifest.id)
    lease.release()
    await again.remove(manifest.id)


def test_a_lease_ends_with_its_holder(config: StoreConfig) -> None:
    taking = (
        "import sys; from pathlib import Path; from storage.lease import Lease; "
        "lease = Lease(Path(sys.argv[1]), 'x', 'one that dies'); print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", taking, str(config.disk_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        assert [lease.owner for lease in held_leases(config.disk_dir)] == ["one that dies"]
        holder.kill()
        holder.wait()
        assert held_leases(config.disk_dir) == []
    assert not [path for path in (config.disk_dir / LEASES_NAME).iterdir() if path.name != ".lock"]


async def test_pins_outlive_the_store(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    store = await started(config)
    pinned = published[0][0]
    await store.acquire(pinned.id, DirectoryFolder(published[0][1]))
    await store.pin(pinned.id, "dram")
    again = await started(config)
    for manifest, directory in published[1:]:
        await again.acquire(manifest.id, DirectoryFolder(directory))
    assert "dram" in tiers_of(again, pinned)
    await again.pin(pinned.id, None)
    for manifest, directory in published[1:]:
        await again.acquire(manifest.id, DirectoryFolder(directory))
    assert "dram" not in tiers_of(again, pinned)
    with pytest.raises(SnapshotMissingError):
        await again.pin("0" * 64, "dram")


async def test_a_restart_finds_everything_and_reads_nothing_again(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, DirectoryFolder(directory))
    again = await started(config)
    assert (await again.acquire(manifest.id)).tier == "dram"
    assert tiers_of(again, manifest) == ["dram", "disk"]


async def test_a_lost_dram_is_filled_from_disk(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, DirectoryFolder(directory))
    LocalTier("dram", config.dram_dir).remove(manifest.id)
    again = await started(config)
    assert tiers_of(again, manifest) == ["disk"]
    assert (await again.acquire(manifest.id)).tier == "dram"


async def test_an_unreadable_snapshot_is_dropped_at_the_start(
    config: StoreConfig, published: list[tuple[Manifest, Path]]
) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, DirectoryFolder(directory))
    (config.dram_dir / manifest.id / MANIFEST_NAME).write_text("{")
    again = await started(config)
    assert tiers_of(again, manifest) == ["disk"]
    assert not (config.dram_dir / manifest.id).exists()


async def test_damage_on_disk_never_reaches_dram(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    await (await started(config)).acquire(manifest.id, DirectoryFolder(directory))
    LocalTier("dram", config.dram_dir).remove(manifest.id)
    weights = config.disk_dir / manifest.id / "rank-00.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = await started(config)
    with pytest.raises(CorruptSnapshotError, match="rank-00"):
        await again.acquire(manifest.id)
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
        await store.acquire(manifest.id, DirectoryFolder(broken))
    with pytest.raises(RemoteError):
        await store.acquire(manifest.id, DirectoryFolder(tmp_path / "nowhere"))
    with pytest.raises(SnapshotMissingError):
        await store.acquire(manifest.id, DirectoryFolder(published[1][1]))
    assert tiers_of(store, manifest) == []
    assert (await store.acquire(manifest.id, DirectoryFolder(directory))).tier == "dram"


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
    place = await store.acquire(manifest.id, DirectoryFolder(directory))
    assert place.tier != full
    assert tiers_of(store, manifest) == [place.tier]


async def test_memory_that_others_fill_during_the_copy_is_left_out(
    config: StoreConfig, published: list[tuple[Manifest, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PartialSnapshot.write

    def write_unless_full(partial: PartialSnapshot, file: FileEntry, start: int, content: memoryview) -> None:
        if partial.tier == "dram":
            raise TierFullError("dram", manifest.size_bytes, 0)
        write(partial, file, start, content)

    monkeypatch.setattr(PartialSnapshot, "write", write_unless_full)
    manifest, directory = published[0]
    store = await started(config)
    assert (await store.acquire(manifest.id, DirectoryFolder(directory))).tier == "disk"
    assert tiers_of(store, manifest) == ["disk"]
    # From disk to memory alone: it stays where it is.
    assert (await store.acquire(manifest.id)).tier == "disk"
    assert tiers_of(store, manifest) == ["disk"]
    monkeypatch.undo()
    assert (await store.acquire(manifest.id)).tier == "dram"


async def test_removal(config: StoreConfig, published: list[tuple[Manifest, Path]]) -> None:
    manifest, directory = published[0]
    store = await started(config)
    lease, _ = await held(store, config, manifest, DirectoryFolder(directory))
    with pytest.raises(SnapshotBusyError, match="1 leases"):
        await store.remove(manifest.id)
    lease.release()
    await store.remove(manifest.id)
    assert tiers_of(store, manifest) == []
    with pytest.raises(SnapshotMissingError):
        await store.remove(manifest.id)


def is_there(place: Place) -> bool:
    return Path(place.path, MANIFEST_NAME).is_file()


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
        leases: list[tuple[Lease, Place]] = []
        for action, index in steps:
            manifest, directory = published[index]
            with contextlib.suppress(TierFullError, SnapshotMissingError, SnapshotBusyError):
                if action == "acquire":
                    leases.append(await held(store, config, manifest, DirectoryFolder(directory)))
                elif action == "release" and leases:
                    leases.pop()[0].release()
                elif action in {"pin", "unpin"}:
                    await store.pin(manifest.id, "dram" if action == "pin" else None)
                elif action == "remove":
                    await store.remove(manifest.id)
                elif action == "restart":
                    store = await started(config)
            described = store.describe()
            assert all(tier["used_bytes"] <= tier["capacity_bytes"] for tier in described.values())
            assert all(is_there(place) for _, place in leases), "a leased one is gone"
        for lease, _ in leases:
            lease.release()

    asyncio.run(play())
