"""Checks the replay against the real thing: ten minutes of a recorded trace, served here and replayed in virtual time.

Five copies of SmolLM2 stay awake for some seconds after a request and then sleep. What a request takes and what a wake
takes is measured first, alone; the replay knows these two numbers, the engines' slots and the trace, and nothing else.
Compared is the added waiting: what first tokens took longer than those of an engine that is awake and idle.

Usage: python tests/bench/replay_validation.py [--seconds 600] [--keep-awake 10]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from coldstart import serving, supervised, until_healthy
from replay_validation_plot import plot
from report import RESULTS_DIR, Result, make_report, median_result, print_report, wide_console, write_report
from servers import DEFAULT_MODEL_DIR, flashserve_config, free_port

from autoscaler.baselines import KeepAlive
from autoscaler.layers import Layer, Profile
from autoscaler.replay import Outcome, replay
from autoscaler.traces import Arrivals, Trace, read_trace

NAME = "replay"
TRACE = Path(__file__).parents[1] / "data" / "traces" / "azure_functions_2019_8h.csv.gz"
MODELS = 5
# Of a series, in the time that is replayed: so many that models sleep and wake, and the two processors can serve it.
FEWEST, MOST = 20, 60
SLOTS = 2
MAX_TOKENS = 16
PROMPT = "The three most important things in life are"
CALIBRATIONS = 5
QUANTILES = (0.5, 0.9, 0.95, 0.99)
PATIENCE_S = 300.0


@dataclass
class Served:
    """Of each request: seconds to its first token, and to its last."""

    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)


class Client:
    """Asks the service; ``served`` is what came of it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_S)

    async def ask(self, model: str, served: Served) -> None:
        body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": True}
        begin_s = time.perf_counter()
        first_s: float | None = None
        async with self._http.stream("POST", "/v1/completions", json=body) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    if "error" in (event := json.loads(line.removeprefix("data: "))):
                        raise RuntimeError(event["error"]["message"])
                    first_s = first_s or time.perf_counter() - begin_s
        if first_s is None:
            message = f"no token came of {model} ({reply.status_code})"
            raise RuntimeError(message)
        served.first_s.append(first_s)
        served.whole_s.append(time.perf_counter() - begin_s)

    async def sleep(self, model: str) -> None:
        (await self._http.post("/admin/sleep", json={"model": model})).raise_for_status()

    async def wakes(self) -> int:
        told = (await self._http.get("/admin/models")).json()["models"]
        return sum(engine["wakes"] for engine in told.values())


def chosen(seconds: float) -> dict[str, np.ndarray]:
    """The moments at which each model is asked for, in seconds from the begin."""
    moments = {name: each.at_s - each.at_s[0] // 60 * 60 for name, each in read_trace(TRACE).items()}
    moments = {name: at_s[at_s < seconds] for name, at_s in moments.items()}
    fitting = [at_s for at_s in moments.values() if FEWEST <= len(at_s) <= MOST][:MODELS]
    return {f"model-{index}": at_s for index, at_s in enumerate(fitting)}


def config(work_dir: Path, models: list[str], keep_awake_s: float) -> dict[str, Any]:
    """Copies of one model that sleep after so long without a request, and no forecasts."""
    made = flashserve_config(DEFAULT_MODEL_DIR, free_port())
    arguments = made["applications"][0]["args"]
    (one,) = arguments["models"]
    engine = one["engine"] | {"max_num_seqs": SLOTS}
    arguments["models"] = [one | {"id": name, "engine": engine, "keep_awake_s": keep_awake_s} for name in models]
    arguments["autoscaling"] = None
    arguments["storage"] = {"disk_dir": str(work_dir / "disk"), "dram_dir": f"/dev/shm/bench-{work_dir.name}"}  # noqa: S108
    return made


async def measured(client: Client, models: list[str]) -> tuple[Served, Served]:
    """Requests to engines that are awake and idle, and such as find theirs asleep; one at a time."""
    awake, asleep = Served(), Served()
    for model in models:
        await client.ask(model, Served())
        for _ in range(CALIBRATIONS):
            await client.ask(model, awake)
            await client.sleep(model)
            await client.ask(model, asleep)
    return awake, asleep


async def served(client: Client, moments: dict[str, np.ndarray]) -> tuple[Served, int]:
    """The trace, each request at its moment whatever has become of those before; also counts wakes."""
    for model in moments:
        await client.sleep(model)
    before, found = await client.wakes(), Served()
    arrivals = sorted((at_s, model) for model, each in moments.items() for at_s in each.tolist())
    begin_s, tasks = time.perf_counter(), []
    for number, (at_s, model) in enumerate(arrivals):
        await asyncio.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(client.ask(model, found)))
        if number % 20 == 0:
            print(f"{at_s:.0f} s: {number} of {len(arrivals)} requests", file=sys.stderr, flush=True)
    await asyncio.gather(*tasks)
    return found, await client.wakes() - before


