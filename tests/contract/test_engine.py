"""What every engine must do, asked of each: the fake one and a real vLLM on the CPU."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.streams import TokenStreams
from deployments.engine import Engine
from deployments.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineUnavailableError,
    RequestRejectedError,
    WakeError,
)
from deployments.fake_engine import FakeEngine
from deployments.forked_engine import PoolAddress
from deployments.types import GenerateRequest, ModelSpec
from deployments.wire import TokenDelta
from tests.support.feeds import generate_request
from tests.support.service import CHAT_MODEL, MODELS

pytestmark = pytest.mark.asyncio(loop_scope="module")


VLLM_SPEC = ModelSpec(
    CHAT_MODEL,
    str(MODELS / CHAT_MODEL),
    {"max_model_len": 1024, "kv_cache_memory_bytes": 134217728, "enforce_eager": True, "dtype": "float32"},
)


def make_fake(_snapshot: Path, _pool_address: PoolAddress) -> Engine:
    return FakeEngine(ModelSpec("fake", "", {"token_time_s": 0.001, "sleep_time_s": 0.001, "wake_time_s": 0.001}))


def make_vllm(snapshot: Path, _pool_address: PoolAddress) -> Engine:
    """By vLLM's own launcher, because there is no pool where it should be."""
    return vllm_engine(PoolAddress(str(snapshot.parent / "nobody"), str(snapshot.parent)), snapshot)


def make_pooled(snapshot: Path, pool_address: PoolAddress) -> Engine:
    return vllm_engine(pool_address, snapshot)


def vllm_engine(pool: PoolAddress, snapshot: Path) -> Engine:
    from deployments.snapshot_builder import with_loader  # noqa: PLC0415 - heavy
    from deployments.vllm_engine import VllmEngine  # noqa: PLC0415

    return VllmEngine(with_loader(VLLM_SPEC, build=snapshot), pool)


