"""Copies a snapshot into local tiers, chunk by chunk, several chunks at once, each checked before it counts.

A chunk passes through in pieces that fit the processor's cache: read, added to the checksum, written to every target.
So each tier fills at the pace of the slowest link, none waits for another to be complete, and the memory of a snapshot
is written to once; new pages are what costs most. Does not cover: where bytes come from (``folders``, ``s3``, ``hub``)
and where they end up (``tier``).
"""

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import tenacity

from storage.checksum import ChunkChecksum
from storage.errors import CorruptSnapshotError, RemoteChangedError, RemoteDeniedError, RemoteError, RemoteMissingError
from storage.folders import FileInfo, Folder
from storage.manifest import CHUNK_BYTES, FileEntry, Manifest
from storage.partial import PartialSnapshot

# One connection rarely fills a network, and more threads than this fight for Python's lock: on two cores eight were a
# third slower than four.
DEFAULT_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))
PIECE_BYTES = 1024 * 1024
_FINAL = (RemoteChangedError, RemoteDeniedError, RemoteMissingError)

Result = TypeVar("Result")
Chunk = tuple[FileEntry, int]  # with its number in the file


@runtime_checkable
class Ordering(Protocol):
    """What a folder may do as well: say which chunk is best read next."""

    def in_turn(self, chunks: Sequence[Chunk], stop: threading.Event) -> Iterator[Chunk]:
        """Yield each chunk once, when it can be read; may wait, but not once ``stop`` is set.

        Raises:
            RemoteError: none that is left can ever be read.
        """
        ...


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
        check_listed(source, file, listed.get(file.path))
    chunks = [(file, index) for file in manifest.files for index in range(len(file.chunks))]
    turns = _Turns(source.in_turn(chunks, copy.stop) if isinstance(source, Ordering) else iter(chunks))
    threads = min(copy.policy.threads, len(chunks))
    with ThreadPoolExecutor(max(1, threads), "copy") as pool:
        _wait_for_all([pool.submit(copy.chunks, turns, listed) for _ in range(threads)], copy.stop)


def verify_files(manifest: Manifest, source: Folder, on_chunk: Callable[[int], object] = lambda _: None) -> None:
    """Read every chunk and check it; ``on_chunk`` as in ``copy_snapshot``.

    Raises:
        CorruptSnapshotError: something is missing, too much, or not what the manifest says.
        RemoteError: it can't be read.
    """
    copy_snapshot(manifest, source, (), CopyPolicy(threads=4, attempts=1), on_chunk)


def checksum_chunks(folder: Folder, info: FileInfo) -> FileEntry:
    """Return the manifest's entry of a file. Raises RemoteError."""
    buffer = _buffer()
    checksums = []
    for start in range(0, info.size_bytes, CHUNK_BYTES):
        checksum = ChunkChecksum()
        for piece in folder.read_pieces(info, start, min(start + CHUNK_BYTES, info.size_bytes), buffer):
            checksum.update(piece)
        checksums.append(checksum.digits())
    return FileEntry(info.path, info.size_bytes, tuple(checksums))


def _buffer() -> memoryview:
    """Memory for pieces, on a page boundary, as direct reads want it."""
    return memoryview(mmap.mmap(-1, PIECE_BYTES))


class _Turns:
    """An iterator that many threads take from."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()

    def next(self) -> Chunk | None:
        with self._lock:
            return next(self._chunks, None)


class _Copy:
    """One copy under way; ``chunks`` runs in many threads."""

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

    def chunks(self, turns: _Turns, listed: Mapping[str, FileInfo]) -> None:
        while not self.stop.is_set() and (chunk := turns.next()) is not None:
            file, index = chunk
            self._chunk(file, listed[file.path], index)

    def _chunk(self, file: FileEntry, info: FileInfo, index: int) -> None:
        start, end = file.chunk_range(index)
        found = with_retries(
            self._source.url, lambda: self._once(file, info, start, end), self.policy, self._until_s, self.stop
        )
        if found != file.chunks[index]:
            raise CorruptSnapshotError(self._source.url, file.path, f"has a wrong checksum from byte {start} on")
        self._on_chunk(end - start)

    def _once(self, file: FileEntry, info: FileInfo, start: int, end: int) -> str:
        """Bring a chunk over, and return its checksum."""
        if not hasattr(self._buffers, "piece"):
            self._buffers.piece = _buffer()
        checksum = ChunkChecksum()
        with closing(self._source.read_pieces(info, start, end, self._buffers.piece)) as pieces:
            for piece in pieces:
                checksum.update(piece)
                for target in self._targets:
                    target.write(file, start, piece)
                start += len(piece)
        return checksum.digits()


def with_retries(
    url: str,
    work: Callable[[], Result],
    policy: CopyPolicy,
    until_s: float | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Do what reads from ``url``, again while that can help, until ``until_s`` of the monotonic clock.

    Raises:
        RemoteError: it can't be read.
    """
    deadline_s = time.monotonic() + policy.deadline_s if until_s is None else until_s
    stopped = stop or threading.Event()

    def once() -> Result:
        if stopped.is_set():
            raise _Stopped
        if time.monotonic() > deadline_s:
            raise RemoteError(url, f"the copy took longer than {policy.deadline_s:g} s")
        return work()

    def pause(wait_s: float) -> None:
        stopped.wait(min(wait_s, max(0.0, deadline_s - time.monotonic())))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        stop=lambda state: state.attempt_number >= policy.attempts or time.monotonic() > deadline_s,
        wait=tenacity.wait_random_exponential(policy.first_wait_s, policy.longest_wait_s),
        sleep=pause,
        reraise=True,
    )
    return retrying(once)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, RemoteError) and not isinstance(error, _FINAL)


def check_listed(source: Folder, file: FileEntry, listed: FileInfo | None) -> None:
    """Compare a file with its entry. Raises CorruptSnapshotError."""
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