def replayed(moments: dict[str, np.ndarray], keep_awake_s: float, wake_s: float, request_s: float) -> Outcome:
    """The same in virtual time."""
    trace: Trace = {name: Arrivals(at_s, np.full(len(at_s), request_s)) for name, at_s in moments.items()}
    layers = (Layer("awake", 0.0, 1.0), Layer("asleep", wake_s, 0.02))
    profile = Profile("here", layers, "measured in this run")
    return replay(trace, lambda *_: KeepAlive(profile.coldest, SLOTS, awake_s=keep_awake_s), profile, SLOTS)


def results(awake: Served, asleep: Served, real: Served, wakes: int, virtual: Outcome) -> list[Result]:
    """Quantiles of the added waiting, served beside replayed."""
    warm_s = float(np.median(awake.first_s))
    waits_s = np.maximum(0.0, np.array(real.first_s) - warm_s)
    found = [
        median_result("first token, awake", awake.first_s, "s"),
        median_result("request, awake", awake.whole_s, "s"),
        median_result("wake", [each - warm_s for each in asleep.first_s], "s"),
        Result("requests", float(len(waits_s)), "", ()),
        Result("wakes, served", float(wakes), "", ()),
        Result("wakes, replayed", float(virtual.starts), "", (), compared_with="served"),
    ]
    for quantile in QUANTILES:
        name = f"added waiting, p{quantile * 100:g}"
        found.append(Result(f"{name}, served", float(np.quantile(waits_s, quantile)), "s", tuple(waits_s.tolist())))
        told_s = virtual.wait_s(quantile)
        found.append(Result(f"{name}, replayed", told_s, "s", tuple(virtual.waits_s.tolist()), compared_with="served"))
    within = float((waits_s <= 1.0).mean())
    found.append(Result("within 1 s, served", within, "", ()))
    found.append(Result("within 1 s, replayed", virtual.within(1.0), "", (), compared_with="served"))
    return found


async def measure(work_dir: Path, seconds: float, keep_awake_s: float) -> list[Result]:
    moments = chosen(seconds)
    arguments, url = serving(config(work_dir, list(moments), keep_awake_s), work_dir)
    with supervised(arguments, work_dir, work_dir / "flashserve.log"):
        until_healthy(url)
        client = Client(url)
        awake, asleep = await measured(client, list(moments))
        real, wakes = await served(client, moments)
    wake_s = float(np.median(asleep.first_s) - np.median(awake.first_s))
    virtual = replayed(moments, keep_awake_s, wake_s, float(np.median(awake.whole_s)))
    waits_s = np.maximum(0.0, np.array(real.first_s) - np.median(awake.first_s))
    plot(waits_s, virtual.waits_s, RESULTS_DIR / f"{NAME}.png")
    return results(awake, asleep, real, wakes, virtual)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--keep-awake", type=float, default=10.0)
    options = parser.parse_args()
    # Short, since the paths of Ray's sockets must be.
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        found = asyncio.run(measure(Path(directory), options.seconds, options.keep_awake))
    report = make_report(NAME, found)
    path = write_report(report)
    print_report(report, wide_console())
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
