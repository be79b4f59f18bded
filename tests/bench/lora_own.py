"""The part `own` of `lora.py`: what a tenant's own engine takes beside everybody's, and what sharing weights costs it.

Memory is what all processes together have more of (PSS) once the second engine has answered, with everybody's engine
there already: what they share counts once. Speed is that of the second engine alone, in turn with one that has a copy
of the weights, packed as vLLM packs them on a CPU. All in float32: a CPU that can't multiply bfloat16 doesn't pack it
either, so there would be nothing to compare with.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from lora_engine import Asker, Samples
from report import Result, Target, median_result
from staging_engine import ENGINE, LARGE, checkpoint

from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.weights import rank_file
from tests.support.memory import children_pss_bytes
from tests.support.service import CHAT_MODEL, MODELS
from tests.support.snapshots import describe

SHARING, COPYING = "sharing", "with a copy"
MODELS_MEASURED = (CHAT_MODEL, LARGE)
AT_ONCE = (1, 16)
MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - memory is what is meant
VOCABULARY = 32_000
# In each condition of a round; the large model takes minutes for these on two cores, so it has one round.
REQUESTS = {CHAT_MODEL: 32, LARGE: 16}
MOST_OF_WEIGHTS = Target(0.2, "max")
DTYPE = {"dtype": "float32"}
MB = 1e-6


async def measure_own(pool: PoolAddress, rounds: int, samples: Samples, progress: Callable[[str], None]) -> None:
    """Both models one after the other."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as name:
        directory = Path(name)
        demo = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE | DTYPE)
        for each in ("demo", "large"):
            (directory / each).mkdir()
        await _measure(CHAT_MODEL, demo, directory / "demo", pool, rounds, samples, progress)
        with checkpoint(directory / "checkpoint") as path:
            large = ModelSpec("large", str(path), ENGINE | DTYPE | {"skip_tokenizer_init": True})
            await _measure(LARGE, large, directory / "large", pool, 1, samples, progress)


async def _measure(  # noqa: PLR0913, PLR0917 - what is measured, and where
    model: str,
    spec: ModelSpec,
    snapshot: Path,
    pool: PoolAddress,
    rounds: int,
    samples: Samples,
    progress: Callable[[str], None],
) -> None:
    progress(f"{model}: engines of tenants' own")
    async with AsyncExitStack() as running:

        async def started(wanted: ModelSpec) -> Asker:
            engine = VllmEngine(wanted, pool)
            await engine.start()
            running.push_async_callback(engine.stop)
            asker = Asker(engine, 3, VOCABULARY)
            await asker.ask(None, 8)
            return asker

        building = VllmEngine(with_loader(spec, build=snapshot), pool)
        await building.start()
        await building.stop()
        describe(spec, snapshot)
        samples.add(f"weights, {model}", "", float((snapshot / rank_file(0)).stat().st_size))
        restored = with_loader(spec, snapshot=snapshot)
        await started(restored)
        askers = {}
        for kind in (SHARING, COPYING):
            before_bytes = children_pss_bytes()
            own = replace(restored, id=f"{spec.id}@{kind}", shares_weights=kind == SHARING)
            askers[kind] = await started(own)
            samples.add(f"own engine's memory, {model}", kind, children_pss_bytes() - before_bytes)
        for number in range(rounds):
            progress(f"{model}: round {number + 1} of {rounds}")
            for at_once in AT_ONCE:
                for kind in (SHARING, COPYING)[:: 1 if number % 2 else -1]:
                    requests = REQUESTS[model] if at_once > 1 else REQUESTS[model] // 8
                    tokens_per_s = await askers[kind].throughput([None] * requests, at_once)
                    samples.add(f"own engine's tokens a second, {at_once} at once, {model}", kind, tokens_per_s)


def own_results(samples: Samples) -> Iterator[Result]:
    """What the part has measured; nothing where it was left out."""
    for model in MODELS_MEASURED:
        name = f"own engine's memory, {model}"
        if (name, SHARING) not in samples.of:
            continue
        weights_bytes = samples.of[f"weights, {model}", ""][0]
        for kind in (SHARING, COPYING):
            yield median_result(f"{name}: {kind}", [each * MB for each in samples.of[name, kind]], "MB")
        shares = [each / weights_bytes for each in samples.of[name, SHARING]]
        yield median_result(f"{name}: of the weights", shares, "ratio", MOST_OF_WEIGHTS, "the weights")
        for at_once in AT_ONCE:
            name = f"own engine's tokens a second, {at_once} at once, {model}"
            sharing, copying = samples.of[name, SHARING], samples.of[name, COPYING]
            ratios = [one / other for one, other in zip(sharing, copying, strict=True)]
            yield median_result(name, sharing, "tokens/s")
            yield median_result(f"{name}: ratio", ratios, "ratio", None, COPYING)
