"""A line through measurements: it follows them, the latest most, and is never negative."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.fitted_line import FittedLine

GUESS = FittedLine(base=0.05, slope=0.001)


def test_it_follows_what_was_measured() -> None:
    line = GUESS
    for x in (100, 900, 400, 250, 700) * 6:
        line = line.measured(x, 0.2 + 0.003 * x)
    assert line.slope == pytest.approx(0.003, rel=0.01)
    assert line.base == pytest.approx(0.2, rel=0.05)


def test_small_numbers_tell_as_much() -> None:
    line = GUESS
    for x in (0, 1, 0, 2, 3) * 6:
        line = line.measured(x, 0.1 + 0.02 * x)
    assert (line.base, line.slope) == (pytest.approx(0.1, rel=0.01), pytest.approx(0.02, rel=0.01))


def test_the_latest_measurements_count_most() -> None:
    line = GUESS
    for factor in (0.01, 0.001):
        for x in (100, 900, 400) * 12:
            line = line.measured(x, factor * x)
    assert line.slope == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("x", [0, 1, 100])
def test_measurements_of_one_kind_say_nothing_of_the_slope(x: int) -> None:
    line = GUESS
    for _ in range(5):
        line = line.measured(x, 0.4)
    assert line.slope == GUESS.slope
    assert line.at(x) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=40))
def test_it_is_never_negative(measurements: list[tuple[int, float]]) -> None:
    line = GUESS
    for x, y in measurements:
        line = line.measured(x, y)
    assert line.slope >= 0
    assert line.base >= 0
