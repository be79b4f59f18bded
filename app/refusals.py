"""Why a request was turned away, in the few words that metrics and logs have for it."""

from ray.serve.exceptions import BackPressureError

from app.errors import (
    BodyTooLargeError,
    KeyRefusedError,
    KeysUnavailableError,
    LimitReachedError,
    NotPermittedError,
    RequestEndsEnginesError,
    TooManyWaitingError,
)
from deployments.errors import EngineDiedError, EngineStartError, EngineUnavailableError, FeedError

# The first that fits.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (TooManyWaitingError, "too many waiting"),
    (BackPressureError, "too many waiting"),
    (EngineUnavailableError, "not ready in time"),
    (EngineStartError, "not started"),
    (EngineDiedError, "engine died"),
    (FeedError, "replica died"),
    (RequestEndsEnginesError, "ends engines"),
    (KeyRefusedError, "key"),
    (KeysUnavailableError, "keys unavailable"),
    (NotPermittedError, "not permitted"),
    (BodyTooLargeError, "body too large"),
)
REASONS = frozenset(reason for _, reason in _REASONS) | {
    f"limit of {each}" for each in ("requests", "tokens", "concurrent")
}


def refusal_of(error: BaseException) -> str | None:
    """Return the reason that an error stands for; None for one that turns nobody away."""
    if isinstance(error, LimitReachedError):
        return f"limit of {error.limit}"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
