"""A snapshot's peers and its source as one folder: each chunk comes from where the plan says, and falls back.

Covers: asking peers how far they are, reading chunks from them, checking what they give before anything sees it,
telling peers what is here already. A peer that is gone, too slow or gives wrong bytes is not asked again, and what it
should have given comes from another one or from the source. Does not cover: the decision (``peer_plan``), writing
(``promote``), giving (``exchange``).
"""

import asyncio
import logging
import mmap
import threading
import time
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from storage.checksum import ChunkChecksum
from storage.errors import RemoteChangedError, RemoteError, RemoteMissingError
from storage.folders import FileInfo, Folder, Pieces
from storage.manifest import CHUNK_BYTES, FileEntry, Manifest
from storage.peer import Failure, Neighbours, Peer, Progress, content_digest
from storage.peer_board import Board
from storage.peer_plan import Fetch, Limits, Nothing
from storage.promote import Chunk, check_listed
from storage.store_watch import Unwatched

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.1

Result = TypeVar("Result")


@dataclass(frozen=True)
class PeerPolicy:
    """Patience with peers, and how much is in memory at once.

    ``answer_s``: until a peer must have said how far it is; ``read_s``: until a block must be here; ``tick_s``: how
    long an answer may wait for news; ``between_s``: between two questions to a peer; ``gives_at_once``: blocks that are
    read for peers at the same time.
    """

    limits: Limits = field(default_factory=Limits)
    block_bytes: int = 4 * 1024 * 1024
    answer_s: float = 2.0
    read_s: float = 10.0
    tick_s: float = 1.0
    between_s: float = 0.05
    gives_at_once: int = 4


