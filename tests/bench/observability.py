"""What metrics, logs and traces cost: one gateway with none of them, others with more, up to a trace of every request.

Each is a process of its own on a Ray of its own, so that metrics are really recorded: a whole gateway with its replica,
with vLLM's engine, which is what users have, and with one that needs no model and takes no time: with that, whatever is
spent is spent on the way of requests, so the share is the highest there can be. Rounds alternate between them, and who
is not measured is stopped; the load comes from this process.

Usage: python tests/bench/observability.py [--rounds 40] [--requests 100] [--engine-rounds 12] [--engine-requests 32]
       python tests/bench/observability.py serve VARIANT ENDPOINT ENGINE     (one gateway; prints its port)
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
from process_tree import freeze, thaw
from report import Result, Target, make_report, median_result, print_report, write_report
from results_plot import write_picture

from tests.support.collector import collecting

NAME = "observability"
MODEL = "measured"
# With the share of requests that are traced.
VARIANTS = {"off": 0.0, "metrics and logs": 0.0, "a tenth traced": 0.1, "all traced": 1.0}
# An engine takes a minute to start.
VLLM_VARIANTS = ("off", "metrics and logs", "a tenth traced")
NO_ENGINE, VLLM = "no engine", "vLLM"
OUTPUT_TOKENS, CONCURRENCY = 64, 16
TURNS, IN_A_TURN, SETTLE_S = 20, 3, 0.1
BUDGET_BYTES = 8 << 30
PATIENCE_S = 180.0


async def serve(variant: str, endpoint: str, engine: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What vLLM prints is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import ray  # noqa: PLC0415 - the measuring process needs none of it

    from app import gateway, served_gateway  # noqa: PLC0415
    from deployments.residency_metrics import ResidencyMetrics  # noqa: PLC0415
    from deployments.tracing import TraceConfig  # noqa: PLC0415
    from deployments.vllm_engine import AsyncLLM, VllmEngine  # noqa: PLC0415
    from tests.support.gateways import gateway_of, model  # noqa: PLC0415

    spec, given = model(MODEL), {}
    if engine == VLLM:
        spec = replace(spec, engine=spec.engine | {"dtype": "bfloat16"})
        given = {"make_engine": VllmEngine, "budget_bytes": BUDGET_BYTES}
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as directory:
        if variant == "off":
            served_gateway.RequestMetrics = lambda: None  # type: ignore[assignment,misc]
            gateway.StreamMetrics = lambda _: None  # type: ignore[assignment,misc]
            without_metrics = AsyncLLM.from_engine_args
            AsyncLLM.from_engine_args = lambda arguments, **_: without_metrics(arguments)  # type: ignore[method-assign,assignment]
            logging.disable(logging.CRITICAL)
        else:
            logging.basicConfig(filename=Path(directory, "log"), level=logging.INFO)
        traces = TraceConfig(endpoint, VARIANTS[variant]) if VARIANTS[variant] else None
        async with gateway_of(Path(directory), spec, keys_file=None, traces=traces, **given) as running:
            if variant != "off":
                running.pool.target._residents.watch = ResidencyMetrics(1.0)
            print(running.port, file=answers, flush=True)
            await asyncio.to_thread(sys.stdin.read)
    ray.shutdown()


@contextmanager
def serving(variant: str, endpoint: str, engine: str) -> Iterator[tuple[int, psutil.Process]]:
    """A gateway's port and process; stopped, with all that it has started."""
    arguments = [sys.executable, __file__, "serve", variant, endpoint, engine]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    tree = psutil.Process(process.pid)
    try:
        port = int(process.stdout.readline())
        asyncio.run(ask(port, 1))
        stop(tree)
        yield port, tree
    finally:
        go_on(tree)
        process.stdin.close()
        process.wait(PATIENCE_S)


def stop(process: psutil.Process) -> None:
    """Stop it with its children."""
    process.suspend()
    freeze(process.pid)


def go_on(process: psutil.Process) -> None:
    """Let them go on."""
    thaw(process.pid)
    process.resume()


async def ask(port: int, tokens: int) -> float:
    """Return seconds to the first token of a stream that is read to its end; by bare sockets, which cost least."""
    asked = {"model": MODEL, "prompt": "one two three", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body = json.dumps(asked).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin_s = time.perf_counter()
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"data: {")
    first_s = time.perf_counter() - begin_s
    assert answer.startswith(b"HTTP/1.1 200"), answer
    rest = await reader.read()
    assert b"data: [DONE]" in rest
    writer.close()
    return first_s


