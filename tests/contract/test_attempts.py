"""What the errors of Ray and of Serve say about an attempt, and what a client is told of them."""

import asyncio
from http import HTTPStatus

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayTaskError, TaskCancelledError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from app.attempts import failure_of, translated
from app.errors import RequestEndsEnginesError, status_of
from app.resumption import Failure
from deployments.errors import (
    EngineDiedError,
    EngineUnavailableError,
    FeedError,
    ReplicaLeavingError,
    RequestRejectedError,
    ResumeUnsupportedError,
    UnknownModelError,
)


def raised_in_a_replica(cause: Exception) -> Exception:
    """As it comes out of a Serve call."""
    return RayTaskError("generate", "a traceback", cause).as_instanceof_cause()


MEANT: dict[Failure, list[BaseException]] = {
    "engine lost": [
        EngineDiedError("m", had_begun=False), raised_in_a_replica(EngineDiedError("m", had_begun=False)),
    ],
    "engine died": [EngineDiedError("m"), raised_in_a_replica(EngineDiedError("m"))],
    "replica died": [
        ActorDiedError(), ActorUnavailableError("gone", None), NodeDiedError("gone"),
        raised_in_a_replica(FeedError("here", "gone")),
    ],
    "leaving": [
        raised_in_a_replica(ReplicaLeavingError("m", "it stops")), TaskCancelledError(), RequestCancelledError("r"),
        asyncio.CancelledError(),
    ],
    "unavailable": [
        raised_in_a_replica(EngineUnavailableError("m", "it failed")), BackPressureError(1, 1),
        DeploymentUnavailableError(DeploymentID("d", "a")),
    ],
    "refused": [
        raised_in_a_replica(RequestRejectedError("no", "prompt")), raised_in_a_replica(UnknownModelError("m")),
        raised_in_a_replica(ResumeUnsupportedError("m", "not here")), raised_in_a_replica(KeyError("a slip")),
        ValueError("a slip here"),
    ],
}  # fmt: skip
CASES = [(failure, error) for failure, errors in MEANT.items() for error in errors]


@pytest.mark.parametrize(("failure", "error"), CASES, ids=[f"{f}: {type(e).__name__}" for f, e in CASES])
def test_what_an_error_means(failure: Failure, error: BaseException) -> None:
    assert failure_of(error) == failure


def test_what_a_client_is_told() -> None:
    assert isinstance(translated(raised_in_a_replica(RequestRejectedError("no", "prompt")), "m"), VLLMValidationError)
    for error, status in (
        (ActorDiedError(), HTTPStatus.SERVICE_UNAVAILABLE),
        (asyncio.CancelledError(), HTTPStatus.SERVICE_UNAVAILABLE),
        (BackPressureError(1, 1), HTTPStatus.TOO_MANY_REQUESTS),
        (raised_in_a_replica(ResumeUnsupportedError("m", "not here")), HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        told = translated(error, "m")
        assert isinstance(told, GracefulHTTPError)
        assert told.http_status == status
    assert status_of(RequestEndsEnginesError("m", 2)) is HTTPStatus.INTERNAL_SERVER_ERROR
