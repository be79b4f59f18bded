"""The adapter of a request, on its way through vLLM's OpenAI classes.

They look adapters up by name in one table for all. Ours has nothing but what the request at hand was resolved to: so
two tenants' adapters of one name never meet, a request keeps the version it began with, and no gateway keeps ids.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vllm.lora.request import LoRARequest

from deployments.adapters import ref_of
from deployments.types import AdapterRef, AdapterSpec


class AdapterRequest(LoRARequest):
    """What vLLM's classes pass on to the engine client; its integer id means nothing, the replica gives one."""

    ref: AdapterRef | None = None


_CHOSEN: ContextVar[AdapterRequest | None] = ContextVar("adapter", default=None)


class ChosenAdapter(dict[str, LoRARequest]):
    """Stands in for vLLM's table of adapters; empty for whoever lists it."""

    def __contains__(self, name: Any) -> bool:
        chosen = _CHOSEN.get()
        return chosen is not None and chosen.lora_name == name

    def __getitem__(self, name: str) -> LoRARequest:
        chosen = _CHOSEN.get()
        if chosen is None or chosen.lora_name != name:
            raise KeyError(name)
        return chosen


@contextmanager
def choosing(adapter: AdapterSpec | None) -> Iterator[None]:
    """Have ``adapter`` be the one there is within, also in tasks that begin there."""
    token = _CHOSEN.set(None if adapter is None else _request(adapter))
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def _request(adapter: AdapterSpec) -> AdapterRequest:
    # vLLM insists on a path, and never looks there.
    path = adapter.path or adapter.id
    return AdapterRequest(lora_name=adapter.id, lora_int_id=1, lora_path=path, ref=ref_of(adapter))
