"""What becomes of a sequence whose attempt has failed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.resumption import Failure, GiveUp, History, Retry, RetryLimits, after_failure

LIMITS = RetryLimits()
NONE_YET = History()
FAILURES: tuple[Failure, ...] = ("engine died", "engine lost", "replica died", "leaving", "unavailable", "refused")


def fail(
    failure: Failure, history: History = NONE_YET, *, delivered: int = 0, now_s: float = 0.0, chance: float = 0.5
) -> tuple[History, Retry | GiveUp]:
    return after_failure(history, failure, delivered=delivered, now_s=now_s, chance=chance, limits=LIMITS)


@pytest.mark.parametrize("failure", ["engine died", "engine lost", "replica died", "leaving"])
def test_who_lost_its_engine_is_asked_for_again(failure: Failure) -> None:
    for delivered in (0, 5):
        assert isinstance(fail(failure, delivered=delivered)[1], Retry)


@pytest.mark.parametrize("delivered", [0, 5])
def test_what_is_refused_is_not_asked_for_again(delivered: int) -> None:
    assert fail("refused", delivered=delivered)[1] == GiveUp("refused")


def test_a_model_that_cannot_serve_is_told_to_new_requests_at_once_and_awaited_by_those_it_lost() -> None:
    assert fail("unavailable")[1] == GiveUp("refused")
    assert isinstance(fail("unavailable", delivered=3)[1], Retry)
    lost, _ = fail("engine died")
    assert isinstance(fail("unavailable", lost)[1], Retry)


def test_a_request_that_ends_engines_ends_two() -> None:
    for first_delivered in (0, 7):
        history, decision = fail("engine died", delivered=first_delivered)
        assert isinstance(decision, Retry)
        assert fail("engine died", history)[1] == GiveUp("ends engines")


def test_a_request_that_got_a_token_between_is_not_to_blame() -> None:
    history = History()
    for _ in range(10):
        history, decision = fail("engine died", history, delivered=1)
        assert isinstance(decision, Retry)


def test_what_happens_between_two_ends_of_engines_excuses_nobody() -> None:
    history, _ = fail("engine died", delivered=3)
    for failure in ("unavailable", "leaving", "replica died", "engine lost"):
        history, decision = fail(failure, history)
        assert isinstance(decision, Retry)
    assert fail("engine died", history)[1] == GiveUp("ends engines")


@pytest.mark.parametrize("failure", ["replica died", "engine lost"])
def test_who_is_seldom_to_blame_is_given_up_later(failure: Failure) -> None:
    history, decision = fail(failure, delivered=3)
    for _ in range(LIMITS.max_replicas - 1):
        assert isinstance(decision, Retry)
        history, decision = fail(failure, history)
    assert decision == GiveUp("too many failures")
    assert isinstance(fail(failure, history, delivered=1)[1], Retry)


def test_replicas_that_leave_in_order_count_for_nothing() -> None:
    history = History()
    for _ in range(20):
        history, decision = fail("leaving", history)
        assert isinstance(decision, Retry)
    assert (history.engines_since_token, history.replicas_since_token) == (0, 0)


def test_it_is_not_followed_for_ever() -> None:
    history, _ = fail("leaving", now_s=100.0)
    assert isinstance(fail("unavailable", history, now_s=100.0 + LIMITS.patience_s / 2)[1], Retry)
    assert fail("unavailable", history, now_s=101.0 + LIMITS.patience_s)[1] == GiveUp("out of patience")
    assert isinstance(fail("unavailable", history, delivered=1, now_s=101.0 + LIMITS.patience_s)[1], Retry)
    for _ in range(LIMITS.max_failures - 2):
        history, decision = fail("leaving", history, delivered=1, now_s=100.0)
        assert isinstance(decision, Retry)
    assert fail("leaving", history, delivered=1, now_s=100.0)[1] == GiveUp("too many failures")


def test_waits_grow_to_a_limit_and_are_spread() -> None:
    history, waits_s = History(), []
    for _ in range(12):
        history, decision = fail("leaving", history)
        assert isinstance(decision, Retry)
        waits_s.append(decision.wait_s)
    assert waits_s[:3] == [LIMITS.first_wait_s, 2 * LIMITS.first_wait_s, 4 * LIMITS.first_wait_s]
    assert waits_s[-1] == LIMITS.longest_wait_s
    spread = [fail("leaving", chance=chance)[1] for chance in (0.0, 0.999)]
    assert [round(retry.wait_s / LIMITS.first_wait_s, 2) for retry in spread if isinstance(retry, Retry)] == [0.5, 1.5]


@given(
    st.lists(
        st.tuples(st.sampled_from(FAILURES), st.integers(0, 3), st.floats(0, 60), st.floats(0, 0.999)), max_size=80
    )
)
def test_whatever_happens_it_ends(events: list[tuple[Failure, int, float, float]]) -> None:
    history, now_s, given_up = History(), 0.0, False
    engines = 0
    for failure, delivered, passed_s, chance in events:
        now_s += passed_s
        engines = (0 if delivered else engines) + (failure == "engine died")
        history, decision = fail(failure, history, delivered=delivered, now_s=now_s, chance=chance)
        if isinstance(decision, GiveUp):
            given_up = True
            break
        assert engines < LIMITS.max_engines
        assert 0 < decision.wait_s <= 1.5 * LIMITS.longest_wait_s
    assert given_up or len(events) < LIMITS.max_failures
