"""An engine from the process pool, with its front end in this process.

Covers: vLLM's addresses, the forked engine, AsyncLLM over it. Does not cover: engines without the pool, requests
(``vllm_engine``).
"""

import asyncio
import pickle
import time

import zmq
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.utils import EngineZmqAddresses, get_engine_zmq_addresses
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from deployments.engine_args import engine_config
from deployments.forked_engine import ForkedEngine, PoolAddress
from deployments.types import ModelSpec


async def start_pooled(spec: ModelSpec, pool: PoolAddress) -> tuple[AsyncLLM, ForkedEngine]:
    """Return the front end of an engine that serves, and its processes.

    Raises:
        PoolUnavailableError: the pool can't be used; nothing was started.
        EngineStartError: the engine failed; nothing of it keeps running.
    """
    begin_s = time.monotonic()
    config = await asyncio.to_thread(engine_config, spec)
    configured_s = time.monotonic()
    engine = await ForkedEngine.ask(pool, spec.id, spec.cache_dir)
    executor_class, addresses = Executor.get_class(config), get_engine_zmq_addresses(config)
    request = pickle.dumps((config, executor_class, addresses))
    # Beside the engine's start: it loads the tokenizer, and then waits for the engine to say that it is ready.
    front_end = asyncio.ensure_future(asyncio.to_thread(_front_end, config, executor_class, addresses))
    try:
        await engine.start(request)
        started_s = time.monotonic()
        llm = await asyncio.shield(front_end)
    except BaseException:
        await engine.stop()
        await _give_up(front_end, addresses)
        raise
    # Without an engine manager vLLM doesn't see an engine die; this ends the requests in its hands.
    engine.when_gone(llm.engine_core.shutdown)
    front_s = time.monotonic() - started_s
    engine.stages_s = {"make the configuration": configured_s - begin_s} | engine.stages_s | {"front end": front_s}
    return llm, engine


def _front_end(config: VllmConfig, executor_class: type[Executor], addresses: EngineZmqAddresses) -> AsyncLLM:
    return AsyncLLM(
        config,
        executor_class,
        log_stats=False,
        log_requests=False,
        stat_loggers=[RayPrometheusStatLogger],
        client_addresses={"input_address": addresses.inputs[0], "output_address": addresses.outputs[0]},
    )


async def _give_up(front_end: asyncio.Future[AsyncLLM], addresses: EngineZmqAddresses) -> None:
    """End a front end whose engine will not come: a message of a stranger makes its constructor fail."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(addresses.inputs[0])
        stranger.send(b"")
        await asyncio.wait([front_end])
    if front_end.exception() is None:
        front_end.result().shutdown()
