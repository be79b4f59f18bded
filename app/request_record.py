"""What is noted of a request on its way through the gateway: whose it is, for which model, when its tokens came.

Covers: the notes of one request, and what came of it. Does not cover: what becomes of them (``visits``).
"""

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

from deployments.tracing import NO_SPAN, Span

Outcome = Literal["ok", "wrong", "refused", "failed", "left"]
_REFUSED = {
    HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}  # fmt: skip
_CLIENT_CLOSED_REQUEST = 499
_MAX_ID_CHARACTERS = 128
LEFT = "left"
"""The failure of a request whose client went away."""


@dataclass
class RequestRecord:
    """One request's; times are of the monotonic clock, in seconds. ``began_s`` is when the gateway had its headers."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    operation: str = ""
    tenant: str = ""
    # Known only once it is one that there is: names that clients make up are not kept.
    model: str = ""
    began_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    # Why it was turned away, if it was.
    refusal: str | None = None
    # What ended it after it had begun to answer.
    failure: str | None = None
    # What traces it.
    span: Span = NO_SPAN

    def tokens_came(self, count: int, now_s: float) -> None:
        """Count tokens on their way to the client."""
        if count and self.first_token_s is None:
            self.first_token_s = now_s
        self.completion_tokens += count

    def outcome(self) -> Outcome:
        """Return what came of it."""
        if self.status in {0, _CLIENT_CLOSED_REQUEST}:
            return "left"
        if self.status in _REFUSED:
            return "refused"
        if self.status >= HTTPStatus.BAD_REQUEST:
            return "failed" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "wrong"
        if self.failure is None:
            return "ok"
        # It had its headers already.
        return "left" if self.failure == LEFT else "refused" if self.refusal is not None else "failed"


def noted_id(given: str | None) -> str:
    """Return a client's id for its request, shortened; one of ours where it has given none."""
    return given[:_MAX_ID_CHARACTERS] if given else uuid.uuid4().hex


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("record", default=None)


def begin_record(record: RequestRecord) -> None:
    """Have ``current_record`` return ``record`` in this task, and in those that begin in it.

    It is never taken back: a request's task ends with it, and a generator may be closed in another one.
    """
    _CURRENT.set(record)


def current_record() -> RequestRecord:
    """Return the notes of the request that this task works for; where there is none, some that nobody reads."""
    return _CURRENT.get() or RequestRecord()
