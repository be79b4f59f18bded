"""Shares of adapters in a model's requests: they follow what is asked for, and add up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapter_shares import MEMORY_S, MOST_KEPT, MOST_TOLD, AdapterShares


def shares(*came: tuple[str | None, float, int]) -> dict[str, float]:
    made = AdapterShares()
    for adapter, at_s, requests in came:
        made.of_model(at_s, requests)
        if adapter is not None:
            made.of_adapter(adapter, at_s, requests)
    return made.largest()


def test_they_are_of_all_requests_of_the_model() -> None:
    assert shares(("a", 5.0, 2), (None, 5.0, 1), ("b", 5.0, 1)) == {"a": 0.5, "b": 0.25}
    assert shares() == {}


def test_what_was_asked_for_long_ago_counts_less() -> None:
    now_s = 1.8e9
    found = shares(("old", now_s - MEMORY_S, 10), ("new", now_s, 10))
    assert found["old"] / found["new"] == pytest.approx(math.exp(-1))
    assert list(found) == ["new", "old"], "the largest first"


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 1e7), st.integers(1, 1000)), min_size=1, max_size=30
    )
)
def test_never_more_than_all(came: list[tuple[str | None, float, int]]) -> None:
    found = shares(*came)
    assert all(0 <= each <= 1 + 1e-9 for each in found.values())
    assert sum(found.values()) <= 1 + 1e-9


def test_nonsense_and_what_is_very_old_count_nothing() -> None:
    assert shares(("new", 1.8e9, 1), ("old", 0.0, 10**6), ("odd", math.nan, 5), ("odd", math.inf, 5)) == {"new": 1.0}


def test_as_many_as_one_may_want() -> None:
    made = AdapterShares()
    for number in range(MOST_KEPT + 1):
        made.of_model(0.0, number + 1)
        made.of_adapter(f"a{number}", 0.0, number + 1)
    found = made.largest()
    assert list(found) == [f"a{MOST_KEPT - rank}" for rank in range(MOST_TOLD)]
    assert len(made._weights) <= MOST_KEPT
