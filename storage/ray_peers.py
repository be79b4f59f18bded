"""The stores of other nodes over Ray: who is there, by Ray's names, and calls whose results its object store carries.

A name goes with its actor, so who is found is who is alive. Does not cover: what is asked (``exchange``).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import list_named_actors

from storage.errors import RemoteError
from storage.peer import Peer, Progress

# Beside those that copy and read: nothing else may keep a name from being looked up.
_lookups = ThreadPoolExecutor(2, "peers")


class RayPeer:
    """A ``Peer``: the actor ``prefix`` + ``id``."""

    def __init__(self, peer_id: str, prefix: str, namespace: str) -> None:
        self.id = peer_id
        self._name = f"{prefix}{peer_id}"
        self._namespace = namespace
        self._actor: Any = None

    async def progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        """See ``Peer``."""
        return await self._call("peer_progress", snapshot_id, after, asker)

    async def manifest(self, snapshot_id: str) -> bytes:
        """See ``Peer``."""
        return await self._call("peer_manifest", snapshot_id)

    async def read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        """See ``Peer``."""
        return await self._call("peer_read", snapshot_id, chunk, start, end)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            if self._actor is None:
                loop = asyncio.get_running_loop()
                self._actor = await loop.run_in_executor(_lookups, ray.get_actor, self._name, self._namespace)
            answer = getattr(self._actor, method).remote(*arguments)
            try:
                return await answer
            except asyncio.CancelledError:
                ray.cancel(answer)
                raise
        except RayTaskError as error:
            # Its own words if it has any: other errors than this package's it has logged itself.
            cause = error.cause
            raise (
                cause if isinstance(cause, RemoteError) else RemoteError(self._name, f"it fails: {cause!r}")
            ) from error
        except (ValueError, RayError) as error:
            raise RemoteError(self._name, str(error).strip().splitlines()[0]) from error

    def __repr__(self) -> str:
        return f"<RayPeer {self.id}>"


class RayNeighbours:
    """``Neighbours`` of the actor ``name``, which ends in ``:`` and the id of its node, as those of the others do."""

    def __init__(self, name: str, namespace: str) -> None:
        self._namespace = namespace
        prefix, _, self.me = name.rpartition(":")
        self._prefix = f"{prefix}:"

    async def peers(self) -> list[Peer]:
        """See ``Neighbours``."""
        named = await asyncio.get_running_loop().run_in_executor(_lookups, list_named_actors, True)
        names = [each["name"] for each in named if each["namespace"] == self._namespace]
        ids = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return [self.peer(peer_id) for peer_id in ids if peer_id != self.me]

    def peer(self, peer_id: str) -> Peer:
        """See ``Neighbours``."""
        return RayPeer(peer_id, self._prefix, self._namespace)

    def __repr__(self) -> str:
        return f"<RayNeighbours of {self.me}>"
