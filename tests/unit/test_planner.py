"""The plan from counts and reports: engines are told when to be awake, with reasons, whatever nonsense comes in."""

import math
from typing import Any

import pytest

from autoscaler.config import AutoscalingConfig
from autoscaler.planner import SILENT_S, Hosted, Planner
from autoscaler.reports import EngineReport, Order, ReplicaReport
from autoscaler.types import Count

PERIOD_S = 60.0
CONFIG = AutoscalingConfig(bucket_s=10, horizon_s=600)


class Setup:
    """A model that six requests ask for every minute, on one replica."""

    def __init__(self, config: AutoscalingConfig = CONFIG) -> None:
        self.planner = Planner(config)
        self.planner.serves({"m": Hosted("pool", 8)})
        self.now_s = 1000.0

    def bursts(self, number: int, series: str = "m") -> None:
        """Lets bursts come, and the time go on to the last one's second."""
        for _ in range(number):
            self.now_s += PERIOD_S
            self.planner.learn([Count(series, self.now_s, 6)])

    def report(self, state: str = "asleep", **fields: Any) -> ReplicaReport:
        of_replica = {key: fields.pop(key) for key in ("budget_bytes", "room_bytes") if key in fields}
        engine = EngineReport(state, **({"wake_s": 0.5, "start_s": 4.0} | fields))
        return ReplicaReport("r", "pool", {"m": engine}, **of_replica)

    def order(self, after_s: float, report: ReplicaReport | None = None) -> Order:
        """What the replica is told so long after the last burst."""
        now_s = self.now_s + after_s
        self.planner.hear(report or self.report(), now_s)
        self.plan = self.planner.tick(now_s)
        return self.planner.hear(report or self.report(), now_s)["m"]


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_it_is_woken_before_the_next_burst_and_not_at_once(setup: Setup) -> None:
    setup.bursts(12)
    order = setup.order(5.0)
    due_s = PERIOD_S - 5.0
    assert 5.0 < order.in_s < due_s - 0.5, order.reason
    assert order.in_s + order.for_s > due_s
    assert setup.order(PERIOD_S - 2.0).in_s == 0, "awake by now"


def test_a_burst_that_does_not_come_is_given_up(setup: Setup) -> None:
    setup.bursts(12)
    assert setup.order(PERIOD_S - 2.0).for_s > 0
    order = setup.order(4 * PERIOD_S)
    assert (order.for_s, order.reason) == (0.0, "not expected soon")


def test_a_wake_that_began_is_not_taken_back_at_once(setup: Setup) -> None:
    setup.bursts(12)
    begins_s = 5.0 + setup.order(5.0).in_s
    order = setup.order(begins_s + 0.1)
    for later_s in (0.6, 1.1, 1.6):
        again = setup.order(begins_s + later_s, setup.report("awake"))
        assert again.in_s == 0
        assert again.in_s + again.for_s == pytest.approx(order.for_s - later_s + 0.1)


def test_an_order_that_is_heard_late_says_the_same_moment(setup: Setup) -> None:
    setup.bursts(12)
    order = setup.order(5.0)
    later = setup.planner.hear(setup.report(), setup.now_s + 8.0)["m"]
    assert later.in_s == pytest.approx(order.in_s - 3.0)
    assert later.for_s == pytest.approx(order.for_s)
    much_later = setup.planner.hear(setup.report(), setup.now_s + 5.0 + order.in_s + 2.0)["m"]
    assert (much_later.in_s, much_later.for_s) == (0.0, pytest.approx(order.for_s - 2.0))


def test_adapters_count_for_their_models(setup: Setup) -> None:
    setup.bursts(12, "m:adapter")
    assert setup.order(PERIOD_S - 2.0).for_s > 0


def test_a_replica_is_told_which_adapters_are_asked_for(setup: Setup) -> None:
    setup.bursts(6, "m:acme/one")
    setup.bursts(2)
    assert setup.order(1.0).adapters == pytest.approx({"acme/one": 0.75}, abs=0.05)
    later = setup.planner.hear(setup.report(), setup.now_s + 2.0)["m"]
    assert later.adapters == setup.order(2.0).adapters


