"""Forecasters that need no fitting: the last value, the season, and the season at today's level.

Covers: point and quantiles of requests a bucket, for many series in one go. Does not cover: NeuralProphet (``neural``),
idle times of sparse series (``idle``), which forecaster to believe (``accuracy``).

Each is a function of past counts alone. Quantiles are its point plus the quantiles of the errors it would have made at
the same distance on the past, so they widen where it is bad. Where a forecaster has no opinion, it gives NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoscaler.config import QUANTILES
from autoscaler.errors import ForecastError
from autoscaler.types import Floats, Forecast, Past

DAY_S = 86400.0
MIN_ERRORS = 8


class Forecaster(Protocol):
    """Anything that forecasts; every implementation is tested by ``tests/unit/test_forecast.py``."""

    @property
    def name(self) -> str:
        """What results and metrics call it."""

    def values(self, past: Past, steps: int, quantiles: Sequence[float]) -> Floats:
        """Return [series, steps, quantiles]: requests in each of the next buckets, NaN where there is no opinion."""


def forecast(forecaster: Forecaster, past: Past, steps: int, quantiles: Sequence[float] = QUANTILES) -> Forecast:
    """Ask the forecaster, and make what it says usable: no demand below zero, no quantile below a lower one.

    Raises:
        ForecastError: the answer has another shape, or infinite values.
    """
    values = forecaster.values(past, steps, quantiles)
    expected = (past.counts.shape[0], steps, len(quantiles))
    if values.shape != expected:
        raise ForecastError(forecaster.name, f"shape {values.shape} instead of {expected}")
    if np.isinf(values).any():
        raise ForecastError(forecaster.name, "infinite values")
    ordered = np.maximum.accumulate(np.maximum(values, 0.0), axis=2)
    return Forecast(ordered, tuple(quantiles), past.step_s, past.end_s, forecaster.name)


@dataclass(frozen=True)
class LastValue:
    """As much as lately: the mean of the last ``buckets``."""

    buckets: int = 1
    errors: int = 288
    name: str = "last value"

    def values(self, past: Past, steps: int, quantiles: Sequence[float]) -> Floats:
        """See ``Forecaster``."""
        point = trailing_mean(past.counts, self.buckets)
        points = np.repeat(point[:, :, None], steps, axis=2)
        return _with_errors(past.counts, points, quantiles, self.errors)


@dataclass(frozen=True)
class SeasonalNaive:
    """As much as one season ago."""

    season_s: float = DAY_S
    errors: int = 2016
    name: str = "seasonal naive"

    def values(self, past: Past, steps: int, quantiles: Sequence[float]) -> Floats:
        """See ``Forecaster``."""
        return _with_errors(past.counts, _profiles(past, self.season_s, 1, steps), quantiles, self.errors)


@dataclass(frozen=True)
class SeasonalLevel:
    """The mean of the last seasons, moved by a share of what the last buckets differ from it."""

    season_s: float = DAY_S
    seasons: int = 7
    buckets: int = 6
    share: float = 0.7
    errors: int = 2016
    name: str = "seasonal level"

    def values(self, past: Past, steps: int, quantiles: Sequence[float]) -> Floats:
        """See ``Forecaster``."""
        profiles = _profiles(past, self.season_s, self.seasons, steps)
        # The profile one step before each origin is what the season said of the last bucket.
        expected = np.full_like(past.counts, np.nan)
        if past.buckets:
            expected[:, 1:] = profiles[:, :-1, 0]
        surplus = trailing_mean(past.counts - expected, self.buckets)
        fading = self.share ** (1 + np.arange(steps) / max(1, self.buckets))
        return _with_errors(past.counts, profiles + surplus[:, :, None] * fading, quantiles, self.errors)


def trailing_mean(counts: Floats, buckets: int) -> Floats:
    """Return [series, buckets]: at each bucket, the mean of it and those before it, ``buckets`` in all, without NaN."""
    known = np.isfinite(counts)
    sums = np.cumsum(np.where(known, counts, 0.0), axis=1)
    numbers = np.cumsum(known, axis=1).astype(float)
    sums[:, buckets:] -= sums[:, :-buckets].copy()
    numbers[:, buckets:] -= numbers[:, :-buckets].copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / numbers


def _profiles(past: Past, season_s: float, seasons: int, steps: int) -> Floats:
    """Return [series, origins, steps]: what was counted at that time of the season, on the mean of past seasons.

    Origin ``t`` knows buckets up to and including ``t``; only known seasons count.
    """
    period = max(1, round(season_s / past.step_s))
    series, buckets = past.counts.shape
    if steps > period:
        raise ForecastError("season", f"{steps} steps are more than a season of {period}")
    sums, numbers = np.zeros((series, buckets + steps)), np.zeros((series, buckets + steps))
    for season in range(1, seasons + 1):
        lag = season * period
        if lag >= buckets + steps:
            break
        part = past.counts[:, : buckets + steps - lag]
        known = np.isfinite(part)
        sums[:, lag : lag + part.shape[1]] += np.where(known, part, 0.0)
        numbers[:, lag : lag + part.shape[1]] += known
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = sums / numbers
    return np.stack([profile[:, step + 1 : step + 1 + buckets] for step in range(steps)], axis=2)


def _with_errors(counts: Floats, points: Floats, quantiles: Sequence[float], errors: int) -> Floats:
    """Return the last origin's points [series, steps, quantiles] plus quantiles of the errors before it.

    ``points`` is [series, origins, steps].
    """
    series, buckets = counts.shape
    steps = points.shape[2]
    values = np.full((series, steps, len(quantiles)), np.nan)
    if buckets == 0:
        return values
    for step in range(steps):
        distance = step + 1
        before = points[:, : max(0, buckets - distance), step]
        missed = (counts[:, distance:] - before)[:, -errors:]
        enough = np.isfinite(missed).sum(axis=1) >= MIN_ERRORS
        spread = row_quantiles(missed, quantiles) if missed.shape[1] else np.zeros((series, 1))
        spread = np.where(enough[:, None], spread, 0.0)
        values[:, step, :] = points[:, -1, step, None] + spread
    return values


def row_quantiles(values: Floats, quantiles: Sequence[float]) -> Floats:
    """Return [rows, quantiles] of values [rows, n], without NaN; of a row of nothing else it is NaN.

    What ``np.nanquantile`` returns, which takes one row after the other in Python: of 2,000 series it is most of a
    forecast.
    """
    ordered = np.sort(values, axis=1)  # NaN comes last
    known = np.isfinite(values).sum(axis=1)
    at = np.maximum(known - 1, 0)[:, None] * np.asarray(quantiles)
    below = np.floor(at).astype(np.int64)
    low = np.take_along_axis(ordered, below, axis=1)
    high = np.take_along_axis(ordered, np.ceil(at).astype(np.int64), axis=1)
    return low + (high - low) * (at - below)
