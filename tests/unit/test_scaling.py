"""How many replicas: load wins upward whatever the plan says, a bad plan is none, and nothing flaps."""

import itertools
import math
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.plan_reader import PlanReader
from autoscaler.scaling import FIRST_LEAD_S, STALE_S, Expected, Memory, Rules, Seen, decide_replicas, read_expected

RULES = Rules(target_ongoing=8.0, hold_s=60.0)
IDLE = Seen(ongoing=0.0, running=0, target=0, least=0, most=100)
plans = st.one_of(
    st.none(), st.builds(Expected, st.just(10.0), st.lists(st.integers(0, 50), min_size=1).map(tuple), st.just(0.0))
)


def seen(ongoing: float, target: int = 1, least: int = 0, most: int = 100) -> Seen:
    return Seen(ongoing, target, target, least, most)


def body(*need: Any, step_s: Any = 10.0, ongoing: Any = 0) -> Any:
    return {"step_s": step_s, "need": list(need), "ongoing": ongoing}


@given(ongoing=st.floats(0, 700), plan=plans, target=st.integers(0, 100))
def test_measured_load_wins_upward_at_once(ongoing: float, plan: Expected | None, target: int) -> None:
    decision = decide_replicas(seen(ongoing, target), plan, Memory(), RULES, 0.0)
    assert decision.replicas >= math.ceil(ongoing / RULES.target_ongoing)
    assert decision.reason


@given(ongoing=st.floats(0, 1e6), plan=plans, least=st.integers(0, 5), more=st.integers(0, 5))
def test_bounds_hold(ongoing: float, plan: Expected | None, least: int, more: int) -> None:
    decision = decide_replicas(seen(ongoing, 1, least, least + more), plan, Memory(), RULES, 0.0)
    assert least <= decision.replicas <= least + more


@given(ongoing=st.floats(0, 700), plan=plans)
def test_a_forecast_is_a_floor_and_no_more(ongoing: float, plan: Expected | None) -> None:
    without = decide_replicas(seen(ongoing), None, Memory(), RULES, 0.0)
    with_it = decide_replicas(seen(ongoing), plan, Memory(), RULES, 0.0)
    floor = 0 if plan is None else plan.floor(FIRST_LEAD_S)
    assert with_it.replicas == max(without.replicas, floor)


def test_it_looks_as_far_ahead_as_a_replica_takes_to_start() -> None:
    plan = Expected(10.0, (0, 0, 0, 0, 0, 0, 3, 0), 0.0)
    slow, quick = Memory(lead_s=60.0), Memory(lead_s=20.0)
    assert decide_replicas(IDLE, plan, slow, RULES, 0.0).replicas == 3
    assert decide_replicas(IDLE, plan, quick, RULES, 0.0).replicas == 0


def test_how_long_replicas_take_is_measured() -> None:
    memory = Memory()
    for now_s, running in ((0.0, 0), (5.0, 0), (42.0, 1), (43.0, 1)):
        decide_replicas(Seen(8.0, running, 1, 0, 4), None, memory, RULES, now_s)
    assert memory.lead_s == pytest.approx(42.0)


def test_fewer_only_once_fewer_would_have_done_for_a_while() -> None:
    memory = Memory()
    assert decide_replicas(seen(40.0, 5), None, memory, RULES, 0.0).replicas == 5
    held = decide_replicas(seen(0.0, 5), None, memory, RULES, 59.0)
    assert (held.replicas, held.reason) == (5, "more were needed lately, without a plan")
    assert decide_replicas(seen(0.0, 5), None, memory, RULES, 61.0).replicas == 0
    assert decide_replicas(seen(1.0, 0), None, memory, RULES, 62.0).replicas == 1, "and back"


def test_a_controller_that_starts_anew_drops_nothing_at_once() -> None:
    memory = Memory()
    assert decide_replicas(seen(0.0, 7), None, memory, RULES, 0.0).replicas == 7
    assert decide_replicas(seen(0.0, 7), None, memory, RULES, 61.0).replicas == 0


def test_a_forecast_that_goes_on_keeps_replicas() -> None:
    memory, plan = Memory(), Expected(10.0, (2, 2, 2, 2), 0.0)
    decisions = [decide_replicas(seen(0.0, 2), plan, memory, RULES, 30.0 * step) for step in range(10)]
    assert {(each.replicas, each.reason) for each in decisions} == {(2, "forecast")}


