"""The part `preload` of `lora.py`: many more adapters than memory holds, with those asked for most brought in ahead.

Beside it the same requests with what was used least lately let go and nothing brought in. Adapters are asked for by
Zipf's law or as recorded, at random times, a short prompt and one token each, so often that the engine has nothing to
do for half of the time; its host cache holds one adapter in eight, the node's shared memory as many more, the rest is
on its disk. The first half of the requests is what the shares are learnt from; the second is judged.
"""

import asyncio
import csv
import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lora_adapters import weights_bytes
from lora_engine import Asker, Samples, chosen, engine_of
from report import Result, Target, median_result

from autoscaler.adapter_shares import AdapterShares
from deployments.adapter_leases import AdapterLeases
from deployments.adapter_preload import AdapterPreloader
from deployments.adapters import AdapterPlaces
from deployments.engine_view import Expectation
from deployments.forked_engine import PoolAddress
from deployments.types import AdapterRef, AdapterSpec, ModelSpec
from deployments.vllm_engine import VllmEngine

AHEAD, LRU = "preloading", "least lately used"
KINDS = (LRU, AHEAD)
ADAPTERS, CACHED_SHARE, SLOTS = 500, 1 / 8, 4
REQUESTS, BUSY_SHARE, INPUT_TOKENS, TRIED = 800, 0.5, 8, 10
FIRST = "first token, many adapters"
PLACES = ("slots", "host", "dram", "disk")
MS = 1e3


@dataclass
class OneModel:
    """What the preloader sees of a replica with one engine: both its list of models and the one on it."""

    life: VllmEngine
    spec: ModelSpec
    shares: AdapterShares
    per_s: float
    in_hand: int = 0

    @property
    def is_idle(self) -> bool:
        return self.in_hand == 0

    def planned(self) -> list[tuple[Any, Expectation]]:
        return [(self, Expectation(self.per_s, 0.0, 0.0, "bench", self.shares.largest()))]


async def measure_preloading(
    pool: PoolAddress,
    adapters: Sequence[Path],
    popularity: Path | None,
    samples: Samples,
    progress: Callable[[str], None],
) -> None:
    """Both ways, the same requests at the same times; as recorded in ``popularity`` instead of by Zipf's law."""
    refs: list[AdapterRef] = [
        {"id": f"adapter{n}", "path": str(path), "digest": path.name} for n, path in enumerate(adapters)
    ]
    cached = max(1, round(len(adapters) * CACHED_SHARE))
    rng = np.random.default_rng(4)
    asked = chosen("Zipf(1)", refs, REQUESTS, rng) if popularity is None else recorded(popularity, refs, REQUESTS)
    waits = rng.exponential(1.0, REQUESTS)
    per_s = 0.0
    for kind in KINDS:
        dram_bytes = 2 * cached * weights_bytes(adapters[0])
        async with engine_of(kind, pool, SLOTS, cached, dram_bytes) as engine:
            asker = Asker(engine, 5, input_tokens=INPUT_TOKENS)
            if not per_s:
                alone_s = [await asker.ask(None) for _ in range(TRIED)]
                per_s = BUSY_SHARE / float(np.median(alone_s))
            samples.add("preloading, requests", "", per_s)
            progress(f"{kind}: {REQUESTS} requests for {len(adapters)} adapters, {per_s:.1f} a second")
            spec = ModelSpec("m", "", {"max_cpu_loras": cached}, lora_enabled=True, max_loras=SLOTS)
            model = OneModel(engine, spec, AdapterShares(), per_s)
            await _ask(kind, model, asker, refs, asked, waits / per_s, samples)


def recorded(path: Path, refs: Sequence[AdapterRef], count: int) -> list[AdapterRef]:
    """Which adapters are asked for: those of so many requests of a recording, at equal distances, in their order.

    A row is a request; it names its ``adapters``, split by ``;``, of which the first one counts.
    """
    with gzip.open(path, "rt", newline="") as file:
        named = [row["adapters"].partition(";")[0] for row in csv.DictReader(file) if row["adapters"]]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
    return [refs[numbers[name] % len(refs)] for name in named[:: len(named) // count][:count]]


async def _ask(  # noqa: PLR0913, PLR0917 - what is measured
    kind: str,
    model: OneModel,
    asker: Asker,
    refs: Sequence[AdapterRef],
    asked: Sequence[AdapterRef],
    waits_s: np.ndarray[Any, Any],
    samples: Samples,
) -> None:
    engine = model.life
    adapters = tuple(AdapterSpec(ref["id"], ref["path"], ref["digest"]) for ref in refs)
    engine.keep_adapters(adapters)
    model.spec = replace(model.spec, adapters=adapters)
    preloader = AdapterPreloader(model, AdapterLeases(None))  # type: ignore[arg-type] - as much of them as it uses
    if kind == AHEAD:
        preloader.run()

    async def one(number: int) -> None:
        ref = asked[number]
        places = await engine.adapter_places()
        model.shares.of_model(float(number), 1)
        model.shares.of_adapter(ref["id"], float(number), 1)
        model.in_hand += 1
        try:
            first_s = await asker.ask(ref)
        finally:
            model.in_hand -= 1
        if number >= len(asked) // 2:
            samples.add(FIRST, kind, first_s)
            samples.add(f"found in {_place(places, ref)}", kind, 1.0)

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        at_s = loop.time()
        for number, wait_s in enumerate(waits_s):
            at_s += wait_s
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            group.create_task(one(number))
    preloader.close()


def _place(places: AdapterPlaces, ref: AdapterRef) -> str:
    held = {"slots": places.slots, "host": places.host, "dram": places.dram}
    return next((name for name, digests in held.items() if ref["digest"] in digests), "disk")


def preloading_results(samples: Samples) -> Iterator[Result]:
    """What the part has measured; nothing where it was left out."""
    name = FIRST
    if (name, AHEAD) not in samples.of:
        return
    per_s = samples.of["preloading, requests", ""][0]
    yield Result("preloading, requests", per_s, "1/s", (per_s,))
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind in KINDS:
        found[kind] = Counter({place: len(samples.of.get((f"found in {place}", kind), ())) for place in PLACES})
        for place in PLACES:
            share = found[kind][place] / found[kind].total()
            yield Result(f"found in {place}: {kind}", share, "of requests", ())
        yield median_result(f"{name}, p50: {kind}", [each * MS for each in samples.of[name, kind]], "ms")
        p95_s = float(np.quantile(samples.of[name, kind], 0.95))
        yield Result(f"{name}, p95: {kind}", p95_s * MS, "ms", ())
    for share, label in ((0.5, "p50"), (0.95, "p95")):
        ahead, lru = (float(np.quantile(samples.of[name, kind], share)) for kind in (AHEAD, LRU))
        yield Result(f"{name}, {label}: ratio", ahead / lru, "ratio", (), Target(1.0, "max", strict=True), LRU)
