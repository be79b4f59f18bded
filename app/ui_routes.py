"""The status page at ``/ui``: three files of the package, for anybody; what they show needs an administrator's key.

Does not cover: the data (``status``, at ``/admin/status``).
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

# Nothing but these files and this service, and nothing may put the page into a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_ASSETS = {
    "/ui": ("index.html", "text/html"), "/ui/style.css": ("style.css", "text/css"),
    "/ui/page.js": ("page.js", "text/javascript"),
}  # fmt: skip
UI_PATHS = frozenset(_ASSETS)


def add_ui_routes(app: FastAPI) -> None:
    """Serve the page."""
    for path, (name, kind) in _ASSETS.items():
        content = (files("app") / "ui" / name).read_bytes()
        app.get(path, include_in_schema=False)(_serving(content, kind))


def _serving(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return serve
