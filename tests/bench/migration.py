"""What a client feels of a migration and of a lost replica: the longest gap between two tokens; and the price of it.

Two replicas on one machine. A stream with so many tokens of context is read over HTTP; in its midst it is moved to the
other replica, or the replica it runs on is killed (`kill -9`). The gap is the longest time between two chunks from then
on; the usual time between two is the median of those before. What others feel is the rate of two streams that run on
the target, from the order to move to the end of that gap, beside their rate in the seconds before. The overhead is that
of an engine with FlashServe's scheduler beside the same engine with vLLM's own, with streams side by side that nothing
happens to.

Usage: python tests/bench/migration.py [--rounds 6]
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import numpy as np
import psutil
from migration_plot import plot
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, write_report

from app.streams import TokenStreams
from deployments.forked_engine import PoolAddress
from deployments.types import GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from tests.support.pools import background_pool
from tests.support.service import CHAT_MODEL, MODELS, Service, demo_args, deployed

NAME = "migration"
CONTEXTS = (128, 512, 1024, 2048)
BEFORE, AFTER = 40, 60
OTHERS, OTHERS_TOKENS, WINDOW_S = 3, 600, 1.5
# The router decides on which replica a stream begins; it has to be another than that of the others.
TRIES = 8
ENGINE = {"dtype": "bfloat16", "max_model_len": 4096, "kv_cache_memory_bytes": 512 << 20, "enforce_eager": True}
STOCK_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
OVERHEAD_STREAMS, OVERHEAD_TOKENS = 8, 96


class ElsewhereError(Exception):
    """The stream that was to be moved runs where it was to be moved to."""


@dataclass
class Stream:
    """When the chunks of one stream came, and when it was disturbed."""

    arrivals_s: list[float] = field(default_factory=list)
    disturbed_s: float = 0.0
    tokens: int = 0
    asked_s: float = field(default_factory=time.perf_counter)

    def first_ms(self) -> float:
        """Time to the first chunk: its prefill, for the most part."""
        return (self.arrivals_s[0] - self.asked_s) * 1000

    def usual_ms(self) -> float:
        """Median time between two chunks before the disturbance."""
        before = [at_s for at_s in self.arrivals_s if at_s <= self.disturbed_s]
        return float(np.median(np.diff(before[5:]))) * 1000

    def gap_ms(self) -> float:
        """Longest time between two chunks of which the later came after the disturbance."""
        return float(np.max(self._gaps_s())) * 1000

    def gap_end_s(self) -> float:
        """When it was over."""
        return self.arrivals_s[len(self.arrivals_s) - len(self._gaps_s()) + int(np.argmax(self._gaps_s()))]

    def _gaps_s(self) -> "np.typing.NDArray[np.float64]":
        last_before = sum(at_s <= self.disturbed_s for at_s in self.arrivals_s) - 1
        return np.diff(self.arrivals_s[last_before:])


def tell(what: str) -> None:
    """A line of progress."""
    print(what, file=sys.stderr, flush=True)


async def disturbed_stream(http: httpx.AsyncClient, context: int, disturb: Callable[[], Awaitable[None]]) -> Stream:
    rng = np.random.default_rng(uuid.uuid4().int % 2**32)  # never in a prefix cache
    body = {
        "model": CHAT_MODEL, "prompt": rng.integers(1000, 40_000, context).tolist(), "max_tokens": BEFORE + AFTER,
        "ignore_eos": True, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    stream, disturbing = Stream(), None
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if disturbing is not None and disturbing.done():
                disturbing.result()
            data = line.removeprefix("data: ")
            if not data.startswith("{"):
                continue
            chunk = json.loads(data)
            assert "error" not in chunk, chunk
            stream.tokens = (chunk.get("usage") or {}).get("completion_tokens", stream.tokens)
            if chunk.get("choices"):
                stream.arrivals_s.append(time.perf_counter())
            if disturbing is None and len(stream.arrivals_s) >= BEFORE:
                stream.disturbed_s = time.perf_counter()
                disturbing = asyncio.ensure_future(disturb())
    assert disturbing is not None
    await disturbing
    assert stream.tokens == BEFORE + AFTER, f"{stream.tokens} tokens came"
    return stream


async def migrated(http: httpx.AsyncClient, context: int) -> Stream:
    async def migrate() -> None:
        answer = await http.post("/admin/migrate", json={"model": CHAT_MODEL})
        assert answer.json() == {"moving": 1}, answer.text

    return await disturbed_stream(http, context, migrate)


async def replica_ids(http: httpx.AsyncClient) -> list[str]:
    """Serve's ids of the replicas that serve the model."""
    found = re.findall(r'deployment="Engines-default".*?replica="([^"]+)"', (await http.get("/metrics")).text)
    return sorted(set(found))


