"""What forecasters say of a trace: by bucket, from what was known when it began."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from autoscaler.forecast import DAY_S
from autoscaler.foretold import CHOSEN, NAIVE, RECENT, Foretold, chosen, foretell, naive, recent
from autoscaler.traces import Arrivals
from autoscaler.types import Floats, Past

STEP_S = 1800.0
BUCKETS = int(3 * DAY_S / STEP_S)


def daily(seed: int = 0) -> Past:
    rng = np.random.default_rng(seed)
    level = 40 + 30 * np.sin(np.arange(BUCKETS) * STEP_S / DAY_S * 2 * math.pi)
    return Past(rng.poisson(level, (2, BUCKETS)).astype(float), STEP_S, BUCKETS * STEP_S)


def test_seasonal_naive_says_what_came_a_day_ago() -> None:
    past = daily()
    rates = naive(past)
    day = int(DAY_S / STEP_S)
    assert np.isnan(rates[:, :day]).all()
    assert np.array_equal(rates[:, day:], past.counts[:, :-day] / STEP_S)


def test_the_recent_level_fades_within_hours() -> None:
    counts = np.concatenate([np.full((1, 20), 18.0), np.zeros((1, 20))], axis=1)
    rates = recent(Past(counts, STEP_S, 40 * STEP_S))[0]
    assert rates[20] == pytest.approx(0.01)
    assert rates[22] == pytest.approx(0.01 * math.exp(-1.0)), "an hour without any"


@pytest.mark.parametrize("rates_of", [naive, recent, lambda past: chosen(("a", "b"), past)])
def test_another_future_changes_nothing_that_was_said_before_it(rates_of: Callable[[Past], Floats]) -> None:
    one, other = daily(), daily()
    cut = 100
    other.counts[:, cut:] = 999.0
    assert np.array_equal(rates_of(one)[:, : cut + 1], rates_of(other)[:, : cut + 1], equal_nan=True)


def test_the_chosen_forecast_of_a_daily_course_is_better_than_none() -> None:
    past = daily()
    rates = chosen(("a", "b"), past)
    known = np.isfinite(rates)
    assert known[:, -48:].all()
    missed = np.abs(rates * STEP_S - past.counts)[known].mean()
    assert missed < 0.5 * np.abs(past.counts - past.counts.mean()).mean()


def test_a_rate_is_of_the_bucket_in_which_it_is_asked_for() -> None:
    foretold = Foretold(("a", "b"), 300.0, {NAIVE: np.array([[1.0, 2.0], [np.nan, 4.0]])})
    of_b = foretold.of(NAIVE, "b")
    assert [of_b(at_s) for at_s in (299.0, 300.0, 599.0, 600.0)] == [None, 4.0, 4.0, None]
    assert foretold.of(NAIVE, "a")(0.0) == 1.0


def test_further_forecasters_are_asked_with_all_that_came() -> None:
    trace = {"a": Arrivals(np.array([10.0, 400.0]), np.ones(2)), "b": Arrivals(np.array([900.0]), np.ones(1))}
    foretold = foretell(trace, {"mine": lambda past: past.counts * 7})
    assert foretold.rates["mine"].tolist() == [[7, 7, 0, 0], [0, 0, 0, 7]]
    assert set(foretold.rates) == {RECENT, NAIVE, CHOSEN, "mine"}
