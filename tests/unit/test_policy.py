"""The decision for one series: what must hold whatever the engines, the load and the course."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.habits import Habits, overflow_per_s
from autoscaler.idle import BINS, WIDTHS_S, bin_of
from autoscaler.layers import AWAKE, PROFILES
from autoscaler.policy import EngineAt, Load, decide
from autoscaler.rest import Course, course

LAYERS = PROFILES["gpu-7b"].layers
COLD = len(LAYERS) - 1
NOW_S = 1000.0
NEVER = course(np.zeros(BINS), 1.0, LAYERS, 20.0)
ALWAYS = course(np.full(BINS, 10.0), 1.0, LAYERS, 20.0)

engines_at = st.builds(
    EngineAt,
    layer=st.integers(0, COLD),
    idle_since_s=st.one_of(st.none(), st.floats(0, NOW_S), st.just(-math.inf)),
    starting=st.booleans(),
    kept_until_s=st.sampled_from([-math.inf, NOW_S + 5]),
)
loads = st.builds(
    Load, in_hand=st.integers(0, 40), queued=st.integers(0, 40), slots=st.integers(1, 8), service_s=st.floats(0.01, 60)
)


@given(engines=st.lists(engines_at, max_size=6), load=loads, limit=st.integers(0, 8))
def test_bounds_hold(engines: list[EngineAt], load: Load, limit: int) -> None:
    for way in (NEVER, ALWAYS):
        decision = decide(engines, load, LAYERS, lambda _, way=way: way, NOW_S, limit)
        assert len(decision.layers) <= limit
        assert all(0 <= layer <= COLD for layer in decision.layers)
        assert decision.reason
        assert decision.look_again_s > NOW_S


@given(engines=st.lists(engines_at, max_size=6), load=loads)
def test_who_works_or_starts_is_left_alone(engines: list[EngineAt], load: Load) -> None:
    decision = decide(engines, load, LAYERS, lambda _: NEVER, NOW_S, 100)
    assert len(decision.layers) >= len(engines)
    for engine, target in zip(engines, decision.layers, strict=False):
        if engine.starting or (engine.layer == AWAKE and engine.idle_since_s is None):
            assert target == AWAKE


@given(load=loads)
def test_measured_load_wins_whatever_is_forecast(load: Load) -> None:
    decision = decide([], load, LAYERS, lambda _: NEVER, NOW_S, 1000)
    assert decision.layers.count(AWAKE) >= math.ceil((load.in_hand + load.queued) / load.slots)


@given(engines=st.lists(engines_at, max_size=6), load=loads, more=st.integers(1, 30))
def test_more_load_never_means_fewer_engines(engines: list[EngineAt], load: Load, more: int) -> None:
    heavier = Load(load.in_hand, load.queued + more, load.slots, load.service_s)
    few, many = (decide(engines, each, LAYERS, lambda _: NEVER, NOW_S, 1000) for each in (load, heavier))
    assert many.layers.count(AWAKE) >= few.layers.count(AWAKE)


@given(load=loads)
def test_a_forecast_only_adds(load: Load) -> None:
    engines = [EngineAt(AWAKE, NOW_S - 1), EngineAt(COLD, NOW_S - 100)]
    without, with_it = (
        decide(engines, load, LAYERS, lambda level, way=way: way if level < 4 else NEVER, NOW_S, 100)
        for way in (NEVER, ALWAYS)
    )
    assert with_it.layers.count(AWAKE) >= without.layers.count(AWAKE)
    assert with_it.floor >= 4 - max(with_it.measured, 0)


def test_nothing_asked_for_and_nothing_expected_is_zero_engines() -> None:
    assert decide([], Load(0, 0, 8, 1.0), LAYERS, lambda _: NEVER, NOW_S, 100).layers == ()
    awake = [EngineAt(AWAKE, NOW_S - 3600)]
    decision = decide(awake, Load(0, 0, 8, 1.0), LAYERS, lambda _: NEVER, NOW_S, 100)
    assert decision.layers == (COLD,)
    assert decision.reason == "not expected soon"


def test_an_engine_that_was_prewarmed_is_kept_for_a_while() -> None:
    engine = EngineAt(AWAKE, NOW_S, kept_until_s=NOW_S + 9)
    decision = decide([engine], Load(0, 0, 8, 1.0), LAYERS, lambda _: NEVER, NOW_S, 100)
    assert decision.layers == (AWAKE,)
    assert decision.look_again_s == NOW_S + 9


def test_a_short_queue_starts_no_further_engine() -> None:
    engine = EngineAt(AWAKE, None)
    short = decide([engine], Load(8, 1, 8, 0.5), LAYERS, lambda _: NEVER, NOW_S, 100)
    long = decide([engine], Load(8, 400, 8, 0.5), LAYERS, lambda _: NEVER, NOW_S, 100)
    assert short.layers == (AWAKE,)
    assert long.layers.count(AWAKE) > 1


@pytest.mark.parametrize(("rate_per_s", "service_s", "room"), [(2.0, 3.0, 8), (0.1, 5.0, 1), (30.0, 2.0, 64)])
def test_overflow_is_littles_law_and_poisson(rate_per_s: float, service_s: float, room: int) -> None:
    rng = np.random.default_rng(3)
    at_s = np.cumsum(rng.exponential(1 / rate_per_s, 60_000))
    in_hand = np.arange(len(at_s)) - np.searchsorted(at_s + service_s, at_s)
    assert overflow_per_s(rate_per_s, service_s, room) == pytest.approx(
        rate_per_s * (in_hand >= room).mean(), rel=0.15, abs=1e-4
    )


def test_a_further_engine_that_a_burst_has_needed_once_is_expected_again() -> None:
    habits = Habits(window_s=5.0)
    habits.rate_per_s = 0.001
    habits.asked(1, 100.0, None)
    asked_once, never_asked = (habits.hazard_per_s(level, 4, None, None) for level in (1, 2))
    survived = np.exp(-np.cumsum(asked_once * WIDTHS_S))
    assert 0.4 < 1 - survived[bin_of(3600.0)] < 0.8
    assert never_asked.max() < 1e-6


@given(expected=st.one_of(st.none(), st.floats(0, 1e4)), rate=st.floats(0, 1e4), level=st.integers(0, 5))
def test_a_hazard_is_usable_whatever_is_forecast(expected: float | None, rate: float, level: int) -> None:
    habits = Habits(window_s=5.0)
    habits.rate_per_s = rate
    for gap in range(7):
        habits.asked(0, 100.0 * gap, 100.0 * gap - 30.0)
    hazard = habits.hazard_per_s(level, 4, None, expected)
    assert np.isfinite(hazard).all()
    assert (hazard >= 0).all()
    assert isinstance(course(hazard, 1.0, LAYERS, 20.0), Course)
