"""Matrices packed from files are those that vLLM would load from them, to the bit; without an engine."""

import math
from pathlib import Path

import pytest
import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name

from deployments.adapter_slots import AdapterSlots
from deployments.cpu_adapters import Stack
from deployments.peft_packing import pack_file, plan_packing
from storage.adapter_source import WEIGHTS_NAME
from storage.tensor_header import LENGTH_BYTES, header_bytes, parse_header
from storage.weights import map_file
from tests.support.adapters import LINEAR, random_tensors, write_adapter
from tests.support.service import CHAT_MODEL, MODELS

MAX_RANK = 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Of the last, the factor itself has no exact value in bfloat16.
@pytest.mark.parametrize(("rank", "alpha"), [(16, 16), (16, 32), (8, 11), (12, 7)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_files_are_packed_as_vllm_loads_them(
    dtype: torch.dtype, rank: int, alpha: int, tmp_path: Path, *, use_rslora: bool
) -> None:
    tensors = random_tensors(MODELS / CHAT_MODEL, 1, rank)
    path = write_adapter(tmp_path / "a", tensors, rank=rank, lora_alpha=alpha, use_rslora=use_rslora)
    helper = PEFTHelper.from_local_dir(str(path), None)
    leaves = {leaf.rpartition(".")[2] for leaf in LINEAR}
    loaded = LoRAModel.from_local_checkpoint(str(path), leaves, helper, lora_model_id=1, device="cpu", dtype=dtype)

    def stacks(name: str) -> list[Stack]:
        lora = loaded.loras[name]
        a = torch.zeros(1, 1, MAX_RANK, lora.lora_a.shape[1], dtype=dtype)
        return [Stack(a, 2), Stack(torch.zeros(1, 1, lora.lora_b.shape[0], MAX_RANK, dtype=dtype), 3)]

    slots = AdapterSlots({name: stacks(name) for name in loaded.loras})
    content = (path / WEIGHTS_NAME).read_bytes()
    length = header_bytes(content, len(content))
    found = parse_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content))
    plan = plan_packing(slots, {name: (name,) for name in loaded.loras}, found, parse_fine_tuned_lora_name, rank)
    assert plan is not None
    values = torch.empty(slots.count(plan.shape), dtype=dtype)
    pack_file(slots, plan, found, map_file(path / WEIGHTS_NAME), helper.vllm_lora_scaling_factor, values)
    pieces = iter(slots.pieces(plan.shape, values))
    assert len(plan.shape.layers) == len(tensors) / 2
    for name in plan.shape.layers:
        lora = loaded.loras[name].optimize()
        assert torch.equal(next(pieces), lora.lora_a.flatten())
        assert torch.equal(next(pieces), lora.lora_b.flatten())
    assert math.isclose(helper.vllm_lora_scaling_factor, alpha / (math.sqrt(rank) if use_rslora else rank))
