"""What moving a stream costs, and how many rounds it takes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.migration import MAX_ROUNDS, ResumeCost, another_round, is_quicker_elsewhere

COST = ResumeCost(per_token_s=0.001, base_s=0.05)


def test_the_cost_of_a_resume_follows_what_was_measured() -> None:
    cost = ResumeCost()
    for tokens in (100, 900, 400, 250, 700) * 6:
        cost = cost.measured(tokens, 0.2 + 0.003 * tokens)
    assert cost.per_token_s == pytest.approx(0.003, rel=0.01)
    assert cost.base_s == pytest.approx(0.2, rel=0.05)
    assert cost.seconds(1000) == pytest.approx(3.2, rel=0.02)


def test_the_latest_measurements_count_most() -> None:
    cost = ResumeCost()
    for factor in (0.01, 0.001):
        for tokens in (100, 900, 400) * 12:
            cost = cost.measured(tokens, factor * tokens)
    assert cost.per_token_s == pytest.approx(0.001, rel=0.05)


def test_measurements_of_one_length_say_nothing_of_the_slope() -> None:
    cost = ResumeCost()
    for _ in range(5):
        cost = cost.measured(100, 0.4)
    assert cost.per_token_s == ResumeCost().per_token_s
    assert cost.seconds(100) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=40))
def test_a_cost_is_never_negative(measurements: list[tuple[int, float]]) -> None:
    cost = ResumeCost()
    for tokens, seconds in measurements:
        cost = cost.measured(tokens, seconds)
    assert cost.per_token_s >= 0
    assert cost.base_s >= 0


@pytest.mark.parametrize(
    ("tokens", "left_s", "elsewhere_s", "expected"),
    [
        (500, 60.0, 0.1, True),
        (500, 0.2, 0.1, False),
        (500, 60.0, None, False),
        (500, 60.0, 61.0, False),
        (50_000, 20.0, 0.1, False),
        (500, math.inf, 10.0, True),
    ],
)
def test_a_stream_moves_if_that_is_quicker_than_its_end(
    tokens: int, left_s: float, elsewhere_s: float | None, expected: object
) -> None:
    assert is_quicker_elsewhere(tokens, left_s, elsewhere_s, COST) is expected


def test_rounds_go_on_while_they_get_shorter() -> None:
    assert another_round([2000], COST)
    assert another_round([2000, 100], COST)
    assert not another_round([2000, 100, 10], COST), "that little needs no round"
    assert not another_round([2000, 100, 100], COST), "it does not get shorter"
    assert not another_round([10], COST)


@given(st.lists(st.integers(0, 100_000), min_size=MAX_ROUNDS + 1, max_size=20))
def test_there_are_only_so_many_rounds(rests: list[int]) -> None:
    assert not another_round(rests, COST)
