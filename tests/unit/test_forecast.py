"""The forecasters without fitting, and the judgement of forecasters."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoscaler.accuracy import Accuracy, combine, pinball_loss
from autoscaler.config import QUANTILES
from autoscaler.errors import ForecastError
from autoscaler.forecast import (
    Forecaster,
    LastValue,
    SeasonalLevel,
    SeasonalNaive,
    forecast,
    row_quantiles,
    trailing_mean,
)
from autoscaler.types import Floats, Forecast, Past

STEP_S = 3600.0
DAY = 24
FORECASTERS: tuple[Forecaster, ...] = (LastValue(), LastValue(buckets=3), SeasonalNaive(), SeasonalLevel())
counts_of_days = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 4 * DAY)),
    elements=st.one_of(st.integers(0, 1000).map(float), st.just(np.nan)),
)


def past_of(counts: Floats) -> Past:
    return Past(np.asarray(counts, float), STEP_S, counts.shape[1] * STEP_S)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(counts=counts_of_days, steps=st.integers(1, 12))
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda each: each.name)
def test_quantiles_are_ordered_not_negative_and_finite_or_silent(
    forecaster: Forecaster, counts: Floats, steps: int
) -> None:
    values = forecast(forecaster, past_of(counts), steps).values
    assert values.shape == (len(counts), steps, len(QUANTILES))
    silent = np.isnan(values)
    assert (silent.all(axis=2) == silent.any(axis=2)).all()
    assert (np.where(silent, 0, values) >= 0).all()
    assert (np.diff(np.where(silent, 0, values), axis=2) >= 0).all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(counts=counts_of_days, cut=st.integers(0, 4 * DAY), future=st.floats(0, 1e6))
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda each: each.name)
def test_what_comes_later_changes_nothing(forecaster: Forecaster, counts: Floats, cut: int, future: float) -> None:
    cut = min(cut, counts.shape[1])
    changed = counts.copy()
    changed[:, cut:] = future
    before, after = (forecast(forecaster, past_of(each).until(cut), 3).values for each in (counts, changed))
    assert np.array_equal(before, after, equal_nan=True)


@pytest.mark.parametrize("forecaster", [SeasonalNaive(), SeasonalLevel()], ids=lambda each: each.name)
def test_a_season_is_recognized(forecaster: Forecaster) -> None:
    day = 100 + 50 * np.sin(np.arange(DAY) / DAY * 2 * np.pi)
    counts = np.tile(day, 5)[None, :]
    values = forecast(forecaster, past_of(counts), 12).values
    assert values[0, :, 1] == pytest.approx(day[:12])
    assert values[0, :, 2] == pytest.approx(day[:12]), "without errors there is no spread"


def test_the_level_of_today_moves_the_season() -> None:
    counts = np.tile(100.0 * (1 + np.arange(DAY) % 2), 5)[None, :]
    counts[0, -12:] += 60
    naive, level = (forecast(each, past_of(counts), 1).values[0, 0, 1] for each in (SeasonalNaive(), SeasonalLevel()))
    assert naive == pytest.approx(100, abs=1)
    assert 130 < level < 165


@pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda each: each.name)
def test_the_upper_quantile_covers_what_it_says(forecaster: Forecaster) -> None:
    rng = np.random.default_rng(7)
    rate = 200 + 100 * np.sin(np.arange(30 * DAY) / DAY * 2 * np.pi)
    counts = rng.poisson(rate, (10, 30 * DAY)).astype(float)
    covered = [
        (counts[:, at] <= forecast(forecaster, past_of(counts).until(at), 1).values[:, 0, -1]).mean()
        for at in range(20 * DAY, 30 * DAY)
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_a_trailing_mean_leaves_gaps_out() -> None:
    counts = np.array([[2.0, np.nan, 4.0, np.nan, np.nan]])
    assert np.array_equal(trailing_mean(counts, 2), [[2.0, 2.0, 4.0, 4.0, np.nan]], equal_nan=True)


class Wrong:
    name = "wrong"

    def __init__(self, values: Floats) -> None:
        self._values = values

    def values(self, *_: object) -> Floats:
        return self._values


@pytest.mark.parametrize("values", [np.zeros((1, 1, 1)), np.full((1, 2, 3), np.inf)])
def test_nonsense_is_an_error(values: Floats) -> None:
    with pytest.raises(ForecastError, match="wrong"):
        forecast(Wrong(values), past_of(np.ones((1, 5))), 2)


def said(value: float, series: int = 1, steps: int = 2) -> Forecast:
    spread = np.array([value - 1, value, value + 1])
    return Forecast(np.broadcast_to(spread, (series, steps, 3)).copy(), QUANTILES, STEP_S, 0.0, str(value))


def test_scores_are_those_of_the_definitions() -> None:
    accuracy = Accuracy(1, ["a"], [1, 2], QUANTILES, fade=1.0)
    came = [10.0, 12.0, 9.0, 20.0]
    for value in came:
        accuracy.judge(np.array([value]))
        accuracy.remember([said(10.0)])
    near, far = accuracy.scores(0)
    assert near.judged == 3
    assert near.wape == pytest.approx((2 + 1 + 10) / (12 + 9 + 20))
    assert near.coverage == pytest.approx(1 / 3)
    assert near.pinball == pytest.approx(
        np.mean([pinball_loss(np.array([v]), np.array([[9.0, 10, 11]]), QUANTILES).mean() for v in came[1:]])
    )
    assert far.judged == 2


def test_whoever_forecasts_better_is_believed_and_changes_are_noticed() -> None:
    accuracy = Accuracy(2, ["low", "high"], [1], QUANTILES, fade=0.9)
    chosen = []
    for bucket in range(60):
        accuracy.judge(np.array([10.0 if bucket < 30 else 50.0, 10.0]))
        accuracy.remember([said(10.0, 2), said(50.0, 2)])
        chosen.append(accuracy.choose().tolist())
    assert chosen[29] == [0, 0]
    assert chosen[-1] == [1, 0]
    assert sum(before != after for before, after in pairwise(chosen)) == 1


def test_who_has_no_opinion_or_is_new_is_not_believed() -> None:
    accuracy = Accuracy(1, ["silent", "bad", "new"], [1], QUANTILES, fade=1.0)
    for bucket in range(20):
        accuracy.judge(np.array([10.0]))
        accuracy.remember([said(np.nan), said(90.0), said(10.0 if bucket > 15 else np.nan)])
        chosen = accuracy.choose()
    assert chosen.tolist() == [1]


def test_unknown_counts_are_not_judged() -> None:
    accuracy = Accuracy(1, ["a"], [1], QUANTILES, fade=1.0)
    for value in (1.0, np.nan, 1.0):
        accuracy.judge(np.array([value]))
        accuracy.remember([said(1.0)])
    assert accuracy.scores(0)[0].judged == 1


def test_the_first_with_an_opinion_fills_in() -> None:
    chosen = np.array([0, 1])
    values = combine([said(np.nan, 2), said(5.0, 2)], chosen)
    assert values[:, 0, 1].tolist() == [5.0, 5.0]


@given(
    hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=st.floats(-1e6, 1e6) | st.just(np.nan))
)
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_quantiles_of_rows_are_numpys(values: Floats) -> None:
    levels = (0.0, 0.1, 0.5, 0.9, 1.0)
    np.testing.assert_allclose(row_quantiles(values, levels), np.nanquantile(values, levels, axis=1).T, atol=1e-9)
