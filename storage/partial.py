"""Snapshots that are not whole yet: written by a copy or by an engine, then committed in one step or gone.

Covers: the lock that tells a living writer from a dead one, setting room aside, durability. Does not cover: where they
end up (``tier``) and what fills them (``promote``, ``deployments.snapshot_builder``).
"""

import errno
import fcntl
import os
import secrets
import shutil
import threading
from pathlib import Path
from typing import Literal, Self

from storage.errors import CorruptSnapshotError, StorageError, TierFullError
from storage.manifest import MANIFEST_NAME, FileEntry, Manifest

TierName = Literal["dram", "disk"]

PARTIALS_NAME = ".partial"
_LOCK_NAME = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}


class UnfinishedSnapshot:
    """A directory to put a snapshot's files into, in ``root/.partial``; ends with ``finish`` or ``abandon``."""

    def __init__(self, tier: TierName, root: Path) -> None:
        self.tier: TierName = tier
        self._root = root
        self.directory = root / PARTIALS_NAME / secrets.token_hex(8)
        # A thread may still be finishing what another one gives up: what is being removed must not appear.
        self._ending = threading.Lock()
        self._is_given_up = False
        # Under the lock of those who look for dead writers: this one must not be taken for dead before it has its own.
        with DirectoryLock(root / PARTIALS_NAME, wait=True):
            self.directory.mkdir()
            self._lock = DirectoryLock(self.directory)
            self._lock.__enter__()

    def finish(self, manifest: Manifest) -> Path:
        """Make the snapshot appear, whole and durable, and return its directory. One that is there already is kept.

        Raises:
            StorageError: it could not be made durable, or another thread gave it up; nothing is left behind.
        """
        target = self._root / manifest.id
        try:
            (self.directory / MANIFEST_NAME).write_bytes(manifest.to_json())
            if self.tier == "disk":  # memory doesn't outlive the machine anyway
                sync_tree(self.directory)
            with DirectoryLock(self._root / PARTIALS_NAME, wait=True), self._ending:
                if self._is_given_up:
                    raise FileNotFoundError(errno.ENOENT, "it was given up", str(self.directory))
                (self.directory / _LOCK_NAME).unlink(missing_ok=True)
                self.directory.rename(target)
            _sync(self._root)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise write_error(self.tier, self._root, error) from error
        finally:
            self.abandon()
        return target

    def abandon(self) -> None:
        """Remove what was written, unless it was finished; harmless afterwards."""
        with self._ending:
            self._is_given_up = True
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self.tier}>"


class PartialSnapshot(UnfinishedSnapshot):
    """A copy whose manifest is known. Threads may write different ranges.

    On disk room is set aside for every byte at once, which takes no time. In dram it would take as long as half of the
    copy, so there it is only seen that there is room, and who fills the memory meanwhile ends the copy.
    """

    def __init__(self, tier: TierName, root: Path, manifest: Manifest) -> None:
        """Raises TierFullError when there is no room; nothing is left behind."""
        super().__init__(tier, root)
        self.manifest = manifest
        self._descriptors: dict[str, int] = {}
        try:
            self.allocate()
        except OSError as error:
            self.abandon()
            raise write_error(tier, root, error, manifest.size_bytes) from error

    def allocate(self) -> None:
        """Make the files, and set their room aside or see that there is some."""
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < self.manifest.size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file in self.manifest.files:
            path = self.directory / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            self._descriptors[file.path] = descriptor
            if file.size_bytes and self.tier == "disk":
                os.posix_fallocate(descriptor, 0, file.size_bytes)

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
            raise write_error(self.tier, self._root, error, self.manifest.size_bytes) from error

    def commit(self) -> Path:
        """See ``finish``."""
        return self.finish(self.manifest)

    def abandon(self) -> None:
        """See ``UnfinishedSnapshot``."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        super().abandon()


class DirectoryLock:
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


def remove_dead(root: Path) -> None:
    """Remove the unfinished snapshots below ``root`` whose writers have died."""
    with DirectoryLock(root / PARTIALS_NAME, wait=True):
        for directory in [entry for entry in (root / PARTIALS_NAME).iterdir() if entry.is_dir()]:
            with DirectoryLock(directory) as lock:
                if lock.taken:
                    shutil.rmtree(directory, ignore_errors=True)


def write_error(tier: TierName, root: Path, error: OSError, needed_bytes: int = 0) -> StorageError:
    """Return the error of this package for a write that failed."""
    if error.errno in _FULL:
        return TierFullError(tier, needed_bytes, shutil.disk_usage(root).free)
    return CorruptSnapshotError(str(root), str(error.filename or "a file"), f"can't be written: {error.strerror}")


def sync_tree(directory: Path) -> None:
    """Make a directory and all in it survive a crash of the machine. Raises OSError."""
    for parent, _, names in os.walk(directory):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