def test_nobody_knows_a_model_that_was_never_asked_for(setup: Setup) -> None:
    order = setup.order(0.0)
    assert (order.expected_per_s, order.for_s) == (0.0, 0.0)
    assert setup.plan["pools"]["pool"]["need"] == [0] * 60


def test_a_pool_without_replicas_gets_one_in_time(setup: Setup) -> None:
    setup.bursts(12)
    need = setup.planner.tick(setup.now_s + 11.0)["pools"]["pool"]["need"]
    assert need[0] == 0
    first = next(step for step, replicas in enumerate(need) if replicas)
    assert need[first] == 1
    assert 11.0 + first * CONFIG.bucket_s <= PERIOD_S - 4.0, "a start takes four seconds"
    assert need[-1] == 0, "and is given back if nothing comes"


def test_an_engine_is_wanted_ahead_of_a_replica_that_is_not_there(setup: Setup) -> None:
    setup.bursts(12)
    wanted = {
        after_s: setup.planner.tick(setup.now_s + after_s)["models"]["m"]["engine_ahead"]
        for after_s in (2.0, 25.0, PERIOD_S - 2.0, 10 * PERIOD_S)
    }
    assert wanted == {2.0: True, 25.0: False, PERIOD_S - 2.0: True, 10 * PERIOD_S: False}


def test_no_engine_is_wanted_ahead_of_a_replica_that_is_there_or_may_not_come(setup: Setup) -> None:
    setup.bursts(12)
    setup.order(PERIOD_S - 2.0)
    assert not setup.plan["models"]["m"]["engine_ahead"]
    setup.planner.most = {"pool": 0}
    silent_s = setup.now_s + PERIOD_S - 2.0 + SILENT_S + 1.0
    plan = setup.planner.tick(silent_s)
    assert not plan["replicas"]
    assert not plan["models"]["m"]["engine_ahead"]


def test_of_a_replica_that_says_that_it_ends_nothing_is_reckoned_with(setup: Setup) -> None:
    setup.bursts(12)
    setup.planner.most = {"pool": 1}
    setup.order(2.0)
    assert not setup.plan["models"]["m"]["engine_ahead"]
    for _ in range(2):
        setup.planner.leave("r")
    plan = setup.planner.tick(setup.now_s + 2.0)
    assert plan["models"]["m"]["engine_ahead"]
    assert not plan["replicas"]


def test_who_asks_a_pool_without_replicas_gets_one_at_once(setup: Setup) -> None:
    setup.planner.learn([Count("m", setup.now_s, 1)])
    need = {after_s: setup.planner.tick(setup.now_s + after_s)["pools"]["pool"]["need"][0] for after_s in (1.0, 30.0)}
    assert need == {1.0: 1, 30.0: 0}


def test_a_replica_that_goes_soon_after_the_last_request_does_not_come_back_for_it(setup: Setup) -> None:
    setup.planner.learn([Count("m", setup.now_s, 1)])
    setup.order(3.0, setup.report("awake"))
    setup.planner.leave("r")
    assert setup.planner.tick(setup.now_s + 4.0)["pools"]["pool"]["need"][0] == 0
    setup.planner.learn([Count("m", setup.now_s + 5.0, 1)])
    assert setup.planner.tick(setup.now_s + 6.0)["pools"]["pool"]["need"][0] == 1


