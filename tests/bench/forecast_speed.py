"""What NeuralProphet costs, for `forecast_error.py`: a fit of a week, and forecasts for a thousand models at once."""

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from report import Result, Target, median_result

from autoscaler.config import QUANTILES
from autoscaler.neural import Shape, fit, predict
from autoscaler.types import Past

STEP_S, DAY_BUCKETS, DAYS, FITTED, ASKED = 300.0, 288, 7, 100, 1000
TIMEOUT_S, ROUNDS = 600.0, 9
SHAPE = Shape(quantiles=QUANTILES)
GB = 1e-9


def speeds() -> Iterator[Result]:
    """Seconds and memory of one fit; seconds of forecasts."""
    week = daily(FITTED, DAYS * DAY_BUCKETS)
    with tempfile.TemporaryDirectory() as directory:
        begin_s = time.monotonic()
        version = fit(week, _names(week), SHAPE, Path(directory), timeout_s=TIMEOUT_S)
        fit_s = time.monotonic() - begin_s
        # Of the largest child so far: nothing was run before.
        most_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        yield Result(f"fit of {FITTED} series of a week", fit_s, "s", (fit_s,), Target(60.0, "max"))
        yield Result("its memory", most_bytes * GB, "GB", (most_bytes * GB,), Target(2.0, "max"))
        # What the forecaster asks about: as much past as the network looks back on, and some.
        many = daily(ASKED, 4 * SHAPE.lags)
        seconds = [_seconds(version, many) for _ in range(ROUNDS)]
    yield median_result(f"forecasts for {ASKED} models", seconds, "s", Target(2.0, "max"))


def _seconds(version: Path, past: Past) -> float:
    begin_s = time.monotonic()
    predict(version, past, _names(past))
    return time.monotonic() - begin_s


def _names(past: Past) -> list[str]:
    return [f"m{row}" for row in range(len(past.counts))]


def daily(series: int, buckets: int) -> Past:
    """Counts that come and go with the day, each series with its own hours and size."""
    rng = np.random.default_rng(6)
    days = np.arange(buckets) / DAY_BUCKETS + rng.random((series, 1))
    rates = rng.uniform(5, 200, (series, 1)) * (1.1 + np.sin(2 * np.pi * days))
    return Past(rng.poisson(rates).astype(float), STEP_S, buckets * STEP_S)
