"""Where Serve calls of this process run, and which replicas are going: what Serve's router knows and handles don't say.

Covers: one process's calls for sequences, by their attempts; not waiting for a replica that has fallen silent. Does
not cover: choosing a replica (``router``), what to do about one that goes (the gateway's ``carrier``), noticing silence
(its ``streams``). Serve makes the router, so the two meet at a name of this module.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from deployments.errors import FeedError

T = TypeVar("T")


@dataclass
class _Watched:
    model_id: str
    on_going: Callable[[], None]
    replica_id: str | None = None
    is_silent: asyncio.Event = field(default_factory=asyncio.Event)


class Placements:
    """One event loop."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}
        self._replicas: dict[str, frozenset[str]] = {}
        # Also of those that have gone.
        self._deployment_of: dict[str | None, str] = {}
        self._changed = asyncio.Event()

    def watch(self, attempt_id: str, model_id: str, on_going: Callable[[], None]) -> None:
        """Call ``on_going`` when the replica that the attempt runs on is to take no more requests."""
        self._watched[attempt_id] = _Watched(model_id, on_going)

    def forget(self, attempt_id: str) -> None:
        """Stop watching; harmless for an attempt that isn't watched."""
        self._watched.pop(attempt_id, None)

    async def answer(self, attempt_id: str, call: Awaitable[T]) -> T:
        """Return what a watched attempt's call returns, or raise what it raises.

        Raises:
            FeedError: the replica that it runs on has fallen silent.
        """
        watched = self._watched[attempt_id]
        answering = asyncio.ensure_future(_result(call))
        silence = asyncio.ensure_future(watched.is_silent.wait())
        try:
            await asyncio.wait((answering, silence), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise FeedError(str(watched.replica_id), "the replica has fallen silent")
            return answering.result()
        finally:
            answering.cancel()
            silence.cancel()

    def silent(self, replica_id: str) -> None:
        """Say that nothing is heard of a replica any more: whoever waits for it waits in vain."""
        for watched in self._watched.values():
            if watched.replica_id == replica_id:
                watched.is_silent.set()

    def replica_of(self, attempt_id: str) -> str | None:
        """Return where a watched attempt runs; None while that isn't known."""
        watched = self._watched.get(attempt_id)
        return None if watched is None else watched.replica_id

    async def another_than(self, attempt_id: str) -> None:
        """Return once there is a replica, in the same deployment, other than that of the attempt."""
        while not self.has_another(self.replica_of(attempt_id)):
            self._changed.clear()
            await self._changed.wait()

    def has_another(self, replica_id: str | None) -> bool:
        """Tell whether there is a replica beside this one, in its deployment if that is known."""
        deployments = [self._deployment_of[replica_id]] if replica_id in self._deployment_of else list(self._replicas)
        return any(self._replicas[deployment] - {replica_id} for deployment in deployments)

    def placed(self, attempt_id: str, replica_id: str) -> None:
        """Say where an attempt runs; the router's part."""
        watched = self._watched.get(attempt_id)
        if watched is None:
            return
        watched.replica_id = replica_id
        if not any(replica_id in ids for ids in self._replicas.values()):
            watched.on_going()

    def replicas(self, deployment: str, replica_ids: Collection[str]) -> None:
        """Say which replicas of a deployment take requests; the router's part."""
        before, now = self._replicas.get(deployment, frozenset()), frozenset(replica_ids)
        self._replicas[deployment] = now
        self._deployment_of |= dict.fromkeys(now, deployment)
        self._changed.set()
        gone = before - now
        for watched in [watched for watched in self._watched.values() if watched.replica_id in gone]:
            watched.on_going()

    def replica_ids(self, deployment: str) -> frozenset[str]:
        """Return the replicas of a deployment that take requests, as far as its router has said."""
        return self._replicas.get(deployment, frozenset())

    def busiest(self, model_id: str) -> str | None:
        """Return the replica that most of this process's sequences of a model run on; None if there are none."""
        places = Counter(w.replica_id for w in self._watched.values() if w.model_id == model_id and w.replica_id)
        return max(places, key=places.__getitem__, default=None)

    def __repr__(self) -> str:
        return f"<Placements {len(self._watched)} attempts, {self._replicas!r}>"


async def _result(call: Awaitable[T]) -> T:
    return await call


PLACEMENTS = Placements()
