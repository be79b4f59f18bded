"""A collector of OpenTelemetry's spans over HTTP, as a real one takes them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Spanned:
    name: str
    process: str
    trace_id: str
    span_id: str
    parent_id: str
    begin_s: float
    end_s: float
    attributes: dict[str, Any]
    failure: str | None


@dataclass
class Collector:
    endpoint: str
    spans: list[Spanned] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    # What it answers.
    status: int = 200

    def of(self, trace_id: str) -> list[Spanned]:
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.begin_s)

    def children(self, parent: Spanned) -> list[Spanned]:
        return [span for span in self.of(parent.trace_id) if span.parent_id == parent.span_id]

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_spanned(span, about["service.name"]) for span in scope.spans]


def _spanned(span: Any, process: str) -> Spanned:
    return Spanned(
        span.name, process, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9, _attributes(span.attributes),
        span.status.message if span.status.code == 2 else None,
    )  # fmt: skip


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces" and found.status == 200:
                found.take(body)
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
