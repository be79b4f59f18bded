"""The replay: it counts what happens, knows nothing of the future, and no policy beats the bound."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.ahead import Ahead
from autoscaler.baselines import ByForecast, HybridHistogram, KeepAlive, Layered, ServePolicy
from autoscaler.clairvoyant import bound_of, busy_intervals, cheapest
from autoscaler.layers import PROFILES, Layer, Profile
from autoscaler.replay import SPENT, Outcome, SeriesPolicy, Simulation, replay, replay_parts
from autoscaler.traces import Arrivals

PROFILE = Profile("test", (Layer("awake", 0, 1), Layer("asleep", 2, 0.1), Layer("dram", 10, 0)), "made up")
SLOTS = 2
COLD = PROFILE.coldest
POLICIES: dict[str, Callable[[], SeriesPolicy]] = {
    "ours": lambda: Ahead(PROFILE.layers, SLOTS, 20.0),
    "ours, forecasts": lambda: Ahead(
        PROFILE.layers,
        SLOTS,
        20.0,
        expected_of=lambda now_s: 0.1 + math.sin(now_s / 500) ** 2,
        rate_of=lambda _: 0.5,
        recheck_s=2000.0,
    ),
    "serve": lambda: ServePolicy(COLD, SLOTS),
    "keep-alive": lambda: KeepAlive(COLD, SLOTS, awake_s=30.0),
    "stepwise": lambda: KeepAlive(COLD, SLOTS, rests=((1, 20.0), (2, 200.0))),
    "layered": lambda: Layered(COLD, SLOTS, layers=PROFILE.layers, worth=20.0),
    "hybrid": lambda: HybridHistogram(COLD, SLOTS, ready_s=10.0),
    "by forecast": lambda: ByForecast(COLD, SLOTS, awake_s=30.0, expected_of=lambda now_s: now_s % 3),
}
every_policy = pytest.mark.parametrize("policy_of", POLICIES.values(), ids=POLICIES)


def arrivals_of(gaps_s: list[float], service_s: float = 4.0) -> Arrivals:
    at_s = np.cumsum(gaps_s)
    return Arrivals(at_s, np.full(len(at_s), service_s))


gaps = st.lists(st.sampled_from([0.0, 0.5, 3.0, 9.0, 40.0, 300.0, 1500.0]), min_size=1, max_size=60)


def outcome_of(arrivals: Arrivals, policy: SeriesPolicy, end_s: float = 1e5) -> Outcome:
    return Simulation(arrivals, policy, PROFILE, SLOTS, 0.0, end_s).run()


@settings(max_examples=15, deadline=None)
@given(gaps_s=gaps)
@every_policy
def test_every_request_is_served_once_and_every_second_is_counted(
    policy_of: Callable[[], SeriesPolicy], gaps_s: list[float]
) -> None:
    arrivals = arrivals_of(gaps_s)
    outcome = outcome_of(arrivals, policy_of())
    assert len(outcome.waits_s) == len(arrivals.at_s)
    assert (outcome.waits_s >= 0).all()
    assert 4.0 * len(gaps_s) / SLOTS - 1e-6 <= outcome.spent_s["busy"] <= 4.0 * len(gaps_s) + 1e-6
    assert outcome.waits_s.max() <= 10 + 4.0 * len(gaps_s)
    assert outcome.wrong_prewarms <= outcome.prewarms <= outcome.starts


@settings(max_examples=15, deadline=None)
@given(gaps_s=gaps, cut=st.integers(0, 60), other=gaps)
@every_policy
def test_another_future_changes_no_decision_before_it(
    policy_of: Callable[[], SeriesPolicy], gaps_s: list[float], cut: int, other: list[float]
) -> None:
    histories = []
    cut = min(cut, len(gaps_s))
    one, another = arrivals_of(gaps_s), arrivals_of(gaps_s[:cut] + other)
    parted_s = min(each.at_s[cut] if cut < len(each.at_s) else 1e5 for each in (one, another))
    for arrivals in (one, another):
        simulation = Simulation(arrivals, policy_of(), PROFILE, SLOTS, 0.0, 1e5, decisions=[])
        simulation.run()
        assert simulation.decisions is not None
        histories.append([entry for entry in simulation.decisions if entry[0] < parted_s])
    assert histories[0] == histories[1]


def test_a_request_waits_for_what_its_layer_takes() -> None:
    arrivals = arrivals_of([1.0, 10.0, 100.0, 1000.0])
    outcome = outcome_of(arrivals, POLICIES["stepwise"](), 3000.0)
    assert outcome.waits_s.tolist() == pytest.approx([10.0, 4.0, 2.0, 10.0], abs=4.0)
    assert outcome.starts == 3
    assert outcome.cold_requests == 4 - (outcome.waits_s == 0).sum()


def test_device_seconds_add_up() -> None:
    arrivals = arrivals_of([0.0], service_s=5.0)
    outcome = outcome_of(arrivals, KeepAlive(COLD, SLOTS, rests=((1, 20.0), (2, 50.0))), 1000.0)
    assert outcome.spent_s == pytest.approx({"starting": 10.0, "busy": 5.0, "idle": 20.0, "resting": 3.0})


def test_what_is_prewarmed_for_nothing_is_counted() -> None:
    slow = PROFILES["gpu-7b-s3"]

    def outcome_with(gaps_s: list[float]) -> Outcome:
        arrivals = arrivals_of(gaps_s)
        end_s = float(arrivals.at_s[-1])
        return Simulation(arrivals, Ahead(slow.layers, SLOTS, 50.0), slow, SLOTS, 0.0, end_s).run()

    timer = [1000.0] * 30
    punctual = outcome_with(timer)
    assert punctual.prewarms >= 20
    assert punctual.wrong_prewarms == 0
    assert (punctual.waits_s[-5:] == 0).all()
    missed = outcome_with([*timer, 50_000.0])
    assert missed.wrong_prewarms >= 1
    assert missed.wrong_s > 28


def test_of_a_replay_only_what_comes_after_the_beginning_counts() -> None:
    trace = {"a": arrivals_of([10.0] * 100), "b": arrivals_of([35.0] * 20)}
    outcome = replay(trace, lambda *_: POLICIES["keep-alive"](), PROFILE, SLOTS, begin_s=500.0)
    assert len(outcome.waits_s) == sum(int((each.at_s >= 500).sum()) for each in trace.values())
    assert outcome.total_s <= 2 * 2 * 500


@settings(max_examples=15, deadline=None)
@given(gaps_s=gaps, cut_s=st.floats(0, 5000))
@every_policy
def test_parts_of_a_replay_are_the_whole(
    policy_of: Callable[[], SeriesPolicy], gaps_s: list[float], cut_s: float
) -> None:
    trace = {"a": arrivals_of([*gaps_s, 6000.0])}
    whole = replay(trace, lambda *_: policy_of(), PROFILE, SLOTS)
    parts = replay_parts(trace, lambda *_: policy_of(), PROFILE, SLOTS, [(0.0, cut_s), (cut_s, math.inf)])
    assert np.concatenate([each.waits_s for each in parts]).tolist() == whole.waits_s.tolist()
    assert sum(each.starts for each in parts) == whole.starts
    for kind in SPENT:
        assert sum(each.spent_s[kind] for each in parts) == pytest.approx(whole.spent_s[kind])


def least_by_trying(intervals: list[tuple[float, float]]) -> float:
    """The least device-seconds for an engine over all ways to spend each gap, by trying every layer for each."""
    found = [PROFILE.layers[-1].ready_s]
    gaps_s = [after[0] - before[1] for before, after in itertools.pairwise(intervals)]
    ways = []
    for layers in itertools.product(range(len(PROFILE.layers)), repeat=len(gaps_s)):
        cost = 0.0
        for gap_s, index in zip(gaps_s, layers, strict=True):
            layer = PROFILE.layers[index]
            away_s = gap_s - layer.ready_s
            cost += math.inf if away_s < 0 else away_s * layer.device_share + layer.ready_s
        ways.append(cost)
    return sum(found) + min(ways)


@settings(max_examples=60, deadline=None)
@given(gaps_s=st.lists(st.floats(0.01, 60), min_size=1, max_size=6))
def test_the_bound_is_what_trying_everything_finds(gaps_s: list[float]) -> None:
    arrivals = arrivals_of(gaps_s)
    bound = bound_of(arrivals, PROFILE, SLOTS, 0.0, 1e9)
    by_trying = sum(least_by_trying(engine) for engine in busy_intervals(arrivals, SLOTS))
    assert bound.unused_s == pytest.approx(by_trying)


@settings(max_examples=60, deadline=None)
@given(gaps_s=gaps)
@every_policy
def test_who_lets_nobody_wait_spends_at_least_the_bound(
    policy_of: Callable[[], SeriesPolicy], gaps_s: list[float]
) -> None:
    arrivals = arrivals_of(gaps_s)
    outcome = outcome_of(arrivals, policy_of(), float(arrivals.at_s[-1]))
    bound = bound_of(arrivals, PROFILE, SLOTS, 0.0, float(arrivals.at_s[-1]))
    if outcome.waits_s.max() == 0:
        assert outcome.unused_s >= bound.unused_s - 1e-6


def test_a_gap_too_short_to_come_back_is_spent_awake() -> None:
    assert cheapest(1.0, PROFILE.layers) == (0, 1.0)
    assert cheapest(5.0, PROFILE.layers) == (1, pytest.approx(2.3))
    assert cheapest(1000.0, PROFILE.layers) == (2, 10.0)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_ours_is_cheaper_than_keeping_everything_awake(profile: Profile) -> None:
    arrivals = arrivals_of([600.0] * 50)
    outcome = Simulation(arrivals, Ahead(profile.layers, SLOTS, 20.0), profile, SLOTS, 0.0, 30_000).run()
    assert outcome.total_s < 30_000 / 2
