"""What a failed Serve call says about the attempt that it was: foreign errors in, kinds and answers out.

Covers: the errors of Ray, of Serve and of replicas. Does not cover: what follows from them (``resumption``).
"""

import asyncio
from http import HTTPStatus

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from app.errors import status_of
from app.refusals import refusal_of
from app.request_record import current_record
from app.resumption import Failure
from deployments.errors import (
    DeploymentError,
    EngineDiedError,
    EngineUnavailableError,
    FeedError,
    ReplicaLeavingError,
    RequestRejectedError,
)

# The first that fits.
_FAILURES: tuple[tuple[type[BaseException], Failure], ...] = (
    (ReplicaLeavingError, "leaving"),
    (FeedError, "replica died"),
    (EngineUnavailableError, "unavailable"),
    (DeploymentError, "refused"),
    # Serve cancels what a replica still has in hand when its time to shut down is over.
    (TaskCancelledError, "leaving"),
    (asyncio.CancelledError, "leaving"),
    (RayServeException, "unavailable"),
    (RayTaskError, "refused"),
    (RayError, "replica died"),
)


def failure_of(error: BaseException) -> Failure:
    """Return how an attempt ended that raised ``error``; a cancellation is one that the caller did not ask for."""
    cause = _cause(error)
    if isinstance(cause, EngineDiedError):
        return "engine died" if cause.had_begun else "engine lost"
    return next((failure for kind, failure in _FAILURES if isinstance(cause, kind)), "refused")


def translated(error: BaseException, model_id: str) -> Exception:
    """Return a replica's failed Serve call as an error of vLLM's, which its OpenAI classes turn into an answer."""
    cause = _cause(error)
    if isinstance(cause, DeploymentError):
        return as_vllm_error(cause)
    if isinstance(cause, BackPressureError):
        current_record().refusal = refusal_of(cause)
        return GracefulHTTPError(
            f"Too many requests wait for model '{model_id}'; please try again.", HTTPStatus.TOO_MANY_REQUESTS
        )
    if isinstance(cause, RayActorError) or not isinstance(cause, Exception):
        return as_vllm_error(EngineDiedError(model_id))
    return cause


def as_vllm_error(error: Exception) -> Exception:
    """Return an error of ours as one that vLLM's OpenAI classes know."""
    if isinstance(error, RequestRejectedError):
        return VLLMValidationError(error.message, parameter=error.parameter)
    # vLLM's errors say less; what the request was told is noted while that is still known.
    current_record().refusal = refusal_of(error)
    return GracefulHTTPError(str(error), status_of(error))


def _cause(error: BaseException) -> BaseException:
    """Return what a replica raised; Ray wraps it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, DeploymentError) else error
