"""An engine from the process pool, with its front end in this process.

Covers: vLLM's addresses, the forked engine, AsyncLLM over it. Does not cover: engines without the pool, requests
(``vllm_engine``).
"""

import asyncio
import time

from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.utils import get_engine_zmq_addresses
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from deployments.engine_args import engine_config
from deployments.forked_engine import ForkedEngine, PoolAddress
from deployments.types import ModelSpec


async def start_pooled(spec: ModelSpec, pool: PoolAddress) -> tuple[AsyncLLM, ForkedEngine]:
    """Return the front end of an engine that serves, and its processes.

    Raises:
        PoolUnavailableError: the pool can't be used; nothing was started.
    """
    begin_s = time.monotonic()
    config = await asyncio.to_thread(engine_config, spec)
    configured_s = time.monotonic()
    engine = await ForkedEngine.ask(pool, spec.id)
    try:
        addresses = get_engine_zmq_addresses(config)
        await engine.start(config, Executor.get_class(config), addresses)
        started_s = time.monotonic()
        llm = await asyncio.to_thread(_front_end, config, addresses.inputs[0], addresses.outputs[0])
    except BaseException:
        await engine.stop()
        raise
    # Without an engine manager vLLM doesn't see an engine die; this ends the requests in its hands.
    engine.when_gone(llm.engine_core.shutdown)
    front_s = time.monotonic() - started_s
    engine.stages_s = {"make the configuration": configured_s - begin_s} | engine.stages_s | {"front end": front_s}
    return llm, engine


def _front_end(config: VllmConfig, input_address: str, output_address: str) -> AsyncLLM:
    return AsyncLLM(
        config,
        Executor.get_class(config),
        log_stats=False,
        log_requests=False,
        stat_loggers=[RayPrometheusStatLogger],
        client_addresses={"input_address": input_address, "output_address": output_address},
    )
