"""The canary of a sleeping engine: the answer to a fixed prompt, the same bit for bit before sleep and after.

It takes the way of any request, so it stands for all that a wake has to put right: weights, their packing, compiled
code. It is one forward pass, and shows in the engine's own statistics as one request.
"""

from collections.abc import Sequence

from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

# Shorter than any block of the KV cache, so that it is never answered from the prefix cache.
_PROMPT = {"type": "token", "prompt_token_ids": [1, 2, 3, 5, 7]}
_REQUEST_ID = "canary"
# Many of them: a change must also show in models whose numbers are as coarse as bfloat16.
_LOGPROBS = 20

Answer = bytes | dict[int, float]


async def ask_canary(llm: AsyncLLM, tasks: Sequence[str]) -> Answer:
    """Return the answer: the log probabilities of one token and its rivals, or a pooled output."""
    return await _logprobs(llm) if "generate" in tasks else await _pooled(llm, tasks)


async def _logprobs(llm: AsyncLLM) -> Answer:
    most = llm.model_config.max_logprobs
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=_LOGPROBS if most < 0 else min(_LOGPROBS, most),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    answer: dict[int, float] = {}
    async for output in llm.generate(_PROMPT, params, _REQUEST_ID):
        for position in output.outputs[0].logprobs or ():
            answer |= {token_id: entry.logprob for token_id, entry in position.items()}
    return answer


async def _pooled(llm: AsyncLLM, tasks: Sequence[str]) -> Answer:
    answer = b""
    async for output in llm.encode(_PROMPT, PoolingParams(task=tasks[0]), _REQUEST_ID):
        answer = output.outputs.data.numpy(force=True).tobytes()
    return answer
