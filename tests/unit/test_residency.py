"""Residency: the budget holds, work is never interrupted, turns are fair, and nothing swaps in vain."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from residency_simulation import END_STATE, applied

from deployments.engine_view import EngineView, State
from deployments.residency import Action, Decision, Limits, deadline_s, decide

NOW_S = 1000.0
LIMITS = Limits(budget_bytes=100, min_residency_s=5.0, max_starvation_s=60.0)


def engine(model_id: str, state: State = "asleep", **fields: object) -> EngineView:
    defaults = {
        "awake_bytes": 60, "asleep_bytes": 0, "wake_s": 1.0, "start_s": 20.0, "ttft_slo_s": 5.0, "keep_awake_s": 60.0,
        "last_used_s": NOW_S - 10, "woken_at_s": NOW_S - 30,
    }  # fmt: skip
    return EngineView(model_id, state, **(defaults | fields))  # type: ignore[arg-type]


def waits(model_id: str, waited_s: float = 1.0, state: State = "asleep", **fields: object) -> EngineView:
    return engine(model_id, state, oldest_waiting_since_s=NOW_S - waited_s, **fields)


def steps(decision: Decision) -> list[str]:
    return [f"{action.kind} {action.model_id}" for action in decision.actions]


def decided(*engines: EngineView, limits: Limits = LIMITS) -> Decision:
    return decide(engines, limits, NOW_S)


# Whose turn it is


def test_a_waiting_model_gets_free_room() -> None:
    decision = decided(waits("a"), waits("b", state="cold", awake_bytes=40), engine("c"))
    assert decision.actions == (
        Action("start", "b", "a request has waited 1.0 s, its slack is -16.0 s"),
        Action("wake", "a", "a request has waited 1.0 s, its slack is 3.0 s"),
    )


def test_the_least_slack_goes_first() -> None:
    patient, hurried = waits("a", waited_s=3, ttft_slo_s=30.0), waits("b", ttft_slo_s=2.5)
    assert steps(decided(patient, hurried)) == ["wake b"]


def test_what_takes_longer_to_wake_has_less_slack() -> None:
    assert steps(decided(waits("a", waited_s=2), waits("b", wake_s=3.0))) == ["wake b"]


def test_a_batch_that_fills_up_is_due_before_its_time_expires() -> None:
    filling, waiting = waits("a", first_token_s=2.5), waits("b", first_token_s=0.5, waited_s=2.0)
    assert deadline_s(filling, LIMITS) == NOW_S - 1.0 + 5.0 - 1.0 - 2.5
    assert steps(decided(waiting, filling)) == ["wake a"]


def test_no_slo_is_so_loose_that_others_overtake_for_ever() -> None:
    assert deadline_s(waits("a", waited_s=0.0, ttft_slo_s=3600.0), LIMITS) == NOW_S + 60.0 - 1.0


def test_a_small_model_cannot_take_what_a_due_one_needs() -> None:
    busy = engine("busy", "awake", running=1, woken_at_s=NOW_S - 1)
    decision = decided(busy, waits("large", waited_s=10), waits("small", waited_s=9, awake_bytes=40))
    assert steps(decision) == ["wake small"]  # the 20 bytes it takes of the large one's come back with the busy one
    decision = decided(busy, waits("large", waited_s=10, awake_bytes=70), waits("small", waited_s=9, awake_bytes=40))
    assert steps(decision) == []


# Who makes room


def test_an_idle_engine_makes_room_at_once() -> None:
    just_woken = engine("idle", "awake", woken_at_s=NOW_S - 0.1)
    decision = decided(just_woken, waits("a"))
    assert decision.actions == (Action("sleep", "idle", "makes room for a"),)


def test_room_that_is_coming_is_waited_for() -> None:
    assert decided(engine("leaving", "sleeping"), engine("idle", "awake", awake_bytes=40), waits("a")).actions == ()


def test_a_busy_engine_is_left_alone_until_another_is_due() -> None:
    decision = decided(engine("busy", "awake", running=3), waits("a", waited_s=1, ttft_slo_s=5.0))
    assert (decision.actions, decision.drain) == ((), {})
    assert decision.wait_until_s == NOW_S + 3  # 5 s less 1 s waited, less 1 s to wake


def test_a_busy_engine_drains_for_one_that_is_due() -> None:
    decision = decided(engine("busy", "awake", running=3), waits("a", waited_s=4))
    assert (decision.actions, decision.drain) == ((), {"busy": "makes room for a"})


def test_a_drained_engine_sleeps_although_requests_wait_for_it() -> None:
    drained = waits("busy", state="awake", draining=True)
    assert steps(decided(drained, waits("a", waited_s=9))) == ["sleep busy"]


def test_a_busy_engine_keeps_its_minimum_residency() -> None:
    decision = decided(engine("busy", "awake", running=1, woken_at_s=NOW_S - 2), waits("a", waited_s=30))
    assert (decision.drain, decision.wait_until_s) == ({}, NOW_S + 3)


def test_a_woken_engine_serves_its_batch_before_anything_else() -> None:
    woken = waits("woken", waited_s=40, state="awake", woken_at_s=NOW_S - 30)
    assert decided(woken, waits("a", waited_s=60)) == Decision()


def test_a_drain_sticks_to_its_engine() -> None:
    draining = engine("busy", "awake", running=1, draining=True, awake_bytes=50, rate_per_s=9.0)
    other = engine("other", "awake", running=1, awake_bytes=50, rate_per_s=0.1)
    assert list(decided(draining, other, waits("a", waited_s=9, awake_bytes=50)).drain) == ["busy"]


def test_a_drain_ends_when_nobody_waits_any_more() -> None:
    assert decided(waits("busy", state="awake", draining=True, running=1)) == Decision()


def test_an_idle_engine_goes_before_a_busy_one_that_drains() -> None:
    draining = engine("busy", "awake", running=1, draining=True, awake_bytes=50)
    decision = decided(draining, engine("idle", "awake", awake_bytes=50), waits("a", waited_s=9, awake_bytes=50))
    assert (steps(decision), decision.drain) == (["sleep idle"], {})


def test_the_least_waiting_lost_per_byte_goes_first() -> None:
    rare = engine("rare", "awake", awake_bytes=30, rate_per_s=0.1)
    often = engine("often", "awake", awake_bytes=30, rate_per_s=1.0)
    slow = engine("slow-to-wake", "awake", awake_bytes=30, rate_per_s=0.1, wake_s=4.0)
    assert steps(decided(often, slow, rare, waits("a", awake_bytes=30))) == ["sleep rare"]


def test_without_a_forecast_or_between_equals_the_longest_idle_goes() -> None:
    for rate_per_s in (None, 0.5):
        older = engine("b", "awake", awake_bytes=50, last_used_s=NOW_S - 20, rate_per_s=rate_per_s)
        newer = engine("a", "awake", awake_bytes=50, last_used_s=NOW_S - 10, rate_per_s=rate_per_s)
        assert steps(decided(newer, older, waits("c", awake_bytes=50))) == ["sleep b"]


def test_no_small_engine_sleeps_in_vain() -> None:
    small = engine("small", "awake", awake_bytes=10, last_used_s=NOW_S - 50)
    large = engine("large", "awake", awake_bytes=90, last_used_s=NOW_S - 5)
    assert steps(decided(small, large, waits("a"))) == ["sleep large"]


def test_nothing_sleeps_for_half_a_room() -> None:
    idle, busy = engine("idle", "awake", awake_bytes=30), engine("busy", "awake", running=1, woken_at_s=NOW_S - 1)
    assert decided(idle, busy, waits("a", waited_s=9, awake_bytes=90)).actions == ()


def test_a_pinned_engine_wakes_unasked_and_stays() -> None:
    assert steps(decided(engine("pinned", "cold", pinned=True))) == ["start pinned"]
    pinned = engine("pinned", "awake", pinned=True, last_used_s=0.0, woken_at_s=0.0)
    idle = engine("idle", "awake", awake_bytes=40, rate_per_s=99.0)
    assert steps(decided(pinned, idle, waits("a", awake_bytes=30))) == ["sleep idle"]


def test_asleep_engines_stop_only_when_sleep_is_not_enough() -> None:
    rare, often = (engine(f"{rate}", asleep_bytes=15, rate_per_s=rate) for rate in (0.1, 0.2))
    idle = engine("idle", "awake", awake_bytes=60, asleep_bytes=10)
    assert steps(decided(rare, often, idle, waits("a"))) == ["sleep idle"]
    assert steps(decided(rare, often, idle, waits("a", awake_bytes=75))) == ["stop 0.1", "sleep idle"]
    assert steps(decided(rare, often, waits("a", awake_bytes=75))) == ["stop 0.1"]


def test_no_asleep_engine_stops_for_one_whose_turn_will_come() -> None:
    sizes = {"awake_bytes": 60, "asleep_bytes": 10}
    idle, resting = engine("idle", "awake", **sizes), [engine(name, **sizes) for name in "uvwxyz"]
    first, second = waits("first", waited_s=30, **sizes), waits("second", waited_s=20, **sizes)
    assert steps(decided(idle, first, second, *resting, limits=replace(LIMITS, budget_bytes=140))) == ["sleep idle"]


def test_what_falls_asleep_is_stopped_too_if_all_must_go() -> None:
    views = [engine("idle", "awake", awake_bytes=60, asleep_bytes=10), waits("a", awake_bytes=100)]
    for expected in ("sleep idle", "stop idle", "wake a"):
        decision = decided(*views)
        assert steps(decision) == [expected]
        views = [replace(view, state=END_STATE.get(view.state, view.state)) for view in applied(views, decision)]


def test_a_budget_that_is_exceeded_is_kept_again() -> None:
    over = engine("a", "awake", awake_bytes=60), engine("b", "awake", running=1, last_used_s=0.0)
    assert decided(*over).actions == (Action("sleep", "a", "the budget is exceeded"),)


def test_a_failed_engine_holds_and_gets_nothing() -> None:
    assert decided(waits("failed", state="failed", awake_bytes=100), waits("a")).actions[0].model_id == "a"


# What cannot be


def test_a_model_larger_than_the_budget_is_refused() -> None:
    decision = decided(waits("a", awake_bytes=101), engine("idle", "awake"))
    assert (decision.actions, decision.refused) == ((), {"a": "needs 101 of 100 bytes, 0 are pinned"})


def test_a_model_that_pins_leave_no_room_for_is_refused() -> None:
    decision = decided(waits("a"), engine("pinned", "cold", pinned=True))
    assert steps(decision) == ["start pinned"]
    assert decision.refused == {"a": "needs 60 of 100 bytes, 60 are pinned"}


# Idle engines


def test_an_unused_engine_sleeps_after_its_keep_awake_time() -> None:
    idle = engine("a", "awake", keep_awake_s=10.0)
    assert decided(idle).actions == (Action("sleep", "a", "unused for 10.0 s"),)
    assert decide([idle], LIMITS, NOW_S - 1) == Decision(wait_until_s=NOW_S)


@pytest.mark.parametrize(
    "reason",
    [
        {"running": 1},
        {"pinned": True},
        {"keep_awake_until_s": NOW_S + 1},
        {"woken_at_s": NOW_S - 1},
        {"rate_per_s": 0.2},  # the next request is expected in 5 s, within keep_awake_s
    ],
)
def test_reasons_to_stay_awake(reason: dict[str, object]) -> None:
    assert decided(engine("a", "awake", **({"keep_awake_s": 10.0} | reason))).actions == ()


def test_an_asleep_engine_stops_only_if_told_to() -> None:
    assert decided(engine("a", last_used_s=0.0, woken_at_s=0.0)) == Decision()
    assert decided(engine("a", keep_asleep_s=10.0)).actions == (Action("stop", "a", "unused for 10.0 s"),)


def test_an_engine_asked_to_be_awake_takes_only_free_room() -> None:
    kept = engine("a", keep_awake_until_s=NOW_S + 60)
    assert steps(decided(kept)) == ["wake a"]
    assert decided(kept, engine("idle", "awake")).actions == ()
    assert steps(decided(kept, waits("b"))) == ["wake b"]


# Any engines

rates = st.floats(0, 10)
times = st.floats(0, NOW_S)


@st.composite
def views(draw: st.DrawFn, index: int) -> EngineView:
    state: State = draw(
        st.sampled_from(["cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed"])
    )
    asleep_bytes = draw(st.integers(0, 10))
    return engine(
        f"m{index}", state, asleep_bytes=asleep_bytes, awake_bytes=asleep_bytes + draw(st.integers(0, 60)),
        running=draw(st.integers(0, 2)) if state == "awake" else 0, draining=state == "awake" and draw(st.booleans()),
        oldest_waiting_since_s=draw(st.none() | times), woken_at_s=draw(st.none() | times), last_used_s=draw(times),
        rate_per_s=draw(rates), keep_awake_s=draw(st.floats(0, 100)), wake_s=draw(st.floats(0, 5)),
        keep_awake_until_s=draw(st.none() | st.floats(NOW_S - 10, NOW_S + 10)),
        keep_asleep_s=draw(st.none() | st.floats(0, 500)), ttft_slo_s=draw(st.floats(0, 900)),
        pinned=draw(st.integers(0, 9)) == 0,
    )  # fmt: skip


@st.composite
def devices(draw: st.DrawFn) -> tuple[list[EngineView], Limits]:
    engines = [draw(views(index)) for index in range(draw(st.integers(0, 7)))]
    spare_bytes = draw(st.integers(0, 100) | st.integers(-50, 0))
    return engines, Limits(sum(view.held_bytes for view in engines) + spare_bytes, 5.0, draw(st.floats(0, 600)))


@given(devices())
def test_every_action_is_possible_and_interrupts_nothing(device: tuple[list[EngineView], Limits]) -> None:
    engines, limits = device
    by_id = {view.model_id: view for view in engines}
    decision = decide(engines, limits, NOW_S)
    assert len({action.model_id for action in decision.actions}) == len(decision.actions)
    for action in decision.actions:
        view = by_id[action.model_id]
        assert view.state == {"start": "cold", "wake": "asleep", "sleep": "awake", "stop": "asleep"}[action.kind]
        assert not view.running
        assert not (view.pinned and action.kind == "sleep")
    for model_id in decision.drain:
        assert by_id[model_id].state == "awake"
        assert by_id[model_id].running
        assert not by_id[model_id].pinned
    started = (by_id[action.model_id] for action in decision.actions if action.kind in ("start", "wake"))
    if any(view.awake_bytes > view.held_bytes for view in started):
        assert sum(view.held_bytes for view in applied(engines, decision)) <= limits.budget_bytes


@given(devices(), st.randoms(use_true_random=False), st.floats(0, 1))
def test_asking_again_changes_nothing(
    device: tuple[list[EngineView], Limits], chance: random.Random, share: float
) -> None:
    engines, limits = device
    decision = decide(engines, limits, NOW_S)
    shuffled = chance.sample(engines, len(engines))
    assert decide(shuffled, limits, NOW_S) == decision
    again = decide(applied(shuffled, decision), limits, NOW_S)
    assert again.actions == ()
    assert again.drain.keys() <= decision.drain.keys()
    assert again.refused.keys() <= decision.refused.keys()
    # Nor does asking before the time given, if nothing has happened.
    until_s = NOW_S + 100 if again.wait_until_s is None else again.wait_until_s
    before_s = NOW_S + share * (until_s - NOW_S)
    if before_s < until_s and not any(NOW_S < (view.keep_awake_until_s or 0.0) <= before_s for view in engines):
        earlier = decide(applied(applied(engines, decision), again), limits, before_s)
        assert (earlier.actions, earlier.drain.keys()) == ((), again.drain.keys())
