"""From the token feed's deltas to what vLLM's engine core would have sent, for vLLM's own output processor."""

import numpy as np
import torch
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from deployments.wire import LogprobRow, TokenDelta

_FINISH_REASONS = {str(reason): reason for reason in FinishReason}


def core_output(delta: TokenDelta, request_id: str) -> EngineCoreOutput:
    """Return the delta as vLLM's engine core would have sent it for the request."""
    return EngineCoreOutput(
        request_id=request_id,
        new_token_ids=delta.token_ids,
        new_logprobs=_sample_logprobs(delta.logprobs) if delta.logprobs else None,
        new_prompt_logprobs_tensors=_prompt_logprobs(delta.prompt_logprobs) if delta.prompt_logprobs else None,
        finish_reason=_FINISH_REASONS[delta.finish_reason] if delta.finish_reason else None,
        stop_reason=delta.stop_reason,
        prefill_stats=_prefill_stats(delta.cached_tokens) if delta.cached_tokens is not None else None,
    )


def _prefill_stats(cached_tokens: int) -> PrefillStats:
    stats = PrefillStats()
    stats.num_cached_tokens = cached_tokens
    return stats


def _sample_logprobs(rows: list[LogprobRow]) -> LogprobsLists:
    ids, logprobs, ranks = zip(*rows, strict=True)
    return LogprobsLists([np.asarray(i) for i in ids], [np.asarray(p) for p in logprobs], np.asarray(ranks))


def _prompt_logprobs(rows: list[LogprobRow]) -> LogprobsTensors:
    ids, logprobs, ranks = zip(*rows, strict=True)
    return LogprobsTensors(torch.tensor(ids), torch.tensor(logprobs), torch.tensor(ranks))
