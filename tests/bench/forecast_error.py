"""How well each forecaster forecasts recorded demand: WAPE, pinball loss and coverage, on what it has not seen.

NeuralProphet is fitted once, on the first 65 % of the time; everybody is judged on the rest, with what was known at
each moment. "chosen" is whom the running comparison (``autoscaler.accuracy``) believed at that moment. ETS is asked at
the beginning of each hour for that hour, so that for most buckets it knows a little more than the others; its quantiles
are its point and those of its errors lately.

Usage: python tests/bench/forecast_error.py TRACES
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from autoscale_forecasts import ets_with_past
from forecast_speed import speeds
from report import Result, Target, make_report, print_report, wide_console, write_report
from results_plot import write_picture

from autoscaler import neural
from autoscaler.accuracy import Accuracy, combine, pinball_loss
from autoscaler.config import QUANTILES
from autoscaler.errors import TraceError
from autoscaler.forecast import LastValue, SeasonalLevel, SeasonalNaive, forecast, row_quantiles
from autoscaler.neural import Shape, fit, predict
from autoscaler.traces import read_counts, read_trace
from autoscaler.types import Floats, Forecast, Past

NAME = "forecast-error"
STEP_S, STEPS, JUDGE_FROM, EVERY = 600.0, 6, 0.65, 3
# Trace, how many series are judged: those with most requests.
TRACES = {
    "servegen_client_windows": 40,
    "gentd26_requests": 12,
    "nab_tweet_volume_5min": 10,
}
FIT_TIMEOUT_S = 240.0
SIMPLE = (LastValue(errors=432), SeasonalNaive(errors=1008), SeasonalLevel(errors=1008))
CHOSEN, NAIVE, ETS = "chosen", SeasonalNaive().name, "ETS"
ETS_ERRORS = 1008
COVERAGE, OFF = 0.9, 0.05


def counts_of(path: Path, most: int) -> Past:
    """Requests of the busiest series in buckets of STEP_S."""
    try:
        windows, _ = read_counts(path)
        series = [(np.array(list(each)), np.array(list(each.values()))) for each in windows.values()]
    except TraceError:
        series = [(each.at_s, np.ones(len(each.at_s))) for each in read_trace(path).values()]
    buckets = int(max(at_s.max() for at_s, _ in series) // STEP_S)
    edges = np.arange(buckets + 1) * STEP_S
    series = sorted(series, key=lambda each: -each[1].sum())[:most]
    counts = [np.histogram(at_s, edges, weights=numbers)[0] for at_s, numbers in series]
    return Past(np.array(counts, float), STEP_S, buckets * STEP_S)


def judge(past: Past) -> tuple[dict[str, Floats], Floats, float]:
    """What each said, [judged, series, steps, quantiles], what came, [judged, series, steps], and seconds of fit."""
    begin = int(past.buckets * JUDGE_FROM)
    began_s = time.monotonic()
    names = [f"series {row}" for row in range(len(past.counts))]
    with tempfile.TemporaryDirectory() as directory:
        shape = Shape(steps=STEPS, quantiles=QUANTILES)
        version = fit(past.until(begin), names, shape, Path(directory), timeout_s=FIT_TIMEOUT_S)
        fitted_s = time.monotonic() - began_s
        neural_values = predict(version, past, names)
    forecasters = [*(each.name for each in SIMPLE), neural.NAME]
    accuracy = Accuracy(len(past.counts), forecasters, [1, 3, 6], QUANTILES, fade=0.99)
    said: dict[str, list[Floats]] = {name: [] for name in [*forecasters, ETS, CHOSEN]}
    came, points = [], ets_with_past(past, begin) * past.step_s
    for bucket in range(begin, past.buckets - STEPS):
        accuracy.judge(past.counts[:, bucket])
        if bucket % EVERY:
            accuracy.remember([])
            continue
        forecasts = [forecast(each, past.until(bucket + 1), STEPS) for each in SIMPLE]
        values = np.maximum.accumulate(np.maximum(neural_values[:, bucket], 0.0), axis=2)
        forecasts.append(Forecast(values, QUANTILES, STEP_S, past.end_s, neural.NAME))
        accuracy.remember(forecasts)
        for each in forecasts:
            said[each.by].append(each.values)
        said[ETS].append(by_ets(points, past, bucket))
        said[CHOSEN].append(combine(forecasts, accuracy.choose()))
        came.append(past.counts[:, bucket + 1 : bucket + 1 + STEPS])
    return {name: np.array(values) for name, values in said.items()}, np.array(came), fitted_s


def by_ets(points: Floats, past: Past, bucket: int) -> Floats:
    """What ETS says after ``bucket``, [series, steps, quantiles]."""
    lately = slice(max(0, bucket + 1 - ETS_ERRORS), bucket + 1)
    # NaN for series that it was not fitted on.
    off = row_quantiles(past.counts[:, lately] - points[:, lately], QUANTILES)
    return np.maximum(points[:, bucket + 1 : bucket + 1 + STEPS, None] + off[:, None, :], 0.0)


def compared(trace: str, past: Past, said: Mapping[str, Floats], came: Floats) -> Iterator[Result]:
    """Each forecaster's errors on a trace, and those of what was chosen beside the others'."""
    # Each series weighs alike: losses are in units of its own mean.
    scale = np.maximum(past.counts.mean(axis=1), 1e-9)[None, :, None]
    losses = {}
    for name, values in said.items():
        known = np.isfinite(values).all(axis=3)
        loss = np.where(known[..., None], pinball_loss(came, np.nan_to_num(values), QUANTILES), np.nan)
        losses[name] = float(np.nanmean(loss.mean(axis=3) / scale))
        median = np.where(known, values[..., 1], np.nan)
        wape = float(np.nansum(np.abs(came - median)) / np.nansum(np.where(known, came, np.nan)))
        coverage = float((came <= values[..., -1])[known].mean())
        target = Target(OFF, "max") if name == CHOSEN else None
        yield Result(f"{trace}, {name}: pinball loss", losses[name], "of the mean", (losses[name],))
        yield Result(f"{trace}, {name}: WAPE", wape, "share", (wape,))
        yield Result(f"{trace}, {name}: coverage of 0.9", coverage, "share", (coverage,))
        yield Result(f"{trace}, {name}: coverage off", abs(coverage - COVERAGE), "share", (coverage,), target)
        yield Result(f"{trace}, {name}: had an opinion", float(known.mean()), "of the buckets", ())
    others = min(losses[name] for name in losses if name not in {CHOSEN, ETS})
    ratio = losses[CHOSEN] / others
    yield Result(f"{trace}: chosen, of the best", ratio, "ratio", (ratio,), Target(1.02, "max"), "pinball loss")
    for name in (NAIVE, ETS):
        ratio = losses[CHOSEN] / losses[name]
        yield Result(f"{trace}: chosen, of {name}", ratio, "ratio", (ratio,), Target(1.0, "max"), name)


def main() -> int:
    """Runs the bench; returns 0 however the targets turn out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("traces", type=Path, help="directory of the traces")
    traces = parser.parse_args().traces
    console, begin_s = wide_console(), time.monotonic()

    def progress(what: str) -> None:
        console.print(f"{time.monotonic() - begin_s:5.0f} s  {what}", highlight=False)

    progress("how long a fit and a forecast take")
    found, notes = list(speeds()), []
    for trace, most in TRACES.items():
        progress(trace)
        past = counts_of(traces / f"{trace}.csv.gz", most)
        said, came, fitted_s = judge(past)
        found += compared(trace, past, said, came)
        notes.append(
            f"{trace}: {len(past.counts)} series of {past.buckets} buckets, NeuralProphet fitted in {fitted_s:.0f} s"
        )
    report = make_report(NAME, found, notes)
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
