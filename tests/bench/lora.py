"""Measures what many adapters cost an engine: making one resident, first tokens, throughput, memory.

One engine on a CPU, SmolLM2, adapters of rank 16 on all linear layers with random small weights, which the bench makes.
Parts: `swap` (inside the worker, beside a plain copy of the adapter's bytes and beside vLLM's own worker), `first`
(first tokens by where the adapter is), `throughput` (1 adapter, 128 uniformly and by Zipf's law), `memory`, `own` (an
engine of a tenant's own), `preload` (500 adapters where memory holds a quarter), `served` (the whole of a server,
beside two others). Missing a target is a result, not a failure.

Usage: python tests/bench/lora.py [--only swap,first] [--rounds 6] [--adapters 128] [--quick]
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
from lora_adapters import RANK, weights_bytes, write_adapters
from lora_engine import (
    CONCURRENCY,
    INPUT_TOKENS,
    KINDS,
    OURS,
    OUTPUT_TOKENS,
    STOCK,
    Samples,
    measure_first_tokens,
    measure_memory,
    measure_swaps,
    measure_throughput,
)
from lora_own import MODELS_MEASURED, measure_own, own_results
from lora_plot import plot
from lora_preload import ADAPTERS, measure_preloading, preloading_results
from lora_preload import FIRST as FIRST_OF_MANY
from lora_served import measure_served, served_panels, served_results
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report

from deployments.forked_engine import PoolAddress
from tests.support.pools import background_pool
from tests.support.service import CHAT_MODEL, MODELS, ROOT

NAME = "lora"
PARTS = ("swap", "first", "throughput", "memory", "own", "preload", "served")
SLOTS, SWAPPED, FIRST = 16, 12, 6
COUNTS = (1, 50, 128, 500)
MS, MB = 1e3, 1e-6
# By part: its samples' unit, and what it is times what was measured.
PANELS = {
    "making an adapter resident": (
        "load from files", "load from dram", "activate, the whole call", "activate, in the worker",
        "plain copy of its bytes",
    ),
    "first token": ("first token, resident", "first token, in dram", "first token, in S3"),
    "throughput": tuple(f"throughput, {kind}" for kind in KINDS),
    "memory of adapters": tuple(f"memory, {count} adapters" for count in COUNTS),
    "first token of 500 adapters": (FIRST_OF_MANY,),
    "memory of a tenant's own engine": tuple(f"own engine's memory, {model}" for model in MODELS_MEASURED),
}  # fmt: skip
TIME, RATE, SIZE = ("ms", MS), ("tokens/s", 1.0), ("MB", MB)
UNITS = dict(zip(PANELS, (TIME, TIME, RATE, SIZE, TIME, SIZE), strict=True))
ACTIVATE, COPY = "activate, in the worker", "plain copy of its bytes"


async def measure(pool: PoolAddress, directory: Path, options: argparse.Namespace) -> tuple[Samples, int]:
    """All parts that are asked for, and the size of an adapter in bytes."""
    samples, console, begin_s = Samples(), wide_console(), time.monotonic()

    def progress(what: str) -> None:
        console.print(f"{time.monotonic() - begin_s:5.0f} s  {what}", highlight=False)

    memory_counts = [count for count in COUNTS if not options.quick or count <= options.adapters]
    needed = {"swap": SWAPPED, "first": FIRST, "throughput": options.adapters, "memory": max(memory_counts), "own": 1}
    needed["served"] = options.adapters
    needed["preload"] = options.adapters if options.quick else ADAPTERS
    count = max(needed[part] for part in options.only)
    progress(f"making {count} adapters")
    adapters = list(write_adapters(directory / "adapters", MODELS / CHAT_MODEL, count))
    for whose in (OURS, STOCK):
        if "swap" in options.only:
            progress(f"{whose}: making adapters resident")
            await measure_swaps(whose, pool, adapters[:SWAPPED], options.rounds, samples)
        if "memory" in options.only:
            progress(f"{whose}: memory of up to {max(memory_counts)} adapters")
            await measure_memory(whose, pool, adapters, memory_counts, samples)
    if "first" in options.only:
        progress(f"{OURS}: first tokens")
        await measure_first_tokens(pool, adapters[:FIRST], directory, options.rounds, samples)
    if "throughput" in options.only:
        some = adapters[: options.adapters]
        await measure_throughput(pool, some, SLOTS, options.requests, options.rounds, samples, progress)
    if "own" in options.only:
        await measure_own(pool, options.rounds, samples, progress)
    if "served" in options.only:
        some = adapters[: options.adapters]
        await asyncio.to_thread(measure_served, some, max(1, options.rounds // 2), samples, progress)
    if "preload" in options.only:
        await measure_preloading(pool, adapters[: needed["preload"]], options.popularity, samples, progress)
    return samples, weights_bytes(adapters[0])


def results(samples: Samples) -> Iterator[Result]:
    """The medians, and what is compared with targets."""
    for title, names in PANELS.items():
        unit, factor = UNITS[title]
        for name in names:
            for whose in (OURS, STOCK):
                if values := samples.of.get((name, whose)):
                    target = Target(2.0, "max", strict=True) if (name, whose) == (ACTIVATE, OURS) else None
                    yield median_result(f"{name}: {whose}", [value * factor for value in values], unit, target)
    yield from _ratios(samples, ACTIVATE, COPY, "ratio", Target(2.0, "max"))
    resident = samples.of.get(("first token, resident", OURS), [])
    for place, most_ms in (("in dram", 10.0), ("in S3", 150.0)):
        if later := samples.of.get((f"first token, {place}", OURS)):
            more_ms = [(one - other) * MS for one, other in zip(later, resident, strict=True)]
            yield median_result(f"first token, {place}: more", more_ms, "ms", Target(most_ms, "max"), "resident")
    for kind in KINDS[1:]:
        yield from _ratios(samples, f"throughput, {kind}", f"throughput, {KINDS[0]}", "ratio", Target(0.98, "min"))
    yield from own_results(samples)
    yield from preloading_results(samples)
    yield from served_results(samples)


def _ratios(samples: Samples, name: str, other: str, unit: str, target: Target) -> Iterator[Result]:
    """Of each engine's; the target is ours alone."""
    for whose in (OURS, STOCK):
        if values := samples.of.get((name, whose)):
            paired = [one / two for one, two in zip(values, samples.of[other, whose], strict=True)]
            yield median_result(f"{name}: {whose}", paired, unit, target if whose == OURS else None, other)


