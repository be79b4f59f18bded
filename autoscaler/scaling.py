"""How many replicas a pool should have: measured load and the plan's floor, with memory enough not to flap. Pure.

Covers: one pool at one moment, with the reason; what a plan must look like to be believed. Does not cover: engines of
models (``planner``), being called by Serve (``serve_policy``).

The rules: what is measured wins upward, at once. The plan sets a floor for as far ahead as a replica takes to start.
Fewer replicas come only when fewer would have done for ``hold_s``, and will for as long after another could start: one
that starts sooner than expected must not be given back just before what it came for. No plan, an old one and nonsense
are the same: then load alone decides.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STALE_S = 15.0
"""A plan that is older is none."""
FIRST_LEAD_S = 30.0
LONGEST_LEAD_S = 1800.0
MOST_STEPS = 10_000
SHARE_OF_NEW = 0.5


@dataclass(frozen=True)
class Rules:
    """``target_ongoing`` is what a replica sustains at once, ``hold_s`` how long fewer replicas must have done."""

    target_ongoing: float
    hold_s: float


@dataclass(frozen=True)
class Seen:
    """What Serve sees: requests in hand and queued, replicas that run and that it wants, and its bounds."""

    ongoing: float
    running: int
    target: int
    least: int
    most: int


@dataclass(frozen=True)
class Expected:
    """The plan for a pool: replicas needed in each step from now on, requests that replicas themselves tell of."""

    step_s: float
    need: tuple[int, ...]
    ongoing: float

    def floor(self, lead_s: float) -> int:
        """Return the most that is needed until a replica which is asked for now is there."""
        steps = 1 + math.ceil(lead_s / self.step_s)
        return max(self.need[:steps], default=0)


@dataclass(frozen=True)
class ReplicaDecision:
    """How many, of them for load and for the forecast, and why."""

    replicas: int
    measured: int
    floor: int
    reason: str


@dataclass
class Memory:
    """What one pool's decisions remember; ``lead_s`` is how long replicas take to start, once that was measured."""

    lead_s: float | None = None
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _asked_s: float | None = None
    _asked_for: int = 0

    def highest(self, wanted: int, now_s: float, hold_s: float) -> int:
        """Return the most that was wanted within ``hold_s``; the first answer ever is remembered as wanted too."""
        # Lower ones before a higher one will never be the highest again.
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now_s, wanted))
        # A clock that was put back would keep old ones for long.
        while len(self._wanted) > 1 and abs(now_s - self._wanted[0][0]) > hold_s:
            self._wanted.popleft()
        return self._wanted[0][1]

    @property
    def is_new(self) -> bool:
        """Whether nothing was decided yet."""
        return not self._wanted

    def time_starts(self, running: int, replicas: int, now_s: float) -> None:
        """Measure how long it takes from more being wanted until they run."""
        if self._asked_s is not None and running >= self._asked_for:
            taken_s = min(max(0.0, now_s - self._asked_s), LONGEST_LEAD_S)
            known_s = taken_s if self.lead_s is None else self.lead_s
            self.lead_s = known_s + SHARE_OF_NEW * (taken_s - known_s)
            self._asked_s = None
        if replicas <= running:
            self._asked_s = None
        elif self._asked_s is None or replicas > self._asked_for:
            self._asked_s, self._asked_for = now_s, replicas


def read_expected(body: Any, age_s: float) -> Expected | None:
    """Return the plan that a forecaster gave, ``age_s`` seconds ago; None if it can't be believed."""
    if not isinstance(body, Mapping) or not 0 <= age_s <= STALE_S:
        return None
    step_s, need, ongoing = body.get("step_s"), body.get("need"), body.get("ongoing", 0.0)
    if not isinstance(need, list | tuple) or not 0 < len(need) <= MOST_STEPS:
        return None
    numbers = [step_s, ongoing, *need]
    if not all(isinstance(each, int | float) and math.isfinite(each) and each >= 0 for each in numbers):
        return None
    if not isinstance(step_s, int | float) or step_s <= 0 or not isinstance(ongoing, int | float):
        return None
    return Expected(float(step_s), tuple(math.ceil(each) for each in need), float(ongoing))


def decide_replicas(
    seen: Seen, expected: Expected | None, memory: Memory, rules: Rules, now_s: float
) -> ReplicaDecision:
    """Decide; ``memory`` is changed."""
    if memory.is_new:
        # Whoever was there before had reasons that are not known here.
        memory.highest(seen.target, now_s, rules.hold_s)
    ongoing = seen.ongoing if math.isfinite(seen.ongoing) else 0.0
    if expected is not None:
        ongoing = max(ongoing, expected.ongoing)
    measured = math.ceil(max(0.0, ongoing) / rules.target_ongoing)
    lead_s = FIRST_LEAD_S if memory.lead_s is None else memory.lead_s
    floor = 0 if expected is None else expected.floor(lead_s)
    wanted = _bounded(max(measured, floor), seen)
    soon = 0 if expected is None else min(seen.target, expected.floor(lead_s + rules.hold_s))
    lately = memory.highest(wanted, now_s, rules.hold_s)
    replicas = _bounded(max(lately, soon), seen)
    memory.time_starts(seen.running, replicas, now_s)
    if replicas > max(wanted, _bounded(lately, seen)):
        return ReplicaDecision(replicas, measured, floor, "as many will be needed soon")
    return ReplicaDecision(replicas, measured, floor, _reason(replicas, wanted, measured, floor, expected, seen))


def _bounded(replicas: int, seen: Seen) -> int:
    return max(seen.least, min(seen.most, replicas))


def _reason(  # noqa: PLR0913, PLR0917 - what a decision came from
    replicas: int, wanted: int, measured: int, floor: int, expected: Expected | None, seen: Seen
) -> str:
    note = "" if expected is not None else ", without a plan"
    if replicas > wanted:
        return f"more were needed lately{note}"
    if floor > measured and replicas > seen.least:
        return "forecast"
    return (f"load{note}" if measured > 0 else f"nothing to do{note}") if replicas >= measured else f"the most{note}"
