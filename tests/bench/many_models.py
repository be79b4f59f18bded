"""Measures eight models on a device that has room for two: skewed random traffic, beside first come, first served.

The models are SmolLM2 with different noise in its weights, so that an answer of the wrong one is noticed: each answer
must be, token for token, what the same model answered when it was asked alone. The same requests at the same moments
go twice through the same engines: once FlashServe's residency decides who is awake, within a budget of two awake and
six asleep; once a dispatcher in front of it serves requests strictly in the order of their arrival, as a server does
that loads what the next request needs: the head of the line waits for its model, and everybody behind it too.

Usage: python tests/bench/many_models.py [--seconds 300] [--rate 0.5]
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from coldstart import serving, supervised, until_healthy
from many_models_plot import plot
from report import RESULTS_DIR, Result, Target, make_report, print_report, wide_console, write_report
from safetensors.torch import load_file, save_file
from servers import DEFAULT_MODEL_DIR, free_port

NAME = "many-models"
MODELS = 8
AWAKE_AT_ONCE = 2
# The share of the k-th most popular model is 1/k of the first's.
SKEW = 1.0
NOISE = 0.15
MAX_TOKENS = 16
PROMPT = "The three most important things in life are"
# What engines hold differs a little from one awakening to the next.
MARGIN = 1.08
PATIENCE_S = 600.0
SEED = 7


@dataclass(frozen=True)
class Arrival:
    """One request: when, after the begin, and for which model."""

    at_s: float
    model: str


@dataclass
class Outcome:
    """How requests fared."""

    ttft_s: list[float] = field(default_factory=list)
    errors: int = 0
    wrong: int = 0
    wakes: int = 0


def traffic(models: list[str], rate_per_s: float, seconds: float) -> list[Arrival]:
    """Poisson arrivals, models by a Zipf law."""
    random = np.random.default_rng(SEED)
    shares = 1 / np.arange(1, len(models) + 1) ** SKEW
    arrivals, now_s = [], random.exponential(1 / rate_per_s)
    while now_s < seconds:
        arrivals.append(Arrival(now_s, models[random.choice(len(models), p=shares / shares.sum())]))
        now_s += random.exponential(1 / rate_per_s)
    return arrivals


def make_models(directory: Path) -> list[str]:
    """Copies of the demo model, each with noise of its own; returns their directories."""
    made = []
    for index in range(MODELS):
        target = directory / f"model-{index}"
        shutil.copytree(DEFAULT_MODEL_DIR, target)
        generator = torch.Generator().manual_seed(index)
        weights = load_file(target / "model.safetensors")
        noisy = {
            name: tensor + NOISE * tensor.float().std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in weights.items()
        }
        noisy = {name: tensor.to(torch.bfloat16) for name, tensor in noisy.items()}
        save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
        made.append(str(target))
    return made


def config(work_dir: Path, sources: list[str], device_bytes: int | None) -> dict[str, Any]:
    """All of them in one pool. In float32, so that an answer does not depend on what else is in its batch."""
    engine = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
    models = [{"id": Path(source).name, "source": source, "engine": engine, "keep_awake_s": None} for source in sources]
    arguments: dict[str, Any] = {
        "models": models,
        "storage": {"disk_dir": str(work_dir / "disk"), "dram_dir": str(_memory_dir(work_dir)), "dram_bytes": "8GiB"},
    }
    if device_bytes is not None:
        arguments["pools"] = [{"name": "default", "device_bytes": device_bytes}]
    application = {"name": "flashserve", "route_prefix": "/", "import_path": "app.builder:build_app", "args": arguments}
    return {"http_options": {"host": "127.0.0.1", "port": free_port()}, "applications": [application]}


def _memory_dir(work_dir: Path) -> Path:
    return Path("/dev/shm") / f"bench-{work_dir.name}"  # noqa: S108 - the tier itself


class Client:
    """One service; every answer is compared with what is expected."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.expected: dict[str, str] = {}
        self._http = httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None))

    async def ask(self, model: str) -> tuple[str, float]:
        """Return the answer's text, and how long its first token took in seconds."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
        begin_s, first_s, text = time.perf_counter(), None, ""
        async with self._http.stream("POST", f"{self.url}/v1/completions", json=body) as reply:
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                first_s = first_s or time.perf_counter() - begin_s
                text += event["choices"][0]["text"]
        if first_s is None:
            message = f"no token came ({reply.status_code})"
            raise RuntimeError(message)
        return text, first_s

    async def count(self, model: str, waited_s: float, outcome: Outcome) -> None:
        """Ask, and count what comes of it; ``waited_s`` is how long the request has waited already."""
        try:
            text, first_s = await self.ask(model)
        except (httpx.HTTPError, RuntimeError) as error:
            print(f"{model}: {error}")
            outcome.errors += 1
            return
        outcome.ttft_s.append(waited_s + first_s)
        outcome.wrong += text != self.expected[model]

    async def engines(self) -> dict[str, Any]:
        """What the service says of its engines."""
        return (await self._http.get(f"{self.url}/admin/models")).json()["models"]

    async def wakes(self) -> int:
        """How often any engine has been woken."""
        return sum(engine["wakes"] for engine in (await self.engines()).values())

    async def tell(self, what: str, model: str) -> None:
        """An administrator's command."""
        (await self._http.post(f"{self.url}/admin/{what}", json={"model": model})).raise_for_status()

    async def learn(self, models: list[str]) -> None:
        """Ask every model alone, twice; its answers are what is expected from then on."""
        for model in models:
            text, _ = await self.ask(model)
            again, _ = await self.ask(model)
            if text != again:
                message = f"{model} does not answer the same twice"
                raise RuntimeError(message)
            self.expected[model] = text
        if len(set(self.expected.values())) != len(models):
            message = "two models give the same answer: they can't be told apart"
            raise RuntimeError(message)


