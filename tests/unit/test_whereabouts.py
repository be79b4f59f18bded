"""Looking at few engines decides as looking at all would; changes say as much as whole reports."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.config import AutoscalingConfig
from autoscaler.errors import ReportError
from autoscaler.planner import Hosted, Planner
from autoscaler.reports import EngineReport, Order, ReplicaReport
from autoscaler.types import Count
from autoscaler.whereabouts import Place, Whereabouts

NAMES, MODELS = "abcde", "mno"
STATES = ("cold", "failed", "starting", "awake", "asleep", "waking")
BYTES = st.sampled_from((0, 100, 1000))
ENGINES = st.one_of(
    st.just(EngineReport("cold")),
    st.builds(
        EngineReport,
        st.sampled_from(STATES),
        in_hand=st.sampled_from((0, 0, 3)),
        waiting=st.sampled_from((0, 0, 1)),
        wake_s=st.sampled_from((0.3, 2.0)),
        start_s=st.sampled_from((4.0, 30.0)),
        awake_bytes=BYTES,
        asleep_bytes=BYTES,
    ),
)
REPORTS = st.builds(
    ReplicaReport,
    st.sampled_from(NAMES),
    st.just("pool"),
    st.dictionaries(st.sampled_from(MODELS), ENGINES),
    budget_bytes=st.sampled_from((None, 2000)),
    room_bytes=st.sampled_from((0, 500, 2000)),
)
COUNTS = st.lists(st.builds(Count, st.sampled_from(MODELS), st.just(0.0), st.integers(1, 40)), max_size=3)
PASSED_S = st.sampled_from((1.0, 1.0, 4.0, 30.0, 70.0))
SECONDS = st.lists(st.tuples(PASSED_S, COUNTS, st.lists(REPORTS, max_size=4)), min_size=1, max_size=25)


class LookingAtAll(Whereabouts):
    """As if each engine could matter."""

    def foremost(self, model_id: str, _number: int) -> list[Place]:
        return super().foremost(model_id, 10**6)


def planner(where: Whereabouts) -> Planner:
    made = Planner(AutoscalingConfig(bucket_s=10, horizon_s=100))
    made._where = where
    made.serves({model: Hosted("pool", 4) for model in MODELS})
    return made


def orders(of: Planner) -> dict[str, dict[str, Order]]:
    """What each replica is told, but for cold engines of which nobody expects anything."""
    return {
        key: {
            model: order
            for model, (order, _) in heard.orders.items()
            if order.for_s or order.expected_per_s or of._where.on(key)[model].layer < 2
        }
        for key, heard in of._replicas.items()
    }


def without_engines(plan: dict[str, Any]) -> dict[str, Any]:
    return plan | {"models": {key: {**told, "engines": None} for key, told in plan["models"].items()}}


@settings(deadline=None)
@given(SECONDS, st.booleans())
def test_a_plan_is_as_if_it_had_looked_at_every_engine(
    seconds: list[tuple[float, list[Count], list[ReplicaReport]]],
    forecast: bool,  # noqa: FBT001 - drawn
) -> None:
    few, every = planner(Whereabouts()), planner(LookingAtAll())
    now_s = 1000.0
    for passed_s, counts, reports in seconds:
        now_s += passed_s
        for each in (few, every):
            each.expected = {"m": 0.5, "n": 3.0} if forecast else {}
            each.learn(Count(count.series, now_s, count.requests) for count in counts)
            for report in reports:
                each.hear(report, now_s)
        assert without_engines(few.tick(now_s)) == without_engines(every.tick(now_s))
        assert orders(few) == orders(every)


@settings(deadline=None)
@given(st.lists(REPORTS, max_size=15))
def test_changes_say_as_much_as_whole_reports(reports: list[ReplicaReport]) -> None:
    whole, changes, told = planner(Whereabouts()), planner(Whereabouts()), dict[str, ReplicaReport]()
    for report in reports:
        whole.hear(report, 1000.0)
        before = told.get(report.replica_id)
        told[report.replica_id] = report
        if before is not None:
            change = ReplicaReport(
                *(report.replica_id, "pool"),
                {key: each for key, each in report.engines.items() if each != before.engines.get(key)},
                budget_bytes=report.budget_bytes,
                room_bytes=report.room_bytes,
                is_change=True,
                gone=[model for model in before.engines if model not in report.engines],
            )
        changes.hear(report if before is None else change, 1000.0)
    assert whole.tick(1000.0) == changes.tick(1000.0)
    assert orders(whole) == orders(changes)


@given(st.lists(REPORTS, max_size=15))
def test_what_is_kept_is_what_was_heard(reports: list[ReplicaReport]) -> None:
    where, last = Whereabouts(), dict[str, ReplicaReport]()
    for report in reports:
        where.hear(
            *(report.replica_id, report.engines, where.on(report.replica_id).keys() - report.engines.keys()),
            is_limited=bool(report.budget_bytes),
        )
        last[report.replica_id] = report
        if report.room_bytes == 0:
            where.lose(report.replica_id)
            del last[report.replica_id]
    for model in MODELS:
        holders = [report for report in last.values() if model in report.engines]
        places = sorted((Place(each.replica_id, each.engines[model]) for each in holders), key=Place.rank)
        assert where.number(model) == len(places)
        assert [*map(Place.rank, where.foremost(model, 10**6))] == [*map(Place.rank, places)]
        near = sum(place.in_use or place.engine.layer < 2 for place in places)
        assert where.foremost(model, 2) == places[: max(2, near)]
        assert where.most_bytes(model) == (
            max((place.engine.awake_bytes for place in places), default=0),
            max((place.engine.asleep_bytes for place in places), default=0),
        )
        assert where.is_limited(model) == any(report.budget_bytes for report in holders)
    for name in NAMES:
        ongoing = sum(each.in_hand + each.waiting for each in last[name].engines.values()) if name in last else 0
        assert where.ongoing(name) == ongoing


def test_changes_of_a_replica_that_is_not_known_are_refused() -> None:
    made = planner(Whereabouts())
    with pytest.raises(ReportError):
        made.hear(ReplicaReport("a", "pool", {"m": EngineReport("awake")}, is_change=True), 1000.0)
    assert made.tick(1000.0)["replicas"] == {}
