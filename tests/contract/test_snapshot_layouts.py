"""Snapshots of models that hold their weights in other ways than most: tied, experts, quantized. Real vLLM."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import make_experts, make_int8, make_tied

from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import build_snapshot, origin_of, with_loader
from deployments.types import ModelSpec
from storage.snapshot import verify
from storage.tier import LocalTier
from tests.contract.test_snapshot_engine import AskedEngine, without_weights

ENGINE = {
    "dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 16 << 20, "enforce_eager": True,
    "skip_tokenizer_init": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "quantization", "held"),
    [
        (make_tied, None, "model.embed_tokens.weight"),
        (make_experts, None, "experts"),
        (make_int8, "compressed-tensors", "weight_scale"),
    ],
)
async def test_it_answers_from_its_snapshot_as_from_its_checkpoint(
    make: Callable[[Path], Path], quantization: str | None, held: str, pool_address: PoolAddress, tmp_path: Path
) -> None:
    spec = ModelSpec("tiny", str(make(tmp_path / "tiny")), ENGINE)
    stock, built = AskedEngine(spec, pool_address), []
    await stock.start()
    await stock.stop()

    def make_engine(spec: ModelSpec) -> AskedEngine:
        built.append(AskedEngine(spec, pool_address))
        return built[-1]

    disk = LocalTier("disk", tmp_path / "disk")
    manifest = await build_snapshot(spec, origin_of(spec, "0" * 64), disk, make_engine)
    assert manifest.origin.quantization == quantization
    assert any(held in tensor.name for tensor in manifest.tensors)
    path = disk.path(manifest.id)
    restored = AskedEngine(with_loader(without_weights(spec, tmp_path / "small"), snapshot=path), pool_address)
    await restored.start()
    await restored.stop()
    assert restored.answer == built[0].answer == stock.answer is not None
    verify(manifest, path)  # serving has changed nothing in it


async def test_tied_weights_are_held_once(tmp_path: Path, pool_address: PoolAddress) -> None:
    spec = ModelSpec("tiny", str(make_tied(tmp_path / "tiny")), ENGINE)
    disk = LocalTier("disk", tmp_path / "disk")
    origin = origin_of(spec, "0" * 64)
    manifest = await build_snapshot(spec, origin, disk, lambda spec: AskedEngine(spec, pool_address))
    assert [tensor.name for tensor in manifest.tensors if "lm_head" in tensor.name] == []
