"""What a store does with the stores of other nodes: finds what they have, fills from them, gives what it has.

Covers: who fills what just now, and answering peers, also about what is only partly here. Does not cover: how a
snapshot is brought together (``peer_folder``), Ray (``ray_peers``), tiers (``store``).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.disk_read import open_ranges
from storage.errors import ManifestError, RemoteError, RemoteMissingError
from storage.folders import Folder
from storage.manifest import FileEntry, Manifest, parse_manifest
from storage.peer import Neighbours, Peer, Progress, content_digest
from storage.peer_folder import PeerFolder, PeerPolicy
from storage.store_watch import Unwatched

logger = logging.getLogger(__name__)

_ONLY_LOOKING = -1


@dataclass(frozen=True)
class Shelves:
    """Where a store has its snapshots: the manifest of one that is whole, and the directories to look into.

    ``whole`` are where it is or will be when it is whole, ``partial`` those that are being filled.
    """

    manifest: Callable[[str], Manifest | None]
    whole: Callable[[str], list[Path]]
    partial: Callable[[str], list[Path]]


class Exchange:
    """One store's side; belongs to its event loop."""

    def __init__(
        self, neighbours: Neighbours, shelves: Shelves, policy: PeerPolicy | None = None, watch: Unwatched | None = None
    ) -> None:
        self._neighbours = neighbours
        self._shelves = shelves
        self._policy = policy or PeerPolicy()
        self._watch = watch or Unwatched()
        self._filling: dict[str, PeerFolder] = {}
        # Own threads: those that copy may all be waiting for what peers read here.
        self._readers = ThreadPoolExecutor(self._policy.gives_at_once, "give")

    async def find(self, snapshot_id: str) -> Manifest | None:
        """Return the manifest of a snapshot that a peer has or fills, None if there is no such peer."""
        asked = [asyncio.ensure_future(self._manifest_of(peer, snapshot_id)) for peer in await self._neighbours.peers()]
        try:
            for answer in asyncio.as_completed(asked, timeout=self._policy.answer_s):
                if (manifest := await answer) is not None:
                    return manifest
        except TimeoutError:
            logger.info("not every peer says in time whether it has %s", snapshot_id)
        finally:
            for each in asked:
                each.cancel()
        return None

    @asynccontextmanager
    async def filling(self, manifest: Manifest, source: Folder | None) -> AsyncIterator[PeerFolder]:
        """Have a folder of what peers and ``source`` have; what was read from it is given to peers meanwhile."""
        folder = PeerFolder(manifest, self._neighbours, source, self._policy, self._watch)
        # Before anybody is asked: of two that begin at once, one at least sees the other.
        self._filling[manifest.id] = folder
        try:
            await folder.meet()
            yield folder
        finally:
            del self._filling[manifest.id]
            await folder.close()

    async def progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        """See ``Peer.progress``."""
        folder = self._filling.get(snapshot_id)
        if folder is not None:
            if after != _ONLY_LOOKING:
                folder.hear_of(asker)
            return await folder.progress(after)
        manifest = self._shelves.manifest(snapshot_id)
        return None if manifest is None else Progress(content_digest(manifest), whole=True)

    async def manifest(self, snapshot_id: str) -> bytes:
        """See ``Peer.manifest``."""
        return self._manifest(snapshot_id).to_json()

    async def read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        """See ``Peer.read``; at most a block, a few at once."""
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(self._readers, self._read, snapshot_id, chunk, start, end)
        self._watch.gave(len(content))
        return content

    def _read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        file, index = _place_of(self._manifest(snapshot_id), chunk)
        chunk_start, chunk_end = file.chunk_range(index)
        if not 0 <= start < end <= chunk_end - chunk_start or end - start > self._policy.block_bytes:
            raise RemoteError(self._where(snapshot_id), f"chunk {chunk} has no block from {start} to {end}")
        folder = self._filling.get(snapshot_id)
        whole = self._shelves.whole(snapshot_id)
        partial = self._shelves.partial(snapshot_id) if folder is not None and folder.has(chunk) else []
        # Once more at the end: one that was partial just now may be whole.
        for directory in (*whole, *partial, *whole):
            content = memoryview(bytearray(end - start))
            try:
                with open_ranges(directory / file.path) as ranges:
                    if ranges.read(chunk_start + start, content) == len(content):
                        return bytes(content)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise RemoteError(str(directory / file.path), error.strerror or str(error)) from error
        raise RemoteMissingError(self._where(snapshot_id), f"chunk {chunk} is not here")

    def _manifest(self, snapshot_id: str) -> Manifest:
        folder = self._filling.get(snapshot_id)
        manifest = folder.manifest if folder is not None else self._shelves.manifest(snapshot_id)
        if manifest is None:
            raise RemoteMissingError(self._where(snapshot_id), "it is not here")
        return manifest

    async def _manifest_of(self, peer: Peer, snapshot_id: str) -> Manifest | None:
        try:
            if await peer.progress(snapshot_id, _ONLY_LOOKING, self._neighbours.me) is None:
                return None
            manifest = parse_manifest(await peer.manifest(snapshot_id), f"peer {peer.id}")
        except (RemoteError, ManifestError) as error:
            logger.info("peer %s can't say what it has of %s: %s", peer.id, snapshot_id, error)
            return None
        return manifest if manifest.id == snapshot_id else None

    def _where(self, snapshot_id: str) -> str:
        return f"peer://{self._neighbours.me}/{snapshot_id}"

    def __repr__(self) -> str:
        return f"<Exchange of {self._neighbours.me}, filling {len(self._filling)}>"


def _place_of(manifest: Manifest, chunk: int) -> tuple[FileEntry, int]:
    index = chunk
    for file in manifest.files:
        if 0 <= index < len(file.chunks):
            return file, index
        index -= len(file.chunks)
    raise RemoteMissingError(f"peers://{manifest.id}", f"it has no chunk {chunk}")
