"""What moving a stream costs, and how many rounds it takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.migration import MAX_ROUNDS, Place, ResumeCost, RunningStream, another_round, cheapest

COST = ResumeCost(per_token_s=0.001, base_s=0.05)
HERE = Place(queue_s=0.0, missing_bytes=0, bytes_per_s=1e9)
FAR = Place(queue_s=0.0, missing_bytes=10**12, bytes_per_s=1e9)


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


def test_the_cheapest_way() -> None:
    short, long = RunningStream(tokens=500, left_s=0.2), RunningStream(tokens=500, left_s=60.0)
    near = Place(queue_s=0.5, missing_bytes=10**9, bytes_per_s=1e9)
    assert cheapest([short], near, HERE, target_has_room=True, cost=COST).way == "wait"
    assert cheapest([long], FAR, HERE, target_has_room=True, cost=COST).way == "migrate"
    assert cheapest([long] * 10, near, HERE, target_has_room=True, cost=COST).way == "load elsewhere"
    assert cheapest([long], near, HERE, target_has_room=False, cost=COST).way == "load elsewhere"
    choice = cheapest([long, short], near, HERE, target_has_room=True, cost=COST)
    assert (choice.wait_s, choice.load_s, choice.migrate_s) == (60.0, 1.5, pytest.approx(1.1))


def test_with_nowhere_to_go_one_waits() -> None:
    stream = RunningStream(tokens=500, left_s=1000.0)
    assert cheapest([stream], None, HERE, target_has_room=False, cost=COST).way == "wait"
    assert cheapest([], None, HERE, target_has_room=False, cost=COST).wait_s == 0


def test_rounds_go_on_while_they_get_shorter() -> None:
    assert another_round([2000], COST)
    assert another_round([2000, 100], COST)
    assert not another_round([2000, 100, 10], COST), "that little needs no round"
    assert not another_round([2000, 100, 100], COST), "it does not get shorter"
    assert not another_round([10], COST)


@given(st.lists(st.integers(0, 100_000), min_size=MAX_ROUNDS + 1, max_size=20))
def test_there_are_only_so_many_rounds(rests: list[int]) -> None:
    assert not another_round(rests, COST)
