"""What is wrong with a request, and in which field, where vLLM 0.29 would not say so, or would break.

Covers: bodies that make vLLM's own validators raise, values that can't be sent to an engine or would keep one busy for
long, the field behind an error of vLLM's that names none. Does not cover: HTTP statuses (``errors``) and the shape of
an answer (``responses``).
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError, WrapValidator
from vllm.exceptions import VLLMValidationError

from app.errors import InvalidRequestError

# As many as OpenAI's own API allows.
MAX_CHOICES = 128
# Grammars are compiled where they are checked, in the gateway, and again in the engine. Past these sizes xgrammar takes
# from seconds to hours, growing faster than the schema does.
MAX_CONSTRAINT_DEPTH = 64
MAX_CONSTRAINT_CHARACTERS = 64 * 1024

CONSTRAINTS = ("response_format", "structured_outputs", "tools")
_WORDS_OF_PROMPTS = ("prompt", "Token id", "TextEncodeInput", "multimodal", "context length", "target type")
_WORDS_OF_CONSTRAINTS = ("rammar", "schema", "egex", "hoice", "tructural", "tructured")
_FIELD_AT_START = re.compile(r"[`'\"]?([a-z][a-z_]*)")
_FIELD_WITHIN = re.compile(r"\b([a-z]+(?:_[a-z]+)+|dimensions)\b")


def blaming(kind: Any) -> WrapValidator:
    """Return a validator around ``kind``'s that blames a field for whatever goes wrong in vLLM's own validators."""

    def validate(body: Any, handler: Any) -> Any:
        if isinstance(body, dict):
            check_constraints(body)
        try:
            return handler(body)
        except VLLMValidationError as error:
            if error.parameter is None:
                field, _ = _wrong_field(kind, body)
                raise InvalidRequestError(str(error), field) from error
            raise
        # They look into values before pydantic has checked what those are.
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            field, message = _wrong_field(kind, body)
            raise InvalidRequestError(message or "The request has a wrong shape.", field) from error

    return WrapValidator(validate)


def _wrong_field(kind: Any, body: Any) -> tuple[str | None, str | None]:
    for model in _models(kind):
        for name, info in model.model_fields.items():
            if not isinstance(body, dict) or name not in body:
                continue
            try:
                TypeAdapter(info.rebuild_annotation()).validate_python(body[name])
            except ValidationError as error:
                return name, f"{name}: {error.errors()[0]['msg']}"
            except VLLMValidationError as error:
                return name, str(error)
    return None, None


def _models(kind: Any) -> Iterable[type[BaseModel]]:
    if isinstance(kind, type):
        return [kind]
    return [model for argument in get_args(kind) for model in _models(argument) if issubclass(model, BaseModel)]


def check_constraints(body: Mapping[str, Any]) -> None:
    """Refuse grammars, schemas and tools too large to compile; before vLLM's validators, which compile some already."""
    for field in CONSTRAINTS:
        value = body.get(field)
        if isinstance(value, dict | list):
            _check_depth(field, value)
            if len(json.dumps(value)) > MAX_CONSTRAINT_CHARACTERS:
                message = f"The field `{field}` is longer than {MAX_CONSTRAINT_CHARACTERS} characters."
                raise InvalidRequestError(message, field)


def _check_depth(field: str, value: Any) -> None:
    level = [value]
    for _ in range(MAX_CONSTRAINT_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise InvalidRequestError(f"The field `{field}` is nested more than {MAX_CONSTRAINT_DEPTH} levels deep.", field)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, str) and value[:1] in {"{", "["}:
        # A schema or a structural tag may be given as JSON text.
        try:
            return [json.loads(value)]
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else []


