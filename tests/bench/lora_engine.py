"""The measurements of `lora.py`, on single engines: FlashServe's `VllmEngine`, with its own worker or with vLLM's."""

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from lora_adapters import RANK, weights_bytes

from deployments.adapter_leases import AdapterLeases
from deployments.forked_engine import PoolAddress
from deployments.types import AdapterRef, AdapterSpec, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.adapter_files import AdapterFiles
from tests.support.s3_server import serve_s3
from tests.support.service import CHAT_MODEL, MODELS

OURS, STOCK = "FlashServe", "stock vLLM"
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16", "max_model_len": 256, "kv_cache_memory_bytes": 128 << 20, "max_num_seqs": 16,
    "enforce_eager": True, "worker_extension_cls": "tests.bench.lora_probe.LoraProbe",
}  # fmt: skip
# What engine_args would set for a CPU.
STOCK_ENGINE = {"worker_cls": "auto", "scheduler_cls": None, "distributed_executor_backend": "mp"}
MEMORY_DIR, DRAM_BYTES = Path("/dev/shm"), 8 << 30  # noqa: S108 - memory is what is meant
INPUT_TOKENS, OUTPUT_TOKENS, CONCURRENCY = 32, 24, 16
WARM_UP = 3


@dataclass
class Samples:
    """What was measured, by a name and whose engine it was; seconds, tokens per second or bytes."""

    of: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, name: str, whose: str, *values: float) -> None:
        """Takes measurements, in the order measured."""
        self.of.setdefault((name, whose), []).extend(values)


@asynccontextmanager
async def engine_of(
    whose: str, pool: PoolAddress, max_loras: int, max_cpu_loras: int, dram_bytes: int = DRAM_BYTES
) -> AsyncIterator[VllmEngine]:
    """A running engine that has room for so many adapters in slots, and in its host cache; its dram is its own."""
    arguments = ENGINE | {"max_cpu_loras": max_cpu_loras} | (STOCK_ENGINE if whose == STOCK else {})
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as directory:
        spec = ModelSpec(
            CHAT_MODEL,
            str(MODELS / CHAT_MODEL),
            arguments,
            lora_enabled=True,
            max_loras=max_loras,
            max_lora_rank=RANK,
            adapters_in=directory if whose != STOCK else "",
            adapters_bytes=dram_bytes,
        )
        made = VllmEngine(spec, pool)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


async def ask_worker(engine: VllmEngine, method: str, *arguments: Any) -> Any:
    """The answer of the engine's one worker."""
    (answer,) = await engine._running().collective_rpc(method, args=arguments)
    return answer


async def measure_swaps(whose: str, pool: PoolAddress, adapters: Sequence[Path], rounds: int, samples: Samples) -> None:
    """Loads and activations inside the worker, beside plain copies and the call's whole time."""
    slots = 4
    async with engine_of(whose, pool, slots, len(adapters)) as engine:
        ids = list(range(1, len(adapters) + 1))
        for where in ("files", "dram") if whose == OURS else ("files",):
            for number, directory in zip(ids, adapters, strict=True):
                await ask_worker(engine, "drop_adapter", number)
                took_s = await ask_worker(engine, "seconds_to_load", number, str(directory))
                # The first ones take what is taken only once.
                if number > WARM_UP:
                    samples.add(f"load from {where}", whose, took_s)
        for _ in range(rounds):
            samples.add("activate, in the worker", whose, *await ask_worker(engine, "seconds_to_activate", ids))
            for number in ids:
                begin_s = time.perf_counter()
                await ask_worker(engine, "seconds_to_activate", [number])
                samples.add("activate, the whole call", whose, time.perf_counter() - begin_s)
            copies_s = await ask_worker(
                engine, "seconds_to_copy", weights_bytes(adapters[0]), 2 * slots, len(ids) + slots
            )
            samples.add("plain copy of its bytes", whose, *copies_s[slots:])


class Asker:
    """Asks an engine for short answers to prompts that no prefix cache knows."""

    def __init__(
        self, engine: VllmEngine, seed: int, vocabulary: int = 40_000, input_tokens: int = INPUT_TOKENS
    ) -> None:
        self._engine = engine
        self._input_tokens = input_tokens
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(seed)
        self._numbers = itertools.count()

    def prompt(self) -> list[int]:
        return self._rng.integers(1000, self._vocabulary, self._input_tokens).tolist()

    async def ask(self, adapter: AdapterRef | None, tokens: int = 1) -> float:
        """Seconds to the first token, the rest of the answer being read as well."""
        begin_s, first_s = time.perf_counter(), float("nan")
        request: Any = {
            "stream_id": f"bench-{next(self._numbers)}",
            "model_id": CHAT_MODEL,
            "prompt_token_ids": self.prompt(),
            "sampling": {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True},
            "adapter": adapter,
        }
        async for delta in self._engine.generate(request):
            if np.isnan(first_s) and delta.token_ids:
                first_s = time.perf_counter() - begin_s
        return first_s

    async def throughput(self, choices: Sequence[AdapterRef | None], at_once: int = CONCURRENCY) -> float:
        """Output tokens per second, with so many answers under way."""
        left = iter(choices)

        async def ask_all() -> None:
            for adapter in left:
                await self.ask(adapter, OUTPUT_TOKENS)

        begin_s = time.perf_counter()
        await asyncio.gather(*(ask_all() for _ in range(at_once)))
        return len(choices) * OUTPUT_TOKENS / (time.perf_counter() - begin_s)


