"""Files packed as slots hold them: in each type, with scaling, and only where nothing is left to judge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deployments.adapter_slots import AdapterSlots, PackedAdapter
from deployments.cpu_adapters import Stack
from deployments.peft_packing import pack_file, plan_packing
from storage.tensor_header import LENGTH_BYTES, header_bytes, parse_header
from storage.weights import map_file

SLOTS, MAX_RANK, RANK = 2, 4, 3
MEMBERS = {"l.qkv": ("l.q", "l.k"), "l.out": ("l.out",), "m.out": ("m.out",)}
SIZES = {"l.q": (6, 6), "l.k": (6, 2), "l.out": (6, 4), "m.out": (4, 6)}


def slots_of(dtype: torch.dtype) -> AdapterSlots:
    def stacks(modules: tuple[str, ...]) -> list[Stack]:
        a = [torch.zeros(SLOTS, 1, MAX_RANK, SIZES[name][0], dtype=dtype) for name in modules]
        b = [torch.zeros(SLOTS, 1, SIZES[name][1], MAX_RANK, dtype=dtype) for name in modules]
        return [*(Stack(each, 2) for each in a), *(Stack(each, 3) for each in b)]

    return AdapterSlots({layer: stacks(modules) for layer, modules in MEMBERS.items()})


def tensors_of(*modules: str, dtype: torch.dtype = torch.float32, rank: int = RANK) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {}
    for name in modules:
        inputs, outputs = SIZES[name]
        made |= {f"{name}.A": torch.randn(rank, inputs).to(dtype), f"{name}.B": torch.randn(outputs, rank).to(dtype)}
    return made


def module_of(name: str) -> tuple[str, bool]:
    module, _, half = name.rpartition(".")
    return module, half == "A"


def packed(slots: AdapterSlots, tensors: dict[str, torch.Tensor], scaling: float, path: Path) -> PackedAdapter | None:
    save_file(tensors, path)
    file = map_file(path)
    content = path.read_bytes()
    length = header_bytes(content, len(content))
    found = parse_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content))
    plan = plan_packing(slots, MEMBERS, found, module_of, RANK)
    if plan is None:
        return None
    return pack_file(slots, plan, found, file, scaling, torch.full((slots.count(plan.shape),), 7.0, dtype=slots.dtype))


@pytest.mark.parametrize("there", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", [1.0, 2.0, 1.3])
def test_each_matrix_is_where_its_layer_has_it(
    there: torch.dtype, here: torch.dtype, scaling: float, tmp_path: Path
) -> None:
    slots, tensors = slots_of(here), tensors_of("m.out", "l.k", dtype=there)
    adapter = packed(slots, tensors, scaling, tmp_path / "a.safetensors")
    assert adapter is not None
    assert adapter.shape.layers == ("l.qkv", "m.out")
    slots.fill(1, adapter)
    for layer, modules in MEMBERS.items():
        stacks = slots._layers[layer]
        for number, name in enumerate(modules):
            a, b = (stacks[number + half * len(modules)].tensor for half in (0, 1))
            assert not a[0].any()
            assert not b[0].any()
            expected_a, expected_b = torch.zeros_like(a[1, 0]), torch.zeros_like(b[1, 0])
            if f"{name}.A" in tensors:
                expected_a[:RANK] = tensors[f"{name}.A"].to(here)
                scaled = tensors[f"{name}.B"].to(here)
                scaled *= scaling
                expected_b[:, :RANK] = scaled
            assert torch.equal(a[1, 0], expected_a)
            assert torch.equal(b[1, 0], expected_b)


def test_files_of_several_types_are_packed_too(tmp_path: Path) -> None:
    tensors = tensors_of("l.out") | tensors_of("m.out", dtype=torch.float16)
    slots = slots_of(torch.float32)
    adapter = packed(slots, tensors, 1.0, tmp_path / "a.safetensors")
    assert adapter is not None
    pieces = zip(slots.pieces(adapter.shape, adapter.values), tensors.values(), strict=True)
    assert all(torch.equal(piece, tensor.to(torch.float32).flatten()) for piece, tensor in pieces)


def without(name: str) -> dict[str, torch.Tensor]:
    tensors = tensors_of(*SIZES)
    del tensors[name]
    return tensors


@pytest.mark.parametrize(
    "tensors",
    [
        {}, without("l.q.A"), tensors_of("l.q") | {"n.A": torch.zeros(RANK, 2), "n.B": torch.zeros(2, RANK)},
        tensors_of("l.q", rank=MAX_RANK), tensors_of("l.q") | {"l.q.B": torch.zeros(5, RANK)},
        {name: tensor.to(torch.int32) for name, tensor in tensors_of("l.q").items()},
    ],
    ids=["nothing", "a half is missing", "another module", "another rank", "another size", "no numbers with fractions"],
)  # fmt: skip
def test_the_rest_is_for_vllm_to_judge(tensors: Any, tmp_path: Path) -> None:
    assert packed(slots_of(torch.float32), tensors, 1.0, tmp_path / "a.safetensors") is None


def test_layers_that_keep_other_pieces_than_they_have_members_are_left_to_vllm(tmp_path: Path) -> None:
    slots = slots_of(torch.float32)
    layers = {"l.qkv": slots._layers["l.qkv"][:2], **{name: slots._layers[name] for name in ("l.out", "m.out")}}
    assert packed(AdapterSlots(layers), tensors_of("l.q"), 1.0, tmp_path / "a.safetensors") is None
