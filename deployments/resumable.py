"""Whether an engine can resume a request exactly, and whether there is anything left to resume.

Covers: questions that are answered before the engine is asked. Does not cover: the resuming itself
(``resuming_scheduler``, ``resuming_worker``).
"""

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.request import Request

from deployments.errors import ResumeUnsupportedError
from deployments.types import ModelSpec


def check_resumable(spec: ModelSpec, llm: AsyncLLM, params: SamplingParams) -> None:
    """Return if the engine of ``spec`` goes on as if nothing had happened.

    Raises:
        ResumeUnsupportedError: it would go on, but perhaps differently.
    """
    if spec.device != "cpu" and not llm.vllm_config.use_v2_model_runner:
        # The worker's part is there for a CPU only, and V2 does without.
        raise ResumeUnsupportedError(spec.id, "on a GPU that needs vLLM's model runner V2, which can't run this model")
    if params.seed is not None and llm.vllm_config.speculative_config is not None:
        raise ResumeUnsupportedError(spec.id, "a seed can't be followed through speculative decoding")


def end_of(
    llm: AsyncLLM, prompt_token_ids: list[int], delivered_token_ids: list[int], params: SamplingParams
) -> tuple[str, int | str | None] | None:
    """Return finish reason and stop reason if the delivered tokens are all there will be, else None.

    That is rare, because the news of the end comes with the last token. The rules are those of vLLM's scheduler.
    """
    params = params.clone()
    processor = llm.input_processor
    params.update_from_generation_config(processor.generation_config_fields, llm.renderer.get_eos_token_id())
    limit = llm.model_config.max_model_len
    if params.max_tokens is None:
        params.max_tokens = limit - len(prompt_token_ids)
    request = Request("", prompt_token_ids, params, None)
    request.append_output_token_ids(delivered_token_ids)
    return (str(request.get_finished_reason()), request.stop_reason) if check_stop(request, limit) else None
