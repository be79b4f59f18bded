"""An adapter's files, as PEFT saves them, packed as an engine's slots hold them, without vLLM's objects in between.

What vLLM does with a matrix is to convert it to the slots' type, to scale its B half, and to put it beside those that
its layer computes together: so it is done here, from a mapping of the file straight to where it belongs. Whatever is
not as simple as that is left to vLLM, and so is every refusal. Pure: tensors and names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from deployments.adapter_slots import AdapterSlots, PackedAdapter, PackedShape
from storage.tensor_header import Tensor
from storage.weights import dtype_of

# Of a layer: the modules that it computes together, in order; itself if it is no such layer.
Members = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PeftPlan:
    """Where each matrix comes from: ``sources`` are names in the file, in the order of packing; None for zeros."""

    shape: PackedShape
    sources: list[str | None]
    is_b: list[bool]


def plan_packing(
    slots: AdapterSlots,
    members: Members,
    tensors: Mapping[str, Tensor],
    module_of: Callable[[str], tuple[str, bool]],
    rank: int,
) -> PeftPlan | None:
    """Return how to pack a file's tensors; None where that is for vLLM to judge.

    ``module_of`` tells the module a tensor is for, and whether it is its A half.
    """
    halves: dict[tuple[str, bool], str] = {}
    for name in tensors:
        halves[module_of(name)] = name
    known = {module for modules in members.values() for module in modules}
    adapted = {module for module, _ in halves}
    if not halves or len(halves) != len(tensors) or len(halves) != 2 * len(adapted) or not adapted <= known:
        return None
    layers = tuple(layer for layer, modules in members.items() if adapted.intersection(modules))
    shape = PackedShape(rank, layers)
    order = [(module, is_a) for layer in layers for is_a in (True, False) for module in members[layer]]
    sources = [halves.get(half) for half in order]
    expected = slots.sizes(shape)
    if len(expected) != len(order) or not all(dtype_of(each).is_floating_point for each in tensors.values()):
        return None
    for source, size in zip(sources, expected, strict=True):
        # A file may be written so that its tensors can't be used where they lie.
        if source is not None and not _fits(tensors[source], size):
            return None
    return PeftPlan(shape, sources, [not is_a for _, is_a in order])


def _fits(tensor: Tensor, size: tuple[int, ...]) -> bool:
    return tensor.shape == size and tensor.start % dtype_of(tensor).itemsize == 0


def pack_file(  # noqa: PLR0913, PLR0917 - from what, by what, to where
    slots: AdapterSlots,
    plan: PeftPlan,
    tensors: Mapping[str, Tensor],
    file: torch.Tensor,
    scaling: float,
    values: torch.Tensor,
) -> PackedAdapter:
    """Fill ``values``, of as many values as the plan's shape has, from ``file``, the bytes that ``tensors`` are in."""
    pieces = slots.pieces(plan.shape, values)
    there = _flat(file, tensors)
    targets, sources = [], []
    for piece, name in zip(pieces, plan.sources, strict=True):
        if name is None:
            piece.zero_()
        else:
            targets.append(piece)
            sources.append(there[name])
    torch._foreach_copy_(targets, sources)
    if scaling != 1:
        for piece, is_b in zip(pieces, plan.is_b, strict=True):
            if is_b:
                # One by one: for all at once torch would round the factor to the matrices' type first.
                piece.mul_(scaling)
    return PackedAdapter(plan.shape, values)


def _flat(file: torch.Tensor, tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Return a file's tensors, each in one dimension; they lie one behind the other, in this order."""
    types = {tensor.dtype for tensor in tensors.values()}
    if len(types) > 1:
        return {name: file[tensor.start : tensor.end].view(dtype_of(tensor)) for name, tensor in tensors.items()}
    first, *_, last = [next(iter(tensors.values())), *tensors.values()]
    together = file[first.start : last.end].view(dtype_of(first))
    return dict(zip(tensors, together.split([math.prod(tensor.shape) for tensor in tensors.values()]), strict=True))
