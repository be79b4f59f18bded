"""What has been learnt of one series: gaps by level, how long a request takes, how many come at once, how often.

A *level* is the n-th engine that the series needs at a time: level 0 serves what fits one engine, level 1 what is
beyond it, and so on. Each level is idle and asked for on its own, so each has its own gaps.

Covers: learning, one event at a time. Does not cover: forecasts over the day (``forecast``), deciding (``policy``).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from autoscaler.idle import BINS, Gaps, hazard_per_s
from autoscaler.types import Floats

SHARE_OF_NEW = 0.1
OWN_GAPS = 5
"""A level with fewer gaps of its own goes by the rate."""
MAX_LEVELS = 512
SCATTERED, SCATTERED_GAPS = Gaps(np.ones(BINS)), 2.0
"""What is believed of a further level that was asked for a few times: any gap, each octave alike, from seconds on."""


@dataclass
class Burst:
    """How many requests arrive within ``window_s`` from the first after a quiet time, itself included."""

    window_s: float
    mean: float = 1.0
    began_s: float = -math.inf
    size: int = 0

    def begins(self, at_s: float) -> None:
        """The first request after a quiet time."""
        if self.size:
            self.mean += SHARE_OF_NEW * (self.size - self.mean)
        self.began_s, self.size = at_s, 1

    def continues(self, at_s: float) -> None:
        """Another request."""
        if at_s - self.began_s <= self.window_s:
            self.size += 1


@dataclass
class Habits:
    """Of one series. ``window_s`` is what a start takes: requests within it wait together."""

    window_s: float
    service_s: float = 1.0
    served: int = 0
    gaps: list[Gaps] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    rate_per_s: float = 0.0
    rate_at_s: float | None = None

    def asked(self, level: int, at_s: float, idle_since_s: float | None) -> None:
        """A request came that level ``level`` has to serve; ``idle_since_s`` if it was idle until then."""
        while len(self.gaps) <= level:
            self.gaps.append(Gaps.none())
            self.bursts.append(Burst(self.window_s))
        if idle_since_s is None:
            self.bursts[level].continues(at_s)
            return
        self.gaps[level].add(at_s - idle_since_s)
        self.bursts[level].begins(at_s)

    def served_in(self, seconds: float) -> None:
        """A request took ``seconds`` once it was being served."""
        self.served += 1
        self.service_s += max(SHARE_OF_NEW, 1.0 / self.served) * (seconds - self.service_s)

    def counted(self, requests: int, over_s: float, memory_s: float) -> None:
        """So many came in a bucket; the rate is their mean, fading over ``memory_s``."""
        share = 1.0 if self.rate_at_s is None else -math.expm1(-over_s / memory_s)
        self.rate_per_s += share * (requests / over_s - self.rate_per_s)
        self.rate_at_s = 0.0

    def burst(self, level: int) -> float:
        """How many requests wait if the first that the level has to serve does."""
        return self.bursts[level].mean if level < len(self.bursts) else 1.0

    def hazard_per_s(self, level: int, slots: int, prior: Gaps | None, expected_per_s: float | None) -> Floats:
        """Return [bins]: the chance a second that the level is asked for, by how long it has been idle.

        ``expected_per_s`` is the rate that is forecast. What the gaps say is scaled by it: as much more or less often
        as arrivals that find the levels below full are at that rate instead of the usual one.
        """
        own = self.gaps[level] if level < len(self.gaps) else None
        if own is None or own.seen < OWN_GAPS:
            if expected_per_s is not None or level > 0:
                rate_per_s = self.rate_per_s if expected_per_s is None else expected_per_s
                overflow = np.full(BINS, overflow_per_s(rate_per_s, self.service_s, level * slots))
                if level == 0 or own is None:
                    return overflow
                # Bursts come again sooner than a mean rate says.
                return np.maximum(overflow, hazard_per_s(own, SCATTERED, SCATTERED_GAPS))
            return hazard_per_s(own or Gaps.none(), prior)
        hazard = hazard_per_s(own, prior if level == 0 else None)
        return hazard * self.surge(level, slots, expected_per_s)

    def surge(self, level: int, slots: int, expected_per_s: float | None) -> float:
        """Return how much more often than usual the level will be asked for, in powers of two, within 1/8 to 8."""
        if expected_per_s is None or self.rate_per_s <= 0:
            return 1.0
        usual = overflow_per_s(self.rate_per_s, self.service_s, level * slots)
        expected = overflow_per_s(expected_per_s, self.service_s, level * slots)
        if usual <= 0 or expected <= 0:
            return 1.0 if usual == expected else (8.0 if usual <= 0 else 0.125)
        return 2.0 ** round(max(-3.0, min(3.0, math.log2(expected) - math.log2(usual))))


@lru_cache(maxsize=8192)
def overflow_per_s(rate_per_s: float, service_s: float, room: int) -> float:
    """Return the rate of arrivals that find ``room`` requests being served already.

    Little's law gives how many are on average, ``rate_per_s * service_s``; as if all were served at once their number
    is Poisson, and arrivals see time averages (Wolff 1982).
    """
    if room <= 0:
        return rate_per_s
    load = rate_per_s * service_s
    if load <= 0:
        return 0.0
    if load > 50:  # noqa: PLR2004 - where the normal approximation is close
        return rate_per_s * 0.5 * math.erfc((room - 0.5 - load) / math.sqrt(2.0 * load))
    term = below = math.exp(-load)
    for number in range(1, room):
        term *= load / number
        below += term
    return rate_per_s * max(0.0, 1.0 - below)
