"""Adapters' files on this node's disk, by content: nobody who changes the original changes one that is in use.

    root/.adapters/<digest>/adapter_config.json, adapter_model.safetensors    whole, and never changed
    root/.adapters/<digest>/.in-use                                           locked, shared, by whoever may load it
    root/.adapters/.partial/<random>/                                         being copied

Covers: copying and checking, use, removal. Does not cover: which adapters there are (``app``), who still has requests
for one (``deployments.adapter_leases``).
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.adapter_dram import AdapterDram
from storage.adapter_source import AdapterSource, check_values, digest_of, is_there, look_at
from storage.checkpoint import fetch
from storage.errors import AdapterError, StorageError
from storage.folders import Folder
from storage.partial import PARTIALS_NAME, DirectoryLock, remove_dead, sync_tree
from storage.remote import open_folder
from storage.source import Adapter

_NAME = ".adapters"
_IN_USE = ".in-use"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_DIGEST = re.compile(r"[0-9a-f]{64}")
# What nobody speaks of may have been copied just now, and will be spoken of, or be what requests still wait for.
_YOUNG_S = 600.0


@dataclass
class AdapterInUse:
    """An adapter's files, which stay until ``close``."""

    directory: Path
    _lock: int

    def close(self) -> None:
        """Let them go; harmless when they were."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class AdapterFiles:
    """Below ``root``, the disk tier's directory. Methods block; several processes share a root."""

    def __init__(self, root: Path, s3_endpoint_url: str | None = None, dram: AdapterDram | None = None) -> None:
        """``dram`` is where engines keep what they make of the copies; it goes with them."""
        self._root = root / _NAME
        self._s3_endpoint_url = s3_endpoint_url
        self._dram = dram

    def take(self, name: str, source: str, base: Mapping[str, Any], max_rank: int) -> Adapter:
        """Check an adapter, copy it here, and return its facts.

        Raises:
            AdapterError: it can't be used with a model of this configuration; nothing is left here.
            StorageError: it can't be read, or there is no room; nothing is left here.
        """
        folder = open_folder(source, self._s3_endpoint_url)
        found = look_at(folder, base, max_rank)
        digest = self._copy(folder, found, None)
        return Adapter(name, folder.url, digest, found.rank, found.size_bytes)

    def is_there(self, source: str) -> bool:
        """Tell whether there is an adapter at ``source``, fit or not.

        Raises:
            StorageError: the place doesn't answer.
        """
        return is_there(open_folder(source, self._s3_endpoint_url))

    def use(self, digest: str, source: str) -> AdapterInUse:
        """Return an adapter's files, copied from ``source`` if this node doesn't have them.

        Raises:
            AdapterError: what is there now is something else.
            StorageError: it can't be read, or there is no room.
        """
        while True:
            held = self._held(digest)
            if held is not None:
                return held
            # It was checked when it was registered: now only the digest counts.
            folder = open_folder(source, self._s3_endpoint_url)
            self._copy(folder, look_at(folder, {}, 1 << 30), digest)

    def remove(self, digest: str) -> bool:
        """Remove an adapter's files unless somebody uses them; return whether they are gone."""
        directory = self._root / digest
        try:
            lock = os.open(directory / _IN_USE, _LOCK_FLAGS, 0o600)
        except FileNotFoundError:
            if directory.exists():
                return False
            if self._dram is not None:
                self._dram.remove(digest)
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In one step: whoever comes now finds all of it, or nothing.
            gone = self._partials() / secrets.token_hex(8)
            directory.rename(gone)
            if self._dram is not None:
                self._dram.remove(digest)
            shutil.rmtree(gone, ignore_errors=True)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        finally:
            os.close(lock)
        return True

    def sweep(self, known: Collection[str]) -> None:
        """Remove what nobody uses and no list knows, and what dead processes have left."""
        if not self._root.is_dir():
            return
        remove_dead(self._partials().parent)
        young_s = time.time() - _YOUNG_S
        for directory in self._root.iterdir():
            if _DIGEST.fullmatch(directory.name) and directory.name not in known:
                with contextlib.suppress(FileNotFoundError):
                    if directory.stat().st_mtime < young_s:
                        self.remove(directory.name)
        if self._dram is not None:
            for digest in self._dram.digests() - self.digests() - set(known):
                self._dram.remove(digest)

    def digests(self) -> set[str]:
        """Return what is here."""
        found = self._root.iterdir() if self._root.is_dir() else ()
        return {directory.name for directory in found if _DIGEST.fullmatch(directory.name)}

    def _held(self, digest: str) -> AdapterInUse | None:
        directory = self._root / digest
        try:
            lock = os.open(directory / _IN_USE, _LOCK_FLAGS, 0o600)
        except FileNotFoundError:
            return None
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _is_at(lock, directory / _IN_USE):
            os.close(lock)
            return None
        # When it was used last, for ``sweep``.
        os.utime(directory)
        return AdapterInUse(directory, lock)

    def _copy(self, folder: Folder, found: AdapterSource, expected: str | None) -> str:
        partial = self._root / PARTIALS_NAME / secrets.token_hex(8)
        try:
            self._partials()
            # As with snapshots: it must not be taken for a dead process's before it is locked.
            with DirectoryLock(partial.parent, wait=True):
                partial.mkdir(mode=0o700)
                lock = DirectoryLock(partial)
                lock.__enter__()
            with contextlib.ExitStack() as held:
                held.push(lambda *_: lock.__exit__())
                return self._fill(partial, folder, found, expected)
        except OSError as error:
            raise _write_error(folder.url, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fill(self, partial: Path, folder: Folder, found: AdapterSource, expected: str | None) -> str:
        fetch(folder, list(found.files), partial)
        if expected is None:
            try:
                check_values(partial, found.tensors)
            except AdapterError as error:
                raise AdapterError(folder.url, error.reason) from error
        digest = digest_of(partial)
        if expected not in {None, digest}:
            raise AdapterError(folder.url, "its files have changed since it was registered")
        (partial / _IN_USE).touch(mode=0o600)
        sync_tree(partial)
        with DirectoryLock(partial.parent, wait=True):
            try:
                partial.rename(self._root / digest)
            except OSError as error:
                # The same content under another name, or by another process.
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        return digest

    def _partials(self) -> Path:
        directory = self._root / PARTIALS_NAME
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def __repr__(self) -> str:
        return f"<AdapterFiles {self._root}>"


def _write_error(source: str, error: OSError) -> StorageError:
    return AdapterError(source, f"it can't be copied: {error.strerror or error}")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
