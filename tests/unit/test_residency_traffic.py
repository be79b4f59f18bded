"""Residency under simulated traffic: bounds that hold for any, and what it gains over serving in order."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from residency_simulation import (
    Policy,
    Report,
    SimulatedModel,
    Simulation,
    applied,
    first_come_first_served,
    first_come_first_swapped,
    skewed_models,
)

from deployments.engine_view import EngineView
from deployments.residency import Decision, Limits, decide


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[SimulatedModel], Limits]:
    budget_bytes = draw(st.integers(60, 200))
    models = [
        SimulatedModel(
            f"m{index}", draw(st.integers(10, 70)), draw(st.sampled_from([0.02, 0.2, 2.0])),
            asleep_bytes=draw(st.integers(0, 10)), start_s=draw(st.floats(1, 10)), wake_s=draw(st.floats(0.1, 2)),
            longest_request_s=draw(st.floats(0.5, 10)), ttft_slo_s=draw(st.sampled_from([1.0, 10.0, 100.0])),
            keep_awake_s=draw(st.sampled_from([1.0, 30.0])), pinned=index == 0 and draw(st.booleans()),
            forecast=draw(st.booleans()),
        )
        for index in range(draw(st.integers(1, 6)))
    ]  # fmt: skip
    return models, Limits(budget_bytes, draw(st.floats(0, 10)), draw(st.floats(1, 30)))


def longest_wait_s(models: list[SimulatedModel], limits: Limits) -> float:
    """The bound that the module's documentation states."""
    ready_s = max(max(model.start_s, model.wake_s) for model in models)
    drain_s, sleep_s, stop_s = (
        max(getattr(model, name) for model in models) for name in ("longest_request_s", "sleep_s", "stop_s")
    )
    turn_s = ready_s + limits.min_residency_s + drain_s + sleep_s + stop_s
    return limits.max_starvation_s + ready_s + len(models) * turn_s


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 1000))
def test_any_traffic_is_served_within_the_bounds(workload: tuple[list[SimulatedModel], Limits], seed: int) -> None:
    models, limits = workload

    def watch(engines: list[EngineView], decision: Decision, now_s: float) -> None:
        after = applied(engines, decision)
        assert sum(view.held_bytes for view in after) <= limits.budget_bytes
        for view in after:
            assert not (view.running and view.state != "awake")
            assert not (view.pinned and view.state == "sleeping")
            if view.draining and view.woken_at_s is not None:
                assert now_s >= view.woken_at_s + limits.min_residency_s

    report = Simulation(models, limits, watcher=watch, state="cold").run(seed, 60.0)
    assert max(report.ttft_s, default=0.0) <= longest_wait_s(models, limits)
    # No turn without a request served, but the pinned engine's.
    assert report.switches <= len(report.ttft_s) + 1


def test_busy_models_do_not_thrash() -> None:
    """Four models that never go idle, room for one: each turn lasts its minimum residency, and everyone has one."""
    models = [SimulatedModel(f"m{index}", 100, 20.0, asleep_bytes=0, longest_request_s=1.0) for index in range(4)]
    limits = Limits(100, min_residency_s=8.0, max_starvation_s=60.0)
    report = Simulation(models, limits).run(seed=1, arrivals_until_s=200.0)
    assert 4 <= report.switches <= report.ended_s / (8.0 + 1.0 + 0.2) + 1
    assert max(report.ttft_s) <= longest_wait_s(models, limits)


# Against the order of arrival

SLOTS = 3
SKEWED = Limits(SLOTS * 100 + 8, min_residency_s=5.0, max_starvation_s=60.0)


def run(policy: Policy, models: list[SimulatedModel], seed: int) -> Report:
    return Simulation(models, SKEWED, policy).run(seed, arrivals_until_s=600.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("requests_per_s", "p95_share", "switches_share"), [(1.0, 0.8, 0.93), (3.0, 0.9, 0.86)])
def test_it_beats_first_come_first_served(
    requests_per_s: float, p95_share: float, switches_share: float, seed: int
) -> None:
    models = skewed_models(8, requests_per_s, longest_request_s=3.0)
    ours, theirs = run(decide, models, seed), run(first_come_first_served, models, seed)
    assert ours.percentile_s(95) <= p95_share * theirs.percentile_s(95)
    assert ours.switches <= switches_share * theirs.switches


@pytest.mark.parametrize("seed", range(4))
def test_it_meets_more_of_mixed_slos(seed: int) -> None:
    models = [
        replace(model, ttft_slo_s=30.0 if index % 2 else 2.0)
        for index, model in enumerate(skewed_models(8, 1.0, longest_request_s=10.0))
    ]
    assert run(decide, models, seed).late <= 0.55 * run(first_come_first_served, models, seed).late


@pytest.mark.parametrize("seed", range(4))
def test_rare_models_do_not_starve_under_overload(seed: int) -> None:
    """Swapping in order but serving whoever is awake is quicker for the popular models, and starves the others."""
    models = skewed_models(8, 3.0, longest_request_s=10.0)
    assert run(decide, models, seed).percentile_s(95) <= 0.65 * run(
        first_come_first_swapped, models, seed
    ).percentile_s(95)
