"""What a tenant feels of another that floods the service: the time to its first token, beside that of being alone.

One model on one replica, two tenants. One asks for short streams, one after the other. The other sends 20 times as many
requests as its limit allows, without waiting for answers; in a third condition it has no limit, and as many requests
under way as it can. Conditions alternate; the flood has used up its minute before it is measured beside.

Usage: python tests/bench/tenants.py [--rounds 6] [--requests 20]
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import numpy as np
from report import Result, Target, make_report, print_report, wide_console, write_report
from results_plot import write_picture

from tests.support.service import CHAT_MODEL, demo_args, deployed
from tests.support.tenants import KeysFile

NAME = "tenants"
INPUT_TOKENS, OUTPUT_TOKENS = 64, 16
LIMIT_PER_MINUTE, TIMES = 60, 20
UNDER_WAY = 16
SETTLE_S = 5.0
TENANTS: dict[str, dict[str, Any]] = {
    "quiet": {"models": "*"},
    "limited": {"models": "*", "requests_per_minute": LIMIT_PER_MINUTE},
    "unlimited": {"models": "*"},
}
CONDITIONS = ("alone", "limited", "unlimited")
ENGINE = {"dtype": "float32", "max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20, "enforce_eager": True}


def body(rng: np.random.Generator) -> dict[str, Any]:
    """A prompt that no prefix cache knows."""
    prompt = rng.integers(1000, 40_000, INPUT_TOKENS).tolist()
    return {"model": CHAT_MODEL, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}


class Client:
    """One tenant's."""

    def __init__(self, url: str, key: str, seed: int) -> None:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits)
        self.statuses: Counter[int] = Counter()
        self._rng = np.random.default_rng(seed)

    async def ask(self) -> float:
        """Seconds to the first token; nan for a refusal."""
        begin_s, first_s = time.perf_counter(), float("nan")
        async with self.http.stream("POST", "/v1/completions", json=body(self._rng)) as answer:
            self.statuses[answer.status_code] += 1
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and answer.is_success and np.isnan(first_s):
                    first_s = time.perf_counter() - begin_s
        return first_s


@asynccontextmanager
async def flood(condition: str, client: Client | None) -> AsyncIterator[None]:
    """Whatever goes on beside."""
    if client is None:
        yield
        return
    asking: set[asyncio.Task[float]] = set()

    async def send() -> None:
        period_s = 60 / (LIMIT_PER_MINUTE * TIMES)
        next_s = time.perf_counter()
        while True:
            if condition == "limited" or len(asking) < UNDER_WAY:
                task = asyncio.ensure_future(client.ask())
                asking.add(task)
                task.add_done_callback(asking.discard)
            next_s += period_s
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(SETTLE_S)
    try:
        yield
    finally:
        sending.cancel()
        for task in (sending, *asking):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(sending, *asking, return_exceptions=True)


async def use_up(client: Client) -> None:
    """Has the minute's requests begun, and leaves them: until they were computed, another minute's would be there."""
    asking = [asyncio.ensure_future(client.ask()) for _ in range(2 * LIMIT_PER_MINUTE)]
    for answered in asyncio.as_completed(asking):
        if np.isnan(await answered):
            break
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    client.statuses.clear()


async def measure(url: str, keys: dict[str, str], rounds: int, requests: int) -> tuple[dict[str, list[float]], Counter]:
    """TTFTs of the quiet tenant by condition, and what the limited one was answered in the last round."""
    clients = {name: Client(url, key, seed) for seed, (name, key) in enumerate(keys.items())}
    quiet, limited = clients["quiet"], clients["limited"]
    for _ in range(5):
        await quiet.ask()
    ttfts: dict[str, list[float]] = {condition: [] for condition in CONDITIONS}
    console, begin_s = wide_console(), time.monotonic()
    for number in range(rounds):
        for condition in CONDITIONS:
            if condition == "limited":
                await use_up(limited)
            async with flood(condition, clients.get(condition)):
                told = [await quiet.ask() for _ in range(requests)]
            ttfts[condition] += told
            median_ms = 1000 * np.median(told)
            elapsed = f"{time.monotonic() - begin_s:5.0f} s  round {number + 1} of {rounds}"
            console.print(f"{elapsed}, {condition}: {median_ms:.0f} ms to the first token", highlight=False)
    for client in clients.values():
        await client.http.aclose()
    return ttfts, limited.statuses


def results(ttfts: dict[str, list[float]]) -> list[Result]:
    """Percentiles, and those beside a flood of those alone."""
    found = []
    for percent in (50, 95):
        values = {condition: float(np.percentile(samples, percent)) for condition, samples in ttfts.items()}
        for condition, value in values.items():
            samples = tuple(ttfts[condition]) if percent == 50 else ()
            found.append(Result(f"p{percent} TTFT, {condition}", value * 1000, "ms", samples))
        for condition in CONDITIONS[1:]:
            target = Target(1.2, "max") if (percent, condition) == (95, "limited") else None
            found.append(
                Result(f"p{percent} TTFT, {condition} of alone", values[condition] / values["alone"], "", (), target)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=20, help="of the quiet tenant, in each condition of a round")
    options = parser.parse_args()
    (model,) = [model for model in demo_args()["models"] if model["id"] == CHAT_MODEL]
    with tempfile.TemporaryDirectory() as directory:
        file = KeysFile(Path(directory, "keys.yaml"), **TENANTS)
        args = {"models": [model | {"engine": ENGINE}], "security": {"api_keys_file": str(file.path)}}
        with deployed(args) as service:
            ttfts, statuses = asyncio.run(measure(service.url, file.keys, options.rounds, options.requests))
    counts = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    notes = [
        f"limited: {TIMES} times its {LIMIT_PER_MINUTE} requests a minute, in the last round answered {counts}",
        f"unlimited: {UNDER_WAY} streams under way",
        f"{INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out; clients and service share the machine",
    ]
    report = make_report(NAME, results(ttfts), notes)
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")


if __name__ == "__main__":
    main()