async def saturate(port: int, process: psutil.Process, requests: int) -> tuple[float, float]:
    """Return tokens a second with many streams at once, and the gateway's processor time a token in microseconds."""
    waiting = iter(range(requests))

    async def one_after_the_other() -> None:
        for _ in waiting:
            await ask(port, OUTPUT_TOKENS)

    begin_s, before_s = time.perf_counter(), sum(process.cpu_times()[:2])
    await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENCY)))
    tokens = requests * OUTPUT_TOKENS
    spent_s = sum(process.cpu_times()[:2]) - before_s
    return tokens / (time.perf_counter() - begin_s), 1e6 * spent_s / tokens


async def measure(ports: dict[str, tuple[int, psutil.Process]], rounds: int, requests: int) -> dict[str, Any]:
    """Return by variant the samples of each measure, one a round."""
    found: dict[str, Any] = {name: {"rate": [], "cpu_us": [], "ttft_ms": []} for name in ports}
    for number in range(rounds + 1):
        # In another order each time, so that who comes first is not always the same.
        for name in [*ports][number % len(ports) :] + [*ports][: number % len(ports)]:
            port, process = ports[name]
            go_on(process)
            await ask(port, 1)
            rate, cpu_us = await saturate(port, process, requests)
            stop(process)
            if number:  # the first round warms up
                found[name]["rate"].append(rate)
                found[name]["cpu_us"].append(cpu_us)
        firsts_s = await first_tokens(ports)
        for name in found if number else ():
            found[name]["ttft_ms"].append(1000 * float(np.median(firsts_s[name])))
        print(f"round {number} of {rounds}", flush=True)
    return found


async def first_tokens(ports: dict[str, tuple[int, psutil.Process]]) -> dict[str, list[float]]:
    """Return by variant seconds to first tokens, of requests that come one at a time."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for turn in range(TURNS):
        for name in sorted(ports, reverse=bool(turn % 2)):
            port, process = ports[name]
            go_on(process)
            # What it would have done meanwhile comes first.
            await asyncio.sleep(SETTLE_S)
            await ask(port, 1)
            found[name] += [await ask(port, 1) for _ in range(IN_A_TURN)]
            stop(process)
    return found


def results(found: dict[str, Any], engine: str) -> Iterator[Result]:
    """Each measure by itself, and beside being off."""
    for name in found:
        yield median_result(f"{engine}: throughput, {name}", found[name]["rate"], "tokens/s")
        yield median_result(f"{engine}: processor time a token, {name}", found[name]["cpu_us"], "us")
        yield median_result(f"{engine}: TTFT, {name}", found[name]["ttft_ms"], "ms")
    off = found["off"]
    for name in [each for each in found if each != "off"]:
        told = found[name]
        lost = [100 * (1 - on / without) for on, without in zip(told["rate"], off["rate"], strict=True)]
        more_us = [on - without for on, without in zip(told["cpu_us"], off["cpu_us"], strict=True)]
        later = [on - without for on, without in zip(told["ttft_ms"], off["ttft_ms"], strict=True)]
        yield median_result(f"{engine}: throughput lost, {name}", lost, "%", Target(2, "max"), "off")
        yield median_result(f"{engine}: processor time a token more, {name}", more_us, "us", None, "off")
        yield median_result(f"{engine}: TTFT later, {name}", later, "ms", Target(1, "max"), "off")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--engine-rounds", type=int, default=12)
    parser.add_argument("--engine-requests", type=int, default=32)
    arguments = parser.parse_args()
    parts = (
        (VLLM, VLLM_VARIANTS, arguments.engine_rounds, arguments.engine_requests),
        (NO_ENGINE, tuple(VARIANTS), arguments.rounds, arguments.requests),
    )
    told: list[Result] = []
    for engine, variants, rounds, requests in [part for part in parts if part[2] > 0]:
        with collecting() as collector:
            with ExitStack() as running:
                ports = {name: running.enter_context(serving(name, collector.endpoint, engine)) for name in variants}
                told += results(asyncio.run(measure(ports, rounds, requests)), engine)
            # Who is stopped sends nothing; at the end all of it has come.
            assert collector.spans, "nothing was traced"
    notes = (
        f"{NO_ENGINE}: tokens take no time, so what is spent is the gateway's and the replica's: no share is higher.",
        "Processor time is that of the process with gateway and replica.",
        "Traces go to a collector in the process that makes the load.",
    )
    report = make_report(NAME, told, notes)
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(*sys.argv[2:]))
    else:
        main()
