"""What a request and its outputs are to vLLM's engine, and to ours: translated there and back.

Does not cover: the engine (``vllm_engine``).
"""

from typing import Any

import msgspec
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from deployments.delivered import with_delivered
from deployments.types import EmbedRequest, GenerateRequest
from deployments.wire import LogprobRow, TokenDelta


def prompt_of(request: GenerateRequest | EmbedRequest) -> dict[str, Any]:
    """Return the prompt of a request as vLLM takes it."""
    prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": request["prompt_token_ids"]}
    if request.get("cache_salt"):
        prompt["cache_salt"] = request["cache_salt"]
    return prompt


def sampling_params(fields: dict[str, Any], delivered: list[int]) -> SamplingParams:
    """Return vLLM's parameters for a request that goes on behind ``delivered`` tokens. Raises ValueError."""
    # Text is the gateway's business: it detokenizes and finds stop strings, and aborts when it has found one.
    own = {"n": 1, "stop": [], "detokenize": False, "output_kind": RequestOutputKind.DELTA.value}
    if delivered:
        # They came with the first of them.
        own["prompt_logprobs"] = None
    return msgspec.convert(with_delivered(fields | own, delivered), SamplingParams)


def delta_of(stream_id: str, output: RequestOutput, params: SamplingParams, *, first: bool) -> TokenDelta:
    """Return what vLLM has put out as a delta; the first one of a stream says what was cached."""
    completion = output.outputs[0]
    logprobs = prompt_logprobs = None
    if completion.logprobs:
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = [_row(token_id, position, params.num_logprobs) for token_id, position in pairs]
    if output.prompt_logprobs:
        # The first prompt token has no log probability: vLLM puts None there.
        pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=False)
        prompt_logprobs = [_row(token_id, position, params.prompt_logprobs) for token_id, position in pairs]
    return TokenDelta(
        stream_id,
        list(completion.token_ids),
        completion.finish_reason,
        completion.stop_reason,
        output.num_cached_tokens if first else None,
        logprobs,
        prompt_logprobs,
    )


def queued_s(output: RequestOutput) -> float | None:
    """Return how long a request waited for its turn in the engine; None where its scheduler doesn't tell."""
    stats = output.metrics
    if stats is None or not stats.queued_ts or not stats.scheduled_ts:
        return None
    return max(0.0, stats.scheduled_ts - stats.queued_ts)


def _row(token_id: int, position: dict[int, Logprob], top_count: int) -> LogprobRow:
    """Rebuild the engine's row from vLLM's mapping: the token itself, then the ``top_count`` best by rank.

    The mapping holds the token once even when it is also among the best, so then it has ``top_count`` entries, not
    one more; a ``top_count`` of -1 asks for the whole vocabulary.
    """
    own = position[token_id]
    best = [key for _, key in sorted((value.rank, key) for key, value in position.items() if key != token_id)]
    if top_count < 0 or len(position) == top_count:
        best.insert(own.rank - 1, token_id)
    ids = [token_id, *best]
    return ids, [position[key].logprob for key in ids], own.rank
