"""Delivered tokens on their way through vLLM: from the engine's front end to its scheduler and its worker.

A request that is resumed has the tokens its client got already as *output*. vLLM's requests have no field for them, so
they travel in the free part of the sampling parameters; and so does the wish to know when it was scheduled, which vLLM
notes for every request or for none. Does not cover: what is done with them (``resuming_scheduler``,
``resuming_worker``).
"""

from typing import Any, Protocol

_KEY = "flashserve_delivered_token_ids"
_TIMED_KEY = "flashserve_timed"


class _Params(Protocol):
    extra_args: dict[str, Any] | None


def with_delivered(sampling: dict[str, Any], token_ids: list[int], *, is_timed: bool = False) -> dict[str, Any]:
    """Return fields of vLLM's SamplingParams that carry ``token_ids``, and whatever a caller put in their place not."""
    given = sampling.get("extra_args") or {}
    extra_args = {key: value for key, value in given.items() if key not in {_KEY, _TIMED_KEY}}
    if token_ids:
        extra_args[_KEY] = token_ids
    if is_timed:
        extra_args[_TIMED_KEY] = True
    return sampling | {"extra_args": extra_args or None}


def delivered_token_ids(params: _Params | None) -> list[int]:
    """Return the output tokens that a request comes with; none for nearly all."""
    if params is None or params.extra_args is None:
        return []
    return params.extra_args.get(_KEY, [])


def is_timed(params: _Params | None) -> bool:
    """Tell whether somebody wants to know when a request was scheduled."""
    return params is not None and params.extra_args is not None and _TIMED_KEY in params.extra_args