def test_littles_law_over_all_models_of_a_pool(setup: Setup) -> None:
    setup.planner.serves({"m": Hosted("pool", 8), "n": Hosted("pool", 8), "o": Hosted("other", 8)})
    for model in "mno":
        setup.planner._models[model].learner.ahead.habits.service_s = 4.0
    setup.planner.upper = {"m": [1.0, 5.0], "n": [1.0, 1.0], "o": [100.0, 0.1]}
    pools = setup.planner.tick(setup.now_s)["pools"]
    assert pools["pool"]["need"][:3] == [1, 3, 0]
    assert pools["other"]["need"][:2] == [50, 0], "less than one at a time is no reason"


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -5.0])
def test_a_nonsensical_forecast_changes_no_order(setup: Setup, nonsense: float) -> None:
    setup.bursts(12)
    order = setup.order(5.0)
    setup.planner.expected = {"m": nonsense}
    setup.planner.upper = {"m": [nonsense] * 60}
    assert setup.order(5.0) == order
    assert max(setup.plan["pools"]["pool"]["need"]) == 1


def test_no_forecast_is_larger_than_the_pool_may_be(setup: Setup) -> None:
    setup.planner.most = {"pool": 4}
    setup.planner.upper = {"m": [1e300] * 60}
    assert setup.planner.tick(setup.now_s)["pools"]["pool"]["need"] == [4] * 60


def test_clocks_may_jump(setup: Setup) -> None:
    setup.bursts(12)
    for after_s in (-1e6, 1e9, -5.0):
        order = setup.order(after_s)
        assert math.isfinite(order.in_s)
        assert order.for_s >= 0
    assert setup.order(PERIOD_S - 2.0).for_s > 0


def test_a_clock_that_was_put_right_is_learnt_from_again(setup: Setup) -> None:
    setup.planner.learn([Count("m", setup.now_s + 1e6, 1)])
    setup.bursts(2)
    assert setup.planner.tick(setup.now_s)["models"]["m"]["gaps_seen"] == 0, "as if all were late"
    setup.planner.bucket(setup.now_s)
    setup.bursts(12)
    assert setup.order(PERIOD_S - 2.0).for_s > 0


def test_counts_that_come_late_teach_nothing_wrong(setup: Setup) -> None:
    setup.bursts(12)
    setup.planner.learn([Count("m", setup.now_s - 45.0, 1), Count("m", math.nan, 3), Count("unknown", 1.0, 1)])
    assert setup.order(5.0).in_s > 5.0


def test_a_replica_that_is_silent_is_not_reckoned_with(setup: Setup) -> None:
    setup.bursts(12)
    setup.order(0.0)
    assert setup.plan["replicas"] == {"r": "pool"}
    assert setup.planner.tick(setup.now_s + SILENT_S + 1)["replicas"] == {}


def test_a_model_that_works_is_told_nothing(setup: Setup) -> None:
    setup.bursts(12)
    setup.planner.hear(setup.report("awake", in_hand=3), setup.now_s)
    setup.planner.tick(setup.now_s)
    assert setup.planner.hear(setup.report("awake", in_hand=3), setup.now_s) == {}


def test_without_room_it_is_not_woken_and_the_plan_says_why(setup: Setup) -> None:
    setup.bursts(12)
    report = setup.report(awake_bytes=1000, asleep_bytes=100, budget_bytes=2000, room_bytes=500)
    order = setup.order(PERIOD_S - 2.0, report)
    assert order.for_s == 0
    assert order.reason == setup.plan["models"]["m"]["reason"] == "others save more waiting in the room there is"
    assert setup.order(PERIOD_S - 2.0, setup.report(awake_bytes=1000, budget_bytes=2000, room_bytes=1500)).for_s > 0


def test_what_was_learnt_is_learnt_again_from_the_history(setup: Setup) -> None:
    busy = [(1000.0 + PERIOD_S * number, 6) for number in range(12)]
    setup.planner.restore("m", busy)
    setup.planner.restore("gone", busy)
    setup.now_s = busy[-1][0]
    order = setup.order(5.0)
    assert 5.0 < order.in_s < PERIOD_S - 5.5


def test_ten_thousand_series_are_counted(setup: Setup) -> None:
    setup.planner.learn([Count(f"m:adapter-{number}", 1000.0, 1) for number in range(10_000)])
    assert setup.planner.tick(1001.0)["models"]["m"]["gaps_seen"] == 0
