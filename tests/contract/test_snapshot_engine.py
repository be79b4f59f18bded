"""Engines from snapshots answer as engines from checkpoints do, and read no checkpoint. Real vLLM."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from vllm.pooling_params import PoolingParams

from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import build_snapshot, origin_of, with_loader
from deployments.types import EmbedRequest, GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.snapshot import verify
from storage.tier import LocalTier
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, MODELS
from tests.support.tiny_models import make_tied

ENGINE = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
CHECKPOINT = "0" * 64
PROMPT = [504, 3575, 282, 4649, 314]
SPECS = [
    ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE),
    ModelSpec(EMBEDDING_MODEL, str(MODELS / EMBEDDING_MODEL), {"runner": "pooling", "enforce_eager": True}),
]


async def answer(engine: VllmEngine) -> Any:
    if "generate" not in engine.supported_tasks():
        ask: EmbedRequest = {
            "stream_id": "e",
            "model_id": EMBEDDING_MODEL,
            "prompt_token_ids": [101, 4937, 102],
            "pooling": msgspec.to_builtins(PoolingParams(task="embed")),
        }
        return await engine.embed(ask)
    request: GenerateRequest = {
        "stream_id": "g",
        "model_id": CHAT_MODEL,
        "prompt_token_ids": PROMPT,
        "sampling": {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 2},
        "reply_to": {"host": "", "port": 0, "key": ""},
    }
    deltas = [delta async for delta in engine.generate(request)]
    # Joined: how many tokens come in one delta depends on who is in time.
    return [token for delta in deltas for token in delta.token_ids], [row for d in deltas for row in d.logprobs or ()]


class AskedEngine(VllmEngine):
    """Answers once before it is stopped."""

    answer: Any = None

    async def stop(self) -> None:
        try:
            if self._llm is not None:
                self.answer = await answer(self)
        finally:
            await super().stop()


def without_weights(spec: ModelSpec, directory: Path) -> ModelSpec:
    """The model with nothing left of its checkpoint but the small files."""
    shutil.copytree(spec.path, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    assert json.loads((directory / "config.json").read_text())
    return replace(spec, path=str(directory))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
async def test_a_restored_engine_answers_as_the_one_that_was_built(
    spec: ModelSpec, tmp_path: Path, pool_address: PoolAddress
) -> None:
    disk = LocalTier("disk", tmp_path / "disk")
    origin = origin_of(spec, CHECKPOINT)
    built: list[AskedEngine] = []

    def make_engine(spec: ModelSpec) -> AskedEngine:
        built.append(AskedEngine(spec, pool_address))
        return built[-1]

    manifest = await build_snapshot(spec, origin, disk, make_engine)
    assert manifest.id == origin.snapshot_id
    assert disk.ids() == [manifest.id]

    path = disk.path(manifest.id)
    restored = AskedEngine(with_loader(without_weights(spec, tmp_path / "small"), snapshot=path), pool_address)
    await restored.start()
    await restored.stop()
    assert restored.answer == built[0].answer is not None
    verify(manifest, path)  # serving has changed nothing in it


async def test_what_one_engine_has_compiled_the_next_one_finds(tmp_path: Path, pool_address: PoolAddress) -> None:
    engine = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 16 << 20, "skip_tokenizer_init": True}
    spec = ModelSpec("tiny", str(make_tied(tmp_path / "tiny")), engine, cache_dir=str(tmp_path / "beside"))

    written: list[dict[str, int]] = []
    for _ in range(2):
        started = VllmEngine(spec, pool_address)
        await started.start()
        await started.stop()
        written.append(times_written(tmp_path / "beside"))
    assert written[0]
    assert written[1] == written[0]


def times_written(directory: Path) -> dict[str, int]:
    """By file of compiled code."""
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*.so")}
