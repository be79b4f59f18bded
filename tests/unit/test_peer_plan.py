"""Who fetches what from whom, played in virtual time: nodes that come late, hear late, die and lie."""

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from storage.peer import Progress
from storage.peer_board import Board
from storage.peer_plan import Fellow, Fetch, Limits, Nothing, Situation, choose, choose_now

LIMITS = Limits(at_once=4, per_peer=2, patience_s=10.0, help_after_s=0.5)
AGAIN_S = 0.25


@dataclass
class Node:
    board: Board
    starts_s: float
    got: Counter[int] = field(default_factory=Counter)
    under_way: int = 0
    is_whole: bool = False


@dataclass
class Play:
    """Nodes that fill a snapshot of ``chunks`` chunks; news of each takes ``delay_s``."""

    chunks: int
    starts_s: dict[str, float]
    seeds: tuple[str, ...] = ()
    has_source: bool = True
    delay_s: float = 0.0
    dies_s: dict[str, float] = field(default_factory=dict)
    liars: frozenset[str] = frozenset()
    seed: int = 0
    source_reads: Counter[int] = field(default_factory=Counter)
    given_up: set[str] = field(default_factory=set)

    def run(self) -> dict[str, Node]:
        self.chance = random.Random(self.seed)  # noqa: S311 - the same every time
        self.events: list[tuple[float, int, tuple[str, ...], object]] = []
        self.order = itertools.count()
        self.nodes = {
            name: Node(Board(name, self.chunks, LIMITS, content="c", has_source=self.has_source), starts_s)
            for name, starts_s in self.starts_s.items()
        }
        for name, node in self.nodes.items():
            self.later(node.starts_s, ("start", name))
        for name, at_s in self.dies_s.items():
            self.later(at_s, ("die", name))
        self.dead: set[str] = set()
        self.begun: set[str] = set()
        while self.events:
            self.now_s, _, (kind, name), what = heapq.heappop(self.events)
            assert self.now_s < 10_000, "nothing comes to an end"
            if name not in self.dead:
                getattr(self, kind)(name, what)
        return self.nodes

    def later(self, at_s: float, event: tuple[str, ...], what: object = None) -> None:
        heapq.heappush(self.events, (at_s, next(self.order), event, what))

    def progress(self, name: str) -> Progress:
        if name in self.seeds or self.nodes[name].is_whole:
            return Progress("c", whole=True)
        return self.nodes[name].board.progress()

    def start(self, name: str, _: object) -> None:
        self.begun.add(name)
        board = self.nodes[name].board
        board.wants(range(self.chunks))
        for other in (*self.seeds, *self.begun - {name}):
            if other not in self.dead:
                board.heard(other, self.progress(other), self.now_s)
        self.announce(name)
        for _thread in range(LIMITS.at_once):
            self.later(self.now_s, ("turn", name))

    def announce(self, name: str) -> None:
        told = self.progress(name)
        for other in self.begun - {name}:
            if self.delay_s:
                self.later(self.now_s + self.delay_s, ("hear", other), (name, told))
            else:
                self.nodes[other].board.heard(name, told, self.now_s)

    def hear(self, name: str, news: tuple[str, Progress]) -> None:
        self.nodes[name].board.heard(*news, self.now_s)

    def die(self, name: str, _: object) -> None:
        self.dead.add(name)
        for other in self.begun - self.dead:
            self.nodes[other].board.lose(name)

    def turn(self, name: str, _: object) -> None:
        node = self.nodes[name]
        found = node.board.take(self.now_s)
        if isinstance(found, Fetch):
            self.fetch(name, found)
        elif found is Nothing.YET:
            self.later(self.now_s + AGAIN_S, ("turn", name))
        elif found is Nothing.EVER:
            self.given_up.add(name)

    def again(self, name: str, chunk: int) -> None:
        found = self.nodes[name].board.take_now(chunk, self.now_s)
        if isinstance(found, Fetch):
            self.fetch(name, found)
        elif found is Nothing.YET:
            self.later(self.now_s + AGAIN_S, ("again", name), chunk)
        else:
            self.given_up.add(name)

    def fetch(self, name: str, fetch: Fetch) -> None:
        node = self.nodes[name]
        node.under_way += 1
        assert node.under_way <= LIMITS.at_once
        assert fetch.peer != name
        busy = node.board._busy
        assert all(reads <= LIMITS.per_peer for reads in busy.values())
        if fetch.peer is None:
            self.source_reads[fetch.chunk] += 1
        elif fetch.peer not in self.dead:
            told = self.progress(fetch.peer)
            assert told.whole or fetch.chunk in told.have, "only who has it is asked"
        self.announce(name)
        self.later(self.now_s + self.chance.uniform(0.1, 2.0), ("end", name), fetch)

    def end(self, name: str, fetch: Fetch) -> None:
        node = self.nodes[name]
        node.under_way -= 1
        is_good = fetch.peer is None or fetch.peer not in self.dead | self.liars
        if not is_good:
            assert fetch.peer is not None
            node.board.lose(fetch.peer)
        node.board.moved(int(is_good))
        node.board.ended(fetch, here=is_good)
        if is_good:
            node.got[fetch.chunk] += 1
            node.is_whole = len(node.got) == self.chunks
            self.announce(name)
            self.turn(name, None)
        else:
            self.announce(name)
            self.again(name, fetch.chunk)


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


joiners = st.integers(1, 8)
counts = st.integers(1, 20)
seeds = st.integers(0, 10_000)


