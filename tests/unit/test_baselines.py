"""The policies of others do what their papers say, on cases reckoned by hand."""

import math

import numpy as np
import pytest

from autoscaler.baselines import ByForecast, HybridHistogram, Layered, ServePolicy
from autoscaler.layers import AWAKE, PROFILES
from autoscaler.policy import EngineAt, Load
from autoscaler.replay import Simulation
from autoscaler.traces import Arrivals

LAYERS = PROFILES["gpu-7b"].layers
COLD, SLOTS = len(LAYERS) - 1, 8
NOBODY = Load(0, 0, SLOTS, 0.0)


def layered(worth: float, gap_s: float, requests: int = 6) -> Layered:
    policy = Layered(COLD, SLOTS, layers=LAYERS, worth=worth)
    for number in range(requests):
        policy.asked(0, gap_s * number, None)
    return policy


def test_a_layer_lives_until_a_request_was_likely_or_keeping_it_cost_what_starting_does() -> None:
    likely_s = -math.log(0.2) * 100.0 * 5 / 6
    awake_s, asleep_s = layered(10.0, 100.0).lives_s()
    assert awake_s == pytest.approx(10.0 * 0.6 / 0.98)
    assert asleep_s == pytest.approx(likely_s)
    assert layered(1e9, 100.0).lives_s() == pytest.approx([likely_s, likely_s])


def test_a_layer_lives_for_a_minute_at_least_where_requests_are_near() -> None:
    assert layered(1e-9, 1.0).lives_s() == [60.0, 60.0]


def test_only_the_last_requests_of_a_day_count_for_what_is_likely() -> None:
    policy = layered(1e9, 1000.0)
    for number in range(6):
        policy.asked(0, 10_000.0 + 60.0 * number, None)
    assert policy.lives_s()[0] == pytest.approx(-math.log(0.2) * 60.0 * 5 / 6)
    policy.asked(0, 10_000.0 + 86_400.0 + 300.0, None)
    assert policy.lives_s()[0] == pytest.approx(1e9 * 0.6 / 0.98), "of a day ago nothing is known"


def test_layers_are_left_one_after_the_other() -> None:
    policy = layered(10.0, 100.0)
    awake_s, asleep_s = policy.lives_s()
    ages_s = [awake_s - 1, awake_s + 1, awake_s + asleep_s - 1, awake_s + asleep_s + 1]
    found = [policy.decide([EngineAt(AWAKE, 0.0)], NOBODY, age_s).layers[0] for age_s in ages_s]
    assert found == [AWAKE, 1, 1, 2]


def hybrid(idle_s: list[float], **fields: float) -> HybridHistogram:
    policy = HybridHistogram(COLD, SLOTS, ready_s=0.0, **fields)
    for gap_s in idle_s:
        policy.asked(0, gap_s, 0.0)
    return policy


def awake_at(policy: HybridHistogram, age_s: float) -> bool:
    return policy.decide([EngineAt(COLD, 0.0)], NOBODY, age_s).layers[0] == AWAKE


def test_the_histogram_is_back_before_the_5th_percentile_and_stays_until_the_99th() -> None:
    # One idle time of 1.5 minutes, 98 of 20.5, one of 30.5: the 5th percentile is minute 20, the 99th ends with 21.
    policy = hybrid([90.0] + [1230.0] * 98 + [1830.0])
    begins_s, ends_s = 20 * 60 * 0.9, 21 * 60 * 1.1
    found = [awake_at(policy, age_s) for age_s in (begins_s - 5, begins_s + 5, ends_s - 5, ends_s + 5)]
    assert found == [False, True, True, False]


def test_an_unrepresentative_histogram_keeps_the_whole_range() -> None:
    policy = hybrid([60.0 * minute + 30 for minute in range(0, 240, 2)])
    engine = EngineAt(AWAKE, 0.0)
    assert policy.decide([engine], NOBODY, 4 * 3600 - 5).layers[0] == AWAKE
    assert policy.decide([engine], NOBODY, 4 * 3600 + 5).layers[0] == COLD


def test_idle_times_beyond_the_range_are_expected_again() -> None:
    policy = hybrid([30_000.0] * 5)
    found = [awake_at(policy, age_s) for age_s in (0.8 * 30_000, 0.9 * 30_000, 1.1 * 30_000, 1.2 * 30_000)]
    assert found == [False, True, True, False]


def test_serve_scales_up_after_its_delay_and_down_after_the_longer_one() -> None:
    policy = ServePolicy(COLD, SLOTS, target_ongoing=2.0, look_back_s=1.0)
    engines = [EngineAt(AWAKE, None)] * 2
    many, few = Load(8, 0, SLOTS, 0.0), Load(2, 0, SLOTS, 0.0)
    assert policy.decide(engines, Load(2, 0, SLOTS, 0.0), 0.0).measured == 1
    found = [policy.decide(engines, many, at_s).measured for at_s in (10.0, 30.0, 39.0, 40.0)]
    assert found == [1, 1, 1, 4]
    found = [policy.decide(engines, few, at_s).measured for at_s in (50.0, 600.0, 640.0, 650.0)]
    assert found == [4, 4, 4, 1]


@pytest.mark.parametrize(("rate_per_s", "floor"), [(0.0, 0), (0.001, 0), (0.1, 1), (4.0, 2), (8.1, 5)])
def test_a_forecast_keeps_as_many_engines_as_littles_law_needs(rate_per_s: float, floor: int) -> None:
    policy = ByForecast(COLD, SLOTS, awake_s=0.0, expected_of=lambda _: rate_per_s, service_s=4.0, recheck_s=300.0)
    decision = policy.decide([], NOBODY, 450.0)
    assert (decision.floor, decision.layers) == (floor, (AWAKE,) * floor)
    assert decision.look_again_s == 600.0


class Polled(ServePolicy):
    """Serve's policy with every report of its replicas looked at."""

    def _look_s(self, ongoing: int, now_s: float) -> float:
        return now_s + self.interval_s if self._target or ongoing else math.inf


@pytest.mark.parametrize("seed", range(3))
def test_reports_that_change_next_to_nothing_need_not_be_looked_at(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.choice([0.1, 3.0, 40.0, 300.0, 900.0], 100))
    arrivals, profile = Arrivals(at_s, np.full(100, 3.0)), PROFILES["gpu-7b"]
    lazy, polled = (
        Simulation(
            arrivals,
            policy(
                COLD,
                SLOTS,
                target_ongoing=6.4,
                upscale_delay_s=0.0,
                downscale_delay_s=300.0,
                look_back_s=2.0,
                interval_s=2.0,
            ),
            profile,
            SLOTS,
            0.0,
            float(at_s[-1]),
        ).run()
        for policy in (ServePolicy, Polled)
    )
    assert lazy.waits_s.tolist() == polled.waits_s.tolist()
    assert lazy.spent_s == pytest.approx(polled.spent_s, rel=0.005)