def check_request(operation: str, request: Any, *, max_token_id: int, prompt_logprobs: bool) -> None:
    """Refuse what vLLM would accept, to fail later or to harm others.

    Args:
        operation: what is asked for.
        request: the parsed request.
        max_token_id: the last of the model's vocabulary.
        prompt_logprobs: whether the model's engine survives a request for the prompt's log probabilities.
    """
    _check_encodable(request)
    if not getattr(request, "messages", True):
        raise InvalidRequestError("The field `messages` must hold at least one message.", "messages")
    if operation == "embeddings" and _holds_empty_text(getattr(request, "input", None)):
        raise InvalidRequestError("The field `input` must not hold empty text.", "input")
    if operation == "detokenize" and max(request.tokens, default=0) > max_token_id:
        raise InvalidRequestError(f"The field `tokens` holds a token id above {max_token_id}.", "tokens")
    if operation in {"chat", "completions"}:
        _check_sampling(operation, request, prompt_logprobs=prompt_logprobs)


def _holds_empty_text(value: Any) -> bool:
    return not value or (isinstance(value, list) and not all(value))


def _check_sampling(operation: str, request: Any, *, prompt_logprobs: bool) -> None:
    if (request.n or 1) > MAX_CHOICES:
        raise InvalidRequestError(f"The field `n` must be at most {MAX_CHOICES}.", "n")
    if not all(math.isfinite(bias) for bias in (request.logit_bias or {}).values()):
        raise InvalidRequestError("The field `logit_bias` must hold finite numbers.", "logit_bias")
    if operation == "chat" and not request.logprobs:
        # With ``echo`` vLLM would take it for the number of the prompt's log probabilities.
        request.top_logprobs = None
    field = _field_of_prompt_logprobs(operation, request)
    if field and not prompt_logprobs:
        message = "Log probabilities of the prompt are not available: the model has adapters and runs on a CPU."
        raise InvalidRequestError(message, field)


def _field_of_prompt_logprobs(operation: str, request: Any) -> str | None:
    if request.prompt_logprobs is not None:
        return "prompt_logprobs"
    implied = request.top_logprobs if operation == "chat" else request.logprobs
    return "echo" if request.echo and implied is not None else None


def _check_encodable(request: BaseModel) -> None:
    """Refuse integers of more than 64 bits and text that is not Unicode: they can't be sent to an engine."""
    for field in request.model_fields_set:
        try:
            msgspec.msgpack.encode(getattr(request, field), enc_hook=_as_builtins)
        except (OverflowError, UnicodeEncodeError, RecursionError) as error:
            raise InvalidRequestError(
                f"The field `{field}` holds a value that can't be used: {error}.", field
            ) from error


def _as_builtins(value: Any) -> Any:
    # Whatever is neither is a lazily checked part of a message: vLLM renders it to text first.
    return value.model_dump() if isinstance(value, BaseModel) else None


def blamed_field(operation: str, given: Collection[str], message: str, param: str | None = None) -> str | None:
    """Return which of the ``given`` fields an error of vLLM's is about, as the caller calls it."""
    if param == "logprobs" and operation == "chat":
        return "top_logprobs"
    if param == "max_tokens" and "max_completion_tokens" in given:
        return "max_completion_tokens"
    if param in {"input_tokens", "input_text"}:
        return _prompt_field(operation, given)
    return param or _field_in(message, operation, given)


def _field_in(message: str, operation: str, given: Collection[str]) -> str | None:
    start = _FIELD_AT_START.match(message)
    if start and start[1] in given:
        return start[1]
    if any(word in message for word in _WORDS_OF_PROMPTS):
        return _prompt_field(operation, given)
    if any(word in message for word in _WORDS_OF_CONSTRAINTS):
        return next((field for field in CONSTRAINTS if field in given), None)
    if "hat template" in message:
        return "chat_template"
    return next((word for word in _FIELD_WITHIN.findall(message) if word in given), None)


def _prompt_field(operation: str, given: Collection[str]) -> str:
    return (
        "messages" if "messages" in given else {"embeddings": "input", "detokenize": "tokens"}.get(operation, "prompt")
    )
