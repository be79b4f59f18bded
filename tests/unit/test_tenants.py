"""What tenants reach, and what is left of their limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.names import Target
from app.tenants import EVERYTHING, Allowance, Bucket, Quota, Reach


def reach(models: str = "", adapters: str = "") -> Reach:
    return Reach(frozenset(models.split()), frozenset(adapters.split()))


@pytest.mark.parametrize(
    ("allowed", "held", "not_held"),
    [
        (reach(), [], [Target("m"), Target("m", "a")]),
        (reach("m"), [Target("m")], [Target("n"), Target("m", "a")]),
        (reach("", "a"), [Target("m", "a"), Target("n", "a")], [Target("m"), Target("m", "b")]),
        (reach("", "m:a"), [Target("m", "a")], [Target("n", "a"), Target("m")]),
        (reach("", "m:*"), [Target("m", "a"), Target("m", "b")], [Target("n", "a"), Target("m")]),
        (Reach(frozenset({"m"}), None), [Target("m"), Target("m", "a")], [Target("n"), Target("n", "a")]),
        (EVERYTHING, [Target("m"), Target("n", "a"), Target("n", "a", "acme")], []),
        (Reach(None, None, "acme"), [Target("n", "a", "acme"), Target("n", "a")], [Target("n", "a", "globex")]),
        (Reach(tenant="acme"), [Target("n", "a", "acme")], [Target("n", "a", "globex"), Target("n", "a")]),
    ],
)
def test_what_is_reached(allowed: Reach, held: list[Target], not_held: list[Target]) -> None:
    assert [target for target in held + not_held if allowed.holds(target)] == held


@given(
    st.floats(0.1, 1e6),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e4)), max_size=30),
)
def test_no_more_is_taken_than_a_minute_holds_and_what_has_come_back(
    per_minute: float, steps: list[tuple[float, float]]
) -> None:
    bucket, taken, now_s = Bucket.full(per_minute, 0.0), 0.0, 0.0
    for wait_s, amount in steps:
        now_s += wait_s
        if bucket.until_s(amount, now_s) == 0 and amount <= max(1.0, per_minute):
            bucket = bucket.less(amount, now_s)
            taken += amount
        assert bucket.at(now_s).level <= max(1.0, per_minute)
    assert taken <= max(1.0, per_minute) + per_minute * now_s / 60 + 1e-6 * (1 + taken)


def test_a_bucket_says_when_it_is_worth_asking_again() -> None:
    bucket = Bucket.full(60, 0.0).less(60, 0.0)
    assert bucket.until_s(1, 0.0) == pytest.approx(1.0)
    assert bucket.until_s(1, 0.5) == pytest.approx(0.5)
    assert bucket.until_full_s(0.0) == pytest.approx(60.0)
    overdrawn = bucket.less(30, 0.0)
    assert overdrawn.until_s(1, 0.0) == pytest.approx(31.0)


def test_less_than_one_a_minute_is_one_now_and_then() -> None:
    allowance = Allowance(Quota(requests_per_minute=0.5), 0.0)
    assert allowance.refusal(0.0) is None
    allowance.enter(0.0)
    refusal = allowance.refusal(1.0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(119.0)
    assert allowance.refusal(120.0) is None


def test_each_limit_refuses_and_the_longest_is_named() -> None:
    allowance = Allowance(Quota(2, 100, 1), 0.0)
    assert allowance.refusal(0.0) is None
    allowance.enter(0.0)
    assert allowance.refusal(0.0) is not None
    assert allowance.refusal(0.0).limit == "concurrent"  # type: ignore[union-attr]
    allowance.spend(200, 0.0)
    assert allowance.refusal(0.0).limit == "tokens"  # type: ignore[union-attr]
    allowance.leave()
    assert allowance.refusal(59.0).limit == "tokens"  # type: ignore[union-attr]
    assert allowance.refusal(61.0) is None


def test_without_limits_nothing_is_refused() -> None:
    allowance = Allowance(Quota(), 0.0)
    for _ in range(1000):
        allowance.enter(0.0)
        allowance.spend(10**9, 0.0)
    assert allowance.refusal(0.0) is None


def test_what_was_spent_stays_spent_under_other_limits() -> None:
    allowance = Allowance(Quota(requests_per_minute=10), 0.0)
    for _ in range(10):
        allowance.enter(0.0)
    allowance.set(Quota(requests_per_minute=12), 0.0)
    assert allowance.requests is not None
    assert allowance.requests.level == 2
    allowance.set(Quota(requests_per_minute=5), 0.0)
    assert allowance.refusal(0.0) is not None
    allowance.set(Quota(), 0.0)
    assert allowance.refusal(0.0) is None


def test_gateways_divide_limits() -> None:
    assert Quota(10, 100, 5).part(2) == Quota(5, 50, 2)
    assert Quota(10, 100, 1).part(4).max_concurrent_requests == 1
    assert Quota().part(3) == Quota()
