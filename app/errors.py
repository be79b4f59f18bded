"""What the application can answer other than success, and the one table of HTTP statuses.

AppError
├── ConfigError           the configuration is wrong; names the key
├── InvalidRequestError   the request is wrong; names the field
├── ModelNotFoundError    no model or adapter of that name
├── BodyTooLargeError     the request's body is over the limit
├── KeyRefusedError       there is no API key, or none that is known
├── NotPermittedError     the key is good, and not for this
├── LimitReachedError     the tenant is over a limit of its own
├── TooManyWaitingError   so many requests wait for a place that there is no room for another
├── KeysUnavailableError  keys can't be checked now
├── RequestEndsEnginesError  engines ended under the request, one after the other; it is not tried again
├── CatalogueError        what was changed at run time could not be kept
├── AdapterNotFoundError  an administrator names an adapter that there isn't
├── AdaptersUnreachableError  adapters' files can't be read now
├── ForecastUnavailableError  there is no forecaster, or it does not answer; everything else goes on
├── ServiceUnreachableError  no service answers where the command line looks for one
├── RefusedError          the service refuses what the command line asks for
├── LaunchError           the machine can't run the service, or it didn't come up
└── ApiError              what ``app.client`` raises: an error answer of the service

All are picklable: every field is positional and goes to ``Exception.__init__``. ``status_of`` maps these and the
errors of ``deployments`` to HTTP.
"""

import math
from http import HTTPStatus

from deployments.errors import (
    EngineDiedError,
    EngineStartError,
    EngineUnavailableError,
    FeedError,
    RequestRejectedError,
    ResumeUnsupportedError,
    UnknownModelError,
)


class AppError(Exception):
    """Root of this package's errors."""


class ConfigError(AppError):
    """The configuration can't be used; ``problems`` are sentences that begin with the path of the key."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"The configuration is wrong: {self.problems[0]}"
        return "The configuration is wrong:\n" + "\n".join(f"  - {problem}" for problem in self.problems)


class InvalidRequestError(AppError):
    """The request can't be answered as it is; ``param`` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class ModelNotFoundError(AppError):
    """There is no model or adapter ``name``."""

    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"The model `{self.name}` does not exist."


class BodyTooLargeError(AppError):
    """The body is larger than ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"The request's body is larger than {self.limit_bytes} bytes."


class KeyRefusedError(AppError):
    """The request has no API key, or (``was_given``) one that is nobody's."""

    def __init__(self, was_given: bool) -> None:  # noqa: FBT001 - every field of an error is positional
        super().__init__(was_given)
        self.was_given = was_given

    def __str__(self) -> str:
        if self.was_given:
            return "The API key is not valid."
        return "An API key is needed, in the header `Authorization: Bearer KEY`."


class NotPermittedError(AppError):
    """``message`` says who may."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class LimitReachedError(AppError):
    """A tenant is over its limit of ``limit`` (``requests``, ``tokens``, ``concurrent``) for ``retry_after_s``."""

    def __init__(self, limit: str, retry_after_s: float) -> None:
        super().__init__(limit, retry_after_s)
        self.limit = limit
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        what = {"concurrent": "concurrent requests"}.get(self.limit, f"{self.limit} per minute")
        return f"Your limit of {what} is reached; please try again in {max(1, math.ceil(self.retry_after_s))} s."


class TooManyWaitingError(AppError):
    """As many requests wait for ``model_id`` as may."""

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id)
        self.model_id = model_id

    def __str__(self) -> str:
        return f"Too many requests wait for model '{self.model_id}'; please try again."


class KeysUnavailableError(AppError):
    """``reason`` says why keys can't be checked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"API keys can't be checked at the moment: {self.reason}."


class CatalogueError(AppError):
    """The list of models, or of adapters, could not be written to ``path``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"Models and adapters stay as they were, because their list could not be written: {self.reason}"


class AdapterNotFoundError(AppError):
    """There is no adapter ``name``, as an administrator calls it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"The adapter `{self.name}` cannot be found."


class AdaptersUnreachableError(AppError):
    """``reason`` says why adapters' files can't be read; nothing of where they are, but for administrators."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Adapters can't be looked up at the moment: {self.reason}"


class RequestEndsEnginesError(AppError):
    """``count`` engines of ``model_id`` ended while they worked on the request, without a token between them."""

    def __init__(self, model_id: str, count: int) -> None:
        super().__init__(model_id, count)
        self.model_id = model_id
        self.count = count

    def __str__(self) -> str:
        return (
            f"{self.count} engines of model '{self.model_id}' ended while they worked on this request; "
            "it is not tried again."
        )


class ForecastUnavailableError(AppError):
    """There is no plan to show."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"There is no plan to show: {self.reason}"


class ServiceUnreachableError(AppError):
    """No FlashServe answers at ``url``."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"No FlashServe answers at {self.url}: {self.reason}"


class RefusedError(AppError):
    """The service answered with an error; ``message`` is its own."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class LaunchError(AppError):
    """``message`` says what keeps the service from running."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ApiError(AppError):
    """The service answered with an error; ``code`` is the HTTP status that the same request would have got."""

    def __init__(self, code: int, message: str, type_: str, param: str | None) -> None:
        super().__init__(code, message, type_, param)
        self.code = code
        self.message = message
        self.type = type_
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.type}, {self.code})"


_STATUS: dict[type[Exception], HTTPStatus] = {
    ConfigError: HTTPStatus.BAD_REQUEST,
    CatalogueError: HTTPStatus.SERVICE_UNAVAILABLE,
    AdapterNotFoundError: HTTPStatus.NOT_FOUND,
    AdaptersUnreachableError: HTTPStatus.SERVICE_UNAVAILABLE,
    ForecastUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    InvalidRequestError: HTTPStatus.BAD_REQUEST,
    RequestRejectedError: HTTPStatus.BAD_REQUEST,
    ModelNotFoundError: HTTPStatus.NOT_FOUND,
    BodyTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    KeyRefusedError: HTTPStatus.UNAUTHORIZED,
    NotPermittedError: HTTPStatus.FORBIDDEN,
    LimitReachedError: HTTPStatus.TOO_MANY_REQUESTS,
    TooManyWaitingError: HTTPStatus.TOO_MANY_REQUESTS,
    KeysUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineStartError: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineDiedError: HTTPStatus.SERVICE_UNAVAILABLE,
    FeedError: HTTPStatus.SERVICE_UNAVAILABLE,
    ResumeUnsupportedError: HTTPStatus.SERVICE_UNAVAILABLE,
    # Not 503: whoever sends it again ends more engines.
    RequestEndsEnginesError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_TYPE = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.FORBIDDEN: "PermissionDeniedError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestTooLargeError",
    HTTPStatus.TOO_MANY_REQUESTS: "RateLimitError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
}

# A client that is told to come back asks again after this long.
RETRY_AFTER_S = 1


def status_of(error: Exception) -> HTTPStatus:
    """Return the HTTP status for an error; 500 for one that has no place in the table."""
    return next((s for kind, s in _STATUS.items() if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def error_type(status: HTTPStatus) -> str:
    """Return the ``type`` an error of this status has in OpenAI's shape, named as vLLM names them."""
    return _TYPE.get(status, "InternalServerError")
