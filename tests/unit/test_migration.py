"""What moving a stream costs, and how many rounds it takes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.migration import MAX_ROUNDS, ResumeCost, another_round, is_quicker_elsewhere
from deployments.fitted_line import FittedLine

COST = ResumeCost(FittedLine(0.05, 0.001))


def test_the_cost_of_a_resume_follows_what_was_measured() -> None:
    cost = ResumeCost()
    for tokens in (100, 900, 400, 250, 700) * 6:
        cost = cost.measured(tokens, 0.2 + 0.003 * tokens)
    assert cost.per_token_s == pytest.approx(0.003, rel=0.01)
    assert cost.seconds(1000) == pytest.approx(3.2, rel=0.02)


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
