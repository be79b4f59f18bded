"""vLLM's own OpenAI classes, one set per base model, over engines that live elsewhere.

Covers: building them, choosing by the request's ``model``, naming adapters. Does not cover: HTTP (``routes``), the way
to the engines (``engine_client``).
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from starlette.datastructures import State
from starlette.requests import Request
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest, EmbeddingResponse
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse, ModelCard, ModelPermission
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser

from app.callers import ANYBODY, Caller, acting_for
from app.chosen_adapter import ChosenAdapter, choosing
from app.engine_client import RemoteEngineClient
from app.errors import InvalidRequestError, ModelNotFoundError
from app.keep_alive import FIELD, SAMPLING_ARGUMENT, keep_awake_s
from app.names import NameTable, Target, target_of
from app.request_record import current_record
from app.responses import BAD_REQUEST_ERRORS, error_answer, error_body, readable
from app.tenants import Reach
from app.validation import blamed_field, blaming, check_request
from deployments.types import AdapterSpec, ModelSpec

Operation = Literal["chat", "completions", "embeddings", "tokenize", "detokenize"]

REQUEST_TYPES: Mapping[Operation, Any] = {
    "chat": Annotated[ChatCompletionRequest, blaming(ChatCompletionRequest)],
    "completions": Annotated[CompletionRequest, blaming(CompletionRequest)],
    "embeddings": Annotated[EmbeddingRequest, blaming(EmbeddingRequest)],
    "tokenize": Annotated[TokenizeRequest, blaming(TokenizeRequest)],
    "detokenize": Annotated[DetokenizeRequest, blaming(DetokenizeRequest)],
}
# Embeddings may also come as bytes or encoded, if asked for so.
ANSWER_TYPES: Mapping[Operation, type] = {
    "chat": ChatCompletionResponse,
    "completions": CompletionResponse,
    "embeddings": EmbeddingResponse,
    "tokenize": TokenizeResponse,
    "detokenize": DetokenizeResponse,
}
STREAMING: frozenset[Operation] = frozenset({"chat", "completions"})

_SERVING: Mapping[Operation, tuple[str, str]] = {
    "chat": ("openai_serving_chat", "create_chat_completion"),
    "completions": ("openai_serving_completion", "create_completion"),
    "embeddings": ("serving_embedding", "__call__"),
    "tokenize": ("serving_tokenization", "create_tokenize"),
    "detokenize": ("serving_tokenization", "create_detokenize"),
}
_ERROR_EVENT = 'data: {"error"'


class OpenAILayer:
    """Answers requests for every model of the application."""

    def __init__(
        self,
        prepare: Callable[[str], Awaitable[None]],
        discover: Callable[[str, Callable[[str, str], bool]], Awaitable[bool]],
    ) -> None:
        """``prepare`` returns once a model was added, or raises why it can't be.

        ``discover`` looks for an adapter that isn't known (``AdapterRegistry.discover``); then it has been named.
        """
        self._prepare = prepare
        self._discover = discover
        self._names: dict[Reach, NameTable] = {}
        self._specs: dict[str, ModelSpec] = {}
        self._adapters: dict[Target, AdapterSpec] = {}
        self._states: dict[str, State] = {}
        self._clients: dict[str, RemoteEngineClient] = {}
        self._max_token_ids: dict[str, int] = {}

    def name(self, specs: list[ModelSpec]) -> None:
        """Take requests for these models and their adapters from now on, and no others."""
        self._names = {}
        self._specs = {spec.id: spec for spec in specs}
        self._adapters = {target_of(spec.id, adapter): adapter for spec in specs for adapter in spec.adapters}

    def remove(self, model_id: str) -> None:
        """Forget what was added for a model; requests under way end as they would have."""
        self._states.pop(model_id, None)
        client = self._clients.pop(model_id, None)
        if client is not None:
            client.retire()

    async def add(self, spec: ModelSpec, client: RemoteEngineClient, frontend: Mapping[str, Any]) -> None:
        """Build vLLM's classes for a model; ``frontend`` are vLLM's API server arguments (``tool_call_parser``, …)."""
        args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        args.model = spec.path
        args.served_model_name = [spec.id]
        args.disable_log_stats = True
        args.enable_prompt_tokens_details = True
        for key, value in frontend.items():
            setattr(args, key, value)
        state = State()
        await init_app_state(client, state, args, await client.get_supported_tasks())
        state.openai_serving_models.lora_requests = ChosenAdapter()
        self._states[spec.id] = state
        self._clients[spec.id] = client
        # One can be the larger, as in vLLM's own check of prompts.
        last_ids = (client.renderer.get_tokenizer().max_token_id, client.model_config.get_vocab_size() - 1)
        self._max_token_ids[spec.id] = max(last_ids)

    async def answer(
        self, operation: Operation, request: Any, raw_request: Request | None = None, caller: Caller = ANYBODY
    ) -> AsyncGenerator[str, None] | Any:
        """Answer a parsed request as far as ``caller`` reaches.

        Returns:
            An async generator of server-sent events when the request asks for a stream, else vLLM's response model,
            or a Starlette response (embeddings).

        Raises:
            AppError and vLLM's VLLMError, as ``responses.error_answer`` knows them.
        """
        target = await self._resolved(request.model, caller)
        current_record().model = target.model_id
        # As it is now: the request ends on the version it begins with.
        adapter = self._adapters.get(target)
        # vLLM's classes know adapters by their bare names only.
        request.model = target.served_name
        spec = self._specs[target.model_id]
        await self._prepare(target.model_id)
        # vLLM 0.29: the CPU's adapter kernels take the prompt's rows for those of the batch, and the engine dies.
        prompt_logprobs = not (spec.lora_enabled and spec.device == "cpu")
        max_token_id = self._max_token_ids[spec.id]
        check_request(operation, request, max_token_id=max_token_id, prompt_logprobs=prompt_logprobs)
        if operation in STREAMING:
            _pass_keep_alive(request, caller)
        create = self._create(operation, target)
        # vLLM sets others while it works.
        given = frozenset(request.model_fields_set)
        try:
            with acting_for(caller), choosing(adapter):
                result = await create(request, raw_request)
                if isinstance(result, AsyncGenerator):
                    result = await _begun(result)
        except BAD_REQUEST_ERRORS as error:
            raise _refused(operation, given, error) from error
        if isinstance(result, ErrorResponse):
            problem = result.error
            param = blamed_field(operation, given, problem.message, problem.param)
            result.error = ErrorInfo(**error_body(readable(problem.message), HTTPStatus(problem.code), param)["error"])
        return result

    async def _resolved(self, name: str | None, caller: Caller) -> Target:
        try:
            return self._known_to(caller).resolve(name)
        except ModelNotFoundError as error:
            # What the caller may not ask for is not looked for either: that it takes longer would tell.
            reach = caller.reach
            if not await self._discover(error.name, lambda model, adapter: reach.holds(Target(model, adapter))):
                raise
        return self._known_to(caller).resolve(name)

    def model_id(self, name: str, caller: Caller = ANYBODY) -> str:
        """Return the id of the model that answers for ``name``.

        Raises:
            ModelNotFoundError: nothing that the caller reaches is called so.
        """
        return self._known_to(caller).resolve(name).model_id

    async def models(self, caller: Caller = ANYBODY) -> list[dict[str, Any]]:
        """Return a card for every model and adapter that the caller reaches, in OpenAI's shape."""
        return [card for _, card in await self._cards(caller)]

    async def model(self, name: str, caller: Caller = ANYBODY) -> dict[str, Any]:
        """Return one card, asked for by any of its names. Raises as ``model_id``."""
        target = self._known_to(caller).resolve(name)
        for found, card in await self._cards(caller):
            if found == target:
                return card
        raise ModelNotFoundError(name)

    async def _cards(self, caller: Caller) -> list[tuple[Target, dict[str, Any]]]:
        cards = []
        listed = self._known_to(caller).listed
        for model_id, state in list(self._states.items()):
            if caller.reach.holds(Target(model_id)):
                base = (await state.openai_serving_models.show_available_models()).data[0]
                cards.append((Target(model_id), base))
            cards += [
                (target, ModelCard(id=name, root=adapter.path, parent=model_id, permission=[ModelPermission()]))
                for name, target in listed
                if target.model_id == model_id and (adapter := self._adapters.get(target)) is not None
            ]
        return [(target, _shown(card.model_dump(), caller)) for target, card in cards]

    def _known_to(self, caller: Caller) -> NameTable:
        reach = caller.reach
        table = self._names.get(reach)
        if table is None:
            table = self._names[reach] = NameTable(self._specs.values(), reach.holds, reach.tenant)
        return table

    def _create(self, operation: Operation, target: Target) -> Callable[..., Awaitable[Any]]:
        attribute, method = _SERVING[operation]
        serving = getattr(self._states[target.model_id], attribute, None)
        if serving is None:
            raise InvalidRequestError(f"The model `{target.served_name}` does not support {operation}.", "model")
        return getattr(serving, method)

    def __repr__(self) -> str:
        return f"<OpenAILayer {sorted(self._states)}>"


