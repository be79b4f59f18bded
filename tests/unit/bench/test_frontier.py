"""Policies are compared by what their settings did, never by what lies between two of them."""

from frontier import Point, chosen, higher, lower, no_dearer, no_later, worse


def point(idle_s: float, p95_s: float, *, p99_s: float = 8.0, cold: int = 10) -> Point:
    return Point(idle_s, idle_s + 100.0, 0.0, p95_s, p99_s, cold, 0.9, 5)


TRIED = {
    1.0: point(10, 8.0),
    2.0: point(20, 0.9),
    3.0: point(30, 0.0, p99_s=0.6),
    4.0: point(40, 0.0, p99_s=0.6, cold=3),
}


def test_the_cheapest_within_a_second_is_chosen() -> None:
    assert chosen(TRIED) == 2.0


def test_where_none_is_within_a_second_the_least_late_is() -> None:
    assert chosen({1.0: point(10, 8.0), 2.0: point(20, 7.0), 3.0: point(15, 7.0)}) == 3.0


def test_ours_is_held_at_no_more_waiting() -> None:
    assert no_later(TRIED, 0.5) == TRIED[3.0], "not between 2 and 3"
    assert no_later(TRIED, 9.0) == TRIED[1.0]
    assert no_later({1.0: point(10, 8.0)}, 0.5) is None


def test_ours_is_held_at_no_more_cost() -> None:
    assert no_dearer(TRIED, 135.0) == TRIED[3.0]
    assert no_dearer(TRIED, 1000.0) == TRIED[4.0], "fewer wait"
    assert no_dearer(TRIED, 50.0) is None


def test_lower_and_worse() -> None:
    assert lower(0.5, 0.6)
    assert not lower(0.6, 0.6)
    assert lower(0.0, 0.0), "nothing is lower than nothing"
    assert higher(0.7, 0.6)
    assert not higher(0.605, 0.6, 0.01)
    assert worse(1.2, 1.0)
    assert not worse(1.04, 1.0)
    assert not worse(0.005, 0.0, same=0.01)
