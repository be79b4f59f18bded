"""Both of vLLM's schedulers as engines have them, with a worker that counts: so that of a GPU is tested too."""

from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from deployments.delivered import with_delivered
from deployments.engine_args import engine_config
from deployments.types import ModelSpec
from tests.support.service import CHAT_MODEL, MODELS

PROMPT = list(range(40, 60))
BLOCK_TOKENS, BLOCKS = 16, 64
LIMIT, STOP = 12, 7


class CountingWorker:
    """Computes what it is told to, as a worker with model runner V2: a request's tokens come with its first step."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}

    def run(self, step: SchedulerOutput) -> ModelRunnerOutput:
        for new in step.scheduled_new_reqs:
            assert new.prefill_token_ids is not None
            assert new.prompt_token_ids == PROMPT, "what is output has not become prompt"
            self.tokens[new.req_id] = list(new.prefill_token_ids)
            self.computed[new.req_id] = new.num_computed_tokens
        sampled: list[list[int]] = []
        for request_id, count in step.num_scheduled_tokens.items():
            tokens = self.tokens[request_id]
            self.computed[request_id] += count
            assert self.computed[request_id] <= len(tokens), "nothing is computed that there isn't"
            sampled.append([next_of(tokens)] if self.computed[request_id] == len(tokens) else [])
            tokens.extend(sampled[-1])
        request_ids = list(step.num_scheduled_tokens)
        places = {request_id: place for place, request_id in enumerate(request_ids)}
        return ModelRunnerOutput(req_ids=request_ids, req_id_to_index=places, sampled_token_ids=sampled)


def next_of(tokens: list[int]) -> int:
    """What the model says next: it depends on every token and its place, and is never the same."""
    return 1000 * len(tokens) + sum(token * place for place, token in enumerate(tokens)) % 1000


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    init_none_hash(sha256)
    engine = {"dtype": "float32", "max_model_len": 512, "max_num_batched_tokens": 512, "enforce_eager": True}
    return engine_config(ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), engine=engine))


@pytest.fixture(params=["synchronous", "asynchronous"])
def scheduler(request: pytest.FixtureRequest, config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    is_asynchronous = request.param == "asynchronous"
    monkeypatch.setattr(config.scheduler_config, "async_scheduling", is_asynchronous)
    monkeypatch.setattr(config.cache_config, "num_gpu_blocks", BLOCKS)
    attention = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=config.model_config.dtype)
    made: Scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], attention)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
    )
    assert isinstance(made, AsyncScheduler) == is_asynchronous
    made.use_v2_model_runner = True
    return made


def answered(scheduler: Scheduler, delivered: list[int], **more: Any) -> tuple[list[int], str]:
    """The tokens that come after those delivered, and how it ends."""
    params = SamplingParams(**with_delivered({"temperature": 0.0, "max_tokens": LIMIT} | more, delivered))
    request_id = f"{len(delivered)} delivered"
    hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
    scheduler.add_request(Request(request_id, PROMPT, params, None, block_hasher=hasher))
    worker, steps, tokens = CountingWorker(), [], []
    # The asynchronous one is a step ahead of the worker.
    ahead = int(isinstance(scheduler, AsyncScheduler))
    while True:
        steps.append(scheduler.schedule())
        if len(steps) <= ahead:
            continue
        step = steps.pop(0)
        for output in scheduler.update_from_output(step, worker.run(step))[0].outputs:
            tokens += output.new_token_ids
            if output.finish_reason is not None:
                assert not scheduler.running
                return tokens, str(output.finish_reason)


def test_after_any_break_it_goes_on_as_if_nothing_had_happened(scheduler: Scheduler) -> None:
    whole, end = answered(scheduler, [])
    assert (len(whole), end) == (LIMIT, "length")
    for count in range(1, LIMIT):
        assert answered(scheduler, whole[:count]) == (whole[count:], "length")


def test_nor_is_it_kept_from_its_end(scheduler: Scheduler) -> None:
    whole, _ = answered(scheduler, [])
    for count in range(1, STOP):
        rest = answered(scheduler, whole[:count], stop_token_ids=[whole[STOP - 1]])
        assert rest == (whole[count:STOP], "stop")
