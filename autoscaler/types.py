"""Plain data of forecasting: what was counted, what is expected.

Times are seconds of whichever clock the caller uses (live: Unix time; replay: seconds of the trace). A series is what
demand is counted for: a model id, or ``model:adapter``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Count:
    """What arrived for ``series`` in the second that begins at ``at_s``."""

    series: str
    at_s: float
    requests: int
    tokens: int = 0


@dataclass(frozen=True)
class Past:
    """Requests of one or more series, counted in equal buckets.

    ``counts`` is [series, buckets]; NaN where nobody counted. The last bucket ends at ``end_s``.
    """

    counts: Floats
    step_s: float
    end_s: float

    def __post_init__(self) -> None:
        if self.counts.ndim != 2:  # noqa: PLR2004 - [series, buckets]
            raise ValueError(f"counts must be [series, buckets], not of shape {self.counts.shape}")

    @property
    def buckets(self) -> int:
        """How many buckets there are."""
        return self.counts.shape[1]

    def until(self, bucket: int) -> "Past":
        """Return what was known when bucket number ``bucket`` began."""
        return Past(self.counts[:, :bucket], self.step_s, self.end_s - (self.buckets - bucket) * self.step_s)


@dataclass(frozen=True)
class Forecast:
    """Requests expected in the buckets after ``made_at_s``.

    ``values`` is [series, steps, quantiles], in requests a bucket; ``by`` names who forecast it.
    """

    values: Floats
    quantiles: Sequence[float]
    step_s: float
    made_at_s: float
    by: str
