"""A local tier: a directory of snapshots, each whole or not there.

Covers: half-written snapshots and their commit, recovery after a crash, removal. ``disk`` and ``dram`` are the same
but for how bytes get in: dram is mapped memory that a source writes straight into. Does not cover: what is kept
(``cache``) and copying (``promote``).

    root/<snapshot id>/…           a whole snapshot
    root/.partial/<id>.<random>/…  one being written; its owner holds a lock on ``.lock`` in it
    root/.trash/…                  one being removed
"""

import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Literal, Self

from storage.errors import CorruptSnapshotError, ManifestError, SnapshotMissingError, StorageError, TierFullError
from storage.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest

TierName = Literal["dram", "disk"]

_ID = re.compile(r"[0-9a-f]{64}")
_LOCK_NAME = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}


class LocalTier:
    """Snapshots below ``root``. Methods block and are thread-safe; several processes may share a root."""

    def __init__(self, name: TierName, root: Path) -> None:
        self.name = name
        self.root = root
        self._partials = root / ".partial"
        self._trash = root / ".trash"
        for directory in (root, self._partials, self._trash):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def recover(self) -> None:
        """Remove what writers and removers that died have left."""
        # Under the lock that `begin` takes, so that none is taken for dead before it has its own.
        with _Lock(self._partials, wait=True):
            for partial in [entry for entry in self._partials.iterdir() if entry.is_dir()]:
                with _Lock(partial) as lock:
                    if lock.taken:
                        shutil.rmtree(partial, ignore_errors=True)
        for rest in list(self._trash.iterdir()):
            shutil.rmtree(rest, ignore_errors=True)

    def ids(self) -> list[str]:
        """Return the ids of the snapshots that are here, sorted."""
        return sorted(entry.name for entry in self.root.iterdir() if _ID.fullmatch(entry.name))

    def path(self, snapshot_id: str) -> Path:
        """Return the directory of a snapshot, whether it is here or not."""
        return self.root / snapshot_id

    def __contains__(self, snapshot_id: str) -> bool:
        return self.path(snapshot_id).is_dir()

    def manifest(self, snapshot_id: str) -> Manifest:
        """Return a snapshot's manifest.

        Raises:
            SnapshotMissingError: it is not here.
            ManifestError: its manifest can't be used, or is another one's.
        """
        return read_manifest(self.path(snapshot_id), snapshot_id)

    def begin(self, manifest: Manifest) -> "PartialSnapshot":
        """Return an empty snapshot to be filled, with room for every byte set aside.

        Raises:
            TierFullError: there is no room; nothing is left behind.
        """
        directory = self._partials / f"{manifest.id}.{secrets.token_hex(4)}"
        with _Lock(self._partials, wait=True):
            directory.mkdir()
            partial = PartialSnapshot(self, manifest, directory)
        try:
            partial.allocate()
        except OSError as error:
            partial.abandon()
            if error.errno in _FULL:
                free = shutil.disk_usage(self.root).free
                raise TierFullError(self.name, manifest.size_bytes, free) from error
            raise _unusable(self, error) from error
        return partial

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; processes that have mapped it keep what they mapped.

        Raises:
            SnapshotMissingError: it is not here.
        """
        rest = self._trash / f"{snapshot_id}.{secrets.token_hex(4)}"
        try:
            self.path(snapshot_id).rename(rest)
        except FileNotFoundError as error:
            raise SnapshotMissingError(snapshot_id) from error
        shutil.rmtree(rest, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<LocalTier {self.name} at {self.root}, {len(self.ids())} snapshots>"


class PartialSnapshot:
    """A snapshot being written; ends with ``commit`` or ``abandon``. Different threads may write different ranges."""

    def __init__(self, tier: LocalTier, manifest: Manifest, directory: Path) -> None:
        self.manifest = manifest
        self.tier = tier
        self._directory = directory
        self._lock = _Lock(directory)
        self._lock.__enter__()
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def allocate(self) -> None:
        """Set the room aside, so that no later write can find the tier full."""
        for file in self.manifest.files:
            path = self._directory / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            self._descriptors[file.path] = descriptor
            if file.size_bytes:
                os.posix_fallocate(descriptor, 0, file.size_bytes)
                if self.tier.name == "dram":
                    self._maps[file.path] = mmap.mmap(descriptor, file.size_bytes)

    def memory(self, file: FileEntry, start: int, end: int) -> memoryview | None:
        """Return the snapshot's own memory for a range, to be written into; None if this tier is no memory."""
        mapped = self._maps.get(file.path)
        return None if mapped is None else memoryview(mapped)[start:end]

    def write(self, file: FileEntry, start: int, content: memoryview) -> None:
        """Write a range.

        Raises:
            StorageError: it could not be written.
        """
        done = 0
        try:
            while done < len(content):
                done += os.pwrite(self._descriptors[file.path], content[done:], start + done)
        except OSError as error:
            raise _unusable(self.tier, error) from error

    def commit(self) -> Path:
        """Make the snapshot appear, whole and durable, and return its directory. One that is there already is kept.

        Raises:
            StorageError: it could not be made durable; nothing is left behind.
        """
        target = self.tier.path(self.manifest.id)
        try:
            (self._directory / MANIFEST_NAME).write_bytes(self.manifest.to_json())
            self._sync()
            (self._directory / _LOCK_NAME).unlink(missing_ok=True)
            self._directory.rename(target)
            _sync_directory(self.tier.root)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return target
            raise _unusable(self.tier, error) from error
        finally:
            self.abandon()
        return target

    def abandon(self) -> None:
        """Remove what was written, unless it was committed; harmless afterwards."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        # Not closed by hand: a thread may still hold a view. They end with the last one.
        self._maps.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.__exit__()

    def _sync(self) -> None:
        if self.tier.name == "dram":
            return  # memory doesn't outlive the machine anyway
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        with (self._directory / MANIFEST_NAME).open("rb") as file:
            os.fsync(file.fileno())
        for directory, _, _ in os.walk(self._directory):
            _sync_directory(Path(directory))

    def __repr__(self) -> str:
        return f"<PartialSnapshot {self.manifest.name} in {self.tier.name}>"


def read_manifest(directory: Path, snapshot_id: str) -> Manifest:
    """Return the manifest of the snapshot in ``directory``. Raises as ``LocalTier.manifest``."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        if directory.is_dir():
            raise CorruptSnapshotError(str(directory), MANIFEST_NAME, "is missing") from error
        raise SnapshotMissingError(snapshot_id) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ManifestError(str(path), f"it has more than {MAX_MANIFEST_BYTES} bytes")
    manifest = parse_manifest(content, str(path))
    if manifest.id != snapshot_id:
        raise ManifestError(str(path), f"it is that of {manifest.id}")
    return manifest


class _Lock:
    """A lock that its process's death releases; ``taken`` tells whether this object got it."""

    def __init__(self, directory: Path, *, wait: bool = False) -> None:
        self._path = directory / _LOCK_NAME
        self._operation = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        self._descriptor: int | None = None
        self.taken = False

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, self._operation)
            self.taken = True
        except OSError:
            # Gone, or held by its writer.
            self.taken = False
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(tier: LocalTier, error: OSError) -> StorageError:
    if error.errno in _FULL:
        return TierFullError(tier.name, 0, shutil.disk_usage(tier.root).free)
    return CorruptSnapshotError(str(tier.root), error.filename or "a file", f"can't be written: {error.strerror}")
