"""Errors in OpenAI's shape, from whatever was raised; the same for HTTP and for handle calls."""

import logging
import re
from http import HTTPStatus
from typing import Any

import jinja2
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.exception_handling.utils import sanitize_message
from vllm.exceptions import VLLMClientError, VLLMError

from app.errors import AppError, error_type, status_of
from deployments.errors import DeploymentError

logger = logging.getLogger(__name__)

# What vLLM's OpenAI code raises for a bad request; it has no class of its own for each.
BAD_REQUEST_ERRORS = (
    VLLMClientError, ValueError, TypeError, OverflowError, NotImplementedError, jinja2.TemplateError,
)  # fmt: skip
_MAX_PROBLEMS = 3
# xgrammar says when, and where in its own source, it found a grammar wrong.
_COMPILER_PREFIX = re.compile(r"\[[\d:]+\] \S+:\d+: ")
# vLLM adds what it has named already.
_VLLM_SUFFIX = re.compile(r" \(parameter=.*\)$", re.DOTALL)
# Messages quote what was sent, which may be megabytes.
_MAX_MESSAGE_CHARACTERS = 1000


def error_body(message: str, status: HTTPStatus, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object; ``code`` is the HTTP status."""
    short = message if len(message) <= _MAX_MESSAGE_CHARACTERS else f"{message[:_MAX_MESSAGE_CHARACTERS]}…"
    # What was sent may also be text that UTF-8 can't encode.
    text = short.encode(errors="replace").decode()
    return {"error": {"message": text, "type": error_type(status), "param": param, "code": int(status)}}


def error_answer(error: Exception) -> dict[str, Any]:
    """Return OpenAI's error object for anything that was raised; what is not known is logged and says nothing."""
    match error:
        case AppError() | DeploymentError():
            param = getattr(error, "param", getattr(error, "parameter", None))
            return error_body(str(error), status_of(error), param)
        case RequestValidationError() | ValidationError():
            return _validation_answer(error)
        case HTTPException():
            return error_body(str(error.detail), HTTPStatus(error.status_code))
        case _ if isinstance(error, BAD_REQUEST_ERRORS):
            message = str(error.args[0]) if error.args else str(error)
            return error_body(readable(message), HTTPStatus.BAD_REQUEST, getattr(error, "parameter", None))
        case VLLMError():
            answer = create_error_response(error).error
            return error_body(answer.message, HTTPStatus(answer.code), answer.param)
        case _:
            logger.error("request failed", exc_info=error)
            return error_body("Internal server error", HTTPStatus.INTERNAL_SERVER_ERROR)


def _validation_answer(error: RequestValidationError | ValidationError) -> dict[str, Any]:
    body = getattr(error, "body", None)
    # A body that may have several shapes lacks the fields of the others: those come last.
    problems = sorted(error.errors(), key=lambda problem: not _is_given(problem["loc"], body))
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return error_body(f"The body is not valid JSON: {reason}", HTTPStatus.BAD_REQUEST)
    named = [(_field(problem["loc"]), problem["msg"]) for problem in problems]
    lines = list(dict.fromkeys(f"{field}: {message}" if field else message for field, message in named))
    return error_body("; ".join(lines[:_MAX_PROBLEMS]), HTTPStatus.BAD_REQUEST, named[0][0])


def _is_given(location: tuple[Any, ...], body: Any) -> bool:
    return isinstance(body, dict) and any(part in body for part in location if isinstance(part, str))


def _field(location: tuple[Any, ...]) -> str | None:
    inner = tuple(part for part in location if part != "body")
    if inner and isinstance(inner[0], int):
        # Parts of messages are checked later than the rest, and then without the name of their field.
        inner = ("messages", *inner)
    return clean_loc_for_param(inner) if inner else None


def readable(message: str) -> str:
    """Return vLLM's message without what only its authors can use: paths, times, what it says twice."""
    return _VLLM_SUFFIX.sub("", _COMPILER_PREFIX.sub("", sanitize_message(message)))
