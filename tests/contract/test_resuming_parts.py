"""The parts that resuming is made of, without an engine."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from deployments.delivered import delivered_token_ids, with_delivered
from deployments.engine_args import engine_config
from deployments.fake_engine import FakeEngine
from deployments.resuming_worker import RewindingGenerator, skip_draws
from deployments.types import ModelSpec
from tests.support.service import CHAT_MODEL, MODELS


async def test_the_fake_engine_resumes_too() -> None:
    fake = FakeEngine(ModelSpec("fake", ""))
    await fake.start()
    request: Any = {"stream_id": "a", "prompt_token_ids": [7, 8, 9], "sampling": {"max_tokens": 5}}
    whole = [delta.token_ids[0] async for delta in fake.generate(request)]
    for count in range(6):
        deltas = [delta async for delta in fake.generate(request | {"delivered_token_ids": whole[:count]})]
        assert whole[:count] + [token for delta in deltas for token in delta.token_ids] == whole
        assert deltas[-1].finish_reason == "length"


def test_callers_can_not_slip_delivered_tokens_in() -> None:
    carried = with_delivered({"extra_args": {"other": 1}}, [5, 6])["extra_args"]
    again = with_delivered({"extra_args": carried}, [])["extra_args"]
    assert again == {"other": 1}
    assert with_delivered({}, [])["extra_args"] is None
    params = type("Params", (), {"extra_args": carried})()
    assert delivered_token_ids(params) == [5, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skipped_draws_are_those_of_the_sampler(dtype: torch.dtype) -> None:
    drawn, skipped = (torch.Generator().manual_seed(3) for _ in range(2))
    noise = torch.empty(49152, dtype=dtype)
    for _ in range(4):
        noise.exponential_(generator=drawn)
    skip_draws(skipped, noise, 4)
    assert torch.equal(drawn.get_state(), skipped.get_state())


def test_a_generator_goes_back_to_its_mark() -> None:
    generator = RewindingGenerator()
    generator.manual_seed(5)
    generator.mark()
    draws = []
    for _ in range(3):
        draws.append(torch.empty(32).exponential_(generator=generator))
        generator.set_offset(generator.get_offset() - 4)
    assert all(torch.equal(one, other) for one, other in pairwise(draws))


def test_the_scheduler_replaces_the_one_that_vllm_would_choose() -> None:
    """An engine that schedules asynchronously would become slower under a synchronous scheduler."""
    assert not engine_config(ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL))).scheduler_config.async_scheduling
