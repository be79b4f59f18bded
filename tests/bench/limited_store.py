"""A node's snapshot store behind a link of so many bytes a second, in and out: what `cluster.py` runs on each node.

What comes from S3 and from peers shares the way in, what is given to peers shares the way out. A block waits as long as
it takes on each way, the whole of it before it goes on, which a network would not do; so what goes from node to node
is delayed a little more here than it would be, and never goes faster.
"""

import asyncio
from pathlib import Path

from s3_files import Pace

from storage.actor import StoreActor
from storage.folders import FileInfo, Folder, Pieces
from storage.peer import Neighbours, Peer, Progress
from storage.store import StoreConfig


class LimitedStore(StoreActor):
    """The store, with its link."""

    def __init__(self, config: StoreConfig, bytes_per_s: float) -> None:
        self._way_in, self._way_out = Pace(bytes_per_s), Pace(bytes_per_s)
        super().__init__(config)

    def neighbours(self) -> Neighbours | None:
        found = super().neighbours()
        return LimitedNeighbours(found, self._way_in) if found else None

    def source(self, url: str) -> Folder:
        return LimitedFolder(super().source(url), self._way_in)

    async def peer_read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        content = await super().peer_read(snapshot_id, chunk, start, end)
        await asyncio.sleep(self._way_out.pause_s(len(content)))
        return content


class LimitedFolder:
    """A folder whose pieces come over a link."""

    def __init__(self, folder: Folder, way_in: Pace) -> None:
        self.url = folder.url
        self._folder = folder
        self._way_in = way_in

    def list_files(self) -> list[FileInfo]:
        return self._folder.list_files()

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        for piece in self._folder.read_pieces(file, start, end, buffer):
            self._way_in.wait(len(piece))
            yield piece

    def write(self, path: str, source: Path) -> None:
        self._folder.write(path, source)


class LimitedNeighbours:
    """Neighbours whose blocks come over a link."""

    def __init__(self, neighbours: Neighbours, way_in: Pace) -> None:
        self.me = neighbours.me
        self._neighbours = neighbours
        self._way_in = way_in

    async def peers(self) -> list[Peer]:
        return [LimitedPeer(peer, self._way_in) for peer in await self._neighbours.peers()]

    def peer(self, peer_id: str) -> Peer:
        return LimitedPeer(self._neighbours.peer(peer_id), self._way_in)


class LimitedPeer:
    """A peer whose blocks come over a link."""

    def __init__(self, peer: Peer, way_in: Pace) -> None:
        self.id = peer.id
        self._peer = peer
        self._way_in = way_in

    async def progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        return await self._peer.progress(snapshot_id, after, asker)

    async def manifest(self, snapshot_id: str) -> bytes:
        return await self._peer.manifest(snapshot_id)

    async def read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        content = await self._peer.read(snapshot_id, chunk, start, end)
        await asyncio.sleep(self._way_in.pause_s(len(content)))
        return content
