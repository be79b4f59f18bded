"""What a tenant feels of another that floods the service: the time to its first token, beside that of being alone.

One model on one replica, two tenants. One asks for short streams, one after the other. The other sends as many requests
as its limit allows, then 20 times as many, without waiting for answers; in a last condition it has no limit, and as
many requests under way as it can. Conditions alternate; the minute's requests are used up before the limit is measured.
What the limit allows is computed and takes its part of the machine: a flood is to add nothing to that.

Usage: python tests/bench/tenants.py [--rounds 6] [--requests 20] [--limit 12]
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
TIMES = 20
UNDER_WAY = 16
SETTLE_S = 5.0
ALONE, AT_LIMIT, FLOOD, UNLIMITED = "alone", "at its limit", f"{TIMES} times its limit", "unlimited"
# By condition: who asks beside, and how often in terms of the limit.
CONDITIONS = {ALONE: ("", 0), AT_LIMIT: ("limited", 1), FLOOD: ("limited", TIMES), UNLIMITED: ("unlimited", TIMES)}
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
async def beside(client: Client, per_minute: float, under_way: float) -> AsyncIterator[None]:
    """That many requests, without waiting for answers but when so many are under way."""
    asking: set[asyncio.Task[float]] = set()

    async def send() -> None:
        next_s = time.perf_counter()
        while True:
            if len(asking) < under_way:
                task = asyncio.ensure_future(client.ask())
                asking.add(task)
                task.add_done_callback(asking.discard)
            next_s += 60 / per_minute
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


async def use_up(client: Client, limit_per_minute: int) -> None:
    """Has the minute's requests begun, and leaves them: until they were computed, another minute's would be there."""
    asking = [asyncio.ensure_future(client.ask()) for _ in range(2 * limit_per_minute)]
    for answered in asyncio.as_completed(asking):
        if np.isnan(await answered):
            break
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    client.statuses.clear()


async def measure(
    url: str, keys: dict[str, str], options: argparse.Namespace
) -> tuple[dict[str, list[float]], Counter]:
    """TTFTs of the quiet tenant by condition, and what the flood was answered in the last round."""
    clients = {name: Client(url, key, seed) for seed, (name, key) in enumerate(keys.items())}
    quiet, limited = clients["quiet"], clients["limited"]
    for _ in range(5):
        await quiet.ask()
    ttfts: dict[str, list[float]] = {condition: [] for condition in CONDITIONS}
    answered = Counter[int]()
    console, begin_s = wide_console(), time.monotonic()
    for number in range(options.rounds):
        for condition, (whose, times) in CONDITIONS.items():
            async with contextlib.AsyncExitStack() as stack:
                if whose == "limited":
                    await use_up(limited, options.limit)
                if whose:
                    under_way = UNDER_WAY if condition == UNLIMITED else float("inf")
                    await stack.enter_async_context(beside(clients[whose], times * options.limit, under_way))
                # Each of these takes as long as five others.
                requests = options.requests if condition != UNLIMITED else max(1, options.requests // 5)
                told = [await quiet.ask() for _ in range(requests)]
            if condition == FLOOD:
                answered = limited.statuses.copy()
            ttfts[condition] += told
            median_ms = 1000 * np.median(told)
            elapsed = f"{time.monotonic() - begin_s:5.0f} s  round {number + 1} of {options.rounds}"
            console.print(f"{elapsed}, {condition}: {median_ms:.0f} ms to the first token", highlight=False)
    for client in clients.values():
        await client.http.aclose()
    return ttfts, answered


def results(ttfts: dict[str, list[float]]) -> list[Result]:
    """Percentiles, and those beside a flood of those alone."""
    found = []
    for percent in (50, 95):
        values = {condition: float(np.percentile(samples, percent)) for condition, samples in ttfts.items()}
        for condition, value in values.items():
            samples = tuple(ttfts[condition]) if percent == 50 else ()
            found.append(Result(f"p{percent} TTFT, {condition}", value * 1000, "ms", samples))
        for condition in (AT_LIMIT, FLOOD, UNLIMITED):
            target = Target(1.2, "max") if (percent, condition) == (95, FLOOD) else None
            name = f"p{percent} TTFT, {condition} of {ALONE}"
            found.append(Result(name, values[condition] / values[ALONE], "", (), target))
        name = f"p{percent} TTFT, {FLOOD} of {AT_LIMIT}"
        found.append(Result(name, values[FLOOD] / values[AT_LIMIT], "", ()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=20, help="of the quiet tenant, in each condition of a round")
    parser.add_argument("--limit", type=int, default=12, help="requests a minute of the tenant that has a limit")
    options = parser.parse_args()
    (model,) = [model for model in demo_args()["models"] if model["id"] == CHAT_MODEL]
    with tempfile.TemporaryDirectory() as directory:
        everything: dict[str, Any] = {"models": "*"}
        limited = everything | {"requests_per_minute": options.limit}
        file = KeysFile(Path(directory, "keys.yaml"), quiet=everything, limited=limited, unlimited=everything)
        args = {"models": [model | {"engine": ENGINE}], "security": {"api_keys_file": str(file.path)}}
        with deployed(args) as service:
            ttfts, statuses = asyncio.run(measure(service.url, file.keys, options))
    counts = ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items()))
    notes = [
        f"a limit of {options.limit} requests a minute; {TIMES} times as many were in the last round answered {counts}",
        f"unlimited: {UNDER_WAY} streams under way",
        f"{INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out; clients and service share the machine",
    ]
    report = make_report(NAME, results(ttfts), notes)
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")


if __name__ == "__main__":
    main()