async def others_change(http: httpx.AsyncClient, source_id: str) -> float:
    """How much slower (in %, negative) streams on the target are while another moves there. Raises ElsewhereError."""
    arrivals_s: list[float] = []

    async def read() -> None:
        body = {"model": CHAT_MODEL, "prompt": "Once", "max_tokens": OTHERS_TOKENS, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    arrivals_s.append(time.perf_counter())  # noqa: PERF401 - each when it comes

    others = [asyncio.ensure_future(read()) for _ in range(OTHERS)]
    try:
        while len(arrivals_s) < OTHERS * 10:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        order = {"model": CHAT_MODEL, "replica": source_id}
        while (await http.post("/admin/migrate", json=order)).json()["moving"]:  # noqa: ASYNC110
            await asyncio.sleep(1)

        async def migrate() -> None:
            if not (await http.post("/admin/migrate", json=order)).json()["moving"]:
                raise ElsewhereError

        stream = await disturbed_stream(http, 512, migrate)
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    begin_s, end_s = stream.disturbed_s, stream.gap_end_s()
    before = sum(begin_s - WINDOW_S <= at_s < begin_s for at_s in arrivals_s) / WINDOW_S
    meanwhile = sum(begin_s <= at_s < end_s for at_s in arrivals_s) / (end_s - begin_s)
    return (meanwhile / before - 1) * 100


async def others_changes(http: httpx.AsyncClient, rounds: int) -> list[float]:
    """As ``others_change``, so often; fewer if streams keep beginning where the others are."""
    source_ids, changes = await replica_ids(http), []
    for number in range(rounds * TRIES):
        try:
            changes.append(await others_change(http, source_ids[number % len(source_ids)]))
        except ElsewhereError:
            continue
        tell(f"others on the target: {len(changes)} of {rounds}")
        if len(changes) == rounds:
            break
    return changes


async def bereft(service: Service, http: httpx.AsyncClient, context: int) -> Stream:
    """A stream whose replica is killed."""
    used_s = {process: _cpu_s(process) for process in service.processes("ServeReplica:flashserve:Engines-default")}

    async def kill() -> None:
        # The one that has worked on it.
        max(used_s, key=lambda process: _cpu_s(process) - used_s[process]).kill()

    return await disturbed_stream(http, context, kill)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def both_awake(service: Service, http: httpx.AsyncClient) -> None:
    """Wait until two replicas serve the model, and have answered once."""
    async with asyncio.timeout(300):
        while len(service.processes("VLLM::Worker")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    await asyncio.sleep(8)
    ask = {"model": CHAT_MODEL, "prompt": "Hello", "max_tokens": 8}
    await asyncio.gather(*(http.post("/v1/completions", json=ask) for _ in range(8)))


async def gaps(service: Service, rounds: int) -> tuple[dict[int, list[Stream]], list[float], list[Stream]]:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as http:
        await both_awake(service, http)
        await migrated(http, 512)  # warm-up
        moved: dict[int, list[Stream]] = {context: [] for context in CONTEXTS}
        for number in range(rounds):
            for context in CONTEXTS:
                moved[context].append(await migrated(http, context))
            tell(f"moved with each context: {number + 1} of {rounds}")
        changes = await others_changes(http, rounds)
        lost = []
        for number in range(rounds):
            await both_awake(service, http)
            lost.append(await bereft(service, http, 512))
            tell(f"killed: {number + 1} of {rounds}")
    return moved, changes, lost


async def tokens_per_s(engine: VllmEngine) -> float:
    async def read(index: int) -> int:
        request: GenerateRequest = {
            "stream_id": f"{uuid.uuid4().hex}-{index}", "model_id": CHAT_MODEL,
            "prompt_token_ids": list(range(1000 + index, 1064 + index)),
            "sampling": {"max_tokens": OVERHEAD_TOKENS, "temperature": 0.0, "ignore_eos": True},
            "reply_to": TokenStreams().reply_to,
        }  # fmt: skip
        return sum([len(delta.token_ids) async for delta in engine.generate(request)])

    begin_s = time.perf_counter()
    count = sum(await asyncio.gather(*map(read, range(OVERHEAD_STREAMS))))
    return count / (time.perf_counter() - begin_s)


async def overheads(pool: PoolAddress, rounds: int) -> list[float]:
    """Ours over stock throughput, pairwise, one after the other and the order changing."""
    arguments: list[dict[str, Any]] = [ENGINE, ENGINE | {"scheduler_cls": STOCK_SCHEDULER}]
    engines = [VllmEngine(ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), engine), pool) for engine in arguments]
    try:
        for engine in engines:
            await engine.start()
            await tokens_per_s(engine)
        ratios = []
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            rates = {index: await tokens_per_s(engines[index]) for index in order}
            ratios.append((rates[1] / rates[0] - 1) * 100)
            tell(f"overhead: {number + 1} of {rounds}")
        return ratios
    finally:
        for engine in engines:
            await engine.stop()


