"""Gaps between uses, and what they say about the next one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.idle import BINS, EDGES_S, WIDTHS_S, Gaps, bin_of, hazard_per_s


@given(gap_s=st.floats(0, 1e8))
def test_a_gap_falls_into_the_bin_around_it(gap_s: float) -> None:
    index = bin_of(gap_s)
    assert 0 <= index < BINS
    if EDGES_S[0] < gap_s < EDGES_S[-1]:
        assert EDGES_S[index] * (1 - 1e-9) <= gap_s <= EDGES_S[index + 1] * (1 + 1e-9)


@given(gaps=st.lists(st.floats(0, 1e7), max_size=50))
def test_a_hazard_is_finite_and_not_negative(gaps: list[float]) -> None:
    histogram = Gaps.none()
    for gap_s in gaps:
        histogram.add(gap_s)
    for prior in (None, Gaps.none(), histogram):
        hazard = hazard_per_s(histogram, prior)
        assert np.isfinite(hazard).all()
        assert (hazard >= 0).all()


def test_arrivals_without_memory_have_a_constant_hazard() -> None:
    gaps = Gaps.none(fade=1.0)
    for gap_s in np.random.default_rng(1).exponential(100.0, 20_000):
        gaps.add(gap_s)
    seen = (EDGES_S[:-1] > 5) & (EDGES_S[:-1] < 300)
    assert hazard_per_s(gaps, None)[seen] == pytest.approx(np.full(seen.sum(), 0.01), rel=0.2)


def test_a_timer_is_expected_when_it_is_due_and_not_before() -> None:
    gaps = Gaps.none()
    for _ in range(30):
        gaps.add(300.0)
    hazard = hazard_per_s(gaps, None)
    due = bin_of(300.0)
    assert hazard[:due].max() == 0
    assert hazard[due] * WIDTHS_S[due] > 1


def test_old_habits_fade() -> None:
    gaps = Gaps.none()
    for gap_s in [10.0] * 500 + [1000.0] * 800:
        gaps.add(gap_s)
    assert gaps.weights[bin_of(10.0)] < 0.05 * gaps.weights[bin_of(1000.0)]


def test_a_young_series_borrows_from_the_others() -> None:
    others = Gaps.none()
    for _ in range(100):
        others.add(60.0)
    assert hazard_per_s(Gaps.none(), others)[bin_of(60.0)] > 0
    own = Gaps.none()
    for _ in range(100):
        own.add(600.0)
    hazard = hazard_per_s(own, others)
    assert hazard[bin_of(600.0)] > hazard[bin_of(60.0)]
