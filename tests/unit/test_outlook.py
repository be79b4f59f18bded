"""Whoever forecasts best is believed, and what is no number is nobody's opinion."""

import math

import numpy as np
import pytest

from autoscaler.outlook import NEURAL, Outlook, from_past, quantiles_of
from autoscaler.types import Floats, Past

DAY = 288
STEP_S = 300.0
QUANTILES = quantiles_of(0.9)


def days(number: int, series: int = 2) -> Past:
    """A season of a day, with noise; series differ in size."""
    rng = np.random.default_rng(1)
    time = np.arange(number * DAY)
    level = 40 * (1.2 + np.sin(2 * np.pi * time / DAY))
    counts = np.stack([rng.poisson(level * (1 + 10 * row)) for row in range(series)]).astype(float)
    return Past(counts, STEP_S, 1_700_006_400.0)


@pytest.fixture(scope="module")
def past() -> Past:
    return days(6)


@pytest.fixture
def outlook(past: Past) -> Outlook:
    made = Outlook(("a", "b"), QUANTILES, 3)
    from_past(made, past, 12)
    made.see_coarse(past)
    return made


def test_quantiles_have_the_median_and_the_one_that_is_configured() -> None:
    assert QUANTILES == (0.1, 0.5, 0.9)
    assert quantiles_of(0.75) == (0.25, 0.5, 0.75)


def test_the_expected_rate_is_the_buckets_own(outlook: Outlook, past: Past) -> None:
    now_s = past.end_s + 10
    truth_per_s = 40 * 1.2 / STEP_S
    assert outlook.expected_per_s(now_s)["a"] == pytest.approx(truth_per_s, rel=0.35)
    upper = outlook.upper_per_s(now_s, 10.0, 60)
    assert len(upper["b"]) == 60
    assert upper["b"][0] > outlook.expected_per_s(now_s)["b"]


def test_a_forecast_that_is_over_says_nothing(outlook: Outlook, past: Past) -> None:
    late_s = past.end_s + 3 * STEP_S + 1
    assert outlook.expected_per_s(late_s) == {}
    assert outlook.expected_per_s(past.end_s - 1) == {}
    assert set(outlook.upper_per_s(late_s, 10.0, 3)["a"]) == {0.0}


def test_errors_are_told_of_each_forecaster(outlook: Outlook) -> None:
    told = outlook.describe("a")
    assert {"last value", "seasonal level", "seasonal naive"} <= set(told["errors"])
    assert all(0 <= each["coverage"] <= 1 for each in told["errors"].values())
    assert told["by"] in told["errors"]
    assert len(told["requests"]["0.5"]) == 3


def perfect(past: Past, bucket: int) -> Floats:
    coming = past.counts[:, bucket : bucket + 3]
    return np.repeat(coming[:, :, None], 3, axis=2)


def test_neuralprophet_is_believed_where_it_is_best_and_nowhere_else(past: Past) -> None:
    good, bad = Outlook(("a", "b"), QUANTILES, 3), Outlook(("a", "b"), QUANTILES, 3)
    for bucket in range(past.buckets - 20, past.buckets - 3):
        good.see_coarse(past.until(bucket), perfect(past, bucket))
        bad.see_coarse(past.until(bucket), perfect(past, bucket) * 3)
    assert good.describe("a")["by"] == NEURAL
    assert bad.describe("a")["by"] != NEURAL


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, 1e200])
def test_nonsense_is_no_opinion(past: Past, nonsense: float) -> None:
    outlook = Outlook(("a", "b"), QUANTILES, 3)
    for bucket in range(past.buckets - 20, past.buckets - 3):
        said = perfect(past, bucket)
        said[0, 1, 2] = nonsense
        outlook.see_coarse(past.until(bucket), said)
    assert outlook.describe("a")["by"] != NEURAL
    assert outlook.describe("b")["by"] == NEURAL
    rates = outlook.expected_per_s(past.end_s - 3 * STEP_S)
    assert all(math.isfinite(rate) for rate in rates.values())


def test_buckets_that_come_twice_or_not_at_all_are_no_ones_fault(past: Past) -> None:
    """What was said of a bucket is held against that bucket, whenever somebody looks."""
    steady, odd = (Outlook(("a", "b"), QUANTILES, 3) for _ in range(2))
    for bucket in range(past.buckets - 20, past.buckets - 3):
        steady.see_coarse(past.until(bucket), perfect(past, bucket))
        for _ in range(0 if bucket % 5 == 0 else 2):
            odd.see_coarse(past.until(bucket), perfect(past, bucket))
    for outlook in (steady, odd):
        assert outlook.describe("a")["errors"][NEURAL]["wape"] == 0.0, "it was perfect"


def test_another_shape_is_no_opinion(past: Past) -> None:
    outlook = Outlook(("a", "b"), QUANTILES, 3)
    outlook.see_coarse(past, np.zeros((7, 1, 1)))
    assert outlook.describe("a")["by"] is not None


def test_nothing_counted_and_nothing_but_zeros_are_nothing_expected() -> None:
    for counts in (np.full((1, 50), np.nan), np.zeros((1, 50)), np.zeros((1, 0))):
        outlook = Outlook(("a",), QUANTILES, 3)
        past = Past(counts, STEP_S, 1000 * STEP_S)
        outlook.see_coarse(past)
        outlook.see_fine(past)
        assert outlook.expected_per_s(past.end_s) == {}, "sparse models are left to their gaps"
        assert set(outlook.upper_per_s(past.end_s, 10.0, 6)["a"]) == {0.0}


def test_the_recent_level_counts_for_the_next_minute() -> None:
    outlook = Outlook(("a",), QUANTILES, 3)
    outlook.see_fine(Past(np.full((1, 60), 20.0), 10.0, 1000.0))
    assert outlook.upper_per_s(1001.0, 10.0, 6)["a"] == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    assert outlook.upper_per_s(2000.0, 10.0, 1)["a"] == [0.0], "not for ever"
