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
TIMEOUT_S, ROUNDS = 600.0, 3
SHAPE = Shape(quantiles=QUANTILES)
GB = 1e-9


def speeds() -> Iterator[Result]:
    """Seconds and memory of one fit; seconds of forecasts, with and without the process that makes them."""
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
        one, many = daily(1, 4 * SHAPE.lags), daily(ASKED, 4 * SHAPE.lags)
        whole, alone = [], []
        for _ in range(ROUNDS):
            alone.append(_seconds(version, one))
            whole.append(_seconds(version, many))
    yield median_result(f"forecasts for {ASKED} models, with the process that makes them", whole, "s")
    more = [each - other for each, other in zip(whole, alone, strict=True)]
    name = f"forecasts for {ASKED} models, beyond those for one"
    yield median_result(name, more, "s", Target(2.0, "max"))


def _seconds(version: Path, past: Past) -> float:
    begin_s = time.monotonic()
    predict(version, past, _names(past), SHAPE, timeout_s=TIMEOUT_S)
    return time.monotonic() - begin_s


def _names(past: Past) -> list[str]:
    return [f"m{row}" for row in range(len(past.counts))]


def daily(series: int, buckets: int) -> Past:
    """Counts that come and go with the day, each series with its own hours and size."""
    rng = np.random.default_rng(6)
    days = np.arange(buckets) / DAY_BUCKETS + rng.random((series, 1))
    rates = rng.uniform(5, 200, (series, 1)) * (1.1 + np.sin(2 * np.pi * days))
    return Past(rng.poisson(rates).astype(float), STEP_S, buckets * STEP_S)