def notes(options: argparse.Namespace, size_bytes: int, load: Sequence[float]) -> Iterator[str]:
    """What the reader needs beside the numbers."""
    yield f"{CHAT_MODEL} in bfloat16, rank {RANK} on all linear layers, {size_bytes * MB:.1f} MB an adapter"
    if "throughput" in options.only:
        yield (
            f"{options.adapters} adapters, {SLOTS} slots, all in the host cache; in each of {options.rounds} rounds "
            f"{options.requests} requests of {INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out, {CONCURRENCY} at a time"
        )
    if "own" in options.only:
        yield "engines of tenants' own and what they are compared with compute in float32, in twice the bytes"
    if "served" in options.only:
        yield "whole servers compute in float32"
    if "preload" in options.only:
        which = f"as in {options.popularity.name}" if options.popularity else "by Zipf's law"
        yield f"where many adapters are preloaded, they are asked for {which}"
    yield f"load of the machine when it began: {load[0]:.1f} over one minute, {load[1]:.1f} over five"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # It takes as long as the others together.
    alone = [part for part in PARTS if part != "served"]
    parser.add_argument("--only", default=",".join(alone), help=f"parts to measure, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--adapters", type=int, default=128, help="of the throughput")
    parser.add_argument("--requests", type=int, default=64, help="of the throughput, in each condition of a round")
    parser.add_argument("--popularity", type=Path, help="a recording of which adapters were asked for, for `preload`")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute a part: one round, few adapters")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if options.quick:
        options.rounds, options.adapters, options.requests = 1, 20, 16
    return options


def main() -> None:
    options, load = parse_arguments(), psutil.getloadavg()
    # Engines import the worker's extension by its name from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    with (
        tempfile.TemporaryDirectory() as logs,
        tempfile.TemporaryDirectory() as directory,
        background_pool(Path(logs)) as pool,
    ):
        samples, size_bytes = asyncio.run(measure(pool, Path(directory), options))
    report = make_report(NAME, list(results(samples)), list(notes(options, size_bytes, load)))
    path, picture = write_report(report), RESULTS_DIR / f"{NAME}.png"
    served = served_panels()
    plot(PANELS | served, UNITS | dict.fromkeys(served, RATE), samples.of, picture)
    print_report(report)
    print(f"Written: {path}, {picture}")
    if np.isnan([result.value for result in report.results]).any():
        sys.exit("Some answers had no first token.")


if __name__ == "__main__":
    main()
