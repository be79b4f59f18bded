"""The engine's half of `staging.py`: from host memory to the first correct answer, beside packing alone.

Packing is what vLLM does on a CPU with weights that are there: oneDNN copies each matrix into a layout of its own. The
wake is the engine's own, from asking for it to the canary's answer, which is compared bit for bit with that before the
sleep. Packing alone is the same packing in the same worker, with the weights mapped and every page touched.
"""

import asyncio
import json
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from staging_ways import MEMORY_DIR, WEIGHTS
from transformers import LlamaConfig, LlamaForCausalLM

from deployments.canary import ask_canary
from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import ModelSpec
from deployments.vllm_engine import VllmEngine
from tests.support.pools import background_pool
from tests.support.service import CHAT_MODEL, MODELS
from tests.support.snapshots import describe

ENGINE = {
    "max_model_len": 512,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
    "worker_extension_cls": "tests.bench.packing_probe.PackingProbe",
}
LARGE = "random weights, 2 GiB"
LARGE_SIZES = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass
class WakeSamples:
    """Of one model; a round each. Bytes are those of the worker beyond what packing alone takes."""

    size_bytes: int = 0
    wake_s: list[float] = field(default_factory=list)
    packing_s: list[float] = field(default_factory=list)
    forward_s: list[float] = field(default_factory=list)
    copied_bytes: list[float] = field(default_factory=list)
    besides_bytes: list[float] = field(default_factory=list)


@dataclass
class EngineSamples:
    """What this file measures: wakes by model, and the memory of a snapshot that two engines use, in bytes."""

    wakes: dict[str, WakeSamples]
    shared: "Mapping"
    shared_file_bytes: int


@dataclass(frozen=True)
class Mapping:
    """What all processes together have of a file's mappings, in bytes.

    `seen` counts a page for every process that has it, `real` counts it once; `copied` are pages that somebody wrote to
    and so has a copy of.
    """

    seen_bytes: int
    real_bytes: int
    copied_bytes: int


def measure_engines(rounds: int) -> EngineSamples:
    """Both models one after the other, then two engines of the first."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as name, tempfile.TemporaryDirectory() as logs:
        directory = Path(name)
        for model in ("demo", "large"):
            (directory / model).mkdir()
        with background_pool(Path(logs)) as pool:
            return asyncio.run(_measure(directory, pool, rounds))


async def _measure(directory: Path, pool: PoolAddress, rounds: int) -> EngineSamples:
    demo = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE | {"dtype": "bfloat16"})
    wakes = {CHAT_MODEL: await _wakes(demo, directory / "demo", pool, rounds)}
    shared = await _two_replicas(demo, directory / "demo", pool)
    with checkpoint(directory / "checkpoint") as path:
        large = ModelSpec("large", str(path), ENGINE | {"dtype": "bfloat16", "skip_tokenizer_init": True})
        wakes[LARGE] = await _wakes(large, directory / "large", pool, rounds)
    return EngineSamples(wakes, shared, _in_pages(directory / "demo" / WEIGHTS))


@contextmanager
def checkpoint(directory: Path) -> Iterator[Path]:
    """A model of about 2 GiB."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**LARGE_SIZES))
        model = model.to_empty(device="cpu")
        for weight in model.parameters():
            torch.nn.init.uniform_(weight, -0.05, 0.05)
        model.save_pretrained(directory)
    finally:
        torch.set_default_dtype(torch.float32)
    yield directory


async def _wakes(spec: ModelSpec, snapshot: Path, pool: PoolAddress, rounds: int) -> WakeSamples:
    engine = VllmEngine(with_loader(spec, build=snapshot), pool)
    await engine.start()
    try:
        describe(spec, snapshot)
        file = snapshot / WEIGHTS
        samples = WakeSamples(file.stat().st_size)
        await engine.sleep()
        for round_index in range(rounds + 1):
            before_bytes = await _ask(engine, "own_memory_bytes")
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            await engine.wake(snapshot)
            wake_s = loop.time() - begin_s
            grown_bytes = await _ask(engine, "own_memory_bytes") - before_bytes
            copied_bytes = mapping_of(file).copied_bytes
            begin_s = loop.time()
            await ask_canary(engine._running(), engine.supported_tasks())
            forward_s = loop.time() - begin_s
            await engine.sleep()
            alone = await _ask(engine, "packing_alone", str(snapshot))
            if round_index:  # the first is a warm-up
                samples.wake_s.append(wake_s)
                samples.packing_s.append(alone["took_s"])
                samples.forward_s.append(forward_s)
                samples.copied_bytes.append(copied_bytes)
                samples.besides_bytes.append(grown_bytes - alone["packed_bytes"])
        return samples
    finally:
        await engine.stop()


async def _two_replicas(spec: ModelSpec, snapshot: Path, pool: PoolAddress) -> Mapping:
    """What two engines of a model have of the one snapshot."""
    engines = [VllmEngine(with_loader(spec, snapshot=snapshot), pool) for _ in range(2)]
    try:
        for engine in engines:
            await engine.start()
        # A sleep and a wake: then both have read every page, and have answered.
        for engine in engines:
            await engine.sleep()
            await engine.wake(snapshot)
        return mapping_of(snapshot / WEIGHTS)
    finally:
        for engine in engines:
            await engine.stop()


async def _ask(engine: VllmEngine, method: str, *arguments: str) -> int:
    (answer,) = await engine._running().collective_rpc(method, args=arguments)
    return answer


def _in_pages(file: Path) -> int:
    """What a file takes in memory, in bytes."""
    return -(-file.stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE


def mapping_of(file: Path) -> Mapping:
    """What the kernel says of every mapping of the file, in whichever process it is."""
    seen_bytes = real_bytes = copied_bytes = 0
    for process in psutil.process_iter():
        try:
            maps = process.memory_maps(grouped=False)
        except psutil.Error:
            continue
        for entry in maps:
            if entry.path == str(file):
                seen_bytes += entry.rss
                real_bytes += entry.pss
                copied_bytes += entry.anonymous
    return Mapping(seen_bytes, real_bytes, copied_bytes)


def main() -> None:
    print(json.dumps(measure_engines(2), default=vars, indent=1))


if __name__ == "__main__":
    main()
