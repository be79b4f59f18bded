"""The policy of this project for one series: habits, forecast and the cheapest course, put together.

Covers: what live scaling and the replay both run. Does not cover: where counts and forecasts come from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoscaler.config import PATIENCE_S
from autoscaler.habits import Habits
from autoscaler.idle import Gaps
from autoscaler.layers import Layer
from autoscaler.policy import Decision, EngineAt, Load, decide
from autoscaler.rest import Course, course
from autoscaler.types import Floats

ExpectedOf = Callable[[float], float | None]
"""The rate a second that is forecast from a moment on; None: there is no forecast."""

COURSE_S = 300.0
"""A course is reckoned again after so long if anything was learnt, or at once while little is known."""
YOUNG_GAPS = 20
RETIMED = 0.2
"""Start times that differ by more than this share make other courses."""


@dataclass
class _Reckoned:
    course: Course
    hazard: Floats
    at_s: float
    gaps: int
    surge: float


@dataclass
class Ahead:
    """Decides ahead of demand for one series, as ``SeriesPolicy``.

    ``worth`` is how many device-seconds a second of waiting may cost, ``prior`` the gaps of all series, ``expected_of``
    the forecast; ``recheck_s`` is how often a forecast may change. Waiting up to ``patience_s`` is hardly minded.
    """

    layers: Sequence[Layer]
    slots: int
    worth: float
    prior: Gaps | None = None
    expected_of: ExpectedOf | None = None
    rate_of: ExpectedOf | None = None
    recheck_s: float = 300.0
    limit: int = 10_000
    patience_s: float = PATIENCE_S
    habits: Habits = field(init=False)
    _courses: dict[int, _Reckoned] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.habits = Habits(window_s=self.layers[-1].ready_s)

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:
        """See ``SeriesPolicy``."""
        if idle_since_s is not None and math.isinf(idle_since_s):
            idle_since_s = None
        self.habits.asked(level, at_s, idle_since_s)

    def served_in(self, seconds: float) -> None:
        """See ``SeriesPolicy``."""
        self.habits.served_in(seconds)

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """See ``SeriesPolicy``."""
        expected = self.expected_of(now_s) if self.expected_of else None
        if self.rate_of is not None:
            self.habits.rate_per_s = self.rate_of(now_s) or 0.0
        known = Load(load.in_hand, load.queued, load.slots, self.habits.service_s)

        def course_of(level: int) -> Course:
            return self._reckoned(level, expected, now_s).course

        decision = decide(engines, known, self.layers, course_of, now_s, self.limit)
        if expected is None:
            return decision
        again_s = (now_s // self.recheck_s + 1) * self.recheck_s
        return Decision(
            decision.layers, decision.measured, decision.floor, decision.reason, min(decision.look_again_s, again_s)
        )

    def outlook(self, level: int, now_s: float) -> tuple[Course, Floats]:
        """Return the course of an idle level, and the hazard [bins] behind it, as ``decide`` goes by them."""
        reckoned = self._reckoned(level, self.expected_of(now_s) if self.expected_of else None, now_s)
        return reckoned.course, reckoned.hazard

    def retime(self, layers: Sequence[Layer]) -> None:
        """Go by other start times from now on, if they differ by much."""
        pairs = list(zip(self.layers, layers, strict=True))
        if any(abs(old.ready_s - new.ready_s) > RETIMED * old.ready_s for old, new in pairs):
            self.layers = layers
            self._courses.clear()

    def _reckoned(self, level: int, expected: float | None, now_s: float) -> _Reckoned:
        seen = self.habits.gaps[level].seen if level < len(self.habits.gaps) else 0
        surge = self.habits.surge(level, self.slots, expected)
        known = self._courses.get(level)
        if known is not None and known.surge == surge:
            fresh = now_s - known.at_s < COURSE_S and (seen > YOUNG_GAPS or seen == known.gaps)
            if (seen == known.gaps and seen >= YOUNG_GAPS) or fresh:
                return known
        hazard = self.habits.hazard_per_s(level, self.slots, self.prior, expected)
        reckoned = course(hazard, self.habits.burst(level), self.layers, self.worth, self.patience_s)
        self._courses[level] = _Reckoned(reckoned, hazard, now_s, seen, surge)
        return self._courses[level]
