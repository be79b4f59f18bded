"""Forecasts of all models' rates, made anew as time goes on, each by whoever has forecast it best lately.

Covers: recent level in fine buckets, season in coarse ones, NeuralProphet among them once it was fitted, errors. Does
not cover: reading the history (``history``), fitting (``neural``), when (``actor``).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoscaler.accuracy import Accuracy, combine
from autoscaler.errors import ForecastError
from autoscaler.forecast import Forecaster, LastValue, SeasonalLevel, SeasonalNaive, forecast
from autoscaler.types import Floats, Forecast, Past

NEURAL = "NeuralProphet"
FADE = 0.98
FINE = LastValue(buckets=6, errors=120, name="recent level")
FINE_STEPS = 3
DENSE = 5.0
"""Models with fewer requests a coarse bucket are left to their gaps: their median forecast is nothing."""
MOST = 1e12
"""Requests a bucket that nobody believes."""
COARSE: tuple[Forecaster, ...] = (LastValue(), SeasonalLevel(), SeasonalNaive())


class Outlook:
    """The forecasts of ``models``; a set of models for itself, because errors are kept by their place in it."""

    def __init__(self, models: Sequence[str], quantiles: Sequence[float], coarse_steps: int) -> None:
        """``coarse_steps`` is how many coarse buckets ahead are forecast."""
        self.models = tuple(models)
        self.quantiles = tuple(quantiles)
        self._steps = coarse_steps
        self._names = (*(each.name for each in COARSE), NEURAL)
        distances = range(1, coarse_steps + 1)
        self._accuracy = Accuracy(len(models), self._names, distances, self.quantiles, FADE)
        self._fine: Forecast | None = None
        self._coarse: Forecast | None = None
        self._by: list[str] = []
        self._dense = np.zeros(len(models), bool)
        self._seen_s: float | None = None

    def see_fine(self, past: Past) -> None:
        """Forecast from recent buckets, [models, buckets]. Raises ForecastError."""
        self._fine = forecast(FINE, past, FINE_STEPS, self.quantiles)

    def see_coarse(self, past: Past, neural: Floats | None = None) -> None:
        """Judge by the coarse buckets that have ended since the last time, and forecast the next ones.

        ``neural`` is NeuralProphet's [models, steps, quantiles]; numbers that are none are no opinion.
        """
        if past.buckets == 0:
            return
        passed = 1 if self._seen_s is None else round((past.end_s - self._seen_s) / past.step_s)
        if passed <= 0:
            return
        self._seen_s = past.end_s
        for missed in range(min(passed, past.buckets) - 1, 0, -1):
            self._accuracy.judge(past.counts[:, -1 - missed])
            self._accuracy.remember([])
        self._accuracy.judge(past.counts[:, -1])
        made = [self._made(each, past) for each in COARSE]
        made.append(self._neural(past, neural))
        self._accuracy.remember(made)
        known = np.isfinite(past.counts)
        self._dense = np.where(known, past.counts, 0.0).sum(axis=1) >= DENSE * np.maximum(1, known.sum(axis=1))
        chosen = self._accuracy.choose()
        self._by = [self._names[index] for index in chosen]
        self._coarse = Forecast(combine(made, chosen), self.quantiles, past.step_s, past.end_s, "chosen")

    def expected_per_s(self, now_s: float) -> dict[str, float]:
        """Return the median rate of the coarse bucket that ``now_s`` is in, of models that it is known for."""
        if self._coarse is None:
            return {}
        step = int((now_s - self._coarse.made_at_s) // self._coarse.step_s)
        if not 0 <= step < self._coarse.values.shape[1]:
            return {}
        rates = self._coarse.values[:, step, self._median()] / self._coarse.step_s
        found = zip(self.models, rates, self._dense, strict=True)
        return {model: float(rate) for model, rate, dense in found if dense and math.isfinite(rate)}

    def upper_per_s(self, now_s: float, step_s: float, steps: int) -> dict[str, list[float]]:
        """Return the rates at the highest quantile in each of the next ``steps`` of ``step_s``, where known.

        The recent level is believed for the next minute or so, and the season wherever it says more.
        """
        upper = np.zeros((len(self.models), steps))
        if self._fine is not None and now_s - self._fine.made_at_s < 2 * FINE_STEPS * self._fine.step_s:
            recent = self._fine.values[:, :, -1].max(axis=1) / self._fine.step_s
            reach = min(steps, max(1, round(FINE_STEPS * self._fine.step_s / step_s)))
            upper[:, :reach] = np.nan_to_num(recent)[:, None]
        if self._coarse is not None:
            for step in range(steps):
                index = int((now_s + step * step_s - self._coarse.made_at_s) // self._coarse.step_s)
                if 0 <= index < self._coarse.values.shape[1]:
                    seasonal = np.nan_to_num(self._coarse.values[:, index, -1]) / self._coarse.step_s
                    upper[:, step] = np.maximum(upper[:, step], seasonal)
        return dict(zip(self.models, upper.tolist(), strict=True))

    def describe(self, model: str) -> dict[str, Any]:
        """Return a model's forecast and everybody's errors on it, as builtin types."""
        row = self.models.index(model)
        scores = [each for each in self._accuracy.scores(row) if each.distance == 1 and each.judged > 0]
        told: dict[str, Any] = {
            "by": self._by[row] if self._by else None,
            "errors": {
                each.forecaster: {
                    "wape": _builtin(each.wape),
                    "pinball": _builtin(each.pinball),
                    "coverage": _builtin(each.coverage),
                }
                for each in scores
            },
        }
        if self._coarse is not None:
            told |= {
                "made_at_s": self._coarse.made_at_s,
                "step_s": self._coarse.step_s,
                "requests": {
                    str(quantile): [_builtin(each) for each in self._coarse.values[row, :, index]]
                    for index, quantile in enumerate(self.quantiles)
                },
            }
        return told

    def _made(self, forecaster: Forecaster, past: Past) -> Forecast:
        try:
            return forecast(forecaster, past, self._steps, self.quantiles)
        except ForecastError:
            return self._silent(past, forecaster.name)

    def _neural(self, past: Past, values: Floats | None) -> Forecast:
        silent = self._silent(past, NEURAL)
        if values is None or values.shape != silent.values.shape:
            return silent
        # A row with a number that is none, or beyond all measure, is no opinion.
        usable = np.all(np.isfinite(values) & (values < MOST), axis=(1, 2), keepdims=True)
        cleaned = np.where(usable, np.maximum(values, 0.0), np.nan)
        return Forecast(np.maximum.accumulate(cleaned, axis=2), self.quantiles, past.step_s, past.end_s, NEURAL)

    def _silent(self, past: Past, name: str) -> Forecast:
        values = np.full((len(self.models), self._steps, len(self.quantiles)), np.nan)
        return Forecast(values, self.quantiles, past.step_s, past.end_s, name)

    def _median(self) -> int:
        return int(np.argmin(np.abs(np.asarray(self.quantiles) - 0.5)))


def quantiles_of(configured: float) -> tuple[float, ...]:
    """Return what is forecast for a configured upper quantile: the median, what mirrors it, and itself."""
    return tuple(sorted({round(1 - configured, 6), 0.5, configured}))


def from_past(outlook: Outlook, past: Past, seen: int) -> None:
    """Let a new outlook judge the last ``seen`` coarse buckets as if it had been there, so that it may choose."""
    for bucket in range(max(1, past.buckets - seen), past.buckets):
        outlook.see_coarse(past.until(bucket))


def _builtin(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