def service_args() -> dict[str, Any]:
    args = demo_args(pools=[{"name": "default", "min_replicas": 2, "max_replicas": 2}])
    model = args["models"][0]
    args["models"] = [{"id": model["id"], "source": model["source"], "engine": ENGINE, "keep_awake_s": None}]
    return args


def results(
    moved: dict[int, list[Stream]], others: list[float], lost: list[Stream], overhead: list[float]
) -> list[Result]:
    found = [median_result("usual time between two tokens", [s.usual_ms() for s in moved[512]], "ms")]
    for context, streams in moved.items():
        beyond = [stream.gap_ms() - 5 * stream.usual_ms() for stream in streams]
        target = Target(100, "max") if context in (512, 2048) else None
        name = f"gap of a migration, {context} tokens of context"
        found += [
            median_result(name, [stream.gap_ms() for stream in streams], "ms"),
            median_result(f"{name}, beyond 5 usual times", beyond, "ms", target),
        ]
    return [
        *found,
        median_result("rate of others on the target, meanwhile", others, "% more", Target(-10, "min"), "before"),
        median_result("gap of a killed replica, 512 tokens", [s.gap_ms() for s in lost], "ms", Target(1000, "max")),
        median_result("first token of those streams", [s.first_ms() for s in lost], "ms"),
        median_result("usual time between two tokens of those streams", [s.usual_ms() for s in lost], "ms"),
        median_result("overhead of the scheduler", overhead, "%", Target(1, "max"), "vLLM's own scheduler"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    with deployed(service_args()) as service:
        moved, others, lost = asyncio.run(gaps(service, rounds))
    with tempfile.TemporaryDirectory() as logs, background_pool(Path(logs)) as pool:
        overhead = asyncio.run(overheads(pool, rounds * 2))
    notes = ["Both replicas, the gateway and the client share the cores of one machine."]
    report = make_report(NAME, results(moved, others, lost, overhead), notes)
    write_report(report)
    plot({context: [s.gap_ms() for s in streams] for context, streams in moved.items()},
         [s.usual_ms() for streams in moved.values() for s in streams], [s.gap_ms() for s in lost],
         RESULTS_DIR / f"{NAME}.png")  # fmt: skip
    print_report(report)


if __name__ == "__main__":
    main()
