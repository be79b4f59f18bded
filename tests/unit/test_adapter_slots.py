"""Slots filled from packed adapters hold what they held when these were read. Tensors only, no vLLM."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deployments.adapter_slots import AdapterSlots, PackedAdapter, PackedShape
from deployments.cpu_adapters import lay_out_slots, stacks_of

SLOTS, RANK = 3, 4
SIZES = {"qkv": (6, (6, 2, 2)), "out": (6, (6,)), "down": (10, (6,))}
SHAPES = [
    PackedShape(rank, layers)
    for rank in (RANK, 2)
    for layers in (tuple(SIZES), ("qkv",), ("out", "down"))
]  # fmt: skip


def model() -> nn.Module:
    """Layers with stacks as vLLM's have them, laid out as ours."""
    made = nn.Module()
    for name, (inputs, outputs) in SIZES.items():
        layer = nn.Module()
        layer.lora_a_stacked = tuple(torch.zeros(SLOTS, 1, RANK, inputs) for _ in outputs)  # type: ignore[assignment]
        layer.lora_b_stacked = tuple(torch.zeros(SLOTS, 1, output, RANK) for output in outputs)  # type: ignore[assignment]
        made.add_module(name, layer)
    embedding = nn.Module()
    embedding.lora_a_stacked = torch.zeros(SLOTS, 20, RANK)
    embedding.lora_b_stacked = torch.zeros(SLOTS, 1, 6, RANK)
    embedding.lora_a_stacked_2d = embedding.lora_a_stacked.view(-1, RANK)
    made.add_module("embedding", embedding)
    lay_out_slots(made)
    return made


def slots_of(made: nn.Module) -> AdapterSlots:
    return AdapterSlots({name: stacks_of(layer) or [] for name, layer in made.named_children()})


def held(made: nn.Module, slot: int) -> list[torch.Tensor]:
    return [stack.tensor[slot].clone() for layer in made.children() for stack in stacks_of(layer) or []]


def place(made: nn.Module, slot: int, shape: PackedShape, seed: int) -> None:
    """As vLLM does it: clear the slot, and write the adapter's part of it."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in made.named_children():
        for stack in stacks_of(layer) or []:
            stack.tensor[slot].zero_()
            if name in shape.layers:
                part = stack.tensor[slot].narrow(stack.rank_dim - 1, 0, shape.rank)
                part.copy_(torch.randn(part.shape, generator=generator))


def packed(made: nn.Module, slots: AdapterSlots, slot: int, shape: PackedShape, seed: int) -> PackedAdapter:
    place(made, slot, shape, seed)
    slots.forget(slot)
    return slots.read(slot, shape, torch.empty(slots.count(shape)))


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.sampled_from(range(len(SHAPES)))), min_size=1, max_size=12))
def test_a_slot_holds_the_last_adapter_and_nothing_else(fills: list[tuple[int, int]]) -> None:
    made, other = model(), model()
    slots = slots_of(made)
    adapters = [packed(made, slots, number % SLOTS, shape, number) for number, shape in enumerate(SHAPES)]
    for slot, number in fills:
        slots.fill(slot, adapters[number])
        place(other, slot, SHAPES[number], number)
        assert all(map(torch.equal, held(made, slot), held(other, slot)))
        assert not any(part.any() for part in held(made, SLOTS)), "the one behind them stays empty"


def test_after_somebody_else_has_filled_it() -> None:
    made = model()
    slots = slots_of(made)
    adapter = packed(made, slots, 0, SHAPES[1], 1)
    expected = held(made, 0)
    place(made, 0, SHAPES[0], 2)
    slots.forget(0)
    slots.fill(0, adapter)
    assert all(map(torch.equal, held(made, 0), expected))


def test_what_lies_together_is_copied_together() -> None:
    made = model()
    slots = slots_of(made)
    assert len(slots._view(1, PackedShape(RANK, tuple(SIZES))).parts) == 1
    assert len(slots._view(1, PackedShape(RANK, (*SIZES, "embedding"))).parts) == 3
    # B halves of a lower rank have gaps.
    assert len(slots._view(1, PackedShape(2, ("out",))).parts) == 2
    assert made.embedding.lora_a_stacked_2d.data_ptr() == made.embedding.lora_a_stacked.data_ptr()  # type: ignore[union-attr, operator]


def test_layouts_are_told_apart() -> None:
    slots, narrower = slots_of(model()), model()
    narrower.out.lora_a_stacked = (torch.zeros(SLOTS, 1, RANK, 5),)  # type: ignore[union-attr, assignment]
    assert slots.layout("1") == slots_of(model()).layout("1")
    assert len({slots.layout("1"), slots.layout("2"), slots_of(narrower).layout("1")}) == 3


def test_layers_that_keep_adapters_otherwise_are_not_known() -> None:
    layer = nn.Module()
    assert stacks_of(layer) is None
    layer.lora_a_stacked = [torch.zeros(1, 1, 1, 1)]  # type: ignore[assignment]
    layer.lora_b_stacked = [torch.zeros(1, 1, 1, 1)]  # type: ignore[assignment]
    assert stacks_of(layer) is None
