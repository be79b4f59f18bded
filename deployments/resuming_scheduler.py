"""vLLM's schedulers, for requests that come with output tokens: ``scheduler_cls`` of every engine.

A resumed request stands here as one that was preempted after its delivered tokens: they are output, so they count for
``max_tokens``, ``min_tokens`` and stop conditions, and one prefill computes prompt and output together. A grammar is
advanced over them as soon as it is compiled, before anything is sampled. Requests without delivered tokens take vLLM's
own way; a step does no more than vLLM's but for noting which requests it is for (``batch_record``).

Does not cover: penalties and seeds, which are the worker's (``resuming_worker``; that of GPUs needs nothing). The
asynchronous one, which engines on a GPU use, is tested without an engine, and not yet run on a GPU.
"""

import logging
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from deployments.batch_record import BatchRecord
from deployments.delivered import delivered_token_ids

logger = logging.getLogger(__name__)


def make_scheduler(vllm_config: VllmConfig, **given: Any) -> Scheduler:
    """Return the scheduler that vLLM would choose itself, which can resume requests besides."""
    chosen = ResumingAsyncScheduler if vllm_config.scheduler_config.async_scheduling else ResumingScheduler
    return chosen(vllm_config=vllm_config, **given)


class _Resuming:
    """Mixed into a scheduler of vLLM's."""

    structured_output_manager: Any
    grammar_compile_error_reqs: set[str]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._record = BatchRecord()

    def schedule(self, *args: Any, **given: Any) -> SchedulerOutput:
        """See vLLM's scheduler."""
        step: SchedulerOutput = super().schedule(*args, **given)  # type: ignore[misc]
        self._record.computing(step.num_scheduled_tokens)
        return step

    def add_request(self, request: Request) -> None:
        """See vLLM's scheduler."""
        delivered = delivered_token_ids(request.sampling_params)
        if delivered:
            request.append_output_token_ids(delivered)
            # vLLM counts a prefill as prompt only, and takes a longer hit of the prefix cache for a mistake.
            request.prefill_stats = None
        super().add_request(request)  # type: ignore[misc]

    def _try_promote_blocked_waiting_request(self, request: Request) -> bool:
        # Here and not in ``schedule``: a grammar that is compiled meanwhile would be used as it is.
        waited_for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        if not super()._try_promote_blocked_waiting_request(request):  # type: ignore[misc]
            return False
        return not (waited_for_grammar and request.num_output_tokens) or self._grammar_follows(request)

    def _grammar_follows(self, request: Request) -> bool:
        """Advance the grammar over the delivered tokens, as vLLM does over those of a step."""
        manager, delivered = self.structured_output_manager, list(request.output_token_ids)
        # Asked first as before any first token: it finds whether a model's thinking ended within the prompt.
        manager.should_fill_bitmask(request)
        if manager.should_advance(request, new_token_ids=delivered):
            tokens = manager.trim_reasoning_for_advance(request, delivered)
            grammar = request.structured_output_request.grammar
            if tokens and not grammar.accept_tokens(request.request_id, tokens):
                logger.error("delivered tokens of request %s don't fit its grammar", request.request_id)
                self.grammar_compile_error_reqs.add(request.request_id)
                return False
        return True


class ResumingScheduler(_Resuming, Scheduler):
    """vLLM's synchronous scheduler, the one it uses on a CPU."""


class ResumingAsyncScheduler(_Resuming, AsyncScheduler):
    """vLLM's asynchronous scheduler, which decides on a step while the one before is computed."""
