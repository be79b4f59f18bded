"""Delivered tokens on their way through vLLM: from the engine's front end to its scheduler and its worker.

A request that is resumed has the tokens its client got already as *output*. vLLM's requests have no field for them, so
they travel in the free part of the sampling parameters. Does not cover: what is done with them (``resuming_scheduler``,
``resuming_worker``).
"""

from typing import Any, Protocol

_KEY = "flashserve_delivered_token_ids"


class _Params(Protocol):
    extra_args: dict[str, Any] | None


def with_delivered(sampling: dict[str, Any], token_ids: list[int]) -> dict[str, Any]:
    """Return fields of vLLM's SamplingParams that carry ``token_ids``, and whatever a caller put in their place not."""
    extra_args = {key: value for key, value in (sampling.get("extra_args") or {}).items() if key != _KEY}
    if token_ids:
        extra_args[_KEY] = token_ids
    return sampling | {"extra_args": extra_args or None}


def delivered_token_ids(params: _Params | None) -> list[int]:
    """Return the output tokens that a request comes with; none for nearly all."""
    if params is None or params.extra_args is None:
        return []
    return params.extra_args.get(_KEY, [])
