"""One vLLM engine in this process: AsyncLLM behind the ``Engine`` protocol, tokens in and tokens out.

Covers: start and end of an engine and its processes, requests, sleep and wake, errors translated from vLLM's. Does not
cover: which engines run and when (``replica``), text (the gateway detokenizes), engine arguments (``engine_args``),
what a worker does to sleep (``cpu_worker``).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from deployments.adapters import AdapterPlaces
from deployments.batch_record import was_computing
from deployments.canary import Answer, ask_canary
from deployments.engine_args import engine_args
from deployments.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineUnavailableError,
    PoolUnavailableError,
    RequestRejectedError,
    SleepUnsupportedError,
    WakeError,
)
from deployments.footprint import process_memory_bytes
from deployments.forked_engine import ForkedEngine, PoolAddress
from deployments.pooled_start import start_pooled
from deployments.resumable import check_resumable, end_of
from deployments.start_times import one_after_the_other, wake_stages_s
from deployments.transfer_metrics import count_transfers
from deployments.types import (
    AdapterRef,
    AdapterSpec,
    Embedding,
    EmbedRequest,
    GenerateRequest,
    ModelSpec,
    StartReport,
)
from deployments.vllm_adapters import VllmAdapters, lora_request
from deployments.vllm_calls import answered
from deployments.vllm_tokens import delta_of, prompt_of, queued_s, sampling_params
from deployments.wire import TokenDelta

# Nothing is lost by killing one that has ended its requests; vLLM's own way out can hang in zmq.
STOP_TIMEOUT_S = 3.0

logger = logging.getLogger(__name__)


class VllmEngine:
    """The engine of one model, forked from ``pool`` if there is one. ``start`` before anything else; one event loop."""

    def __init__(self, spec: ModelSpec, pool: PoolAddress | None = None) -> None:
        self._spec = spec
        self._pool = pool
        self._forked: ForkedEngine | None = None
        self._llm: AsyncLLM | None = None
        self._tasks: list[str] = []
        # Requests in hand, counted here: vLLM counts one only some time after it was given it.
        self._unfinished = 0
        self._asleep = False
        self._canary: Answer | None = None
        # Of the last wake, in order.
        self._wake_stages_s: dict[str, float] = {}
        # Held while the engine falls asleep or wakes: one after the other.
        self._turning = asyncio.Lock()
        self._adapters = VllmAdapters(spec, self._running, self._turning, lambda: self._asleep)

    async def start(self) -> None:
        """See ``Engine.start``. Without a pool it takes tens of seconds: each of its processes imports vLLM."""
        try:
            self._llm = llm = await self._make()
            self._tasks = [str(task) for task in await answered(llm, llm.get_supported_tasks())]
        # vLLM's start fails with whatever its parts raise; all of it means one thing here.
        except Exception as error:
            await self.stop()
            reason = str(error).strip().splitlines()
            raise EngineStartError(self._spec.id, reason[0] if reason else type(error).__name__) from error

    async def _make(self) -> AsyncLLM:
        if self._pool is not None:
            try:
                llm, self._forked = await start_pooled(self._spec, self._pool)
            except PoolUnavailableError as error:
                logger.warning("%s; starting the engine of %s without it", error, self._spec.id)
            else:
                return llm
        # In a thread: the constructor blocks until the engine's processes are up.
        return await asyncio.to_thread(
            AsyncLLM.from_engine_args, engine_args(self._spec), stat_loggers=[RayPrometheusStatLogger]
        )

    def start_stages_s(self) -> dict[str, float]:
        """Return how long each part of the last start took, in seconds, in order; empty without a pool."""
        return {} if self._forked is None else self._forked.stages_s

    async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
        """See ``Engine.generate``."""
        stream_id = request["stream_id"]
        delivered = request.get("delivered_token_ids") or []
        params = sampling_params(request["sampling"], delivered)
        forked = self._forked
        if delivered:
            check_resumable(self._spec, self._running(), params)
            if end := end_of(self._running(), request["prompt_token_ids"], delivered, params):
                yield TokenDelta(stream_id, [], *end)
                return
        try:
            async with self._one_request(request.get("adapter")) as (llm, lora_request):
                outputs = llm.generate(
                    prompt_of(request),
                    params,
                    stream_id,
                    lora_request=lora_request,
                    priority=request.get("priority", 0),
                )
                first, is_untold = not delivered, request.get("traceparent") is not None
                # Closed here and not whenever it is collected: closing it is what aborts the request in the engine.
                async with aclosing(outputs):
                    async for output in outputs:
                        delta = delta_of(stream_id, output, params, first=first)
                        if is_untold:
                            delta.queued_s, is_untold = queued_s(output), False
                        yield delta
                        first = False
        except EngineDeadError as error:
            # A grammar is compiled beside the batches.
            had_begun = params.structured_outputs is not None or _was_computing(forked, stream_id)
            raise EngineDiedError(self._spec.id, had_begun=had_begun) from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise self._translated(error) from error

    async def embed(self, request: EmbedRequest) -> Embedding:
        """See ``Engine.embed``."""
        result: PoolingRequestOutput | None = None
        forked = self._forked
        try:
            async with self._one_request(request.get("adapter")) as (llm, lora_request):
                async for output in llm.encode(
                    prompt_of(request),
                    msgspec.convert(request["pooling"], PoolingParams),
                    request["stream_id"],
                    lora_request=lora_request,
                    priority=request.get("priority", 0),
                ):
                    result = output
        except EngineDeadError as error:
            raise EngineDiedError(self._spec.id, had_begun=_was_computing(forked, request["stream_id"])) from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            raise self._translated(error) from error
        if result is None:
            raise EngineDiedError(self._spec.id)
        data = result.outputs.data.to(torch.float32).contiguous()
        return {
            "data": data.numpy().tobytes(),
            "shape": list(data.shape),
            "cached_tokens": result.num_cached_tokens,
        }

    def check(self) -> None:
        """See ``Engine.check``."""
        if self._llm is None or self._llm.errored:
            raise EngineDiedError(self._spec.id)

    def supported_tasks(self) -> list[str]:
        """See ``Engine.supported_tasks``."""
        return self._tasks

    def unfinished(self) -> int:
        """See ``Engine.unfinished``."""
        return self._unfinished

    async def sleep(self) -> None:
        """See ``Engine.sleep``. The first time it also asks the canary, whose answer every wake has to give again."""
        async with self._turning:
            await self._sleep()

    async def prepare_wake(self, snapshot: Path) -> None:
        """See ``Engine.prepare_wake``: on a GPU the worker locks the snapshot's memory, in the background."""
        if self._spec.device == "gpu":
            async with self._turning:
                await self._ask_to_wake("prepare_wake", snapshot)

    async def wake(self, snapshot: Path | None = None) -> None:
        """See ``Engine.wake``."""
        async with self._turning:
            await self._wake(snapshot)

    async def _sleep(self) -> None:
        llm = self._running()
        if self._asleep:
            return
        if self._unfinished:
            raise EngineBusyError(self._spec.id)
        begin_s = time.perf_counter()
        self._asleep = True  # from here on nobody gets in
        try:
            await self._settle(llm)
            reason = next(filter(None, await answered(llm, llm.collective_rpc("fall_asleep"))), None)
        except EngineDeadError as error:
            raise EngineDiedError(self._spec.id) from error
        if reason is not None:
            self._asleep = False
            raise SleepUnsupportedError(self._spec.id, reason)
        logger.info("engine of %s asleep after %.3f s", self._spec.id, time.perf_counter() - begin_s)

    async def _settle(self, llm: AsyncLLM) -> None:
        """Do what comes before a sleep and leaves the engine awake if it fails."""
        settled = False
        try:
            if self._canary is None:
                self._canary = await ask_canary(llm, self._tasks)
            # What the prefix cache names will be gone. vLLM refuses while any request still holds a part of it.
            settled = await answered(llm, llm.reset_prefix_cache())
        finally:
            self._asleep = settled
        if not settled:
            raise EngineBusyError(self._spec.id)

    async def _wake(self, snapshot: Path | None) -> None:
        llm = self._running()
        if not self._asleep:
            return
        if snapshot is None:
            raise WakeError(self._spec.id, "it does not know its snapshot")
        begin_s = time.perf_counter()
        stages = await self._ask_to_wake("wake_from", snapshot)
        count_transfers(self._spec.id, stages)
        try:
            woken_s = time.perf_counter()
            answer = await ask_canary(llm, self._tasks)
            # Before anybody may ask for one again.
            await self._adapters.take_out_those_that_left()
        except EngineDiedError:
            raise
        except EngineDeadError as error:
            raise EngineDiedError(self._spec.id) from error
        except Exception as error:
            raise WakeError(self._spec.id, str(error)) from error
        if answer != self._canary:
            raise WakeError(self._spec.id, "it does not answer as before it fell asleep")
        self._asleep = False
        end_s = time.perf_counter()
        self._wake_stages_s = wake_stages_s(stages[0], end_s - woken_s)
        stages_s = {**stages[0], "canary_s": end_s - woken_s, "all_s": end_s - begin_s}
        logger.info("engine of %s awake: %s", self._spec.id, {key: round(value, 4) for key, value in stages_s.items()})

    async def _ask_to_wake(self, method: str, snapshot: Path) -> list[Any]:
        """Return what each worker answers."""
        llm = self._running()
        try:
            return await answered(llm, llm.collective_rpc(method, args=(str(snapshot),)))
        except EngineDeadError as error:
            raise EngineDiedError(self._spec.id) from error
        # What a worker raises arrives as a plain Exception that quotes it.
        except Exception as error:
            raise WakeError(self._spec.id, str(error)) from error

    async def memory_bytes(self) -> int:
        """See ``Engine.memory_bytes``; on a CPU the device's memory is the host's."""
        if self._spec.device == "cpu":
            return await asyncio.to_thread(process_memory_bytes, self._process_ids())
        llm = self._running()
        try:
            return sum(await answered(llm, llm.collective_rpc("device_bytes")))
        except EngineDeadError:
            # As of processes that have gone; who looks after engines notices.
            return 0
        # What a worker raises arrives as a plain Exception that quotes it.
        except Exception:
            logger.exception("what the engine of %s holds of its device is not known", self._spec.id)
            return 0

    def _process_ids(self) -> list[int]:
        if self._forked is not None:
            return [self._forked.process_id]
        manager = self._running().engine_core.resources.engine_manager
        return [] if manager is None else [process.pid for process in manager.processes]

    def start_report(self) -> StartReport:
        """See ``Engine.start_report``."""
        stages_s = self.start_stages_s()
        return {
            "weights_from": "checkpoint",
            "found_in": "checkpoint",
            "snapshot_id": "",
            "stages_s": stages_s,
            "begins_s": one_after_the_other(stages_s),
            "wake_stages_s": dict(self._wake_stages_s),
        }

    async def stop(self) -> None:
        """See ``Engine.stop``."""
        llm, self._llm = self._llm, None
        forked, self._forked = self._forked, None
        if llm is not None and forked is not None:
            llm.shutdown()  # its own part only, which takes no time
            await forked.stop()
        elif llm is not None:
            await asyncio.to_thread(llm.shutdown, STOP_TIMEOUT_S)

    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineDiedError(self._spec.id, had_begun=False)
        return self._llm

    @asynccontextmanager
    async def _one_request(self, adapter: AdapterRef | None) -> AsyncIterator[tuple[AsyncLLM, LoRARequest | None]]:
        llm = self._running()
        if self._asleep:
            raise EngineUnavailableError(self._spec.id, "its engine is asleep")
        self._unfinished += 1
        try:
            if adapter is None:
                yield llm, None
                return
            async with self._adapters.use(adapter) as found:
                yield llm, lora_request(found)
        finally:
            self._unfinished -= 1

    def keep_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """See ``Engine.keep_adapters``."""
        self._adapters.keep(adapters)

    async def adapters(self) -> list[str]:
        """See ``Engine.adapters``."""
        return await self._adapters.names()

    async def adapter_places(self) -> AdapterPlaces:
        """See ``Engine.adapter_places``."""
        return await self._adapters.places()

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        """See ``Engine.preload_adapter``."""
        async with self._one_request(None):
            await self._adapters.preload(adapter)

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, EngineGenerateError):
            # vLLM wraps whatever happened while the request was set up, a missing adapter file for instance.
            cause = error.__cause__ or error
            return RequestRejectedError(f"{type(cause).__name__}: {cause}")
        return RequestRejectedError(str(error), getattr(error, "parameter", None))

    def __repr__(self) -> str:
        return f"<VllmEngine {self._spec.id} {'running' if self._llm else 'stopped'}, {self._adapters!r}>"


def _was_computing(forked: ForkedEngine | None, stream_id: str) -> bool:
    """Tell whether an engine that has ended may have been computing this; for one without the pool nobody knows."""
    return forked is None or was_computing(forked.computing(), stream_id)
