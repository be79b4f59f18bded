"""Adapters in host memory, in the layout an engine's slots have: every engine of the node maps the same bytes.

    root/<layout>/<digest>      whole, and never changed; a header, then the weights from a page boundary on
    root/<layout>/.<random>     being written

Covers: finding, writing, removing, keeping within a budget by what was used least lately. Whoever has mapped one keeps
it, so nothing need be known of who uses which. Does not cover: what the weights are (``deployments.adapter_slots``),
the files they were made of (``adapter_files``).
"""

import contextlib
import fcntl
import json
import mmap
import os
import re
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LENGTH = struct.Struct("<Q")
_LOCK_NAME = ".lock"
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class MappedAdapter:
    """``memory`` holds the weights from ``start`` on; ``header`` says what they are. It is mapped while it is used."""

    header: dict[str, Any]
    memory: mmap.mmap
    start: int


class AdapterDram:
    """Below ``root``, a directory in shared memory. Methods block; several processes share a root."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def find(self, layout: str, digest: str) -> MappedAdapter | None:
        """Map an adapter's weights; None where there are none that can be used."""
        path = self._root / layout / digest
        try:
            # Written to by nobody; only a shared mapping that may be written can be locked for a device.
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            memory = _mapped(descriptor)
            (length,) = _LENGTH.unpack_from(memory)
            header = json.loads(memory[_LENGTH.size : _LENGTH.size + min(length, _MAX_HEADER_BYTES)])
            # When it was used last.
            os.utime(path)
        except (OSError, ValueError, struct.error):
            return None
        finally:
            os.close(descriptor)
        return MappedAdapter(header, memory, _LENGTH.size + length)

    @contextmanager
    def making(self, layout: str, digest: str, header: dict[str, Any], weights_bytes: int) -> Iterator[MappedAdapter]:
        """Give memory to be filled with an adapter's weights; others find it afterwards, unless an error was raised.

        Raises:
            OSError: there is no room, also once all others have gone.
        """
        text = json.dumps(header).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % mmap.PAGESIZE)
        start = _LENGTH.size + len(text)
        directory = self._root / layout
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = directory / f".{secrets.token_hex(8)}"
        with self._room_for(start + weights_bytes):
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # All of it now: to run out of memory later would be a signal, not an error.
                os.posix_fallocate(descriptor, 0, start + weights_bytes)
                memory = _mapped(descriptor)
                memory[:start] = _LENGTH.pack(len(text)) + text
                yield MappedAdapter(header, memory, start)
                partial.rename(directory / digest)
            finally:
                os.close(descriptor)
                partial.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an adapter's weights in every layout; its memory is free once nobody has it mapped."""
        for path in self._whole():
            if path.name == digest:
                path.unlink(missing_ok=True)

    def holds(self, digest: str) -> bool:
        """Tell whether an adapter is here, in whichever layout."""
        return next(self._root.glob(f"*/{digest}"), None) is not None

    def digests(self) -> set[str]:
        """Return what is here, in whichever layout."""
        return {path.name for path in self._whole()}

    def used_bytes(self) -> int:
        """Return what all of it takes."""
        return sum(size_bytes for _, size_bytes, _ in self._by_use())

    @contextmanager
    def _room_for(self, needed_bytes: int) -> Iterator[None]:
        """Remove what was used least lately until there is room; one writer at a time."""
        descriptor = os.open(self._root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._remove_dead()
            there = sorted(self._by_use())
            used_bytes = sum(size_bytes for _, size_bytes, _ in there)
            if needed_bytes > self._max_bytes:
                raise OSError(28, f"an adapter of {needed_bytes} bytes, and {self._max_bytes} are allowed")
            for _, size_bytes, path in there:
                if used_bytes + needed_bytes <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                used_bytes -= size_bytes
            yield
        finally:
            os.close(descriptor)

    def _remove_dead(self) -> None:
        """Remove what writers that died have left: the living ones hold the lock that is held now."""
        for path in self._root.glob("*/.*"):
            path.unlink(missing_ok=True)

    def _by_use(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._whole():
            # Another process may just have removed it.
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path

    def _whole(self) -> list[Path]:
        return [path for path in self._root.glob("*/*") if _DIGEST.fullmatch(path.name)]

    def __repr__(self) -> str:
        return f"<AdapterDram {self._root}, {len(self._whole())} adapters>"


def _mapped(descriptor: int) -> mmap.mmap:
    # All pages at once: to fault them one by one takes longer than to copy them.
    return mmap.mmap(descriptor, 0, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
