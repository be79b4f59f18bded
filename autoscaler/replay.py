"""Replays arrivals through a policy in virtual time: engines start, serve, idle and rest, users wait, devices cost.

Covers: one series at a time; series don't share devices here, so what is counted is what each needs. Does not cover:
choosing (the policies), room on a device (``deployments.residency``), generating tokens: a request holds one of an
engine's slots for the seconds that the trace gives it.

Waiting is *added* waiting: what an engine that is awake and has a free slot would not have cost. A policy is asked when
a request has to wait, when an engine falls idle and when it asked to be asked; it hears of nothing that is to come.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from autoscaler.layers import AWAKE, Profile
from autoscaler.policy import Decision, EngineAt, Load
from autoscaler.traces import Arrivals, Trace
from autoscaler.types import Floats

Spent = Literal["busy", "starting", "idle", "resting"]
SPENT: tuple[Spent, ...] = ("busy", "starting", "idle", "resting")
BUSY, STARTING, IDLE, RESTING = range(len(SPENT))
ENDS, READY, LOOK = 0, 1, 2
SHORTEST_LOOK_S = 1e-3


class SeriesPolicy(Protocol):
    """Decides for one series. What it is told is all that it may know."""

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:
        """A request came; engine ``level`` is the one that it needs, idle since then or working."""

    def served_in(self, seconds: float) -> None:
        """A request was served in so long."""

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """Say where each engine should be."""


PolicyOf = Callable[[str, Profile, int], SeriesPolicy]
"""Makes the policy of a series from its name, its engines' profile and their slots."""


@dataclass
class Outcome:
    """What a replay came to: [requests] added waiting in seconds, and device-seconds by how they were spent.

    ``wrong_prewarms`` are engines that were made ready unasked and put down unused; ``wrong_s`` what that took.
    """

    waits_s: Floats
    spent_s: dict[Spent, float]
    starts: int = 0
    prewarms: int = 0
    wrong_prewarms: int = 0
    wrong_s: float = 0.0
    cold_requests: int = 0

    @property
    def unused_s(self) -> float:
        """Device-seconds that served nobody."""
        return self.spent_s["starting"] + self.spent_s["idle"] + self.spent_s["resting"]

    @property
    def total_s(self) -> float:
        """All device-seconds."""
        return self.unused_s + self.spent_s["busy"]

    def wait_s(self, quantile: float) -> float:
        """Return a quantile of the added waiting."""
        return float(np.quantile(self.waits_s, quantile)) if len(self.waits_s) else 0.0

    def within(self, seconds: float) -> float:
        """Return the share of requests whose first token was not delayed by more."""
        return float((self.waits_s <= seconds).mean()) if len(self.waits_s) else 1.0


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of all series together."""
    all_of_them = list(outcomes)
    spent: dict[Spent, float] = {kind: math.fsum(each.spent_s[kind] for each in all_of_them) for kind in SPENT}
    return Outcome(
        np.concatenate([each.waits_s for each in all_of_them]) if all_of_them else np.zeros(0),
        spent,
        starts=sum(each.starts for each in all_of_them),
        prewarms=sum(each.prewarms for each in all_of_them),
        wrong_prewarms=sum(each.wrong_prewarms for each in all_of_them),
        wrong_s=math.fsum(each.wrong_s for each in all_of_them),
        cold_requests=sum(each.cold_requests for each in all_of_them),
    )


def replay(  # noqa: PLR0913 - what is replayed, how, and which part counts
    trace: Trace,
    policy_of: PolicyOf,
    profile: Profile,
    slots: int,
    *,
    begin_s: float = 0.0,
    end_s: float = math.inf,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Replay every series until ``end_s``; counted is from ``begin_s`` on, what comes before is for learning."""
    return replay_parts(trace, policy_of, profile, slots, [(begin_s, end_s)], progress=progress)[0]


