"""What forecasters say of a recorded trace, bucket by bucket, each time from what was known when the bucket began.

Covers: rates for policies that are replayed, by the very code that forecasts live (``outlook``). Does not cover:
fitting NeuralProphet (``neural``): whoever wants it gives what it said.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autoscaler.ahead import ExpectedOf
from autoscaler.config import QUANTILES
from autoscaler.forecast import DAY_S
from autoscaler.learner import RATE_MEMORY_S
from autoscaler.outlook import Outlook
from autoscaler.traces import Trace
from autoscaler.types import Floats, Past

RECENT, NAIVE, CHOSEN = "recent level", "seasonal naive", "chosen"
LONG_S = 2 * DAY_S
KEPT_S = 8 * DAY_S
"""Forecasters that look for a season see so much of the past, as the live ones see a bounded part of it."""


@dataclass(frozen=True)
class Foretold:
    """``rates`` is by forecaster [series, buckets]: requests a second, said when the bucket began; NaN: no opinion."""

    names: tuple[str, ...]
    step_s: float
    rates: Mapping[str, Floats]

    def of(self, who: str, series: str) -> ExpectedOf:
        """Return the rate that ``who`` expected of the series, by the time at which it is asked."""
        said = self.rates[who][self.names.index(series)].tolist()
        step_s = self.step_s

        def expected(now_s: float) -> float | None:
            bucket = int(now_s // step_s)
            rate_per_s = said[bucket] if 0 <= bucket < len(said) else math.nan
            return rate_per_s if math.isfinite(rate_per_s) else None

        return expected


def step_of(trace: Trace) -> float:
    """Return the length of a bucket: five minutes, in traces of several days half an hour."""
    return 300.0 if max(float(each.at_s[-1]) for each in trace.values()) <= LONG_S else 1800.0


def past_of(trace: Trace) -> Past:
    """Return the requests of all series in buckets from second 0 to the end of the trace."""
    step_s = step_of(trace)
    buckets = math.ceil((max(float(each.at_s[-1]) for each in trace.values()) + 1e-6) / step_s)
    edges = np.arange(buckets + 1) * step_s
    return Past(
        np.array([np.histogram(each.at_s, edges)[0] for each in trace.values()], float), step_s, buckets * step_s
    )


def foretell(trace: Trace, further: Mapping[str, Callable[[Past], Floats]] | None = None) -> Foretold:
    """Let the forecasters that need no fitting say what they expect; ``further`` ones give rates of their own."""
    past = past_of(trace)
    rates = {RECENT: recent(past), NAIVE: naive(past), CHOSEN: chosen(tuple(trace), past)}
    for who, rates_of in (further or {}).items():
        rates[who] = rates_of(past)
    return Foretold(tuple(trace), past.step_s, rates)


def recent(past: Past) -> Floats:
    """Return the mean rate so far, fading as live (``Habits.counted``)."""
    rates = np.zeros_like(past.counts)
    share = -math.expm1(-past.step_s / RATE_MEMORY_S)
    for bucket in range(1, past.buckets):
        came = past.counts[:, bucket - 1] / past.step_s
        rates[:, bucket] = came if bucket == 1 else rates[:, bucket - 1] + share * (came - rates[:, bucket - 1])
    return rates


def naive(past: Past) -> Floats:
    """Return as much as a day ago."""
    rates = np.full_like(past.counts, np.nan)
    period = round(DAY_S / past.step_s)
    rates[:, period:] = past.counts[:, :-period] / past.step_s
    return rates


def chosen(names: tuple[str, ...], past: Past, neural: Floats | None = None) -> Floats:
    """Return what ``Outlook`` expects, by whoever has forecast each series best.

    ``neural`` is what NeuralProphet said after each bucket, [series, buckets, steps, quantiles].
    """
    outlook = Outlook(names, QUANTILES, 1)
    rates = np.full_like(past.counts, np.nan)
    kept = round(KEPT_S / past.step_s)
    for bucket in range(past.buckets - 1):
        known = past.until(bucket + 1)
        seen = Past(known.counts[:, -kept:], past.step_s, known.end_s)
        outlook.see_coarse(seen, None if neural is None else neural[:, bucket, :1])
        expected = outlook.expected_per_s(known.end_s)
        rates[:, bucket + 1] = [expected.get(name, np.nan) for name in names]
    return rates
