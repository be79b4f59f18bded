"""Other nodes' stores, as a store sees them: what they tell of a snapshot, and how they are asked.

Covers: the protocols and what goes over the wire. Does not cover: Ray (``ray_peers``), who asks whom for what
(``peer_plan``), asking (``peer_folder``), answering (``exchange``).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from storage.manifest import Manifest

# How a peer's reading ended that wasn't good; the values of a metric's label.
Failure = Literal["lost", "slow", "wrong"]


@dataclass(frozen=True)
class Progress:
    """How far a node is with a snapshot; chunks are counted through its files, in the manifest's order.

    ``version`` grows with whatever changes, ``moved_bytes`` with each piece that arrives. ``content`` is the digest of
    all checksums: only who has the same can be asked for bytes.
    """

    content: str
    whole: bool = False
    have: frozenset[int] = frozenset()
    claimed: frozenset[int] = frozenset()
    reaches_root: bool = True
    moved_bytes: int = 0
    version: int = 0


class Peer(Protocol):
    """Another node's store. Every call may take for ever: who calls sets a limit, and cancels."""

    id: str

    async def progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        """Return how far it is, None if it has nothing to do with the snapshot.

        Args:
            snapshot_id: which one.
            after: the version that is known already; it waits a little for a later one.
            asker: who asks; a node that fills the snapshot asks back.

        Raises:
            RemoteError: it can't be reached.
        """
        ...

    async def manifest(self, snapshot_id: str) -> bytes:
        """Return a snapshot's manifest as JSON.

        Raises:
            RemoteError: it has none, or can't be reached.
        """
        ...

    async def read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        """Return a range of a chunk, counted from the chunk's beginning.

        Raises:
            RemoteError: it doesn't have it, or can't be reached.
        """
        ...


class Neighbours(Protocol):
    """The other stores of the application, ``me`` being this one's id."""

    me: str

    async def peers(self) -> list[Peer]:
        """Return those there are now; none where nobody can be asked."""
        ...

    def peer(self, peer_id: str) -> Peer:
        """Return the one with this id; whether it is there shows when it is asked."""
        ...


def content_digest(manifest: Manifest) -> str:
    """Return a digest of what a snapshot's bytes are."""
    return hashlib.sha256(json.dumps([asdict(file) for file in manifest.files]).encode()).hexdigest()