def replay_parts(  # noqa: PLR0913 - what is replayed, how, and which parts count
    trace: Trace,
    policy_of: PolicyOf,
    profile: Profile,
    slots: int,
    parts: Sequence[tuple[float, float]],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Replay every series once; return the outcome of each part (from, until, in s).

    The end of the last part is the replay's; if infinite, it is the last request of the trace.
    """
    outcomes: list[list[Outcome]] = [[] for _ in parts]
    end_s = parts[-1][1]
    horizon_s = end_s if math.isfinite(end_s) else max(float(each.at_s[-1]) for each in trace.values())
    for name, arrivals in trace.items():
        known = arrivals.until(end_s)
        simulation = Simulation(known, policy_of(name, profile, slots), profile, slots, parts[0][0], horizon_s)
        simulation.run()
        for (from_s, until_s), found in zip(parts, outcomes, strict=True):
            found.append(simulation.outcome(from_s, min(until_s, horizon_s)))
        if progress is not None:
            progress(len(known.at_s))
    return [total(found) for found in outcomes]


@dataclass(slots=True)
class _Engine:
    layer: int
    idle_since_s: float | None = -math.inf
    in_hand: int = 0
    ready_at_s: float | None = None
    kept_until_s: float = -math.inf
    since_s: float = 0.0
    unasked_since_s: float | None = None

    def view(self) -> EngineAt:
        return EngineAt(self.layer, self.idle_since_s, self.ready_at_s is not None, self.kept_until_s)

    @property
    def serves(self) -> bool:
        return self.layer == AWAKE and self.ready_at_s is None


@dataclass
class Simulation:
    """One series. ``decisions`` are kept if asked for: (time, decision)."""

    arrivals: Arrivals
    policy: SeriesPolicy
    profile: Profile
    slots: int
    begin_s: float
    end_s: float
    decisions: list[tuple[float, Decision]] | None = None
    limit: int = 10_000
    _engines: list[_Engine] = field(default_factory=list)
    _events: list[tuple[float, int, int, int]] = field(default_factory=list)
    _queue: deque[tuple[float, float]] = field(default_factory=deque)
    _waits: list[tuple[float, float]] = field(default_factory=list)
    _spans: list[tuple[int, float, float, float]] = field(default_factory=list)
    _starts: list[tuple[float, bool]] = field(default_factory=list)
    _wrong: list[tuple[float, float]] = field(default_factory=list)
    _in_hand: int = 0
    _number: int = 0
    _look: int = -1

    def run(self) -> Outcome:
        """Replay, and return what it came to."""
        events = self._events
        for at_s, service_s in zip(self.arrivals.at_s.tolist(), self.arrivals.service_s.tolist(), strict=True):
            while events and events[0][0] <= at_s:
                self._happens(heapq.heappop(events))
            self._arrives(at_s, service_s)
        while events and (events[0][0] <= self.end_s or self._queue):
            self._happens(heapq.heappop(events))
        for engine in self._engines:
            self._account(engine, self.end_s)
        return self.outcome(self.begin_s, self.end_s)

    def outcome(self, from_s: float, until_s: float) -> Outcome:
        """Return what a part of it came to, once it was replayed; ``until_s`` is the end of the replay at most."""
        waits = np.array(self._waits).reshape(-1, 2)
        last = until_s >= self.end_s
        waits_s = waits[(waits[:, 0] >= from_s) & ((waits[:, 0] < until_s) | last), 1]
        spans = np.array(self._spans).reshape(-1, 4)
        counted_s = np.maximum(0.0, np.minimum(spans[:, 3], until_s) - np.maximum(spans[:, 2], from_s)) * spans[:, 1]
        sums = np.bincount(spans[:, 0].astype(int), counted_s, len(SPENT))
        starts = [unasked for at_s, unasked in self._starts if from_s <= at_s < until_s or (last and at_s >= until_s)]
        wrong = [
            (since_s, to_s) for since_s, to_s in self._wrong if from_s <= to_s < until_s or (last and to_s >= until_s)
        ]
        return Outcome(
            waits_s,
            dict(zip(SPENT, sums.tolist(), strict=True)),
            starts=len(starts),
            prewarms=sum(starts),
            wrong_prewarms=len(wrong),
            wrong_s=math.fsum(to_s - max(from_s, since_s) for since_s, to_s in wrong),
            cold_requests=int((waits_s > 0).sum()),
        )

    def _arrives(self, now_s: float, service_s: float) -> None:
        level = (self._in_hand + len(self._queue)) // self.slots
        while len(self._engines) <= level:
            self._engines.append(_Engine(self.profile.coldest, since_s=now_s))
        asked = self._engines[level]
        self.policy.asked(level, now_s, asked.idle_since_s)
        if not self._queue:
            for level, engine in enumerate(self._engines):
                if engine.serves and engine.in_hand < self.slots:
                    self._serve(level, engine, now_s, now_s, service_s)
                    return
        self._queue.append((now_s, service_s))
        self._decide(now_s)
        if asked.idle_since_s is not None and asked.ready_at_s is None:
            # The others will do; it was asked for nevertheless.
            asked.idle_since_s = now_s

    def _happens(self, event: tuple[float, int, int, int]) -> None:
        now_s, number, kind, level = event
        if kind == LOOK:
            if number == self._look:
                self._decide(now_s)
            return
        engine = self._engines[level]
        if kind == READY:
            self._account(engine, now_s)
            engine.ready_at_s = None
        else:
            engine.in_hand -= 1
            self._in_hand -= 1
            if engine.in_hand == 0:
                self._account(engine, now_s, busy=True)
                engine.idle_since_s = now_s
        while self._queue and engine.in_hand < self.slots:
            came_s, service_s = self._queue.popleft()
            self._serve(level, engine, came_s, now_s, service_s)
        if engine.in_hand == 0:
            if engine.idle_since_s is None:
                engine.idle_since_s = now_s
            self._decide(now_s)

    def _serve(self, level: int, engine: _Engine, came_s: float, now_s: float, service_s: float) -> None:
        if engine.in_hand == 0:
            self._account(engine, now_s)
            engine.idle_since_s = None
            engine.unasked_since_s = None
        engine.in_hand += 1
        self._in_hand += 1
        self._push(now_s + service_s, ENDS, level)
        self.policy.served_in(service_s)
        self._waits.append((came_s, now_s - came_s))

    def _decide(self, now_s: float) -> None:
        load = Load(self._in_hand, len(self._queue), self.slots, 0.0)
        decision = self.policy.decide([engine.view() for engine in self._engines], load, now_s)
        if self.decisions is not None:
            self.decisions.append((now_s, decision))
        asked = min(len(decision.layers), decision.measured)
        for level, target in enumerate(decision.layers[: self.limit]):
            if level >= len(self._engines):
                self._engines.append(_Engine(self.profile.coldest, since_s=now_s))
            self._move(level, target, now_s, unasked=level >= asked)
        for engine in self._engines[len(decision.layers) :]:
            self._put_down(engine, self.profile.coldest, now_s)
        if math.isfinite(decision.look_again_s):
            self._look = self._push(max(decision.look_again_s, now_s + SHORTEST_LOOK_S), LOOK, 0)
        else:
            self._look = -1

    def _move(self, level: int, target: int, now_s: float, *, unasked: bool) -> None:
        engine = self._engines[level]
        if target > engine.layer:
            self._put_down(engine, target, now_s)
        elif target < engine.layer:
            layers = self.profile.layers
            takes_s = layers[engine.layer].ready_s - layers[target].ready_s
            self._account(engine, now_s)
            engine.layer = target
            engine.ready_at_s = now_s + takes_s
            self._push(now_s + takes_s, READY, level)
            self._starts.append((now_s, unasked))
            if unasked:
                engine.unasked_since_s = now_s
                engine.kept_until_s = now_s + 2 * takes_s
            else:
                engine.idle_since_s = None

    def _put_down(self, engine: _Engine, target: int, now_s: float) -> None:
        """An engine that works or starts stays: whoever wants otherwise is not obeyed."""
        if target <= engine.layer or engine.in_hand or engine.ready_at_s is not None:
            return
        self._account(engine, now_s)
        if engine.unasked_since_s is not None:
            self._wrong.append((engine.unasked_since_s, now_s))
        engine.unasked_since_s = None
        engine.layer = target

    def _account(self, engine: _Engine, now_s: float, *, busy: bool = False) -> None:
        if engine.since_s < now_s:
            kind = (
                STARTING
                if engine.ready_at_s is not None
                else BUSY
                if busy or engine.in_hand
                else IDLE
                if engine.layer == AWAKE
                else RESTING
            )
            share = 1.0 if kind != RESTING else self.profile.layers[engine.layer].device_share
            if share > 0:
                self._spans.append((kind, share, engine.since_s, now_s))
        engine.since_s = now_s

    def _push(self, at_s: float, kind: int, level: int) -> int:
        self._number += 1
        heapq.heappush(self._events, (at_s, self._number, kind, level))
        return self._number
