"""vLLM's own OpenAI classes, one set per base model, over engines that live elsewhere.

Covers: building them, choosing by the request's ``model``, naming adapters. Does not cover: HTTP (``routes``), the way
to the engines (``engine_client``).
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from starlette.datastructures import State
from starlette.requests import Request
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from app.engine_client import RemoteEngineClient
from app.errors import InvalidRequestError, ModelNotFoundError
from app.names import NameTable, Target
from deployments.types import ModelSpec

Operation = Literal["chat", "completions", "embeddings", "tokenize", "detokenize"]

REQUEST_TYPES: Mapping[Operation, Any] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}


class OpenAILayer:
    """Answers requests for every model of the application."""

    def __init__(self, specs: list[ModelSpec]) -> None:
        self._names = NameTable(specs)
        self._specs = {spec.id: spec for spec in specs}
        self._states: dict[str, State] = {}

    async def add(self, spec: ModelSpec, client: RemoteEngineClient, frontend: Mapping[str, Any]) -> None:
        """Build vLLM's classes for a model; ``frontend`` are vLLM's API server arguments (``tool_call_parser``, …)."""
        args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        args.model = spec.path
        args.served_model_name = [spec.id]
        args.disable_log_stats = True
        args.enable_prompt_tokens_details = True
        args.lora_modules = [LoRAModulePath(adapter.id, adapter.path, spec.id) for adapter in spec.adapters]
        for key, value in frontend.items():
            setattr(args, key, value)
        state = State()
        await init_app_state(client, state, args, await client.get_supported_tasks())
        self._states[spec.id] = state

    async def answer(
        self, operation: Operation, request: Any, raw_request: Request | None = None
    ) -> AsyncGenerator[str, None] | Any:
        """Answer a parsed request.

        Returns:
            An async generator of server-sent events when the request asks for a stream, else vLLM's response model,
            or a Starlette response (embeddings).

        Raises:
            AppError and vLLM's VLLMError, as ``responses.error_answer`` knows them.
        """
        target = self._names.resolve(request.model)
        # vLLM's classes know adapters by their bare names only.
        request.model = target.served_name
        _check_shape(operation, request, self._specs[target.model_id])
        serving = self._serving(operation, target)
        if operation == "embeddings":
            return await serving(request, raw_request)
        method = {
            "chat": "create_chat_completion",
            "completions": "create_completion",
            "tokenize": "create_tokenize",
            "detokenize": "create_detokenize",
        }[operation]
        return await getattr(serving, method)(request, raw_request)

    async def models(self) -> list[dict[str, Any]]:
        """Return a card for every model and adapter, in OpenAI's shape."""
        lists = [await state.openai_serving_models.show_available_models() for state in self._states.values()]
        return [card.model_dump() for cards in lists for card in cards.data]

    async def model(self, name: str) -> dict[str, Any]:
        """Return one card, asked for by any of its names.

        Raises:
            ModelNotFoundError: nothing is called so.
        """
        target = self._names.resolve(name)
        for card in await self.models():
            if card["id"] == target.served_name and card.get("parent") in (None, target.model_id):
                return card
        raise ModelNotFoundError(name)

    def _serving(self, operation: Operation, target: Target) -> Any:
        state = self._states[target.model_id]
        attribute = {
            "chat": "openai_serving_chat",
            "completions": "openai_serving_completion",
            "embeddings": "serving_embedding",
            "tokenize": "serving_tokenization",
            "detokenize": "serving_tokenization",
        }[operation]
        serving = getattr(state, attribute, None)
        if serving is None:
            raise InvalidRequestError(f"The model `{target.served_name}` does not support {operation}.", "model")
        return serving

    def __repr__(self) -> str:
        return f"<OpenAILayer {sorted(self._states)}>"


def _check_shape(operation: Operation, request: Any, spec: ModelSpec) -> None:
    """Refuse what vLLM would let through to where a complaint names no field, or worse."""
    if operation == "chat" and not request.messages:
        raise InvalidRequestError("The field `messages` must hold at least one message.", "messages")
    if operation in {"chat", "completions"} and spec.lora_enabled and spec.device == "cpu":
        # vLLM 0.29: the CPU's adapter kernels take the prompt's rows for those of the batch, and the engine dies.
        echoed = operation == "completions" and request.echo and request.logprobs is not None
        if echoed or request.prompt_logprobs is not None:
            param = "echo" if echoed else "prompt_logprobs"
            message = (
                f"Log probabilities of the prompt are not available for `{spec.id}`: it has adapters and runs on a CPU."
            )
            raise InvalidRequestError(message, param)
