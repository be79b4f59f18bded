"""vLLM's ``EngineClient`` over engine replicas elsewhere: what vLLM's OpenAI classes take for an engine.

A request becomes one Serve call per sequence (``EngineReplica.generate``), and another one whenever that is lost; its
tokens come back on the gateway's token feed and are turned into text here, by vLLM's own output processor, which
notices nothing of it. Does not cover: the OpenAI API (``openai_layer``), lost calls (``carrier``) and the feed's socket
(``streams``).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from copy import copy
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest

from app.callers import Caller, current_caller
from app.carrier import SequenceCarrier
from app.chosen_adapter import AdapterRequest
from app.core_outputs import core_output
from app.engineless import EnginelessClient
from app.keep_alive import SAMPLING_ARGUMENT
from app.model_pool import ModelPool, embedded
from app.request_record import LEFT, current_record
from app.streams import TokenStreams
from deployments.types import AdapterRef, EmbedRequest, GenerateRequest, ModelSpec
from deployments.wire import TokenDelta

Ask = TypeVar("Ask", GenerateRequest, EmbedRequest)


class RemoteEngineClient(EnginelessClient):
    """One base model and its adapters, served by the replicas of ``pool``.

    ``spec`` is that of everybody's engine, ``own`` are those of tenants' own, by tenant.
    """

    def __init__(  # noqa: PLR0913 - what a client is made of
        self,
        spec: ModelSpec,
        *,
        own: Mapping[str, ModelSpec],
        config: VllmConfig,
        supported_tasks: list[str],
        pool: ModelPool,
        streams: TokenStreams,
    ) -> None:
        self.model_id = spec.id
        self._spec = spec
        self._own = own
        self._retired = False
        self.vllm_config = config
        self.model_config = config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self._supported_tasks = tuple(supported_tasks)
        self._pool = pool
        self._streams = streams
        self._outputs = OutputProcessor(self.renderer.tokenizer, log_stats=False)
        # By the ids of their sequences, and of their attempts.
        self._carrying: dict[str, asyncio.Task[None]] = {}
        self._carriers: dict[str, SequenceCarrier] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def generate(  # noqa: PLR0913 - vLLM's signature
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,  # noqa: ARG002
        priority: int = 0,
        data_parallel_rank: int | None = None,  # noqa: ARG002
        session_id: str | None = None,  # noqa: ARG002
        reasoning_ended: bool | None = None,  # noqa: ARG002
        reasoning_parser_kwargs: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> AsyncGenerator[RequestOutput, None]:
        """See ``EngineClient.generate``; closing the generator stops the generation on the replica."""
        caller, record = current_caller(), current_record()
        request = await self._core_request(
            request_id,
            prompt,
            sampling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            priority=priority,
        )
        caller.spend(len(request.prompt_token_ids))
        record.prompt_tokens += len(request.prompt_token_ids)
        collector = RequestOutputCollector(request.params.output_kind, request.request_id)
        sequences = self._fan_out(request, prompt_text, collector)
        try:
            for sequence in sequences:
                self._begin(sequence, collector, caller)
            finished = False
            while not finished:
                output = collector.get_nowait() or await collector.get()
                finished = output.finished
                _check_fits_grammar(output, sampling_params)
                yield output
        except (GeneratorExit, asyncio.CancelledError):
            record.failure = record.failure or LEFT
            raise
        # Only to note its name for the request's line of log and its metrics; it goes on as it came.
        except Exception as error:
            record.failure = record.failure or type(error).__name__
            raise
        finally:
            self._stop([sequence.request_id for sequence in sequences])

    async def encode(  # noqa: PLR0913, PLR0917 - vLLM's signature
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        trace_headers: Mapping[str, str] | None = None,  # noqa: ARG002
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        reasoning_ended: bool | None = None,  # noqa: ARG002, FBT001
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """See ``EngineClient.encode``."""
        caller = current_caller()
        spec = self._spec_for(caller)
        request = await self._core_request(
            request_id,
            prompt,
            pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            priority=priority,
        )
        ask: EmbedRequest = {
            "stream_id": request.request_id,
            "model_id": spec.id,
            "revision": spec.revision,
            "prompt_token_ids": list(request.prompt_token_ids),
            "pooling": msgspec.to_builtins(request.pooling_params),
            "adapter": _adapter(lora_request),
            "priority": priority,
            "cache_salt": caller.cache_salt(request.cache_salt),
            "tenant": caller.name,
        }
        caller.spend(len(ask["prompt_token_ids"]))
        current_record().prompt_tokens += len(ask["prompt_token_ids"])
        async with self._pool.place(spec.id, caller.name, caller.weight) as rank:
            embedding = await embedded(_ranked(ask, rank), self._pool)
        data = np.frombuffer(embedding["data"], dtype="<f4").reshape(embedding["shape"])
        yield PoolingRequestOutput(
            request_id=request_id,
            outputs=PoolingOutput(torch.from_numpy(data.copy())),
            num_cached_tokens=embedding["cached_tokens"],
            prompt_token_ids=request.prompt_token_ids,
            finished=True,
        )

    def on_deltas(self, deltas: list[TokenDelta]) -> None:
        """See ``DeltaSink.on_deltas``: one pass of vLLM's output processor over all streams of a frame."""
        outputs = []
        for delta in deltas:
            carrier = self._carriers.get(delta.stream_id)
            if carrier is None:
                continue
            carrier.take(delta)
            if delta.is_request():
                continue
            outputs.append(core_output(delta, carrier.stream_id))
            if delta.finish_reason is not None:
                self._carrying.pop(carrier.stream_id, None)
                self.forget(delta.stream_id)
                self._shut_down_if_done()
        # A stop string was found in the text: the replica doesn't know yet.
        for stream_id in self._outputs.process_outputs(outputs).reqs_to_abort:
            self._cancel(stream_id)

    def expect(self, attempt_id: str, carrier: SequenceCarrier) -> None:
        """See ``carrier.Desk.expect``."""
        self._carriers[attempt_id] = carrier
        self._streams.expect(attempt_id, self)

    def forget(self, attempt_id: str) -> None:
        """See ``carrier.Desk.forget``."""
        self._carriers.pop(attempt_id, None)
        self._streams.forget(attempt_id)

    def _fan_out(
        self, request: EngineCoreRequest, prompt_text: str | None, collector: RequestOutputCollector
    ) -> list[EngineCoreRequest]:
        count = request.params.n
        if count == 1:
            self._outputs.add_request(request, prompt_text, None, 0, collector)
            return [request]
        parent = ParentRequest(request)
        children = []
        for index in range(count):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            self._outputs.add_request(child, prompt_text, parent, index, collector)
            children.append(child)
        return children

    def _begin(self, request: EngineCoreRequest, collector: RequestOutputCollector, caller: Caller) -> None:
        spec = self._spec_for(caller)
        ask: GenerateRequest = {
            "stream_id": request.request_id,
            "model_id": spec.id,
            "revision": spec.revision,
            "prompt_token_ids": list(request.prompt_token_ids),
            "sampling": msgspec.to_builtins(request.sampling_params),
            "reply_to": self._streams.reply_to,
            "adapter": _adapter(request.lora_request),
            "priority": request.priority,
            "cache_salt": caller.cache_salt(request.cache_salt),
            "tenant": caller.name,
            "keep_awake_s": (request.sampling_params.extra_args or {}).get(SAMPLING_ARGUMENT),
        }
        carrier = SequenceCarrier(ask, self._pool, self, caller.spend, current_record())
        carrying = asyncio.get_running_loop().create_task(self._carry(carrier, ask, caller))
        self._carrying[carrier.stream_id] = carrying
        # Held until the call has returned, which is a little after the sequence's end.
        self._tasks.add(carrying)
        carrying.add_done_callback(self._tasks.discard)
        carrying.add_done_callback(lambda done: _pass_on_failure(done, collector))

    async def _carry(self, carrier: SequenceCarrier, ask: GenerateRequest, caller: Caller) -> None:
        async with self._pool.place(ask["model_id"], caller.name, caller.weight) as rank:
            _ranked(ask, rank)
            await carrier.carry()

    def _spec_for(self, caller: Caller) -> ModelSpec:
        return self._own.get(caller.name, self._spec)

    def _stop(self, stream_ids: Iterable[str]) -> None:
        for stream_id in stream_ids:
            if stream_id in self._carrying:
                self._outputs.abort_requests([stream_id], internal=True)
                self._cancel(stream_id)

    def _cancel(self, stream_id: str) -> None:
        carrying = self._carrying.pop(stream_id, None)
        if carrying is not None:
            carrying.cancel()
            self._shut_down_if_done()

    def _shut_down_if_done(self) -> None:
        if self._retired and not self._carrying:
            self.shutdown()

    async def _core_request(
        self, request_id: str, prompt: Any, params: SamplingParams | PoolingParams, **arguments: Any
    ) -> EngineCoreRequest:
        arguments["supported_tasks"] = self._supported_tasks
        # A rendered prompt needs no tokenizing; anything else, and a grammar, must not block the event loop.
        is_quick = isinstance(prompt, dict) and "type" in prompt
        if is_quick and getattr(params, "structured_outputs", None) is None:
            request = self.input_processor.process_inputs(request_id, prompt, params, **arguments)
        else:
            request = await self.input_processor.process_inputs_async(request_id, prompt, params, **arguments)
        if request.prompt_token_ids is None or request.mm_features:
            message = "Only text prompts are supported."
            raise VLLMValidationError(message, parameter="prompt")
        self.input_processor.assign_request_id(request)
        return request

    async def get_supported_tasks(self) -> tuple[str, ...]:
        """Return vLLM's task names."""
        return self._supported_tasks

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Stop sequences by their ids."""
        stream_ids = [request_id] if isinstance(request_id, str) else list(request_id)
        self._stop(stream_ids)

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Accept: the replica loads an adapter with its first request, after a gateway has checked its files."""
        return isinstance(lora_request, AdapterRequest)

    def retire(self) -> None:
        """Shut down once the requests under way have ended; there will be no new ones."""
        self._retired = True
        self._shut_down_if_done()

    def shutdown(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """End this client's threads; the replicas live on."""
        self.renderer.shutdown()

    def __repr__(self) -> str:
        return f"<RemoteEngineClient {self.model_id}, {len(self._carrying)} sequences>"


def _adapter(lora_request: LoRARequest | None) -> AdapterRef | None:
    return lora_request.ref if isinstance(lora_request, AdapterRequest) else None


def _ranked(ask: Ask, rank: int | None) -> Ask:
    """Give an ask its rank among tenants, whatever its client has chosen."""
    if rank is not None:
        ask["priority"] = rank
    return ask


def _check_fits_grammar(output: RequestOutput, params: SamplingParams) -> None:
    """Blame the request for a grammar that the engine could not follow; vLLM itself would blame the server."""
    if params.structured_outputs is not None and any(choice.finish_reason == "error" for choice in output.outputs):
        message = "No text fits the grammar that is asked for."
        raise VLLMValidationError(message)


def _pass_on_failure(carrying: asyncio.Task[None], collector: RequestOutputCollector) -> None:
    if not carrying.cancelled() and (error := carrying.exception()) is not None:
        collector.put(error)
