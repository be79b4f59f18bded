"""What the tests of machines ask a service for, and what they see of it."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.support.machines import Machines
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL

AT_ONCE, TOKENS = 6, 48
PROMPTS = ["Once upon a time there was a", "The three most important things are", "A ship that leaves the harbour"]
NAMES = [CHAT_MODEL, "pirate"]
COMES_WITHIN_S = 240


def openai_client(cluster: Machines) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{cluster.service.url}/v1", api_key="none", max_retries=0, timeout=300)


async def said(client: AsyncOpenAI, name: str, prompt: str) -> str:
    """A whole answer, as it is streamed."""
    stream = await client.completions.create(
        model=name, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def embedded(client: AsyncOpenAI) -> list[float]:
    answer = await client.embeddings.create(model=EMBEDDING_MODEL, input="a sentence")
    return answer.data[0].embedding


async def under_load(
    client: AsyncOpenAI, expected: dict[tuple[str, str], str], until_done: asyncio.Event
) -> list[float]:
    """Ask again and again, several at once; returns what each pair of answers took, all as expected."""
    asks = list(expected)
    vector = await embedded(client)
    took_s = []

    async def one(number: int) -> None:
        answered = 0
        while not until_done.is_set() or answered < 2:
            name, prompt = asks[(number + answered) % len(asks)]
            begin_s = time.monotonic()
            assert await said(client, name, prompt) == expected[name, prompt]
            assert await embedded(client) == pytest.approx(vector, abs=1e-5)
            took_s.append(time.monotonic() - begin_s)
            answered += 1

    await asyncio.gather(*(one(number) for number in range(AT_ONCE)))
    return took_s


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
