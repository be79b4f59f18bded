"""A slot that stays empty, behind those of the adapters: what vLLM's CPU kernels take for "no adapter".

vLLM marks rows of a batch that have no adapter with -1, and its CPU kernels (0.29) take that for an index, which in
torch is the last one: once every slot is taken, requests of the base model that are batched with others would be
answered by the adapter in the last slot. With one more slot, of zeros, the last one adds nothing.

The names of vLLM's that are not public stand here and nowhere else; ``tests/contract/test_vllm_names.py`` guards them.
"""

import torch
from torch import nn

_STACKS = ("lora_a_stacked", "lora_b_stacked")
# Of embeddings: the first of the above, seen as a table.
_TABLE = "lora_a_stacked_2d"


def add_empty_slot(model: nn.Module) -> None:
    """Give every layer of a model that was just loaded one slot more than vLLM will ever fill."""
    for module in model.modules():
        for name in _STACKS:
            stack = vars(module).get(name)
            if isinstance(stack, torch.Tensor):
                setattr(module, name, _longer(stack))
            elif stack is not None:
                setattr(module, name, tuple(_longer(part) for part in stack))
        if _TABLE in vars(module):
            setattr(module, _TABLE, module.lora_a_stacked.flatten(0, 1))


def _longer(stack: torch.Tensor) -> torch.Tensor:
    return torch.cat([stack, torch.zeros_like(stack[:1])])
