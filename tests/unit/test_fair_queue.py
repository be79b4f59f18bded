"""Tenants share places by weight: the choice, and waiting."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import TooManyWaitingError
from app.fair_queue import FairQueue, Party, may_go, next_party, next_rank_s, share
from deployments.errors import EngineUnavailableError


def waiting(count: int) -> Any:
    return [(number, None) for number in range(count)]


parties = st.lists(
    st.builds(
        Party,
        name=st.uuids().map(str),
        weight=st.floats(0.01, 100),
        running=st.integers(0, 20),
        waiting=st.integers(0, 5).map(waiting),
    ),
    min_size=1,
    max_size=6,
)


@given(parties, st.integers(1, 50))
def test_whoever_is_within_their_share_goes_at_once(active: list[Party], places: int) -> None:
    for party in active:
        if party.running + 1 <= share(party, active, places):
            assert may_go(party, active, places)
    assert sum(share(party, active, places) for party in active) == pytest.approx(places)


@given(parties, st.integers(1, 50))
def test_nobody_waits_while_there_is_room(active: list[Party], places: int) -> None:
    chosen = next_party(active, places)
    if any(party.waiting for party in active) and sum(party.running for party in active) < places:
        assert chosen is not None
    if chosen is not None:
        others = [party for party in active if party.waiting]
        assert chosen.running / chosen.weight == min(party.running / party.weight for party in others)


def test_ranks_follow_what_a_tenant_has_in_hand() -> None:
    flood, heavy, other = Party("flood", 1.0, running=40), Party("heavy", 4.0, running=40), Party("other", 1.0)
    assert [next_rank_s(party, 100.0) for party in (flood, heavy, other)] == [140.0, 110.0, 100.0]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(-5, 5)), min_size=2))
def test_ranks_keep_a_tenants_own_order_and_forgive(steps: list[tuple[float, int]]) -> None:
    party, now_s = Party("a", 1.0), 0.0
    for wait_s, change in steps:
        now_s += wait_s
        party.running = max(0, party.running + change)
        before, party.rank_s = party.rank_s, next_rank_s(party, now_s)
        assert party.rank_s >= max(before, now_s)
        # However much it had in hand: no more than as many seconds ago, it is forgiven.
        assert party.rank_s <= now_s + 5 * len(steps)
    assert next_rank_s(Party("a", 1.0, rank_s=party.rank_s), now_s + 5 * len(steps)) == now_s + 5 * len(steps)


class Crowd:
    """Sequences of tenants, each of which holds its place until told to go."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.inside: list[tuple[str, asyncio.Event]] = []
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, tenant: str, count: int = 1, weight: float = 1.0) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.ensure_future(self._sequence(tenant, weight)))
        await settled()

    async def _sequence(self, tenant: str, weight: float) -> None:
        leaves = asyncio.Event()
        async with self.queue.place("m", tenant, weight):
            self.order.append(tenant)
            self.inside.append((tenant, leaves))
            try:
                await leaves.wait()
            finally:
                self.inside.remove((tenant, leaves))

    async def one_leaves(self) -> None:
        self.inside[0][1].set()
        await settled()

    def count(self, tenant: str) -> int:
        return sum(name == tenant for name, _ in self.inside)

    async def all_leave(self) -> None:
        while self.inside:
            await self.one_leaves()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert repr(self.queue).endswith("0 wait, 0 tenants>")


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def queue_of(places: Callable[[], int], longest: int = 10_000, max_wait_s: float = 10) -> Crowd:
    return Crowd(FairQueue(places, longest, max_wait_s))


async def test_alone_a_tenant_has_all_places_in_order_of_arrival() -> None:
    crowd = queue_of(lambda: 4)
    await crowd.come("a", 10)
    assert crowd.count("a") == 4
    await crowd.all_leave()
    assert crowd.order == ["a"] * 10


async def test_who_comes_into_a_flood_does_not_wait() -> None:
    crowd = queue_of(lambda: 8)
    await crowd.come("flood", 160)
    for _ in range(3):
        await crowd.come("other")
        assert crowd.count("other") == 1, "within its share, though every place is taken"
        while crowd.count("other"):
            await crowd.one_leaves()
    await crowd.all_leave()


async def test_two_floods_share_by_weight() -> None:
    crowd = queue_of(lambda: 12)
    await crowd.come("light", 100, weight=1)
    await crowd.come("heavy", 100, weight=3)
    for _ in range(40):
        await crowd.one_leaves()
    assert (crowd.count("light"), crowd.count("heavy")) == (3, 9)
    await crowd.all_leave()


async def test_what_is_not_wanted_by_others_is_not_kept_for_them() -> None:
    crowd = queue_of(lambda: 10)
    await crowd.come("a", 20)
    await crowd.come("b", 2)
    for _ in range(2):
        await crowd.one_leaves()
    assert (crowd.count("a"), crowd.count("b")) == (8, 2)
    await crowd.all_leave()


async def test_more_places_are_filled() -> None:
    places = [2]
    crowd = queue_of(lambda: places[0])
    await crowd.come("a", 10)
    places[0] = 5
    await crowd.one_leaves()
    assert crowd.count("a") == 5
    await crowd.all_leave()


async def test_a_line_that_one_has_filled_has_room_for_the_other() -> None:
    crowd = queue_of(lambda: 1, longest=10)
    await crowd.come("flood", 50)
    assert sum(task.done() for task in crowd.tasks) == 39
    await crowd.come("other", 6)
    refused = [task for task in crowd.tasks if task.done()]
    assert len(refused) == 39 + 1, "half of the line is the other's"
    assert all(isinstance(task.exception(), TooManyWaitingError) for task in refused)
    await crowd.all_leave()


async def test_each_has_a_rank_of_its_own() -> None:
    places, ranks = [2], []
    queue = FairQueue(lambda: places[0], 100, 10, clock_s=lambda: 1000.0)

    async def sequence() -> None:
        async with queue.place("m", "a", 2.0) as rank:
            ranks.append(rank)
            await asyncio.Event().wait()

    tasks = [asyncio.ensure_future(sequence()) for _ in range(5)]
    await settled()
    places[0] = 5
    tasks.append(asyncio.ensure_future(sequence()))
    await settled()
    assert ranks == [1_000_000, 1_000_500, 1_001_000, 1_001_500, 1_002_000]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_gives_up_leaves_the_line() -> None:
    crowd = queue_of(lambda: 1)
    await crowd.come("a", 3)
    crowd.tasks[1].cancel()
    # At the same moment a place becomes free.
    crowd.inside[0][1].set()
    await settled()
    assert crowd.count("a") == 1
    assert crowd.tasks[1].cancelled()
    await crowd.all_leave()


async def test_who_is_let_in_and_gives_up_at_once_gives_the_place_back() -> None:
    crowd = queue_of(lambda: 1)
    await crowd.come("a", 3)
    party = crowd.queue._parties["a"]
    _, ticket = party.waiting[0]
    ticket.add_done_callback(lambda _: crowd.tasks[1].cancel())
    await crowd.one_leaves()
    assert party.running == 1
    await crowd.all_leave()


async def test_nobody_waits_for_ever() -> None:
    crowd = queue_of(lambda: 1, max_wait_s=0.01)
    await crowd.come("a", 2)
    with pytest.raises(EngineUnavailableError, match=r"no place was free within 0\.01 s"):
        await crowd.tasks[1]
    await crowd.all_leave()
