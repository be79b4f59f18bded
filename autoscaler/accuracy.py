"""How well each forecaster has forecast each series lately, and which one to believe.

Covers: WAPE, pinball loss and coverage by series, forecaster and distance, fading with age; the choice. Does not cover:
who forecasts, and when.

The choice is by pinball loss, because capacity is kept for a quantile: a good mean with a useless upper quantile is of
no use. Whoever has no opinion, or has been judged far less often than others, is not chosen.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoscaler.types import Floats, Forecast

MIN_JUDGED = 4.0
MIN_SHARE_JUDGED = 0.5
SWITCH_GAIN = 0.03
"""Another forecaster must be better by this share; otherwise the choice would flip on noise."""


@dataclass(frozen=True)
class Score:
    """How one forecaster did on one series at one distance; NaN where nothing was to be forecast.

    ``wape`` is the sum of absolute errors of the median over the sum of what came, ``pinball`` the mean loss over the
    quantiles in requests a bucket, ``coverage`` the share of buckets at or below the highest quantile, ``judged`` how
    many buckets count, fading with age.
    """

    forecaster: str
    distance: int
    wape: float
    pinball: float
    coverage: float
    judged: float


def pinball_loss(actual: Floats, values: Floats, quantiles: Sequence[float]) -> Floats:
    """Return the loss of [..., quantiles] against [...], of the same shape as ``values``."""
    error = actual[..., None] - values
    levels = np.asarray(quantiles)
    return np.maximum(levels * error, (levels - 1) * error)


class Accuracy:
    """The scores of ``forecasters`` on as many series as counts have rows, at ``distances`` (1: the next bucket)."""

    def __init__(
        self, series: int, forecasters: Sequence[str], distances: Sequence[int], quantiles: Sequence[float], fade: float
    ) -> None:
        self.forecasters = tuple(forecasters)
        self.distances = tuple(distances)
        self._quantiles = tuple(quantiles)
        self._median = int(np.argmin(np.abs(np.asarray(quantiles) - 0.5)))
        self._fade = fade
        shape = (series, len(self.forecasters), len(self.distances))
        self._missed, self._came, self._loss, self._covered, self._judged = (np.zeros(shape) for _ in range(5))
        self._pending: deque[list[Floats]] = deque(maxlen=max(self.distances))
        self._chosen: NDArray[np.int64] = np.zeros(series, np.int64)

    def __repr__(self) -> str:
        return f"<Accuracy of {', '.join(self.forecasters)} on {self._judged.shape[0]} series>"

    def judge(self, came: Floats) -> None:
        """Hold what came in the bucket that has just ended, [series], against what had been said of it."""
        known = np.isfinite(came)
        for index, distance in enumerate(self.distances):
            if distance > len(self._pending):
                continue
            # Nothing was said in that bucket: an empty list.
            for forecaster, values in enumerate(self._pending[-distance]):
                said = values[:, distance - 1, :]
                usable = known & np.isfinite(said).all(axis=1)
                self._add(forecaster, index, came, said, usable)

    def _add(self, forecaster: int, index: int, came: Floats, said: Floats, usable: NDArray[np.bool_]) -> None:
        actual = np.where(usable, came, 0.0)
        values = np.where(usable[:, None], said, 0.0)
        terms = (
            (self._missed, np.abs(actual - values[:, self._median])),
            (self._came, actual),
            (self._loss, pinball_loss(actual, values, self._quantiles).mean(axis=1)),
            (self._covered, (actual <= values[:, -1]).astype(float)),
            (self._judged, np.ones(len(actual))),
        )
        for total, term in terms:
            place = total[:, forecaster, index]
            place[usable] = place[usable] * self._fade + term[usable]

    def remember(self, forecasts: Sequence[Forecast]) -> None:
        """Keep what is said of the coming buckets, one forecast of each forecaster, in their order."""
        self._pending.append([each.values for each in forecasts])

    def scores(self, series: int) -> list[Score]:
        """Return every score of the series."""
        found = []
        for row, name in enumerate(self.forecasters):
            for column, distance in enumerate(self.distances):
                came, judged = self._came[series, row, column], self._judged[series, row, column]
                found.append(
                    Score(
                        name,
                        distance,
                        float(self._missed[series, row, column] / came) if came > 0 else np.nan,
                        float(self._loss[series, row, column] / judged) if judged > 0 else np.nan,
                        float(self._covered[series, row, column] / judged) if judged > 0 else np.nan,
                        float(judged),
                    )
                )
        return found

    def choose(self) -> NDArray[np.int64]:
        """Return [series]: the index of the forecaster to believe; the first until one has been judged."""
        judged = self._judged.sum(axis=2)
        eligible = (judged >= MIN_JUDGED) & (judged >= MIN_SHARE_JUDGED * judged.max(axis=1, keepdims=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = np.where(eligible, self._loss.sum(axis=2) / judged, np.inf)
        rows = np.arange(len(loss))
        best = loss.argmin(axis=1)
        better = loss[rows, best] < (1 - SWITCH_GAIN) * loss[rows, self._chosen]
        dropped = ~eligible[rows, self._chosen] & eligible.any(axis=1)
        self._chosen = np.where(better | dropped, best, self._chosen)
        return self._chosen


def combine(forecasts: Sequence[Forecast], chosen: NDArray[np.int64]) -> Floats:
    """Return [series, steps, quantiles]: of each series the chosen forecast, else the first that has an opinion."""
    stacked = np.stack([each.values for each in forecasts])
    values = stacked[chosen, np.arange(len(chosen))]
    for each in forecasts:
        silent = ~np.isfinite(values)
        values[silent] = each.values[silent]
    return values