def test_one_that_came_sooner_than_expected_waits_for_what_it_came_for() -> None:
    """Five seconds instead of thirty: what is known to take five would be asked for again five seconds before."""
    memory, rules, wanted = Memory(), Rules(8.0, hold_s=12.0), [1]
    for now_s in range(0, 120, 5):
        need = tuple(2 if 60 <= at_s < 80 else 0 for at_s in range(now_s, now_s + 100, 5))
        there = Seen(0.0, wanted[-1], wanted[-1], 1, 2)
        wanted.append(decide_replicas(there, Expected(5.0, need, 0.0), memory, rules, float(now_s)).replicas)
    assert memory.lead_s == pytest.approx(5.0)
    assert [number for number, _ in itertools.groupby(wanted)] == [1, 2, 1], "up once, down once"


def test_one_that_is_needed_long_from_now_is_given_back() -> None:
    memory = Memory(lead_s=10.0)
    soon, later = (Expected(10.0, (0,) * steps + (2,), 0.0) for steps in (7, 9))
    memory.highest(0, 0.0, RULES.hold_s)
    kept = decide_replicas(seen(0.0, 2), soon, memory, RULES, 1.0)
    assert (kept.replicas, kept.reason) == (2, "as many will be needed soon")
    assert decide_replicas(seen(0.0, 1), soon, memory, RULES, 1.0).replicas == 1, "none is started for it"
    assert decide_replicas(seen(0.0, 2), later, memory, RULES, 1.0).replicas == 0


def test_a_clock_that_jumps_back_holds_nothing_for_ever() -> None:
    memory = Memory()
    decide_replicas(seen(80.0, 1), None, memory, RULES, 1e9)
    decide_replicas(seen(0.0, 10), None, memory, RULES, 0.0)
    assert decide_replicas(seen(0.0, 10), None, memory, RULES, 61.0).replicas == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        None, "soon", 7, [], {}, body(), body(math.nan), body(math.inf), body(-1), body("many"), body(3, step_s=0),
        body(3, step_s=None), body(3, step_s=math.nan), body(3, ongoing=math.nan), body(3, ongoing="x"),
        {"step_s": 10.0, "need": "99"}, {"step_s": 10.0, "need": [3] * 20_000},
    ],
)  # fmt: skip
def test_nonsense_is_no_plan(nonsense: Any) -> None:
    assert read_expected(nonsense, 0.0) is None


@pytest.mark.parametrize("age_s", [STALE_S + 1, -1.0, math.nan, math.inf])
def test_an_old_plan_is_none(age_s: float) -> None:
    assert read_expected(body(3), age_s) is None
    assert read_expected(body(3), 0.0) is not None


class Answers:
    """A forecaster whose answers come when they are let."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = threading.Event()
        self.answered = threading.Event()
        self.answer: Any = body(3)

    def __call__(self) -> Any:
        self.asked += 1
        assert self.gate.wait(30)
        self.answered.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def wait_until_asked(reader: PlanReader) -> None:
    asking = reader._asking
    assert asking is not None
    asking.join(30)


def test_a_forecaster_that_hangs_holds_up_nobody_and_is_asked_once() -> None:
    answers, now_s = Answers(), [0.0]
    reader = PlanReader(answers, lambda: now_s[0])
    for second in range(100):
        now_s[0] = float(second)
        assert reader.latest() is None
    answers.gate.set()
    wait_until_asked(reader)
    assert answers.asked == 1
    assert reader.latest() == (body(3), 99.0), "its age is from when it was asked"


def test_an_answer_grows_old_when_the_forecaster_dies() -> None:
    answers, now_s = Answers(), [0.0]
    answers.gate.set()
    reader = PlanReader(answers, lambda: now_s[0])
    reader.latest()
    wait_until_asked(reader)
    assert reader.latest() == (body(3), 0.0)
    answers.answer = RuntimeError("died")
    now_s[0] = 100.0
    reader.latest()
    wait_until_asked(reader)
    told = reader.latest()
    assert told is not None
    assert read_expected(*told) is None, "from then on load alone decides"
