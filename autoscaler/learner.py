"""What one model's counts teach: which levels were asked for, after how long a quiet, and how often at all.

Covers: from requests counted in whole seconds to the events that ``Ahead`` learns from. Does not cover: keeping counts
(``history``), deciding (``planner``).

An engine's use is taken to end a request's usual time after the request came: whoever counts doesn't see it end. Ages
are reckoned from the same moment, so that what is learnt and what it is applied to agree.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from autoscaler.ahead import Ahead
from autoscaler.habits import MAX_LEVELS
from autoscaler.idle import SHORTEST_S, Gaps

RATE_MEMORY_S = 3600.0
LATE_S = 5.0
"""Counts that come later than this behind others are history, but teach no gaps."""

WRONG_S = 60.0
"""What was counted so far ahead was counted by a clock that has been put right since."""


@dataclass
class Learner:
    """One model. ``shared`` takes the gaps of all models; ``free_at_s`` is by level."""

    ahead: Ahead
    shared: Gaps
    free_at_s: list[float] = field(default_factory=list)
    newest_s: float = -math.inf
    _in_hand: deque[tuple[float, int]] = field(default_factory=deque)
    _counted: int = 0
    _counted_from_s: float | None = None

    def came(self, at_s: float, requests: int) -> None:
        """Count ``requests`` that came in the second from ``at_s`` on."""
        if not math.isfinite(at_s) or requests <= 0:
            return
        self._counted += requests
        if at_s < self.newest_s - LATE_S:
            return
        self.newest_s = max(self.newest_s, at_s)
        while self._in_hand and self._in_hand[0][0] <= at_s:
            self._in_hand.popleft()
        before = sum(number for _, number in self._in_hand)
        service_s, slots = self.ahead.habits.service_s, self.ahead.slots
        for level in range(before // slots, min(MAX_LEVELS, (before + requests - 1) // slots + 1)):
            first, last = max(before, level * slots), min(before + requests, (level + 1) * slots)
            self._asked(level, at_s, last - first, service_s)
        self._in_hand.append((at_s + service_s, requests))

    def _asked(self, level: int, at_s: float, requests: int, service_s: float) -> None:
        while len(self.free_at_s) <= level:
            self.free_at_s.append(math.inf)
        free_at_s = self.free_at_s[level]
        quiet_since_s = free_at_s if free_at_s < at_s else None
        if quiet_since_s is not None and level == 0 and at_s - quiet_since_s > SHORTEST_S:
            self.shared.add(at_s - quiet_since_s)
        self.ahead.asked(level, at_s, quiet_since_s)
        for _ in range(requests - 1):
            self.ahead.asked(level, at_s, None)
        self.free_at_s[level] = at_s + service_s

    def bucket(self, now_s: float) -> None:
        """End a bucket of counting."""
        if self.newest_s > now_s + WRONG_S:
            self.newest_s, self.free_at_s = -math.inf, []
            self._in_hand.clear()
        if self._counted_from_s is not None and now_s > self._counted_from_s:
            self.ahead.habits.counted(self._counted, now_s - self._counted_from_s, RATE_MEMORY_S)
        self._counted, self._counted_from_s = 0, now_s

    def quiet_since_s(self, level: int) -> float:
        """Return since when a level is taken to be idle; minus infinity if it was never used."""
        since_s = self.free_at_s[level] if level < len(self.free_at_s) else math.inf
        return since_s if math.isfinite(since_s) else -math.inf
