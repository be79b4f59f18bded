"""Forecasters for `autoscale.py` that are fitted once, before the part that is judged: ETS and NeuralProphet."""

import tempfile
import warnings
from pathlib import Path

import numpy as np

from autoscaler.config import QUANTILES
from autoscaler.errors import ForecastError
from autoscaler.forecast import DAY_S
from autoscaler.foretold import chosen
from autoscaler.neural import Shape, fit, predict
from autoscaler.outlook import DENSE
from autoscaler.types import Floats, Past

FEWEST_DAYS = 3
FIT_TIMEOUT_S = 240.0
HOUR_S = 3600.0
FEWEST = 10


def ets(past: Past, fitted: int) -> Floats:
    """Rates by ETS as ``ets_with_past`` has them, none for the buckets it was fitted on."""
    rates = ets_with_past(past, fitted)
    rates[:, :fitted] = np.nan
    return rates


def ets_with_past(past: Past, fitted: int) -> Floats:
    """Rates by ETS (Hyndman et al., as in statsforecast), [series, buckets]: its parameters are fitted on the first
    ``fitted`` buckets, its states go on with what comes. Seasonal by the hour where there are days enough."""
    from statsforecast.models import AutoETS  # noqa: PLC0415 - compiles for seconds

    per_hour = max(1, round(HOUR_S / past.step_s)) if fitted * past.step_s >= FEWEST_DAYS * DAY_S else 1
    season = 24 if per_hour > 1 or past.step_s == HOUR_S else 1
    rates = np.full_like(past.counts, np.nan)
    whole = past.buckets // per_hour * per_hour
    for row, counts in enumerate(past.counts):
        summed = counts[:whole].reshape(-1, per_hour).sum(axis=1)
        if np.count_nonzero(summed[: fitted // per_hour]) < FEWEST:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoETS(season_length=season, model="ZNZ" if season > 1 else "ZZN").fit(
                summed[: fitted // per_hour]
            )
            said = model.forward(summed, h=1, fitted=True)["fitted"]
        rates[row, :whole] = np.repeat(np.maximum(said, 0.0), per_hour) / (per_hour * past.step_s)
    return rates


def with_neural(names: tuple[str, ...], past: Past, fitted: int) -> Floats | None:
    """Rates by whoever has forecast best, NeuralProphet among them; None where it has nothing to be fitted on.

    Live, only series with ``DENSE`` requests a bucket go by forecasts: others are left out here, their rows are NaN.
    """
    dense = past.counts[:, :fitted].mean(axis=1) >= DENSE
    if fitted * past.step_s < FEWEST_DAYS * DAY_S or not dense.any():
        return None
    few = tuple(name for name, is_dense in zip(names, dense, strict=True) if is_dense)
    shape, some = Shape(steps=1, quantiles=QUANTILES), Past(past.counts[dense], past.step_s, past.end_s)
    try:
        with tempfile.TemporaryDirectory() as directory:
            version = fit(some.until(fitted), few, shape, Path(directory), timeout_s=FIT_TIMEOUT_S)
            said = predict(version, some, few)
    except ForecastError as error:
        print(f"NeuralProphet: {error}")
        return None
    said[:, :fitted] = np.nan
    rates = np.full_like(past.counts, np.nan)
    rates[dense] = chosen(few, some, said)
    return rates