class PeerFolder:
    """A ``Folder``; made, met and closed in an event loop, read from threads."""

    def __init__(
        self,
        manifest: Manifest,
        neighbours: Neighbours,
        source: Folder | None,
        policy: PeerPolicy,
        watch: Unwatched | None = None,
    ) -> None:
        self.manifest = manifest
        self.url = f"peers://{manifest.id}"
        self._neighbours = neighbours
        self._source = source
        self._policy = policy
        self._watch = watch or Unwatched()
        self._content = content_digest(manifest)
        self._chunks: list[Chunk] = [(file, index) for file in manifest.files for index in range(len(file.chunks))]
        self._numbers = {(file.path, index): number for number, (file, index) in enumerate(self._chunks)}
        self._entries = {file.path: file for file in manifest.files}
        self._board = Board(
            neighbours.me, len(self._chunks), policy.limits, content=self._content, has_source=source is not None
        )
        # Guards the board, and tells threads that wait for a chunk of its changes.
        self._changed = threading.Condition()
        self._assigned: dict[int, Fetch] = {}
        self._gave_wrong_bytes = False
        self._listed: dict[str, FileInfo] | None = None
        self._listing = threading.Lock()
        self._buffers = threading.local()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._peers: dict[str, Peer] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._first_answers: dict[str, asyncio.Future[None]] = {}

    async def meet(self) -> None:
        """Ask all peers how far they are; return when they have answered, one has it whole, or it takes too long."""
        peers = await self._neighbours.peers()
        pending = {self._follow(peer) for peer in peers}
        until_s = self._loop.time() + self._policy.answer_s
        while pending and not self._board.has_root() and (left_s := until_s - self._loop.time()) > 0:
            _, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def hear_of(self, peer_id: str) -> None:
        """Follow a peer that asked, for it fills the snapshot too."""
        with self._changed:
            is_lost = self._board.is_lost(peer_id)
        if not is_lost:
            self._follow(self._neighbours.peer(peer_id))

    async def progress(self, after: int) -> Progress:
        """Return how far this node is, at once if that is a later version than ``after``."""
        if self._board.version <= after:
            try:
                async with asyncio.timeout(self._policy.tick_s):
                    await self._news.wait()
            except TimeoutError:
                pass  # Then the answer says that it is alive, and how many bytes have moved.
        with self._changed:
            return self._board.progress()

    def has(self, chunk: int) -> bool:
        """Tell whether a chunk was written here, and checked."""
        with self._changed:
            return self._board.has(chunk)

    async def close(self) -> None:
        """Stop asking peers."""
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tell()

    def list_files(self) -> list[FileInfo]:
        """See ``Folder``: what the manifest says."""
        files = [FileInfo(file.path, file.size_bytes, self._content) for file in self.manifest.files]
        return sorted(files, key=lambda file: file.path)

    def in_turn(self, chunks: Sequence[Chunk], stop: threading.Event) -> Iterator[Chunk]:
        """See ``promote.Ordering``."""
        with self._changed:
            # Of a copy that was broken off before it began to read them.
            for fetch in self._assigned.values():
                self._board.ended(fetch, here=False)
            self._assigned.clear()
            self._board.wants(self._numbers[file.path, index] for file, index in chunks)
        while (chunk := self._next(stop)) is not None:
            yield self._chunks[chunk]

    def _next(self, stop: threading.Event) -> int | None:
        with self._changed:
            while (found := self._board.take(time.monotonic())) is Nothing.YET:
                if stop.is_set():
                    return None
                self._changed.wait(_LOOK_AGAIN_S)
            if found is Nothing.EVER:
                raise self._nobody()
            if isinstance(found, Fetch):
                self._assigned[found.chunk] = found
                self._tell()
                return found.chunk
            return None

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        """See ``Folder``. What comes from peers is whole chunks, checked."""
        entry = self._entries.get(file.path)
        if entry is None or file.version != self._content or end > entry.size_bytes:
            raise RemoteChangedError(f"{self.url}/{file.path}", "it is not what was listed")
        for index in range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            chunk_start, chunk_end = entry.chunk_range(index)
            yield from self._read(entry, index, max(start, chunk_start), min(end, chunk_end), buffer)

    def _read(self, entry: FileEntry, index: int, start: int, end: int, buffer: memoryview) -> Pieces:
        chunk_start, chunk_end = entry.chunk_range(index)
        is_whole = (start, end) == (chunk_start, chunk_end)
        while True:
            fetch, here = self._fetch_of(self._numbers[entry.path, index]), False
            try:
                if fetch.peer is None:
                    is_right = yield from self._from_source(entry, index, start, end, buffer)
                    here = is_whole and is_right
                    return
                content = self._from_peer(fetch.peer, fetch.chunk, entry, index)
                if content is not None:
                    for at in range(start - chunk_start, end - chunk_start, len(buffer)):
                        yield content[at : min(at + len(buffer), end - chunk_start)]
                    here = is_whole
                    return
            finally:
                with self._changed:
                    self._board.ended(fetch, here=here)
                    self._changed.notify_all()
                self._tell()

    def _fetch_of(self, chunk: int) -> Fetch:
        """Return what was decided for a chunk, or decide now."""
        with self._changed:
            if chunk in self._assigned:
                return self._assigned.pop(chunk)
            while (found := self._board.take_now(chunk, time.monotonic())) is Nothing.YET:
                self._changed.wait(_LOOK_AGAIN_S)
            if isinstance(found, Fetch):
                return found
            raise self._nobody(self._chunks[chunk][0].path)

    def _from_source(
        self, entry: FileEntry, index: int, start: int, end: int, buffer: memoryview
    ) -> Generator[memoryview, None, bool]:
        assert self._source is not None, "the plan knows whether there is one"  # noqa: S101 - for the type checker
        checksum, read_bytes = ChunkChecksum(), 0
        try:
            with closing(self._source.read_pieces(self._listed_as(entry), start, end, buffer)) as pieces:
                for piece in pieces:
                    checksum.update(piece)
                    read_bytes += len(piece)
                    self._moved(len(piece))
                    yield piece
        finally:
            self._loop.call_soon_threadsafe(self._watch.fetched, "source", read_bytes)
        return checksum.digits() == entry.chunks[index]

    def _from_peer(self, peer_id: str, chunk: int, entry: FileEntry, index: int) -> memoryview | None:
        """Return a chunk as it should be; None when the peer is lost instead."""
        start, end = entry.chunk_range(index)
        content = self._buffer()[: end - start]
        try:
            for at in range(0, len(content), self._policy.block_bytes):
                until = min(at + self._policy.block_bytes, len(content))
                block = self._await(self._peers[peer_id].read(self.manifest.id, chunk, at, until))
                if len(block) != until - at:
                    self._lose(peer_id, "wrong", f"it gave {len(block)} bytes of {until - at}")
                    return None
                content[at:until] = block
                self._moved(len(block))
        except TimeoutError:
            self._lose(peer_id, "slow", f"a block took longer than {self._policy.read_s:g} s")
            return None
        except RemoteError as error:
            self._lose(peer_id, "lost", str(error))
            return None
        checksum = ChunkChecksum()
        checksum.update(content)
        if checksum.digits() != entry.chunks[index]:
            self._lose(peer_id, "wrong", f"{entry.path} has a wrong checksum from byte {start} on")
            return None
        self._loop.call_soon_threadsafe(self._watch.fetched, "peer", len(content))
        return content

    def write(self, path: str, source: Path) -> None:
        """Raise: peers take what they want by themselves."""
        raise RemoteError(f"{self.url}/{path}", f"nothing is written to peers ({source})")

    def _follow(self, peer: Peer) -> "asyncio.Future[None]":
        """Ask a peer from now on; the future ends with its first answer, whatever that is."""
        if peer.id in self._following:
            return self._first_answers[peer.id]
        first = self._first_answers[peer.id] = self._loop.create_future()
        self._peers[peer.id] = peer
        task = self._following[peer.id] = self._loop.create_task(self._ask_again(peer, first))
        task.add_done_callback(lambda _: self._following.pop(peer.id))
        return first

    async def _ask_again(self, peer: Peer, first: "asyncio.Future[None]") -> None:
        after = 0
        try:
            while True:
                progress = await self._within(
                    self._policy.answer_s + self._policy.tick_s, peer.progress(self.manifest.id, after, self._board.me)
                )
                with self._changed:
                    if progress is None or progress.content != self._content:
                        self._board.forget(peer.id)
                        return
                    self._board.heard(peer.id, progress, time.monotonic())
                    self._changed.notify_all()
                if not first.done():
                    first.set_result(None)
                if progress.whole:
                    return
                after = progress.version
                await asyncio.sleep(self._policy.between_s)
        except (RemoteError, TimeoutError) as error:
            # Of one that never said that it has something nothing is lost: it may still be starting, and ask itself.
            if self._board.knows(peer.id):
                self._lose(peer.id, "slow" if isinstance(error, TimeoutError) else "lost", str(error) or "no answer")
        finally:
            if not first.done():
                first.set_result(None)

    def _lose(self, peer_id: str, failure: Failure, reason: str) -> None:
        with self._changed:
            is_news = self._board.lose(peer_id)
            self._gave_wrong_bytes |= failure == "wrong"
            self._changed.notify_all()
        if is_news:
            logger.warning("peer %s is not asked for %s again: %s", peer_id, self.manifest.id, reason)
            self._loop.call_soon_threadsafe(self._watch.peer_failed, failure)

    def _nobody(self, path: str = "") -> RemoteError:
        where = f"{self.url}/{path}"
        if self._gave_wrong_bytes:
            return RemoteChangedError(where, "no peer is left that gives what the manifest says")
        return RemoteMissingError(where, "no peer is left that has it")

    def _listed_as(self, entry: FileEntry) -> FileInfo:
        assert self._source is not None, "asked for what is read from it"  # noqa: S101 - for the type checker
        with self._listing:
            if self._listed is None:
                self._listed = {file.path: file for file in self._source.list_files()}
        listed = self._listed.get(entry.path)
        check_listed(self._source, entry, listed)
        return self._listed[entry.path]

    def _moved(self, size_bytes: int) -> None:
        with self._changed:
            self._board.moved(size_bytes)

    def _tell(self) -> None:
        """Answer the peers that wait for news; from any thread."""
        self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _await(self, asked: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(self._within(self._policy.read_s, asked), self._loop).result()

    @staticmethod
    async def _within(limit_s: float, asked: Coroutine[Any, Any, Result]) -> Result:
        async with asyncio.timeout(limit_s):
            return await asked

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "chunk"):
            self._buffers.chunk = memoryview(mmap.mmap(-1, CHUNK_BYTES))
        return self._buffers.chunk

    def __repr__(self) -> str:
        return f"<PeerFolder {self._board!r}, then {self._source!r}>"
