"""Local tiers: whole or not there, whatever happens in between; the same for disk and dram."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from snapshot_samples import make_snapshot

from storage.errors import (
    CorruptSnapshotError,
    ManifestError,
    RemoteError,
    SnapshotMissingError,
    TierFullError,
)
from storage.folders import DirectoryFolder
from storage.manifest import CHUNK_BYTES, MANIFEST_NAME, Manifest
from storage.partial import TierName
from storage.promote import CopyPolicy, copy_snapshot
from storage.snapshot import verify
from storage.tier import LocalTier

ONCE = CopyPolicy(threads=2, attempts=1)


@pytest.fixture(params=["disk", "dram"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> LocalTier:
    name: TierName = request.param
    return LocalTier(name, tmp_path / "tier")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made"


@pytest.fixture
def manifest(made: Path) -> Manifest:
    # More than one chunk, and not a whole number of them.
    return make_snapshot(made, weights_bytes=2 * CHUNK_BYTES + 12_345)


def left_behind(tier: LocalTier) -> list[str]:
    return [path.name for hidden in (".partial", ".trash") for path in (tier.root / hidden).iterdir() if path.is_dir()]


def test_a_committed_snapshot_is_there_and_whole(tier: LocalTier, made: Path, manifest: Manifest) -> None:
    partial = tier.begin(manifest)
    copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    assert tier.ids() == []
    path = partial.commit()
    assert tier.ids() == [manifest.id]
    assert manifest.id in tier
    assert tier.manifest(manifest.id) == manifest
    verify(manifest, path)
    assert left_behind(tier) == []
    assert repr(tier) == f"<LocalTier {tier.name} at {tier.root}, 1 snapshots>"


def test_two_tiers_fill_from_one_read(tmp_path: Path, made: Path, manifest: Manifest) -> None:
    tiers = [LocalTier("dram", tmp_path / "dram"), LocalTier("disk", tmp_path / "disk")]
    partials = [tier.begin(manifest) for tier in tiers]
    read: list[int] = []
    copy_snapshot(manifest, DirectoryFolder(made), partials, ONCE, read.append)
    for partial in partials:
        verify(manifest, partial.commit())
    assert sum(read) == manifest.size_bytes


def test_an_abandoned_one_leaves_nothing(tier: LocalTier, manifest: Manifest) -> None:
    partial = tier.begin(manifest)
    partial.abandon()
    partial.abandon()
    assert left_behind(tier) == tier.ids() == []


def test_one_given_up_while_a_thread_finishes_it_does_not_appear(
    tier: LocalTier, made: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tier.begin(manifest)
    copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    remove = shutil.rmtree
    finishing = ThreadPoolExecutor(1)
    finished: list[Future[Path]] = []

    def finished_meanwhile(directory: Path, **options: bool) -> None:
        monkeypatch.undo()
        finished.append(finishing.submit(partial.commit))
        finished[0].exception()
        remove(directory, **options)

    monkeypatch.setattr(shutil, "rmtree", finished_meanwhile)
    partial.abandon()
    with pytest.raises(CorruptSnapshotError, match="given up"):
        finished[0].result()
    assert not tier.ids()
    assert not left_behind(tier)


def test_a_second_commit_keeps_the_first(tier: LocalTier, made: Path, manifest: Manifest) -> None:
    partials = [tier.begin(manifest), tier.begin(manifest)]
    for partial in partials:
        copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    first = partials[0].commit()
    inode = (first / MANIFEST_NAME).stat().st_ino
    assert partials[1].commit() == first
    assert (first / MANIFEST_NAME).stat().st_ino == inode
    assert left_behind(tier) == []


def test_no_room_is_said_before_a_byte_is_copied(
    tier: LocalTier, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tier.root)._replace(free=manifest.size_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TierFullError, match=f"the {tier.name} tier is full: {manifest.size_bytes} bytes"):
        tier.begin(manifest)
    assert left_behind(tier) == []


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_sets_its_room_aside_at_once(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = LocalTier("disk", tmp_path / "tier")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TierFullError, match=f"the disk tier is full: {manifest.size_bytes} bytes"):
        tier.begin(manifest)
    assert left_behind(tier) == []


def test_memory_that_others_take_meanwhile_ends_the_copy(
    tmp_path: Path, made: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = LocalTier("dram", tmp_path / "tier")
    calls = itertools.count()
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *asked: full() if next(calls) == 3 else write(*asked))
    with tier.begin(manifest) as partial, pytest.raises(TierFullError, match="the dram tier is full"):
        copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    assert left_behind(tier) == tier.ids() == []


def test_recovery_removes_what_the_dead_left_and_nothing_else(tier: LocalTier, made: Path, manifest: Manifest) -> None:
    program = (
        "import os, sys; from pathlib import Path; from storage.tier import LocalTier, read_manifest\n"
        f"tier = LocalTier({tier.name!r}, Path({str(tier.root)!r}))\n"
        f"tier.begin(read_manifest(Path({str(made)!r}), {manifest.id!r})); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    alive = tier.begin(manifest)
    (tier.root / ".trash" / "rest").mkdir()
    assert len(left_behind(tier)) == 3
    LocalTier(tier.name, tier.root).recover()
    assert len(left_behind(tier)) == 1
    copy_snapshot(manifest, DirectoryFolder(made), [alive], ONCE)
    verify(manifest, alive.commit())


def test_removal(tier: LocalTier, made: Path, manifest: Manifest) -> None:
    partial = tier.begin(manifest)
    copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    partial.commit()
    (tier.beside(manifest.id) / "compiled").mkdir(parents=True)
    tier.remove(manifest.id)
    assert left_behind(tier) == tier.ids() == []
    assert not tier.beside(manifest.id).exists()
    with pytest.raises(SnapshotMissingError, match=manifest.id):
        tier.remove(manifest.id)
    with pytest.raises(SnapshotMissingError):
        tier.manifest(manifest.id)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("damage", [_truncate, _flip, _lengthen, Path.unlink])
@pytest.mark.parametrize("file", ["rank-00.safetensors", "config.json"])
def test_damage_is_found_and_named(made: Path, manifest: Manifest, tier: LocalTier, damage: object, file: str) -> None:
    damage(made / file)  # type: ignore[operator]
    with pytest.raises(CorruptSnapshotError, match=file):
        verify(manifest, made)
    partial = tier.begin(manifest)
    with pytest.raises(CorruptSnapshotError, match=file):
        copy_snapshot(manifest, DirectoryFolder(made), [partial], ONCE)
    partial.abandon()
    assert left_behind(tier) == tier.ids() == []


def test_what_does_not_belong_is_found(made: Path, manifest: Manifest, tmp_path: Path) -> None:
    (made / "evil.pkl").write_bytes(b"1")
    with pytest.raises(CorruptSnapshotError, match=r"evil\.pkl is not in the manifest"):
        verify(manifest, made)
    (made / "evil.pkl").unlink()
    (tmp_path / "config.json").write_text("{}")
    (made / "config.json").unlink()
    (made / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(RemoteError, match="leaves"):
        verify(manifest, made)


def test_another_ones_manifest_is_refused(tier: LocalTier, manifest: Manifest) -> None:
    directory = tier.path("0" * 64)
    directory.mkdir()
    with pytest.raises(CorruptSnapshotError, match="is missing"):
        tier.manifest("0" * 64)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    with pytest.raises(ManifestError, match=f"it is that of {manifest.id}"):
        tier.manifest("0" * 64)
