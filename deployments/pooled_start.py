"""An engine from the process pool, with its front end in this process.

Covers: taking over an engine that was forked ahead, or having one forked; AsyncLLM over it. Does not cover: engines
without the pool, requests (``vllm_engine``), who forks ahead and when (``engines_ahead``).
"""

import asyncio
import pickle
import time

import zmq
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from deployments.engine_args import engine_config
from deployments.forked_engine import ForkedEngine, PoolAddress, surroundings_of
from deployments.pool_wire import EngineRequest
from deployments.recipe import Recipe, claim, key_of
from deployments.types import ModelSpec


async def start_pooled(spec: ModelSpec, pool: PoolAddress) -> tuple[AsyncLLM, ForkedEngine]:
    """Return the front end of an engine that serves, and its processes.

    Raises:
        PoolUnavailableError: the pool can't be used; nothing was started.
        EngineStartError: the engine failed; nothing of it keeps running.
    """
    begin_s = time.monotonic()
    config = await asyncio.to_thread(engine_config, spec)
    executor_class: type[Executor] = Executor.get_class(config)
    configured_s = time.monotonic()
    engine = await claim(pool, spec)
    is_ahead = engine is not None
    if engine is None:
        engine = await _launched(spec, pool, pickle.dumps((config, executor_class)))
    # Beside the engine's start: it loads the tokenizer, and then waits for the engine to say that it is ready.
    front_end = asyncio.ensure_future(asyncio.to_thread(_front_end, config, executor_class, engine.addresses))
    try:
        if not is_ahead:
            await engine.serves()
        started_s = time.monotonic()
        await engine.outlives(front_end)
        llm = front_end.result()
    except BaseException:
        await engine.stop()
        await _give_up(front_end, engine.addresses)
        raise
    # Without an engine manager vLLM doesn't see an engine die; this ends the requests in its hands.
    engine.when_gone(llm.engine_core.shutdown)
    inside_s = {"take over the engine": started_s - configured_s} if is_ahead else engine.stages_s
    front_s = {"front end": time.monotonic() - started_s}
    engine.stages_s = {"make the configuration": configured_s - begin_s} | inside_s | front_s
    return llm, engine


def recipe_of(spec: ModelSpec, pool: PoolAddress, snapshot_id: str) -> Recipe:
    """Return how the node can start such an engine again; it blocks for some milliseconds."""
    config = engine_config(spec)
    surroundings = surroundings_of(pool, spec.id, spec.cache_dir)
    engine = pickle.dumps((config, Executor.get_class(config)))
    return Recipe(spec.id, key_of(spec, surroundings.environment), surroundings, engine, snapshot_id)


async def _launched(spec: ModelSpec, pool: PoolAddress, pickled: bytes) -> ForkedEngine:
    engine = await ForkedEngine.ask(pool, spec.id, surroundings_of(pool, spec.id, spec.cache_dir))
    try:
        await engine.launch(EngineRequest(pickled))
    except BaseException:
        await engine.stop()
        raise
    return engine


def _front_end(config: VllmConfig, executor_class: type[Executor], addresses: tuple[str, str]) -> AsyncLLM:
    return AsyncLLM(
        config,
        executor_class,
        log_stats=False,
        log_requests=False,
        stat_loggers=[RayPrometheusStatLogger],
        client_addresses={"input_address": addresses[0], "output_address": addresses[1]},
    )


async def _give_up(front_end: asyncio.Future[AsyncLLM], addresses: tuple[str, str]) -> None:
    """End a front end whose engine will not come: a message of a stranger makes its constructor fail."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(addresses[0])
        stranger.send(b"")
        await asyncio.wait([front_end])
    if front_end.exception() is None:
        front_end.result().shutdown()
