"""The KV cache that is planned for a model has room for what was asked, by the size of vLLM's own blocks."""

import dataclasses

import pytest
from vllm.v1.kv_cache_interface import FullAttentionSpec

from deployments.engine_args import engine_args, engine_config
from deployments.types import ModelSpec
from tests.support.service import CHAT_MODEL, MODELS

BLOCK_TOKENS = 128


def spec(concurrency: int, **engine: object) -> ModelSpec:
    return ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), engine, concurrency=concurrency)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("concurrency", "max_model_len"), [(1, 512), (4, 512), (8, 2048), (2, 8192)])
def test_it_has_room_for_the_sequences_that_are_expected(dtype: str, concurrency: int, max_model_len: int) -> None:
    config = engine_config(spec(concurrency, dtype=dtype, max_model_len=max_model_len))
    model = config.model_config
    layer = FullAttentionSpec(
        block_size=BLOCK_TOKENS,
        num_kv_heads=model.get_total_num_kv_heads(),
        head_size=model.get_head_size(),
        dtype=model.dtype,
    )
    block_bytes = layer.page_size_bytes * model.get_num_layers(config.parallel_config)
    there = (config.cache_config.kv_cache_memory_bytes or 0) // block_bytes
    usual_tokens = min(max_model_len, 2048)
    blocks = max(concurrency * -(-usual_tokens // BLOCK_TOKENS), -(-max_model_len // BLOCK_TOKENS))
    # vLLM keeps one block for itself.
    assert blocks + 1 <= there <= 1.5 * blocks + concurrency + 2


@pytest.mark.parametrize("given", [{"kv_cache_memory_bytes": 7}, {"gpu_memory_utilization": 0.1}])
def test_a_size_that_is_given_stays(given: dict[str, float]) -> None:
    made = dataclasses.asdict(engine_args(spec(8, **given)))
    assert {key: made[key] for key in given} == given
    assert made["kv_cache_memory_bytes"] == given.get("kv_cache_memory_bytes")
