"""Nodes that can't reach each other, and one that falls silent under load: no request fails."""

import asyncio
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.stress.machine_load import (
    COMES_WITHIN_S,
    NAMES,
    PROMPTS,
    metric,
    openai_client,
    said,
    under_load,
    with_snapshots,
)
from tests.support.machines import Machine, Machines, can_be_played, machines
from tests.support.network import can_be_networked, network
from tests.support.service import demo_args, title
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(not can_be_played() or not can_be_networked(), reason="no namespaces, or no networks here"),
    pytest.mark.timeout(900),
]

REPLICAS = 2
# What a gateway may take to see that a node is silent, and to go on elsewhere; Ray takes about a minute.
SOON_S = 25.0
LOOKED_AT_S = 0.5


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with network() as behind, machines(behind) as made:
        yield made


async def test_nodes_apart_and_one_that_falls_silent(cluster: Machines) -> None:
    first = await asyncio.to_thread(cluster.join)
    pools = [{"min_replicas": REPLICAS, "max_replicas": REPLICAS, "max_replicas_per_node": 1, "num_cpus": 1}]
    await asyncio.to_thread(cluster.deploy, demo_args(pools=pools))
    client = openai_client(cluster)
    expected = {(name, prompt): await said(client, name, prompt) for name in NAMES for prompt in PROMPTS}
    await asyncio.to_thread(until, lambda: with_snapshots(cluster), COMES_WITHIN_S)

    # What it has the second can't get; it has its snapshots from where the first had them.
    begin_s = time.monotonic()
    second = await asyncio.to_thread(cluster.join, [first])
    await asyncio.to_thread(until, lambda: len(with_snapshots(cluster)) == REPLICAS, COMES_WITHIN_S)
    print(f"\na node that can't reach its peer has both snapshots {time.monotonic() - begin_s:.0f} s after it came")
    assert metric(cluster, "ray_flashserve_fetched_bytes_total", origin="peer") == 0

    done = asyncio.Event()
    done.set()
    undisturbed_s = max(await under_load(client, expected, done))
    done.clear()
    load = asyncio.create_task(under_load(client, expected, done))
    await asyncio.to_thread(until, lambda: computes(second), COMES_WITHIN_S)
    cluster.cut(second)
    await asyncio.to_thread(until, lambda: resumes(cluster) > 0, COMES_WITHIN_S)
    done.set()
    longest_s = max(await load)
    print(f"answers took {undisturbed_s:.1f} s at most, and {longest_s:.1f} s when a node fell silent")
    assert longest_s < undisturbed_s + SOON_S


def resumes(cluster: Machines) -> float:
    return metric(cluster, "ray_flashserve_stream_resumes_total")


def computes(machine: Machine) -> bool:
    """Whether an engine there is at work."""

    def worked_s() -> float:
        below = psutil.Process(machine.process.pid).children(recursive=True)
        return sum(sum(each.cpu_times()[:2]) for each in below if title(each).startswith("VLLM::Worker"))

    before_s = worked_s()
    time.sleep(LOOKED_AT_S)
    return worked_s() - before_s > LOOKED_AT_S / 4
