"""Copying over a source that fails: what may pass is tried again, what may not ends the copy at once."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from snapshot_samples import make_snapshot

from storage.errors import (
    CorruptSnapshotError,
    RemoteChangedError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
)
from storage.folders import DirectoryFolder, FileInfo, Pieces
from storage.manifest import CHUNK_BYTES, Manifest
from storage.promote import CopyPolicy, copy_snapshot
from storage.snapshot import verify
from storage.tier import LocalTier

AT_ONCE = CopyPolicy(threads=3, attempts=3, first_wait_s=0.0, longest_wait_s=0.0)
WEIGHTS = "rank-00.safetensors"


class FaultyFolder(DirectoryFolder):
    """Fails the first reads of a chunk as told: (path, start) → errors."""

    def __init__(self, root: Path, faults: dict[tuple[str, int], list[Exception]]) -> None:
        super().__init__(root)
        self.faults = faults
        self.reads: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        with self._lock:
            self.reads[file.path, start] += 1
            pending = self.faults.get((file.path, start), [])
            error = pending.pop(0) if pending else None
        if error is not None:
            # Half an answer: what was written of it must not survive.
            yield memoryview(b"x" * ((end - start) // 2))
            raise error
        yield from super().read_pieces(file, start, end, buffer)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_snapshot(tmp_path / "made", weights_bytes=3 * CHUNK_BYTES)


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    return LocalTier("dram", tmp_path / "dram")


def copied(manifest: Manifest, source: FaultyFolder, tier: LocalTier, policy: CopyPolicy = AT_ONCE) -> None:
    partial = tier.begin(manifest)
    try:
        copy_snapshot(manifest, source, [partial], policy)
        verify(manifest, partial.commit())
    finally:
        partial.abandon()


def test_what_passes_is_tried_again(tmp_path: Path, manifest: Manifest, tier: LocalTier) -> None:
    faults: dict[tuple[str, int], list[Exception]] = {
        (WEIGHTS, 0): [RemoteError("s3://x", "cut"), RemoteError("s3://x", "500")],
        (WEIGHTS, 2 * CHUNK_BYTES): [RemoteError("s3://x", "503")],
    }
    source = FaultyFolder(tmp_path / "made", faults)
    copied(manifest, source, tier)
    assert source.reads[WEIGHTS, 0] == 3
    assert source.reads[WEIGHTS, CHUNK_BYTES] == 1
    assert source.reads[WEIGHTS, 2 * CHUNK_BYTES] == 2


def test_patience_ends(tmp_path: Path, manifest: Manifest, tier: LocalTier) -> None:
    source = FaultyFolder(tmp_path / "made", {(WEIGHTS, 0): [RemoteError("s3://x", "500")] * 3})
    with pytest.raises(RemoteError, match="500"):
        copied(manifest, source, tier)
    assert source.reads[WEIGHTS, 0] == 3
    assert tier.ids() == []


@pytest.mark.parametrize("kind", [RemoteChangedError, RemoteDeniedError, RemoteMissingError])
def test_what_stays_ends_it_at_once(
    tmp_path: Path, manifest: Manifest, tier: LocalTier, kind: type[RemoteError]
) -> None:
    source = FaultyFolder(tmp_path / "made", {(WEIGHTS, 0): [kind("s3://x", "no")]})
    with pytest.raises(kind):
        copied(manifest, source, tier)
    assert source.reads[WEIGHTS, 0] == 1


def test_a_failure_stops_the_chunks_that_wait(tmp_path: Path, manifest: Manifest, tier: LocalTier) -> None:
    source = FaultyFolder(tmp_path / "made", {(WEIGHTS, 0): [RemoteDeniedError("s3://x", "no")]})
    with pytest.raises(RemoteDeniedError):
        copied(manifest, source, tier, CopyPolicy(threads=1, attempts=1))
    assert (WEIGHTS, 2 * CHUNK_BYTES) not in source.reads


def test_the_deadline_holds_however_many_attempts_there_are(
    tmp_path: Path, manifest: Manifest, tier: LocalTier
) -> None:
    source = FaultyFolder(tmp_path / "made", {(WEIGHTS, 0): [RemoteError("s3://x", "slow")] * 1000})
    begin_s = time.monotonic()
    with pytest.raises(RemoteError):
        copied(manifest, source, tier, CopyPolicy(attempts=1000, first_wait_s=1, longest_wait_s=60, deadline_s=0.3))
    assert time.monotonic() - begin_s < 5


def test_a_source_that_lacks_a_file_is_refused_before_anything_is_read(
    tmp_path: Path, manifest: Manifest, tier: LocalTier
) -> None:
    (tmp_path / "made" / "config.json").unlink()
    source = FaultyFolder(tmp_path / "made", {})
    with pytest.raises(CorruptSnapshotError, match=r"config\.json is missing"):
        copied(manifest, source, tier)
    assert source.reads == Counter()