@given(joiners, counts, seeds)
def test_a_group_reads_the_source_once(count: int, chunks: int, seed: int) -> None:
    play = Play(chunks, dict.fromkeys(names(count), 0.0), seed=seed)
    for node in play.run().values():
        assert node.got == Counter(range(chunks))
    assert play.source_reads == Counter(range(chunks))


@given(joiners, counts, st.integers(1, 3), seeds)
def test_where_a_peer_has_it_the_source_is_left_alone(count: int, chunks: int, whole: int, seed: int) -> None:
    play = Play(chunks, dict.fromkeys(names(count), 0.0), seeds=tuple(f"s{n}" for n in range(whole)), seed=seed)
    for node in play.run().values():
        assert node.got == Counter(range(chunks))
    assert not play.source_reads


@given(st.lists(st.floats(0, 20), min_size=1, max_size=8), counts, st.floats(0, 0.5), seeds)
def test_who_comes_late_or_hears_late_costs_little(
    starts_s: list[float], chunks: int, delay_s: float, seed: int
) -> None:
    play = Play(chunks, dict(zip(names(len(starts_s)), starts_s, strict=True)), delay_s=delay_s, seed=seed)
    for node in play.run().values():
        assert node.got == Counter(range(chunks))
    # Twice is only what several began before they heard of each other: a node's reads at once.
    assert play.source_reads.total() <= chunks + LIMITS.at_once * (len(starts_s) - 1)


@given(
    joiners,
    counts,
    st.integers(0, 2),
    st.dictionaries(st.sampled_from([*names(8), "s0", "s1"]), st.floats(0, 15), max_size=5),
    st.frozensets(st.sampled_from([*names(8), "s0", "s1"]), max_size=4),
    st.floats(0, 0.5),
    seeds,
)
def test_whoever_dies_or_lies_the_others_get_everything_once(  # noqa: PLR0913, PLR0917 - what may be
    count: int,
    chunks: int,
    whole: int,
    dies_s: dict[str, float],
    liars: frozenset[str],
    delay_s: float,
    seed: int,
) -> None:
    play = Play(
        chunks,
        dict.fromkeys(names(count), 0.0),
        seeds=tuple(f"s{number}" for number in range(whole)),
        delay_s=delay_s,
        dies_s={name: at_s for name, at_s in dies_s.items() if name in {*names(count), "s0", "s1"}},
        liars=liars,
        seed=seed,
    )
    for name, node in play.run().items():
        if name not in play.dead:
            assert node.got == Counter(range(chunks)), name
    assert not play.given_up


@given(count=joiners, chunks=counts, dies=st.booleans(), seed=seeds)
def test_without_a_source_all_get_it_from_a_peer_or_give_up(count: int, chunks: int, *, dies: bool, seed: int) -> None:
    play = Play(
        chunks,
        dict.fromkeys(names(count), 0.0),
        seeds=("s0",),
        has_source=False,
        dies_s={"s0": 1.0} if dies else {},
        seed=seed,
    )
    for name, node in play.run().items():
        assert node.got == Counter(range(chunks)) or (dies and name in play.given_up)


def test_several_peers_are_read_at_once() -> None:
    peers = tuple(Fellow(name, whole=True) for name in names(3))
    board = Board("me", 8, LIMITS, content="c", has_source=True)
    for peer in peers:
        board.heard(peer.id, Progress("c", whole=True), 0.0)
    board.wants(range(8))
    found = [board.take(0.0) for _ in range(4)]
    assert {fetch.peer for fetch in found if isinstance(fetch, Fetch)} == {"n0", "n1", "n2"}


def test_who_fills_together_reads_from_the_source_as_much_at_once_as_one_alone() -> None:
    alone = Situation("a", frozenset(range(3, 100)), claimed=frozenset({0, 1, 2}))
    assert choose(alone, LIMITS, 0.0) == Fetch(3, None)
    other = Fellow("b")
    two = Situation("a", frozenset(range(3, 100)), (other,), claimed=frozenset({0}))
    assert choose(two, LIMITS, 0.0) == Fetch(4, None), "even chunks are the first one's"
    assert choose(Situation("a", frozenset(range(3, 100)), (other,), claimed=frozenset({0, 2})), LIMITS, 0.0) is (
        Nothing.YET
    )


def test_who_gets_nowhere_has_no_share_and_no_claims() -> None:
    stuck = Fellow("b", claimed=frozenset({1}), progressed_s=0.0)
    situation = Situation("a", frozenset({1}), (stuck,))
    assert choose(situation, LIMITS, 5.0) is Nothing.YET
    assert choose(situation, LIMITS, 11.0) == Fetch(1, None)


def test_who_is_idle_helps_with_what_is_not_begun() -> None:
    other = Fellow("b", claimed=frozenset({1}))
    waiting = Situation("a", frozenset({1, 3}), (other,), idle_since_s=1.0)
    assert choose(waiting, LIMITS, 1.2) is Nothing.YET
    assert choose(waiting, LIMITS, 1.6) == Fetch(3, None)


def test_a_chunk_that_is_wanted_now_comes_from_who_has_it_else_from_the_source() -> None:
    has, has_not = Fellow("b", have=frozenset({7})), Fellow("c")
    assert choose_now(Situation("a", frozenset({7}), (has, has_not)), LIMITS, 7, 0.0) == Fetch(7, "b", claims=False)
    busy = Situation("a", frozenset({7}), (has, has_not), busy={"b": 2})
    assert choose_now(busy, LIMITS, 7, 0.0) == Fetch(7, None)
    without = Situation("a", frozenset({7}), (has_not,), has_source=False)
    assert choose_now(without, LIMITS, 7, 0.0) is Nothing.YET
    assert choose_now(without, LIMITS, 7, 11.0) is Nothing.EVER
