"""Stores of several nodes in one process, which call each other directly, and what goes wrong between them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from storage.errors import RemoteError
from storage.exchange import Exchange
from storage.peer import Peer, Progress

# Called with chunk and start before a block is given: what it returns is given instead, unless that is None.
Fault = Callable[[int, int], Awaitable[bytes | None]]


@dataclass
class Town:
    """Exchanges by the id of their node; ``dead`` ones answer nobody."""

    exchanges: dict[str, Exchange] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    faults: dict[str, Fault] = field(default_factory=dict)
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)  # (who gave, who got)
    most_at_once: Counter[tuple[str, str]] = field(default_factory=Counter)
    under_way: Counter[tuple[str, str]] = field(default_factory=Counter)

    def of(self, me: str) -> "Residents":
        return Residents(self, me)


class Residents:
    """``Neighbours`` of one node."""

    def __init__(self, town: Town, me: str) -> None:
        self.me = me
        self._town = town

    async def peers(self) -> list[Peer]:
        return [self.peer(peer_id) for peer_id in self._town.exchanges if peer_id != self.me]

    def peer(self, peer_id: str) -> Peer:
        return Resident(self._town, peer_id, self.me)


class Resident:
    def __init__(self, town: Town, peer_id: str, caller: str) -> None:
        self.id = peer_id
        self._town = town
        self._pair = (peer_id, caller)

    async def progress(self, snapshot_id: str, after: int, asker: str) -> Progress | None:
        return await self._exchange().progress(snapshot_id, after, asker)

    async def manifest(self, snapshot_id: str) -> bytes:
        return await self._exchange().manifest(snapshot_id)

    async def read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        town, pair = self._town, self._pair
        exchange = self._exchange()
        town.reads[pair] += 1
        town.under_way[pair] += 1
        town.most_at_once[pair] = max(town.most_at_once[pair], town.under_way[pair])
        try:
            fault = town.faults.get(self.id)
            instead = await fault(chunk, start) if fault else None
            content = instead if instead is not None else await exchange.read(snapshot_id, chunk, start, end)
            self._exchange()
            return content
        finally:
            town.under_way[pair] -= 1

    def _exchange(self) -> Exchange:
        if self.id in self._town.dead:
            raise RemoteError(f"peer://{self.id}", "it is dead")
        return self._town.exchanges[self.id]


async def hang(_chunk: int, _start: int) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError
