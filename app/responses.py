"""Errors in OpenAI's shape, from whatever was raised; the same for HTTP and for handle calls."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.exceptions import VLLMError

from app.errors import AppError, error_type, status_of
from deployments.errors import DeploymentError

logger = logging.getLogger(__name__)

_MAX_PROBLEMS = 3


def error_body(message: str, status: HTTPStatus, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object; ``code`` is the HTTP status."""
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": int(status)}}


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
        # What vLLM's OpenAI code raises for a bad request where it has no error class of its own.
        case VLLMError() | ValueError() | TypeError() | OverflowError() | NotImplementedError():
            return create_error_response(error).model_dump(include={"error": {"message", "type", "param", "code"}})
        case _ if any(kind.__name__ == "TemplateError" for kind in type(error).__mro__):
            return error_body(str(error), HTTPStatus.BAD_REQUEST, "messages")
        case _:
            logger.error("request failed", exc_info=error)
            return error_body("Internal server error", HTTPStatus.INTERNAL_SERVER_ERROR)


def _validation_answer(error: RequestValidationError | ValidationError) -> dict[str, Any]:
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return error_body(f"The body is not valid JSON: {reason}", HTTPStatus.BAD_REQUEST)
    named = [(_field(problem["loc"]), problem["msg"]) for problem in problems]
    lines = list(dict.fromkeys(f"{field}: {message}" if field else message for field, message in named))
    return error_body("; ".join(lines[:_MAX_PROBLEMS]), HTTPStatus.BAD_REQUEST, named[0][0])


def _field(location: tuple[Any, ...]) -> str | None:
    inner = tuple(part for part in location if part != "body")
    return clean_loc_for_param(inner) if inner else None
