"""Copies a snapshot into local tiers, chunk by chunk, several chunks at once, each checked before it counts.

A chunk is read once, straight into the memory of the first target that is memory, and written from there to the others:
so every tier fills at the pace of the slowest link and none waits for another to be complete. Without such a target
chunks pass through one buffer a thread. Does not cover: where bytes come from (``folders``, ``s3``, ``hub``) and where
they end up (``tier``).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import tenacity

from storage.checksum import chunk_checksum
from storage.errors import CorruptSnapshotError, RemoteChangedError, RemoteDeniedError, RemoteError, RemoteMissingError
from storage.folders import FileInfo, Folder
from storage.manifest import CHUNK_BYTES, FileEntry, Manifest
from storage.partial import PartialSnapshot

# One connection rarely fills a network, and more threads than this fight for Python's lock: on two cores eight were a
# third slower than four.
DEFAULT_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))
_FINAL = (RemoteChangedError, RemoteDeniedError, RemoteMissingError)


@dataclass(frozen=True)
class CopyPolicy:
    """How a copy is done: chunks at once, tries for each, seconds for the whole."""

    threads: int = DEFAULT_THREADS
    attempts: int = 6
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    deadline_s: float = 3600.0


class _Stopped(Exception):  # noqa: N818 - no error, and never leaves this file
    """Another chunk failed."""


def copy_snapshot(
    manifest: Manifest,
    source: Folder,
    targets: Sequence[PartialSnapshot],
    policy: CopyPolicy | None = None,
    on_chunk: Callable[[int], object] = lambda _: None,
) -> None:
    """Fill ``targets`` from ``source``; they are neither committed nor abandoned here.

    Args:
        manifest: what ``source`` holds, and what is checked.
        source: where it is read.
        targets: where it is written, fastest tier first.
        policy: pace and patience.
        on_chunk: called with the bytes of each finished chunk, from any thread.

    Raises:
        CorruptSnapshotError: a chunk is not what the manifest says.
        RemoteError: the source fails for longer than the policy allows.
        StorageError: a target can't be written.
    """
    copy = _Copy(source, targets, policy or CopyPolicy(), on_chunk)
    listed = {file.path: file for file in source.list_files()}
    for file in manifest.files:
        _check_listed(source, file, listed.get(file.path))
    chunks = [(file, listed[file.path], index) for file in manifest.files for index in range(len(file.chunks))]
    with ThreadPoolExecutor(copy.policy.threads, "copy") as pool:
        _wait_for_all([pool.submit(copy.chunk, *chunk) for chunk in chunks], copy.stop)


def verify_files(manifest: Manifest, source: Folder, on_chunk: Callable[[int], object] = lambda _: None) -> None:
    """Read every chunk and check it; ``on_chunk`` as in ``copy_snapshot``.

    Raises:
        CorruptSnapshotError: something is missing, too much, or not what the manifest says.
        RemoteError: it can't be read.
    """
    copy_snapshot(manifest, source, (), CopyPolicy(threads=4, attempts=1), on_chunk)


def checksum_chunks(path: str, read: Callable[[int, memoryview], object], size_bytes: int) -> FileEntry:
    """Return the manifest's entry of a file, whose bytes ``read(start, out)`` gives."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, size_bytes)))
    checksums = []
    for start in range(0, size_bytes, CHUNK_BYTES):
        out = buffer[: min(CHUNK_BYTES, size_bytes - start)]
        read(start, out)
        checksums.append(chunk_checksum(out))
    return FileEntry(path, size_bytes, tuple(checksums))


class _Copy:
    """One copy under way; ``chunk`` runs in many threads."""

    def __init__(
        self, source: Folder, targets: Sequence[PartialSnapshot], policy: CopyPolicy, on_chunk: Callable[[int], object]
    ) -> None:
        self.policy = policy
        self.stop = threading.Event()
        self._source = source
        self._targets = targets
        self._on_chunk = on_chunk
        self._until_s = time.monotonic() + policy.deadline_s
        self._buffers = threading.local()

    def chunk(self, file: FileEntry, info: FileInfo, index: int) -> None:
        start, end = file.chunk_range(index)
        own, out = self._room(file, start, end)
        read_with_retries(self._source, info, start, out, self.policy, self._until_s, self.stop)
        if chunk_checksum(out) != file.chunks[index]:
            raise CorruptSnapshotError(self._source.url, file.path, f"has a wrong checksum from byte {start} on")
        for target in self._targets:
            if target is not own:
                target.write(file, start, out)
        self._on_chunk(end - start)

    def _room(self, file: FileEntry, start: int, end: int) -> tuple[PartialSnapshot | None, memoryview]:
        for target in self._targets:
            memory = target.memory(file, start, end)
            if memory is not None:
                return target, memory
        if not hasattr(self._buffers, "chunk"):
            self._buffers.chunk = memoryview(bytearray(CHUNK_BYTES))
        return None, self._buffers.chunk[: end - start]


def read_with_retries(  # noqa: PLR0913, PLR0917 - a range, and how patiently
    source: Folder,
    info: FileInfo,
    start: int,
    out: memoryview,
    policy: CopyPolicy,
    until_s: float | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Fill ``out`` from a file's ``start`` on, again while that can help, until ``until_s`` of the monotonic clock.

    Raises:
        RemoteError: it can't be read.
    """
    deadline_s = time.monotonic() + policy.deadline_s if until_s is None else until_s
    stopped = stop or threading.Event()

    def read_once() -> None:
        if stopped.is_set():
            raise _Stopped
        if time.monotonic() > deadline_s:
            raise RemoteError(source.url, f"the copy took longer than {policy.deadline_s:g} s")
        source.read_into(info, start, out)

    def pause(wait_s: float) -> None:
        stopped.wait(min(wait_s, max(0.0, deadline_s - time.monotonic())))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        stop=lambda state: state.attempt_number >= policy.attempts or time.monotonic() > deadline_s,
        wait=tenacity.wait_random_exponential(policy.first_wait_s, policy.longest_wait_s),
        sleep=pause,
        reraise=True,
    )
    retrying(read_once)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and not isinstance(error, _FINAL)


def _check_listed(source: Folder, file: FileEntry, listed: FileInfo | None) -> None:
    if listed is None:
        raise CorruptSnapshotError(source.url, file.path, "is missing")
    if listed.size_bytes != file.size_bytes:
        sizes = f"has {listed.size_bytes} bytes instead of {file.size_bytes}"
        raise CorruptSnapshotError(source.url, file.path, sizes)


def _wait_for_all(futures: Iterable[Future[None]], stop: threading.Event) -> None:
    done, pending = wait(futures, return_when=FIRST_EXCEPTION)
    stop.set()
    for future in pending:
        future.cancel()
    wait(pending)
    errors = [error for future in done if (error := future.exception()) is not None]
    real = [error for error in errors if not isinstance(error, _Stopped)]
    if real:
        raise real[0]
