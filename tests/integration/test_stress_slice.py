"""A slice of `make stress`, small enough for every day: one replica, which is killed under streams, and its engines."""

from rich.console import Console

from tests.stress.counts import print_counts
from tests.stress.streams import VICTIMS, Plan, Stress
from tests.support.service import Service


async def test_streams_under_kills(service: Service) -> None:
    plan = Plan(streams=8, kills=len(VICTIMS), migrations=0, at_once=4, max_tokens=40, rest_s=0.0)
    counts = await Stress(service, plan).run()
    print_counts(counts, Console())
    assert counts.good(), counts.faults
    assert set(counts.kills) == set(VICTIMS)