def refs_of(adapters: Iterable[Path]) -> list[AdapterRef]:
    """As requests name them, used where they are."""
    return [{"id": f"adapter{n}", "path": str(path), "digest": path.name[::-1]} for n, path in enumerate(adapters)]


async def measure_first_tokens(
    pool: PoolAddress, adapters: Sequence[Path], directory: Path, rounds: int, samples: Samples
) -> None:
    """First tokens with an adapter resident, on this node but in no engine, and only in S3."""
    base = f"{directory}/files"
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "none"}
    with serve_s3() as s3:
        for path in adapters:
            for file in path.iterdir():
                s3.objects[f"bucket/{path.name}/{file.name}"] = file.read_bytes()
        files = AdapterFiles(Path(base), s3.url)
        refs: list[AdapterRef] = []
        for path in adapters:
            taken = await asyncio.to_thread(files.take, path.name, f"s3://bucket/{path.name}", {}, RANK)
            refs.append({"id": path.name, "path": taken.path, "digest": taken.digest})
        leases = AdapterLeases(files)
        async with engine_of(OURS, pool, 2, len(adapters)) as engine:
            asker = Asker(engine, 1)

            async def first_s(ref: AdapterRef) -> float:
                begin_s = time.perf_counter()
                async with leases.held(CHAT_MODEL, ref) as held:
                    held_s = time.perf_counter() - begin_s
                    return held_s + await asker.ask(held)

            async def leave() -> None:
                engine.keep_adapters(specs)
                engine.keep_adapters([])
                await engine._adapters.settled()

            specs = [AdapterSpec(ref["id"], ref["path"], ref["digest"]) for ref in refs]
            for ref in refs:
                await first_s(ref)
            for _ in range(rounds):
                for ref in refs:
                    await leave()
                    samples.add("first token, in dram", OURS, await first_s(ref))
                    samples.add("first token, resident", OURS, await first_s(ref))
                    await leave()
                    await asyncio.to_thread(files.remove, ref["digest"])
                    samples.add("first token, in S3", OURS, await first_s(ref))
            await engine._adapters.settled()


def chosen(kind: str, refs: Sequence[AdapterRef], count: int, rng: np.random.Generator) -> list[AdapterRef]:
    """Which adapters are asked for: always the first, all alike, or by Zipf's law with exponent 1."""
    if kind == "1 adapter":
        return [refs[0]] * count
    weights = np.ones(len(refs)) if kind == "uniform" else 1 / np.arange(1, len(refs) + 1)
    return [refs[index] for index in rng.choice(len(refs), count, p=weights / weights.sum())]


KINDS = ("1 adapter", "uniform", "Zipf(1)")


async def measure_throughput(  # noqa: PLR0913, PLR0917 - what is measured, and how much of it
    pool: PoolAddress,
    adapters: Sequence[Path],
    slots: int,
    requests: int,
    rounds: int,
    samples: Samples,
    progress: Callable[[str], None],
) -> None:
    """Both engines, kind by kind; in each round both are asked for the same adapters."""
    refs = refs_of(adapters)
    for whose in (OURS, STOCK):
        async with engine_of(whose, pool, slots, len(adapters)) as engine:
            asker = Asker(engine, 2)
            progress(f"{whose}: every adapter once, then {rounds} rounds")
            for ref in refs:
                await asker.ask(ref)
            await asker.throughput(chosen("uniform", refs, requests // 2, np.random.default_rng(0)))
            for round_index in range(rounds):
                rng = np.random.default_rng(round_index + 1)
                shift = round_index % len(KINDS)
                for kind in KINDS[shift:] + KINDS[:shift]:
                    tokens_per_s = await asker.throughput(chosen(kind, refs, requests, rng))
                    samples.add(f"throughput, {kind}", whose, tokens_per_s)
                progress(f"{whose}: round {round_index + 1} of {rounds}")


def held_bytes(process_ids: Iterable[int]) -> int:
    """What processes and everything below them hold, shared pages by their share (PSS)."""
    found = {}
    for process_id in process_ids:
        process = psutil.Process(process_id)
        found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return sum(process.memory_full_info().pss for process in found.values())


async def measure_memory(
    whose: str, pool: PoolAddress, adapters: Sequence[Path], counts: Sequence[int], samples: Samples
) -> None:
    """What an engine holds with so many adapters in its host cache, beyond what it held without."""
    async with engine_of(whose, pool, 1, max(counts)) as engine:
        before_bytes = held_bytes(engine._process_ids())
        loaded = 0
        for count in counts:
            for number in range(loaded, count):
                await ask_worker(engine, "seconds_to_load", number + 1, str(adapters[number]))
            loaded = count
            samples.add(f"memory, {count} adapters", whose, held_bytes(engine._process_ids()) - before_bytes)
