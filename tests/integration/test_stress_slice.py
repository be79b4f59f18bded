"""A slice of `make stress`, small enough for every day: one replica, whose engines are killed under streams."""

from rich.console import Console

from tests.stress.streams import Plan, Stress, print_counts
from tests.support.service import Service


async def test_streams_under_kills(service: Service) -> None:
    plan = Plan(streams=10, kills=2, migrations=0, at_once=5, max_tokens=48, rest_s=0.0)
    counts = await Stress(service, plan, victims=("engine core", "worker")).run()
    print_counts(counts, Console())
    assert counts.good(), counts.faults
    assert sum(counts.kills.values()) == 2