@pytest.fixture(scope="module", params=[make_fake, make_vllm, make_pooled], ids=["fake", "vllm", "pooled"])
def making(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def snapshot(making: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an engine writes its weights when it starts."""
    return tmp_path_factory.mktemp(f"snapshot-{making.__name__}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(making: Any, snapshot: Path, pool_address: PoolAddress) -> AsyncIterator[Engine]:
    made = making(snapshot, pool_address)
    with pytest.raises(EngineDiedError):
        made.check()  # not started yet
    said = Said()
    logging.getLogger("deployments").addHandler(said)
    await made.start()
    logging.getLogger("deployments").removeHandler(said)
    # Whoever starts it the slow way says why.
    assert any("nobody" in line and "starting the engine of" in line for line in said.lines) == (making is make_vllm)
    if not isinstance(made, FakeEngine):
        from tests.support.snapshots import describe  # noqa: PLC0415 - heavy

        describe(VLLM_SPEC, snapshot)
    yield made
    await made.stop()
    with pytest.raises(EngineDiedError):
        made.check()
    await made.stop()  # harmless


@pytest.fixture(scope="session")
def first_answers() -> dict[str, list[int]]:
    """By model, what the engine answered that was started first."""
    return {}


class Said(logging.Handler):
    """What is logged, as lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def ask(stream_id: str, max_tokens: int = 6, **sampling: object) -> GenerateRequest:
    return generate_request(TokenStreams(), stream_id, max_tokens=max_tokens, **sampling)


async def deltas_of(engine: Engine, request: GenerateRequest) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(request)]


async def test_only_the_last_delta_has_a_finish_reason(engine: Engine) -> None:
    deltas = await deltas_of(engine, ask("a", ignore_eos=True))
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert sum(len(delta.token_ids) for delta in deltas) == 6
    assert {delta.stream_id for delta in deltas} == {"a"}
    assert deltas[0].cached_tokens is not None
    assert all(delta.cached_tokens is None for delta in deltas[1:])


async def test_a_request_that_is_traced_tells_once_how_long_it_waited_for_its_turn(engine: Engine) -> None:
    begin_s = time.monotonic()
    traced = await deltas_of(engine, {**ask("traced"), "traceparent": f"00-{'1' * 32}-{'1' * 16}-01"})
    waited_s = [delta.queued_s for delta in traced]
    assert waited_s[0] is not None
    # Clocks of two processes are the same one.
    assert 0 <= waited_s[0] < time.monotonic() - begin_s
    assert isinstance(engine, FakeEngine) or waited_s[0] > 0
    # All of an answer can come at once where the reader is slower than the engine.
    assert set(waited_s[1:]) <= {None}
    plain = await deltas_of(engine, ask("plain"))
    assert {delta.queued_s for delta in plain} == {None}
    answers = [[token for delta in deltas for token in delta.token_ids] for deltas in (plain, traced)]
    assert answers[0] == answers[1]


async def test_the_same_request_gives_the_same_tokens_alone_and_together(engine: Engine) -> None:
    alone = [token for delta in await deltas_of(engine, ask("alone")) for token in delta.token_ids]
    together = await asyncio.gather(*(deltas_of(engine, ask(f"t{index}")) for index in range(8)))
    assert all([token for delta in deltas for token in delta.token_ids] == alone for deltas in together)


async def test_they_answer_alike_however_they_were_started(
    engine: Engine, making: Any, first_answers: dict[str, list[int]]
) -> None:
    answer = [token for delta in await deltas_of(engine, ask("alike", max_tokens=24)) for token in delta.token_ids]
    model = "fake" if making is make_fake else CHAT_MODEL
    assert answer == first_answers.setdefault(model, answer)


async def test_closing_the_iterator_stops_the_generation(engine: Engine) -> None:
    deltas = engine.generate(ask("a", max_tokens=900, ignore_eos=True))
    await anext(deltas)
    assert engine.unfinished() == 1
    await deltas.aclose()  # type: ignore[attr-defined]
    assert engine.unfinished() == 0


async def test_cancelling_the_reader_stops_the_generation(engine: Engine) -> None:
    reading = asyncio.ensure_future(deltas_of(engine, ask("a", max_tokens=900, ignore_eos=True)))
    async with asyncio.timeout(30):
        while engine.unfinished() == 0:  # noqa: ASYNC110 - engines announce nothing
            await asyncio.sleep(0.001)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    async with asyncio.timeout(1):
        while engine.unfinished():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_prompt_that_is_empty_is_refused_and_harms_nobody(engine: Engine) -> None:
    with pytest.raises(RequestRejectedError):
        await deltas_of(engine, ask("a") | {"prompt_token_ids": []})
    engine.check()
    assert (await deltas_of(engine, ask("b")))[-1].finish_reason is not None


async def test_it_sleeps_only_without_requests_and_answers_again_when_woken(engine: Engine, snapshot: Path) -> None:
    before = [token for delta in await deltas_of(engine, ask("before")) for token in delta.token_ids]
    running = engine.generate(ask("running", max_tokens=20, ignore_eos=True))
    received = [await anext(running)]
    with pytest.raises(EngineBusyError):
        await engine.sleep()
    received += [delta async for delta in running]
    assert received[-1].finish_reason == "length"

    await engine.sleep()
    await engine.sleep()  # harmless
    with pytest.raises(EngineUnavailableError):
        await deltas_of(engine, ask("asleep"))
    assert engine.unfinished() == 0
    engine.check()
    await engine.wake(snapshot)
    await engine.wake(snapshot)  # harmless
    assert [token for delta in await deltas_of(engine, ask("after")) for token in delta.token_ids] == before


async def test_a_request_that_comes_while_it_falls_asleep_is_refused(engine: Engine, snapshot: Path) -> None:
    sleeping = asyncio.ensure_future(engine.sleep())
    await asyncio.sleep(0)  # it has begun
    with pytest.raises(EngineUnavailableError):
        await deltas_of(engine, ask("late"))
    await sleeping
    await engine.wake(snapshot)


async def test_it_sleeps_at_once_after_a_request_was_cancelled(engine: Engine, snapshot: Path) -> None:
    deltas = engine.generate(ask("a", max_tokens=900, ignore_eos=True))
    await anext(deltas)
    await deltas.aclose()  # type: ignore[attr-defined]
    await engine.sleep()
    await engine.wake(snapshot)
    assert (await deltas_of(engine, ask("b")))[-1].finish_reason is not None


async def test_without_a_snapshot_it_does_not_wake_and_with_one_it_does(engine: Engine, snapshot: Path) -> None:
    await engine.sleep()
    with pytest.raises(WakeError) as caught:
        await engine.wake(snapshot / "nothing")
    assert "nothing" in caught.value.reason
    with pytest.raises(EngineUnavailableError):
        await deltas_of(engine, ask("a"))
    await engine.wake(snapshot)
    assert (await deltas_of(engine, ask("b")))[-1].finish_reason is not None


async def test_it_says_what_it_can_do(engine: Engine) -> None:
    assert "generate" in engine.supported_tasks()


async def test_an_engine_that_cannot_start_says_why_and_leaves_nothing() -> None:
    from deployments.vllm_engine import VllmEngine  # noqa: PLC0415 - heavy

    for broken in (FakeEngine(ModelSpec("x", "", {"fail_starts": 99})), VllmEngine(ModelSpec("x", "/nowhere"))):
        with pytest.raises(EngineStartError) as caught:
            await broken.start()
        assert caught.value.reason
        with pytest.raises(EngineDiedError):
            broken.check()