def _shown(card: dict[str, Any], caller: Caller) -> dict[str, Any]:
    # vLLM says where on the server the files are; that is the operator's business.
    return card if caller.is_admin else card | {"root": card["id"]}


def _pass_keep_alive(request: Any, caller: Caller) -> None:
    arguments = {key: value for key, value in (request.vllm_xargs or {}).items() if key != SAMPLING_ARGUMENT}
    given = (request.model_extra or {}).get(FIELD)
    seconds = keep_awake_s(given) if given is not None else None
    # How long a model stays awake concerns everybody who shares it, or its device.
    if seconds is not None and caller.is_admin:
        arguments[SAMPLING_ARGUMENT] = seconds
    request.vllm_xargs = arguments or None


async def _begun(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None] | ErrorResponse:
    """Await a stream's first event, which comes with its first token: a request that fails before gets an error."""
    first = await anext(events)
    if not first.startswith(_ERROR_EVENT):
        return _chain(first, events)
    await events.aclose()
    return ErrorResponse.model_validate_json(first.removeprefix("data: "))


async def _chain(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        # Not whenever it is collected: closing it is what stops the generation.
        await rest.aclose()


def _refused(operation: Operation, given: frozenset[str], error: Exception) -> InvalidRequestError:
    """Return the error with the field it is about."""
    answer = error_answer(error)["error"]
    return InvalidRequestError(answer["message"], blamed_field(operation, given, answer["message"], answer["param"]))
