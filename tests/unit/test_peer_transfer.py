"""Stores that fill from each other: who is asked, and what happens when one dies, lies, hangs or is only half there."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers import Town, hang
from snapshot_samples import make_snapshot_of_files

from storage.errors import RemoteError, RemoteMissingError, SnapshotMissingError
from storage.folders import DirectoryFolder, FileInfo, Pieces
from storage.manifest import MANIFEST_NAME, Manifest
from storage.peer import Failure
from storage.peer_folder import PeerPolicy
from storage.peer_plan import Limits
from storage.promote import CopyPolicy
from storage.store import SnapshotStore, StoreConfig
from storage.store_watch import Unwatched

CHUNKS, CHUNK_BYTES = 24, 1000
POLICY = PeerPolicy(
    limits=Limits(patience_s=5.0), block_bytes=400, answer_s=5.0, read_s=5.0, tick_s=0.2, between_s=0.001
)


class Counting(DirectoryFolder):
    """Counts reads of chunks; each waits for ``gate`` and, if told so, takes ``seconds``."""

    def __init__(self, root: Path, seconds: float = 0.0) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.gate = threading.Semaphore(1_000_000)
        self.asked = threading.Event()
        self._seconds = seconds

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        if file.path != MANIFEST_NAME:
            self.asked.set()
            assert self.gate.acquire(timeout=20)
            time.sleep(self._seconds)
            self.reads[file.path] += 1
        yield from super().read_pieces(file, start, end, buffer)


class Watch(Unwatched):
    def __init__(self) -> None:
        self.fetched_bytes: Counter[str] = Counter()
        self.failures: list[Failure] = []

    def fetched(self, origin: str, size_bytes: int) -> None:
        self.fetched_bytes[origin] += size_bytes

    def peer_failed(self, reason: Failure) -> None:
        self.failures.append(reason)


class Nodes:
    """Stores on nodes of one town."""

    def __init__(self, root: Path) -> None:
        self.town = Town()
        self.watches: dict[str, Watch] = {}
        self._root = root

    async def add(self, name: str, **changes: Any) -> SnapshotStore:
        config = StoreConfig(
            self._root / name / "dram", 1 << 20, self._root / name / "disk", 0,
            copy=CopyPolicy(threads=4, attempts=2, first_wait_s=0.0, longest_wait_s=0.0), peer=POLICY,
        )  # fmt: skip
        config = replace(config, **changes)
        self.watches[name] = Watch()
        store = SnapshotStore(config, watch=self.watches[name], neighbours=self.town.of(name))
        await store.recover()
        if store.exchange is not None:
            self.town.exchanges[name] = store.exchange
        return store


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def manifest(published: Path) -> Manifest:
    return make_snapshot_of_files(published, CHUNKS, CHUNK_BYTES)


async def whole(nodes: Nodes, name: str, manifest: Manifest, published: Path) -> SnapshotStore:
    store = await nodes.add(name)
    await store.acquire(manifest.id, DirectoryFolder(published))
    return store


async def test_a_group_reads_the_source_about_once(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    source = Counting(published, seconds=0.05)
    stores = [await nodes.add(f"n{number}") for number in range(6)]
    await asyncio.gather(*(store.acquire(manifest.id, source) for store in stores))
    for store in stores:
        await store.verify(manifest.id)
    # Six nodes alone would read six copies.
    assert CHUNKS <= source.reads.total() <= 1.5 * CHUNKS
    read = sum(watch.fetched_bytes["source"] for watch in nodes.watches.values())
    got = sum(watch.fetched_bytes["peer"] for watch in nodes.watches.values())
    assert read == source.reads.total() * CHUNK_BYTES
    assert got >= 5 * CHUNKS * CHUNK_BYTES - (read - CHUNKS * CHUNK_BYTES)
    assert max(nodes.town.most_at_once.values()) <= POLICY.limits.per_peer


async def test_what_peers_have_is_not_read_from_the_source(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    for name in ("a", "b"):
        await whole(nodes, name, manifest, published)
    source = Counting(published)
    store = await nodes.add("c")
    assert (await store.acquire(manifest.id, source)).tier == "dram"
    await store.verify(manifest.id)
    assert not source.reads
    assert {giver for giver, _ in nodes.town.reads} == {"a", "b"}, "several at once"


async def test_without_a_source_a_peer_will_do(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    await whole(nodes, "a", manifest, published)
    store = await nodes.add("b")
    await store.acquire(manifest.id)
    await store.verify(manifest.id)
    with pytest.raises(SnapshotMissingError):
        await store.acquire("0" * 64)


async def test_a_source_that_is_down_is_not_needed(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    await whole(nodes, "a", manifest, published)
    store = await nodes.add("b")
    await store.acquire(manifest.id, DirectoryFolder(published.with_name("gone")))
    await store.verify(manifest.id)
    with pytest.raises(RemoteError):
        await store.acquire("0" * 64, DirectoryFolder(published.with_name("gone")))


async def test_a_node_that_is_still_filling_feeds_others(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    source = Counting(published)
    source.gate = threading.Semaphore(CHUNKS // 2)
    first, second = await nodes.add("a"), await nodes.add("b")
    filling = asyncio.create_task(first.acquire(manifest.id, source))
    await until(lambda: source.reads.total() == CHUNKS // 2)
    fed = asyncio.create_task(second.acquire(manifest.id))
    await until(lambda: nodes.watches["b"].fetched_bytes["peer"] == CHUNKS // 2 * CHUNK_BYTES)
    assert not filling.done()
    assert not fed.done()
    source.gate.release(CHUNKS)
    await asyncio.gather(filling, fed)
    await second.verify(manifest.id)
    assert source.reads == Counter({file.path: 1 for file in manifest.files})


async def test_a_peer_that_dies_in_the_middle_is_replaced_by_the_source(
    nodes: Nodes, manifest: Manifest, published: Path
) -> None:
    await whole(nodes, "a", manifest, published)

    async def dies(chunk: int, start: int) -> None:
        # In the middle of a chunk too: a block of it has come already.
        if chunk >= CHUNKS // 2 and start:
            nodes.town.dead.add("a")

    nodes.town.faults["a"] = dies
    source, store = Counting(published), await nodes.add("b")
    await store.acquire(manifest.id, source)
    await store.verify(manifest.id)
    assert nodes.watches["b"].failures == ["lost"]
    missing = CHUNKS - nodes.watches["b"].fetched_bytes["peer"] / CHUNK_BYTES
    assert 0 < missing < CHUNKS
    assert source.reads.total() == missing, "each chunk once, from one or the other"


@pytest.mark.parametrize("wrong", [lambda size: b"x" * size, lambda size: b"x" * (size - 1), lambda _: b""])
async def test_wrong_bytes_are_noticed_and_their_giver_is_not_asked_again(
    nodes: Nodes, manifest: Manifest, published: Path, wrong: Callable[[int], bytes]
) -> None:
    for name in ("a", "b"):
        await whole(nodes, name, manifest, published)
    lied: list[int] = []

    async def lies(chunk: int, start: int) -> bytes | None:
        if start == 800:
            lied.append(chunk)
            return wrong(200)
        return None

    nodes.town.faults["a"] = lies
    source, store = Counting(published), await nodes.add("c")
    await store.acquire(manifest.id, source)
    await store.verify(manifest.id)
    assert nodes.watches["c"].failures == ["wrong"]
    assert 1 <= len(lied) <= POLICY.limits.per_peer, "no more than what was on its way already"
    assert source.reads.total() <= POLICY.limits.per_peer, "the other peer gave the rest"


IMPATIENT = replace(POLICY, answer_s=0.5, read_s=0.5)


async def test_a_peer_that_hangs_is_left_after_a_while(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    await whole(nodes, "a", manifest, published)
    nodes.town.faults["a"] = hang
    source, store = Counting(published), await nodes.add("b", peer=IMPATIENT)
    acquiring = asyncio.create_task(store.acquire(manifest.id, source))
    await until(lambda: nodes.town.under_way["a", "b"] == POLICY.limits.per_peer)
    # It answers others meanwhile.
    assert store.describe()["dram"]["snapshots"][0]["whole"] is False
    assert store.exchange is not None
    told = await store.exchange.progress(manifest.id, 0, "a")
    assert told is not None
    assert not told.have
    begin_s = time.monotonic()
    await acquiring
    assert time.monotonic() - begin_s < 10 * IMPATIENT.read_s
    await store.verify(manifest.id)
    assert nodes.watches["b"].failures == ["slow"]
    assert source.reads.total() == CHUNKS
    assert not nodes.town.under_way["a", "b"], "what is not waited for any more is cancelled"


async def test_a_peer_that_never_says_what_it_has_costs_its_time_to_answer(
    nodes: Nodes, manifest: Manifest, published: Path
) -> None:
    silent = await whole(nodes, "a", manifest, published)
    assert silent.exchange is not None
    silent.exchange.progress = lambda *_: asyncio.Event().wait()  # type: ignore[assignment,method-assign,return-value]
    source, store = Counting(published), await nodes.add("b", peer=IMPATIENT)
    begin_s = time.monotonic()
    await store.acquire(manifest.id, source)
    assert IMPATIENT.answer_s <= time.monotonic() - begin_s < 10 * IMPATIENT.answer_s
    assert source.reads.total() == CHUNKS
    with pytest.raises(SnapshotMissingError):
        await store.acquire("0" * 64)


async def test_without_a_source_the_last_peers_death_leaves_nothing_behind(
    nodes: Nodes, manifest: Manifest, published: Path
) -> None:
    await whole(nodes, "a", manifest, published)

    async def dies(chunk: int, _start: int) -> None:
        if chunk == 5:
            nodes.town.dead.add("a")

    nodes.town.faults["a"] = dies
    store = await nodes.add("b")
    with pytest.raises(SnapshotMissingError):
        await store.acquire(manifest.id)
    assert store.describe()["dram"]["snapshots"] == []
    nodes.town.dead.clear()
    nodes.town.faults.clear()
    await store.acquire(manifest.id)
    await store.verify(manifest.id)


async def test_a_peer_with_other_bytes_under_the_same_id_is_not_asked(
    nodes: Nodes, manifest: Manifest, published: Path, tmp_path: Path
) -> None:
    other = make_snapshot_of_files(tmp_path / "other", CHUNKS + 1, CHUNK_BYTES)
    assert other.id == manifest.id
    await whole(nodes, "a", other, tmp_path / "other")
    source, store = Counting(published), await nodes.add("b")
    await store.acquire(manifest.id, source)
    await store.verify(manifest.id)
    assert source.reads.total() == CHUNKS
    assert not nodes.town.reads


@pytest.mark.parametrize("tier", ["dram", "disk"])
async def test_what_is_not_here_is_not_given(nodes: Nodes, manifest: Manifest, published: Path, tier: str) -> None:
    source = Counting(published)
    source.gate = threading.Semaphore(0)
    # On disk the room of every byte is set aside at once, so something could be read.
    store = await nodes.add("a", **{"dram_bytes": 0, "disk_bytes": 0, f"{tier}_bytes": 1 << 20})
    filling = asyncio.create_task(store.acquire(manifest.id, source))
    assert store.exchange is not None
    with pytest.raises(RemoteMissingError):
        await store.exchange.read("0" * 64, 0, 0, 10)
    await until(source.asked.is_set)
    with pytest.raises(RemoteMissingError, match="not here"):
        await store.exchange.read(manifest.id, 0, 0, 10)
    source.gate.release(CHUNKS)
    await filling
    assert await store.exchange.read(manifest.id, 1, 10, 20) == (published / "part-001.txt").read_bytes()[10:20]
    for chunk, start, end in ((CHUNKS, 0, 10), (-1, 0, 10), (0, 0, CHUNK_BYTES), (0, 900, 1001), (0, 5, 5), (0, -1, 5)):
        with pytest.raises(RemoteError):
            await store.exchange.read(manifest.id, chunk, start, end)


async def test_switched_off_nobody_is_asked_or_answered(nodes: Nodes, manifest: Manifest, published: Path) -> None:
    await whole(nodes, "a", manifest, published)
    source, store = Counting(published), await nodes.add("b", peers=False)
    assert store.exchange is None
    await store.acquire(manifest.id, source)
    assert source.reads.total() == CHUNKS
    assert not nodes.town.reads


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.005)