class InOrder:
    """Serves requests in the order of their arrival, with at most so many models awake: who was used last stays."""

    def __init__(self, client: Client, awake: list[str]) -> None:
        self._client = client
        self._awake = awake  # the least recently used first
        self._running: dict[str, set[asyncio.Task[None]]] = {}
        self._turn = asyncio.Lock()  # hands on in the order of asking

    async def __call__(self, model: str, outcome: Outcome) -> None:
        begin_s = time.perf_counter()
        async with self._turn:
            if model not in self._awake:
                victim = self._awake.pop(0)
                await asyncio.gather(*self._running.get(victim, ()))
                await self._client.tell("sleep", victim)
                await self._client.tell("wake", model)
            else:
                self._awake.remove(model)
            self._awake.append(model)
            waited_s = time.perf_counter() - begin_s
            task = asyncio.create_task(self._client.count(model, waited_s, outcome))
            running = self._running.setdefault(model, set())
            running.add(task)
            task.add_done_callback(running.discard)
        await task


async def replay(arrivals: list[Arrival], client: Client, serve: Callable[[str, Outcome], Awaitable[None]]) -> Outcome:
    """Send every request at its moment, whatever has become of those before."""
    outcome, before = Outcome(), await client.wakes()
    begin_s = time.perf_counter()
    tasks = []
    for arrival in arrivals:
        await asyncio.sleep(max(0.0, begin_s + arrival.at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(serve(arrival.model, outcome)))
    await asyncio.gather(*tasks)
    outcome.wakes = await client.wakes() - before
    return outcome


async def in_order(url: str, models: list[str], arrivals: list[Arrival]) -> tuple[Outcome, int, dict[str, str]]:
    """First come, first served; also returns what two awake and the others asleep take, and the answers expected."""
    client = Client(url)
    await client.learn(models)
    for model in models:
        await client.tell("sleep", model)
    for model in models[:AWAKE_AT_ONCE]:
        await client.tell("wake", model)
    dispatch = InOrder(client, models[:AWAKE_AT_ONCE])
    outcome = await replay(arrivals, client, dispatch)
    sizes = sorted((await client.engines()).values(), key=lambda engine: engine["awake_bytes"], reverse=True)
    awake, asleep = sizes[:AWAKE_AT_ONCE], sizes[AWAKE_AT_ONCE:]
    needed = sum(engine["awake_bytes"] for engine in awake) + sum(engine["asleep_bytes"] for engine in asleep)
    return outcome, int(needed * MARGIN), client.expected


async def by_residency(url: str, expected: dict[str, str], arrivals: list[Arrival]) -> Outcome:
    """FlashServe decides."""
    client = Client(url)
    client.expected = expected
    for model in expected:
        await client.ask(model)
    return await replay(arrivals, client, lambda model, outcome: client.count(model, 0.0, outcome))


@contextmanager
def running(work_dir: Path, sources: list[str], device_bytes: int | None) -> Iterator[str]:
    """A service with these models; yields where it answers, once all of them can serve."""
    arguments, url = serving(config(work_dir, sources, device_bytes), work_dir)
    with supervised(arguments, work_dir, work_dir / "flashserve.log"):
        until_healthy(url, PATIENCE_S)
        yield url


def results(ours: Outcome, theirs: Outcome, requests: int) -> list[Result]:
    """What was measured, with the comparisons."""
    found = [
        Result("requests", float(requests), "", ()),
        Result("errors", float(ours.errors), "", (), Target(0, "max")),
        Result("answers of a wrong model", float(ours.wrong), "", (), Target(0, "max")),
        Result("errors, in order", float(theirs.errors), "", ()),
        Result("answers of a wrong model, in order", float(theirs.wrong), "", ()),
    ]
    for percent in (50, 95, 99):
        own, other = (float(np.percentile(each.ttft_s, percent)) for each in (ours, theirs))
        name = f"p{percent} TTFT"
        found += [
            Result(name, own, "s", tuple(ours.ttft_s) if percent == 50 else ()),
            Result(f"{name}, in order", other, "s", tuple(theirs.ttft_s) if percent == 50 else ()),
            Result(
                f"{name}, of in order", own / other, "", (), Target(1, "max", strict=True), "first come, first served"
            ),
        ]
    found += [
        Result("switches", float(ours.wakes), "", ()),
        Result("switches, in order", float(theirs.wakes), "", ()),
        Result("switches, of in order", ours.wakes / theirs.wakes, "", (), None, "first come, first served"),
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    options = parser.parse_args()
    # Short, since the paths of Ray's sockets must be.
    with tempfile.TemporaryDirectory(prefix="fm-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        work_dir = Path(directory)
        sources = make_models(work_dir)
        models = [Path(source).name for source in sources]
        arrivals = traffic(models, options.rate, options.seconds)
        try:
            with running(work_dir, sources, None) as url:
                theirs, device_bytes, expected = asyncio.run(in_order(url, models, arrivals))
            with running(work_dir, sources, device_bytes) as url:
                ours = asyncio.run(by_residency(url, expected, arrivals))
        finally:
            shutil.rmtree(_memory_dir(work_dir), ignore_errors=True)
    note = f"{MODELS} models within {device_bytes / 1e9:.1f} GB, which {AWAKE_AT_ONCE} awake and the others asleep fill"
    report = make_report(NAME, results(ours, theirs, len(arrivals)), [note])
    path = write_report(report)
    plot(ours.ttft_s, theirs.ttft_s, RESULTS_DIR / f"{NAME}.png")
    print_report(report, wide_console())
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
