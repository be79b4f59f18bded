from hypothesis import given
from hypothesis import strategies as st

from deployments.device_time import USES, DeviceTime
from deployments.types import EngineState

STATES: list[EngineState] = [
    "cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed", "stopped",
]  # fmt: skip


def test_a_day_of_an_engine() -> None:
    time = DeviceTime(0.0)
    assert time.settle("starting", {}, 5.0) == {}, "nothing was there before"
    assert time.settle("awake", {}, 8.0) == {("changing", ""): 3.0}
    assert time.settle("awake", {"acme": 1, "globex": 3}, 10.0) == {("idle", ""): 2.0}
    assert time.settle("awake", {"acme": 0, "globex": 1}, 14.0) == {("busy", "acme"): 1.0, ("busy", "globex"): 3.0}
    assert time.settle("asleep", {}, 15.0) == {("busy", "globex"): 1.0}
    assert time.settle("cold", {}, 115.0) == {("asleep", ""): 100.0}
    assert time.settle("cold", {}, 200.0) == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(STATES), st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)), st.floats(0, 100)
        )
    )
)
def test_every_second_is_counted_once_while_something_is_held(
    steps: list[tuple[EngineState, dict[str, int], float]],
) -> None:
    time, now_s, counted_s, held_s, was = DeviceTime(0.0), 0.0, 0.0, 0.0, "cold"
    for state, running, later_s in steps:
        now_s += later_s
        spent = time.settle(state, running, now_s)
        assert {use for use, _ in spent} <= set(USES)
        counted_s += sum(spent.values())
        held_s += later_s if was not in {"cold", "failed", "stopped"} else 0
        was = state
    assert abs(counted_s - held_s) < 1e-6


def test_a_clock_that_goes_back_costs_nobody_anything() -> None:
    time = DeviceTime(10.0)
    time.settle("awake", {}, 10.0)
    assert time.settle("awake", {}, 9.0) == {}
