"""The policies that ours is measured against, each for one series, as ``SeriesPolicy``.

Covers: Ray Serve's request-based policy, fixed keep-alive, the hybrid histogram (Shahrad et al., ATC 2020), layered
keep-alive (RainbowCake, Yu et al., ASPLOS 2024), and scaling by any forecast. Does not cover: the clairvoyant bound
(``clairvoyant``).
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoscaler.layers import AWAKE, Layer
from autoscaler.policy import Decision, EngineAt, Load

SHORTEST_LOOK_S = 1e-3
LAST_BEYOND, FEWEST_BEYOND, MARGIN_BEYOND = 9, 3, 0.15


@dataclass
class _Deaf:
    """Takes no notice of what happens between decisions."""

    coldest: int
    slots: int

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:
        """See ``SeriesPolicy``."""

    def served_in(self, seconds: float) -> None:
        """See ``SeriesPolicy``."""


@dataclass
class ServePolicy(_Deaf):
    """Ray Serve's default: requests in hand and queued, averaged, over the target for each replica, after delays.

    The defaults are Serve's. ``interval_s`` is how often load is reported to its controller.
    """

    target_ongoing: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    interval_s: float = 10.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    _target: int = 0
    _wants_since_s: float | None = None
    _direction: int = 0

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:  # noqa: ARG002 - the protocol's
        """See ``SeriesPolicy``. A request that needs the last engine ends the wait for fewer, as a report would.

        It is told by engines, not by requests: where the target for each is far below its slots, a wait may go on.
        """
        if self._direction < 0 and math.ceil((level * self.slots + 1) / self.target_ongoing) >= self._target:
            self._direction = 0

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """See ``SeriesPolicy``."""
        ongoing = load.in_hand + load.queued
        if not self._samples or now_s - self._samples[-1][0] >= self.interval_s or self._target == 0:
            self._samples.append((now_s, ongoing))
        while len(self._samples) > 1 and now_s - self._samples[0][0] > self.look_back_s:
            self._samples.popleft()
        desired = math.ceil(np.mean([number for _, number in self._samples]) / self.target_ongoing)
        if self._target == 0 and ongoing:
            self._target, self._direction = max(1, desired), 0
        else:
            self._apply(desired, now_s)
        layers = tuple(
            AWAKE if level < self._target else self.coldest for level in range(max(self._target, len(engines)))
        )
        return Decision(layers, self._target, 0, "Serve's policy", self._look_s(ongoing, now_s))

    def _look_s(self, ongoing: int, now_s: float) -> float:
        """Return when the next report may change anything: while nobody asks, only the end of a delay does."""
        if ongoing or any(number for _, number in self._samples):
            return now_s + self.interval_s
        if self._target == 0 or self._direction == 0 or self._wants_since_s is None:
            return now_s + self.interval_s if self._target else math.inf
        return max(now_s + SHORTEST_LOOK_S, self._wants_since_s + self.downscale_delay_s)

    def _apply(self, desired: int, now_s: float) -> None:
        direction = (desired > self._target) - (desired < self._target)
        if direction == 0:
            self._direction = 0
            return
        if direction != self._direction:
            self._direction, self._wants_since_s = direction, now_s
        delay_s = self.upscale_delay_s if direction > 0 else self.downscale_delay_s
        if self._wants_since_s is not None and now_s - self._wants_since_s >= delay_s - 1e-6:
            # As Serve: to zero only from one.
            self._target = desired if direction > 0 or self._target == 1 else max(1, desired)
            self._direction = 0


@dataclass
class KeepAlive(_Deaf):
    """Engines start when a request needs them, and rest after ``awake_s`` idle, or as ``rests``: (layer, from age)."""

    awake_s: float = 600.0
    rests: Sequence[tuple[int, float]] = ()

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """See ``SeriesPolicy``."""
        measured = math.ceil((load.in_hand + load.queued) / load.slots)
        layers, look_s = [], math.inf
        steps = [(AWAKE, 0.0), *(self.rests or ((self.coldest, self.awake_s),))]
        for level in range(max(len(engines), measured)):
            engine = engines[level] if level < len(engines) else EngineAt(self.coldest, -math.inf)
            if level < measured or engine.idle_since_s is None or engine.starting:
                layers.append(AWAKE)
                continue
            age_s = now_s - engine.idle_since_s
            here = max(layer for layer, from_s in steps if age_s >= from_s - 1e-6)
            layers.append(max(engine.layer, here))
            later = [from_s for layer, from_s in steps if from_s - 1e-6 > age_s and layer > layers[-1]]
            if later:
                look_s = min(look_s, engine.idle_since_s + min(later))
        return Decision(tuple(layers), measured, 0, "keep-alive", look_s)


@dataclass
class HybridHistogram(KeepAlive):
    """Idle times in a histogram of minutes: unload, be back before the 5th percentile, stay until the 99th.

    "Serverless in the Wild" (Shahrad et al., ATC 2020), as published: bins of a minute, range 4 hours, the 5th
    percentile rounded down and the 99th up, margins of 10 %, fixed keep-alive of the range while the histogram is not
    representative. Where most idle times are beyond the range, the next one is taken to be the median of the last
    ``LAST_BEYOND``, with margins of 15 %: simpler than its ARIMA.
    """

    range_s: float = 4 * 3600.0
    minute_s: float = 60.0
    margin: float = 0.1
    ready_s: float = 1.0
    _beyond: int = 0
    _last_beyond: deque[float] = field(default_factory=lambda: deque(maxlen=LAST_BEYOND))

    def __post_init__(self) -> None:
        self._minutes = np.zeros(round(self.range_s / self.minute_s))

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:
        """See ``SeriesPolicy``."""
        if level or idle_since_s is None or math.isinf(idle_since_s):
            return
        minute = int((at_s - idle_since_s) // self.minute_s)
        if minute < len(self._minutes):
            self._minutes[minute] += 1
        else:
            self._beyond += 1
            self._last_beyond.append(at_s - idle_since_s)

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """See ``SeriesPolicy``."""
        self.awake_s, prewarm_s = self._windows()
        decision = super().decide(engines, load, now_s)
        if prewarm_s is None or not engines or engines[0].idle_since_s is None or decision.measured:
            return decision
        idle_since_s = engines[0].idle_since_s
        begin_s, end_s = idle_since_s + prewarm_s, idle_since_s + prewarm_s + self.awake_s
        ready = begin_s - 1e-6 <= now_s < end_s - 1e-6 or engines[0].starting
        look_s = begin_s if now_s < begin_s - 1e-6 else end_s if now_s < end_s - 1e-6 else math.inf
        layers = (AWAKE if ready else self.coldest, *decision.layers[1:])
        return Decision(
            layers, 0, int(ready), "histogram", min(look_s, decision.look_again_s if len(engines) > 1 else look_s)
        )

    def _windows(self) -> tuple[float, float | None]:
        """Return how long to stay, and after how long to be back (None: don't leave)."""
        counted = self._minutes.sum()
        if self._beyond > counted and self._beyond >= FEWEST_BEYOND:
            expected_s = float(np.median(self._last_beyond))
            return 2 * MARGIN_BEYOND * expected_s, (1 - MARGIN_BEYOND) * expected_s - self.ready_s
        spread = self._minutes.std() / self._minutes.mean() if counted else 0.0
        if counted < 10 or spread < 2:  # noqa: PLR2004 - as published
            return self.range_s, None
        below = np.cumsum(self._minutes) / counted
        head_s = float(np.argmax(below >= 0.05)) * self.minute_s * (1 - self.margin)  # noqa: PLR2004
        tail_s = float(np.argmax(below >= 0.99) + 1) * self.minute_s * (1 + self.margin)  # noqa: PLR2004
        head_s = head_s - self.ready_s
        return (tail_s, None) if head_s < self.minute_s / 2 else (tail_s - head_s, head_s)


@dataclass
class Layered(KeepAlive):
    """Layers are kept each for a time of its own: until a request was likely, or keeping has cost what starting does.

    RainbowCake (Yu et al., ASPLOS 2024), as its authors published it (IntelliSys-Lab/RainbowCake-ASPLOS24, classes
    ``ContainerPool``, ``Distribution`` and ``History``): a layer's time to live is a quantile of the time to the next
    request, as if they came at random at the rate of the last ``window`` ones, at most the time after which what is
    kept has cost as much as the start-up that it saves, at least ``least_s``; when it is over, the next colder layer's
    begins. ``worth`` is the weight of a second of start-up against a device-second, in the paper's words
    alpha / (1 - alpha) with its alpha 0.996. Left out are its sharing of layers between functions, for series are
    alone here, and its pre-warming, which there adds a container to an idle one.
    """

    layers: Sequence[Layer] = ()
    worth: float = 249.0
    quantile: float = 0.8
    window: int = 6
    least_s: float = 60.0
    forget_s: float = 24 * 3600.0
    _came_s: deque[float] = field(default_factory=deque)

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:  # noqa: ARG002 - the protocol's
        """See ``SeriesPolicy``."""
        if level == 0:
            while self._came_s and at_s - self._came_s[0] >= self.forget_s:
                self._came_s.popleft()
            self._came_s.append(at_s)
            if len(self._came_s) > self.window:
                self._came_s.popleft()
            self.rests = self._rests()

    def lives_s(self) -> list[float]:
        """Return for how long each layer but the coldest is kept."""
        # Divided by the requests and not by the times between them, as published.
        gap_s = (self._came_s[-1] - self._came_s[0]) / len(self._came_s) if self._came_s else 0.0
        likely_s = -math.log(1.0 - self.quantile) * gap_s if gap_s > 0 else math.inf
        lives = []
        for warmer, colder in itertools.pairwise(self.layers):
            saved_s, kept = colder.ready_s - warmer.ready_s, warmer.device_share - colder.device_share
            most_s = self.worth * saved_s / kept if kept > 0 else math.inf
            lives.append(self.least_s if likely_s < self.least_s else min(likely_s, most_s))
        return lives

    def _rests(self) -> tuple[tuple[int, float], ...]:
        return tuple(enumerate(itertools.accumulate(self.lives_s()), start=1))


@dataclass
class ByForecast(KeepAlive):
    """Keep-alive, and a floor of as many engines as the forecast rate needs, by Little's law."""

    expected_of: Callable[[float], float | None] = lambda _: None
    service_s: float = 1.0
    recheck_s: float = 300.0
    served: int = 0

    def served_in(self, seconds: float) -> None:
        """See ``SeriesPolicy``."""
        self.served += 1
        self.service_s += max(0.1, 1.0 / self.served) * (seconds - self.service_s)

    def decide(self, engines: list[EngineAt], load: Load, now_s: float) -> Decision:
        """See ``SeriesPolicy``."""
        decision = super().decide(engines, load, now_s)
        expected = self.expected_of(now_s) or 0.0
        concurrency = expected * self.service_s
        # Less than one request in a bucket is no floor, or nothing would ever rest.
        floor = math.ceil(concurrency / self.slots) if expected * self.recheck_s >= 1 else 0
        layers = [AWAKE] * floor + list(decision.layers[floor:])
        again_s = (now_s // self.recheck_s + 1) * self.recheck_s
        return Decision(tuple(layers), decision.measured, floor, "forecast", min(decision.look_again_s, again_s))
