"""The slots that an engine computes adapters from, filled from one piece of memory that has the slots' own layout.

vLLM keeps an adapter as some hundred tensors and puts it into a slot by some thousand operations. Here what vLLM has
made of an adapter is read back from its slot once; from then on it is put into any slot by copies alone.

    packed: layer by layer, its halves A, then B, each cut down to the adapter's rank

Covers: layout, reading, filling; a slot is cleared only where the one before had something that the next one has not.
Does not cover: which adapter is in which slot (vLLM), what layers are like (``cpu_adapters``).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.cpu_adapters import Stack

_FORMAT = 1


@dataclass(frozen=True)
class PackedShape:
    """What an adapter consists of: its rank, and the layers that it has weights for."""

    rank: int
    layers: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rank": self.rank, "layers": list(self.layers)}


@dataclass(frozen=True)
class PackedAdapter:
    """``values``: one dimension, in the slots' type and on the host."""

    shape: PackedShape
    values: torch.Tensor


@dataclass(frozen=True)
class _View:
    """The parts of one slot that adapters of a shape fill; where parts lie one behind the other, they are one."""

    shape: PackedShape
    parts: list[torch.Tensor]
    sizes: list[int]


class AdapterSlots:
    """Of one model; ``layers`` are the stacks of its layers by name, in an order that stays the same."""

    def __init__(self, layers: Mapping[str, Sequence[Stack]]) -> None:
        self._layers = layers
        self._views: dict[int, _View] = {}
        # What a slot has been filled with; who isn't here may hold anything.
        self._held: dict[int, PackedShape] = {}
        self._sizes: dict[PackedShape, list[tuple[int, ...]]] = {}
        self.dtype = next(stack.tensor.dtype for stacks in layers.values() for stack in stacks)

    def layout(self, made_by: str) -> str:
        """Return a name that two models share only if what is packed for one is right for the other."""
        stacks = [
            (name, [(list(stack.tensor.shape[1:]), stack.rank_dim) for stack in self._layers[name]])
            for name in self._layers
        ]
        return hashlib.sha256(repr((_FORMAT, made_by, str(self.dtype), stacks)).encode()).hexdigest()[:32]

    def count(self, shape: PackedShape) -> int:
        """Return how many values an adapter has. Raises KeyError: a layer that the model doesn't have."""
        return sum(map(math.prod, self.sizes(shape)))

    def sizes(self, shape: PackedShape) -> list[tuple[int, ...]]:
        """Return the sizes of the matrices of an adapter, in order. Raises as ``count``."""
        if shape not in self._sizes:
            self._sizes[shape] = [tuple(part.squeeze(0).shape) for part in self._parts(0, shape)]
        return self._sizes[shape]

    def pieces(self, shape: PackedShape, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the matrices in ``values``, of ``count`` values, in order, each in one dimension."""
        return list(values.split([math.prod(size) for size in self.sizes(shape)]))

    def read(self, slot: int, shape: PackedShape, values: torch.Tensor) -> PackedAdapter:
        """Copy what a slot holds into ``values``, of ``count`` values, and return it."""
        view = self._view(slot, shape)
        self._held[slot] = shape
        _copy_all(self._cut(values, view), view.parts)
        return PackedAdapter(shape, values)

    def fill(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into a slot, and nothing else."""
        view = self._view(slot, adapter.shape)
        if self._held.get(slot) != adapter.shape:
            self._held.pop(slot, None)
            for stacks in self._layers.values():
                for stack in stacks:
                    stack.tensor[slot].zero_()
        _copy_all(view.parts, self._cut(adapter.values, view))
        self._held[slot] = adapter.shape

    def forget(self, slot: int) -> None:
        """Take note that somebody else has filled a slot."""
        self._held.pop(slot, None)

    def _view(self, slot: int, shape: PackedShape) -> _View:
        view = self._views.get(slot)
        if view is None or view.shape != shape:
            parts = _joined(self._parts(slot, shape))
            view = self._views[slot] = _View(shape, parts, [part.numel() for part in parts])
        return view

    def _parts(self, slot: int, shape: PackedShape) -> list[torch.Tensor]:
        return [_cut_to(stack, slot, shape.rank) for layer in shape.layers for stack in self._layers[layer]]

    @staticmethod
    def _cut(values: torch.Tensor, view: _View) -> list[torch.Tensor]:
        pieces = zip(values.split(view.sizes), view.parts, strict=True)
        return [piece if part.dim() == 1 else piece.view(part.shape) for piece, part in pieces]

    def __repr__(self) -> str:
        return f"<AdapterSlots of {len(self._layers)} layers, {len(self._held)} known>"


def _cut_to(stack: Stack, slot: int, rank: int) -> torch.Tensor:
    # Where the rank is spread over devices, each has less of it than the adapter.
    kept = min(rank, stack.tensor.shape[stack.rank_dim])
    return stack.tensor[slot].narrow(stack.rank_dim - 1, 0, kept)


def _joined(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    joined: list[torch.Tensor] = []
    for part in parts:
        before = joined[-1] if joined else None
        if not part.is_contiguous():
            joined.append(part)
        elif before is not None and before.dim() == 1 and _ends_at(before) == part.data_ptr():
            joined[-1] = before.as_strided((before.numel() + part.numel(),), (1,))
        else:
            joined.append(part.flatten())
    return joined


def _ends_at(flat: torch.Tensor) -> int:
    return flat.data_ptr() + flat.nbytes


def _copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    # In one call: a call each takes longer than the copies themselves.
    torch._foreach_copy_(targets, sources)
