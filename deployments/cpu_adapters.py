"""What vLLM's layers keep adapters in, and a slot there that stays empty, behind those of the adapters.

vLLM marks rows of a batch that have no adapter with -1, and its CPU kernels (0.29) take that for an index, which in
torch is the last one: once every slot is taken, requests of the base model that are batched with others would be
answered by the adapter in the last slot. With one more slot, of zeros, the last one adds nothing.

The names of vLLM's layers that are not public stand here and nowhere else; ``tests/contract/test_vllm_names.py`` guards
them.
"""

from dataclasses import dataclass

import torch
from torch import nn

_STACKS = ("lora_a_stacked", "lora_b_stacked")
# Of embeddings: the first of the above, seen as a table.
_TABLE = "lora_a_stacked_2d"
_MATRICES = 4


@dataclass(frozen=True)
class Stack:
    """One tensor of a layer, [slots, …]: an adapter's rank is its size in dimension ``rank_dim``."""

    tensor: torch.Tensor
    rank_dim: int


def lay_out_slots(model: nn.Module) -> None:
    """Give every layer of a model that was just loaded one slot more than vLLM will ever fill.

    All of a slot's matrices lie one behind the other, layer by layer, so that one copy can fill it.
    """
    matrices: dict[tuple[nn.Module, str], tuple[torch.Tensor, ...]] = {}
    for module in model.modules():
        for name in _STACKS:
            stack = vars(module).get(name)
            if isinstance(stack, torch.Tensor):
                setattr(module, name, _longer(stack))
            elif isinstance(stack, tuple):
                matrices[module, name] = stack
            elif stack is not None:
                setattr(module, name, tuple(_longer(part) for part in stack))
        if _TABLE in vars(module):
            setattr(module, _TABLE, module.lora_a_stacked.flatten(0, 1))
    parts = [part for stack in matrices.values() for part in stack]
    together = iter(_together(parts))
    for (module, name), stack in matrices.items():
        setattr(module, name, tuple(next(together) for _ in stack))


def _together(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return empty stacks of the same sizes, one slot longer, as parts of one tensor: [slots, all of a slot]."""
    if len({(len(stack), stack.dtype, stack.device) for stack in stacks}) != 1:
        return [_longer(stack) for stack in stacks]
    sizes = [stack[0].numel() for stack in stacks]
    slots = stacks[0].new_zeros(len(stacks[0]) + 1, sum(sizes))
    pieces = zip(stacks, slots.split(sizes, dim=1), strict=True)
    return [piece.unflatten(1, stack.shape[1:]) for stack, piece in pieces]


def stacks_of(module: nn.Module) -> list[Stack] | None:
    """Return all that a layer keeps adapters in; None for a layer that keeps them in some other way."""
    a, b = (vars(module).get(name) for name in _STACKS)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = (a,), (b,)
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return None
    # A is [slots, 1, rank, inputs], of embeddings [slots, vocabulary, rank]; B [slots, 1, outputs, rank].
    halves = [Stack(part, 2) for part in a] + [Stack(part, part.dim() - 1) for part in b]
    return halves if all(stack.tensor.dim() <= _MATRICES for stack in halves) else None


def _longer(stack: torch.Tensor) -> torch.Tensor:
    return torch.cat([stack, torch.zeros_like(stack[:1])])
