"""Three nodes with disks of their own serve two models and adapters; one is lost under load, another one joins."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support.machines import Machines, can_be_played, machines
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, demo_args
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(not can_be_played(), reason="no process and mount namespaces here"),
    pytest.mark.timeout(900),
]

AT_ONCE, TOKENS = 6, 48
# A head without engines, and as many machines as there are replicas.
REPLICAS = 2
PROMPTS = ["Once upon a time there was a", "The three most important things are", "A ship that leaves the harbour"]
NAMES = [CHAT_MODEL, "pirate"]
COMES_WITHIN_S = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as made:
        yield made


async def said(client: AsyncOpenAI, name: str, prompt: str) -> str:
    """A whole answer, as it is streamed."""
    stream = await client.completions.create(
        model=name, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def embedded(client: AsyncOpenAI) -> list[float]:
    answer = await client.embeddings.create(model=EMBEDDING_MODEL, input="a sentence")
    return answer.data[0].embedding


async def under_load(client: AsyncOpenAI, expected: dict[tuple[str, str], str], until_done: asyncio.Event) -> int:
    """Ask again and again, several at once; returns how many answers came, which all have to be as expected."""
    asks = list(expected)
    vector = await embedded(client)

    async def one(number: int) -> int:
        answered = 0
        while not until_done.is_set() or answered < 2:
            name, prompt = asks[(number + answered) % len(asks)]
            assert await said(client, name, prompt) == expected[name, prompt]
            assert await embedded(client) == pytest.approx(vector, abs=1e-5)
            answered += 1
        return answered

    return sum(await asyncio.gather(*(one(number) for number in range(AT_ONCE))))


def tiers(cluster: Machines) -> dict[str, Any]:
    told = httpx.get(f"{cluster.service.url}/admin/tiers", timeout=60).json()["nodes"]
    return {node: held for node, held in told.items() if "error" not in held}


def with_snapshots(cluster: Machines) -> set[str]:
    """The nodes that have both models' snapshots in dram."""
    return {node for node, held in tiers(cluster).items() if len(held["dram"]["snapshots"]) == 2}


def metric(cluster: Machines, name: str, **labels: str) -> float:
    """The sum over all that have these labels."""
    text = httpx.get(f"{cluster.service.url}/metrics", timeout=60).text
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(name) and all(each in line for each in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def streams(cluster: Machines) -> int:
    engines = httpx.get(f"{cluster.service.url}/admin/models", timeout=60).json()["models"]
    return int(engines[CHAT_MODEL]["requests"])


def weights_bytes(directory: Path) -> int:
    """The size of the snapshots on a machine's disk, less what is small."""
    return sum(file.stat().st_size for file in (directory / "disk").rglob("*.safetensors")) - (1 << 20)


async def test_a_node_is_lost_under_load_and_another_joins(cluster: Machines) -> None:
    first, second = cluster.join(), cluster.join()
    pools = [{"min_replicas": REPLICAS, "max_replicas": REPLICAS, "max_replicas_per_node": 1, "num_cpus": 1}]
    cluster.deploy(demo_args(pools=pools))
    client = AsyncOpenAI(base_url=f"{cluster.service.url}/v1", api_key="none", max_retries=0, timeout=300)
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
    assert await load > AT_ONCE
    assert len(joined) == 1
    assert metric(cluster, "ray_flashserve_fetched_bytes_total", origin="peer") > weights_bytes(third.directory)
    assert metric(cluster, "ray_flashserve_stream_resumes_total") > 0

    assert first.process.poll() is None
