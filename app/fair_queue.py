"""Who goes next where there are fewer places than sequences: tenants share them by weight.

Serve's own queue in front of replicas is one line for all, and has an end: whoever floods it makes the others wait, or
be turned away. So where there are tenants, each pool has as many places here as its replicas take sequences at once,
and what has none waits here. A tenant within its share of the places goes at once, even when the others have taken all:
it is then first in Serve's line. Other places go to whoever has fewest, by weight.

A replica takes more than its engine computes at once, and there is a line in the engine too. There a sequence stands as
if it had come a second later for each that its tenant has already, by weight.

Covers: the choice (pure), waiting, the rank for the engine. Does not cover: limits (``tenants``).
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.errors import TooManyWaitingError
from deployments.errors import EngineUnavailableError

# More than the time between two ends of sequences on a slow engine, or else a flood would outlive its rank there.
SPACING_S = 1.0


@dataclass
class Party:
    """A tenant's sequences: how many have a place, and who waits for one, with the number of their arrival."""

    name: str
    weight: float
    running: int = 0
    waiting: deque[tuple[int, asyncio.Future[float]]] = field(default_factory=deque)
    rank_s: float = 0.0


def share(party: Party, active: Collection[Party], places: int) -> float:
    """Return a party's share of so many places; ``active`` are all that have or want one."""
    return places * party.weight / sum(each.weight for each in active)


def may_go(party: Party, active: Collection[Party], places: int) -> bool:
    """Tell whether one more sequence of a party's may have a place."""
    return sum(each.running for each in active) < places or party.running + 1 <= share(party, active, places)


def may_wait(party: Party, active: Collection[Party], longest: int) -> bool:
    """Tell whether one more may wait; a line that others have filled has room for a party's share. -1: no limit."""
    if longest < 0:
        return True
    return sum(len(each.waiting) for each in active) < longest or len(party.waiting) + 1 <= share(
        party, active, longest
    )


def next_rank_s(party: Party, now_s: float) -> float:
    """Return when a party's next sequence counts as having come: never before one of its own that came earlier.

    What it had in hand once is forgiven as time passes, and gateways with clocks that agree give ranks that do.
    """
    return max(party.rank_s, now_s + SPACING_S * party.running / party.weight)


def next_party(active: Collection[Party], places: int) -> Party | None:
    """Return who gets the next place: who has fewest by weight, then who has waited longest; None: nobody."""
    waiting = [party for party in active if party.waiting]
    first = min(waiting, key=lambda party: (party.running / party.weight, party.waiting[0][0]), default=None)
    return first if first is not None and may_go(first, active, places) else None


class FairQueue:
    """The places of one pool, as one gateway sees them; one event loop."""

    def __init__(
        self, places: Callable[[], int], longest: int, max_wait_s: float, clock_s: Callable[[], float] = time.time
    ) -> None:
        """``places`` returns how many sequences the pool takes now, ``longest`` is how many may wait at most."""
        self._places = places
        self._longest = longest
        self._max_wait_s = max_wait_s
        self._clock_s = clock_s
        self._parties: dict[str, Party] = {}
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def place(self, model_id: str, tenant: str, weight: float) -> AsyncIterator[int]:
        """Hold a place for one sequence, once it is the tenant's turn; yields its rank in engines, lowest first.

        Raises:
            TooManyWaitingError: there is no room to wait in.
            EngineUnavailableError: it was not its turn in time.
        """
        party = self._parties.setdefault(tenant, Party(tenant, weight))
        party.weight = weight
        try:
            rank_s = await self._turn(party, model_id)
            try:
                yield int(rank_s * 1000)
            finally:
                party.running -= 1
        finally:
            if not party.running and not party.waiting:
                self._parties.pop(tenant, None)
            self._let_in()

    async def _turn(self, party: Party, model_id: str) -> float:
        everybody = self._parties.values()
        if not party.waiting and may_go(party, everybody, self._places()):
            return self._let(party)
        if not may_wait(party, everybody, self._longest):
            raise TooManyWaitingError(model_id)
        ticket: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        entry = (next(self._arrivals), ticket)
        party.waiting.append(entry)
        self._let_in()
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await ticket
        except BaseException as error:
            # However it ends, also with its client: its place must not be lost to the others.
            if entry in party.waiting:
                party.waiting.remove(entry)
            if not ticket.cancelled():
                # It was let in at the same moment.
                party.running -= 1
            if isinstance(error, TimeoutError):
                reason = f"no place was free within {self._max_wait_s:g} s"
                raise EngineUnavailableError(model_id, reason) from None
            raise

    def _let_in(self) -> None:
        while (party := next_party(self._parties.values(), self._places())) is not None:
            _, ticket = party.waiting.popleft()
            # Whoever gave up has not been here yet to take it out of the line.
            if not ticket.done():
                ticket.set_result(self._let(party))

    def _let(self, party: Party) -> float:
        party.rank_s = next_rank_s(party, self._clock_s())
        party.running += 1
        return party.rank_s

    def __repr__(self) -> str:
        running = sum(party.running for party in self._parties.values())
        waiting = sum(len(party.waiting) for party in self._parties.values())
        return f"<FairQueue {running} of {self._places()} places, {waiting} wait, {len(self._parties)} tenants>"
