"""Three nodes with disks of their own serve two models and adapters; one is lost under load, another one joins."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stress.machine_load import (
    AT_ONCE,
    COMES_WITHIN_S,
    NAMES,
    PROMPTS,
    metric,
    openai_client,
    said,
    streams,
    under_load,
    with_snapshots,
)
from tests.support.machines import Machines, can_be_played, machines
from tests.support.service import demo_args
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(not can_be_played(), reason="no process and mount namespaces here"),
    pytest.mark.timeout(900),
]

# A head without engines, and as many machines as there are replicas.
REPLICAS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as made:
        yield made


def weights_bytes(directory: Path) -> int:
    """The size of the snapshots on a machine's disk, less what is small."""
    return sum(file.stat().st_size for file in (directory / "disk").rglob("*.safetensors")) - (1 << 20)


async def test_a_node_is_lost_under_load_and_another_joins(cluster: Machines) -> None:
    first, second = cluster.join(), cluster.join()
    pools = [{"min_replicas": REPLICAS, "max_replicas": REPLICAS, "max_replicas_per_node": 1, "num_cpus": 1}]
    cluster.deploy(demo_args(pools=pools))
    client = openai_client(cluster)
    expected = {(name, prompt): await said(client, name, prompt) for name in NAMES for prompt in PROMPTS}
    before = await asyncio.to_thread(
        until, lambda: len(found := with_snapshots(cluster)) == REPLICAS and found, COMES_WITHIN_S
    )

    done = asyncio.Event()
    load = asyncio.create_task(under_load(client, expected, done))
    # Which of both replicas have some each.
    await asyncio.to_thread(until, lambda: streams(cluster) >= AT_ONCE // 2, COMES_WITHIN_S)
    await asyncio.to_thread(second.lose)
    third = await asyncio.to_thread(cluster.join)
    joined = await asyncio.to_thread(until, lambda: with_snapshots(cluster) - before, COMES_WITHIN_S)
    done.set()
    assert len(await load) > AT_ONCE
    assert len(joined) == 1
    assert metric(cluster, "ray_flashserve_fetched_bytes_total", origin="peer") > weights_bytes(third.directory)
    assert metric(cluster, "ray_flashserve_stream_resumes_total") > 0

    assert first.process.poll() is None
