"""The door of the HTTP API: everything that comes over HTTP passes here first, before its body is read.

Covers: the header with the key, which paths need what, statuses and headers of refusals, a request's end. Does not
cover: the decisions (``door``).
"""

import ipaddress
import math
from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.callers import Caller
from app.door import Door, check_admin
from app.errors import AppError, KeyRefusedError, LimitReachedError, NotPermittedError, status_of
from app.refusals import refusal_of
from app.request_record import current_record
from app.responses import error_answer
from app.tenants import NOBODY
from app.ui_routes import UI_PATHS

_CALLER = "flashserve.caller"
# For whoever has no key: nothing there names a model.
_OPEN_PATHS = frozenset({"/health", "/openapi.json"}) | UI_PATHS
_MODELS_PATH = "/v1/models"
_SCHEME = b"bearer"


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, door: Door, operations: Collection[str], *, allow_anonymous: bool) -> None:
        """``operations`` are the paths that count against limits; what isn't among them is for administrators."""
        self._app = app
        self._door = door
        self._operations = frozenset(operations)
        self._allow_anonymous = allow_anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What routes are matched by; a path written in another way is none that is known here.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        caller: Caller | None = None
        has_begun = False

        async def with_limits(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                if caller is not None and path in self._operations:
                    MutableHeaders(scope=message).update(self._door.headers(caller))
            await send(message)

        try:
            caller = scope[_CALLER] = await self._caller(scope, path)
            current_record().tenant = caller.name
            if path in self._operations:
                with self._door.visit(caller):
                    await self._app(scope, receive, with_limits)
                return
            if path not in _OPEN_PATHS and path != _MODELS_PATH and not path.startswith(f"{_MODELS_PATH}/"):
                check_admin(caller)
            await self._app(scope, receive, with_limits)
        # Whatever it is becomes an answer in OpenAI's shape: past here is Serve, which answers with a traceback.
        # What isn't ours to tell is logged where the answer is made (``responses.error_answer``).
        except Exception as error:
            # The application inside answers for itself.
            if has_begun:
                raise
            current_record().refusal = refusal_of(error)
            await _refusal(error)(scope, receive, with_limits)

    async def _caller(self, scope: Scope, path: str) -> Caller:
        try:
            if self._door.is_open and not self._allow_anonymous and not _is_near(scope):
                raise NotPermittedError(
                    "This service has no API keys, so it serves its own machine only. Its operator can set "
                    "`security.api_keys_file`, or `security.allow_anonymous`."
                )
            return await self._door.identify(_key(scope))
        except AppError:
            if path in _OPEN_PATHS:
                return Caller(NOBODY)
            raise


def caller_of(request: Request) -> Caller:
    """Return whose a request is that came through the guard."""
    return request.scope[_CALLER]


def _key(scope: Scope) -> str | None:
    """Return what the header says; None without one.

    Raises:
        KeyRefusedError: it holds no key, or there are several.
    """
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        return None
    scheme, _, key = values[0].strip().partition(b" ")
    if len(values) > 1 or scheme.lower() != _SCHEME or not key.strip() or not key.isascii():
        raise KeyRefusedError(was_given=True)
    return key.strip().decode("ascii")


def _is_near(scope: Scope) -> bool:
    """Tell whether a request comes from the machine itself."""
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _refusal(error: Exception) -> JSONResponse:
    headers = {}
    if isinstance(error, KeyRefusedError):
        # As RFC 6750 has it.
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if error.was_given else "Bearer"
    elif isinstance(error, LimitReachedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return JSONResponse(error_answer(error), status_of(error), headers)
