"""Spans of a request's way, for an OpenTelemetry collector; nothing at all where none is configured.

Covers: a process's spans and their export over OTLP, W3C trace context in and out. OpenTelemetry is imported here
alone, and only where traces are wanted. Does not cover: which spans there are (``app.visits``, ``app.carrier``,
``request_trace``).

Nobody waits for the collector: spans go into a bounded queue, a thread of its own sends them, and what can't be sent
is dropped and logged.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "client"]
Value = str | int | float | bool

_TRACES_PATH = "/v1/traces"
# For one try to send; a collector that is slower than this is away.
_EXPORT_S = 5.0
_READINGS = 3
# How long a process that ends waits for its last spans to be sent.
_LAST_S = 2.0


@dataclass(frozen=True)
class TraceConfig:
    """Where spans go (the base address of OTLP over HTTP), and the share of requests that are traced.

    A request that brings a trace context is traced if its sender has decided so, whatever the share.
    """

    endpoint: str
    sample: float = 1.0


class Span:
    """A span under way, or none: then everything here does nothing. Times are of the monotonic clock, in seconds.

    ``to_wall_ns`` is what to add for the wall's, the same for all spans of a request here, so that they fit together.
    """

    __slots__ = ("_span", "_tracer", "to_wall_ns")

    def __init__(self, tracer: "Tracer | None" = None, span: "OtelSpan | None" = None, to_wall_ns: int = 0) -> None:
        self._tracer = tracer
        self._span = span
        self.to_wall_ns = to_wall_ns

    def child(
        self, name: str, kind: Kind = "internal", began_s: float | None = None, **attributes: Value | None
    ) -> "Span":
        """Begin a span within this one; attributes that are None are left out."""
        if self._tracer is None or self._span is None or not self._span.is_recording():
            return NO_SPAN
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - imported already where there are spans

        context = set_span_in_context(self._span)
        began_ns = _wall_ns(began_s, self.to_wall_ns)
        begun = _begun(self._tracer, name, kind, context, began_ns, attributes)
        return Span(self._tracer, begun, self.to_wall_ns)

    def lasted(self, name: str, began_s: float, ended_s: float, **attributes: Value | None) -> "Span":
        """Add a span within this one that is over already."""
        child = self.child(name, "internal", began_s, **attributes)
        child.end(ended_s=ended_s)
        return child

    def note(self, **attributes: Value | None) -> None:
        """Add attributes; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def end(self, failure: str | None = None, ended_s: float | None = None) -> None:
        """End it, as failed if there is a ``failure``; what comes after the first end counts for nothing."""
        if self._span is None or not self._span.is_recording():
            return
        if failure is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - as in ``child``

            self._span.set_status(StatusCode.ERROR, failure)
        self._span.end(_wall_ns(ended_s, self.to_wall_ns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            # Nobody wants the rest, which may be because there is enough.
            self.note(flashserve__cancelled=True)
            error = None
        # Its kind and not what it says, which may quote what was sent.
        self.end(None if error is None else type(error).__name__)

    @property
    def traceparent(self) -> str | None:
        """The W3C header that makes spans elsewhere children of this one; None when nobody records."""
        if self._span is None or not self._span.is_recording():
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def __bool__(self) -> bool:
        """Tell whether anybody records it: else what only it would tell need not be found out."""
        return self._span is not None and self._span.is_recording()

    def __repr__(self) -> str:
        return f"<Span {self.traceparent}>"


NO_SPAN = Span()


class Tracing:
    """The spans of one process; ``close`` last."""

    def __init__(
        self, config: TraceConfig, process: str, instance: str = "", exporter: "SpanExporter | None" = None
    ) -> None:
        """``process`` says what kind it is, ``instance`` which one; ``exporter`` takes the place of OTLP's."""
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as in ``child``
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

        resource = Resource.create({"service.name": f"flashserve-{process}", "service.instance.id": instance})
        # Not the process's own provider, which is Ray's; nor its exit, which must not wait for a collector.
        self._provider = TracerProvider(ParentBasedTraceIdRatio(config.sample), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp(config.endpoint)))
        self._tracer = self._provider.get_tracer("flashserve")

    def begin(
        self,
        name: str,
        headers: Mapping[str, str] | None = None,
        began_s: float | None = None,
        **attributes: Value | None,
    ) -> Span:
        """Begin the first span of a request here, within the trace that its ``headers`` name if they name one."""
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        context = TraceContextTextMapPropagator().extract(headers or {}, Context())
        to_wall_ns = _between_clocks_ns()
        began_ns = _wall_ns(began_s, to_wall_ns)
        return Span(self._tracer, _begun(self._tracer, name, "server", context, began_ns, attributes), to_wall_ns)

    def go_on(
        self, name: str, traceparent: str | None, began_s: float | None = None, **attributes: Value | None
    ) -> Span:
        """Begin a span within one of another process; none where that one is not recorded."""
        if traceparent is None:
            return NO_SPAN
        return self.begin(name, {"traceparent": traceparent}, began_s, **attributes)

    async def close(self) -> None:
        """Send what is left, as far as that takes no time."""
        # A thread that no exit waits for.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _LAST_S)

    def flush(self) -> None:
        """Send what has ended; blocks."""
        self._provider.force_flush()


def caller_traceparent() -> str | None:
    """Return the W3C header of the span that this process is in, if it uses OpenTelemetry and is in one."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _otlp(endpoint: str) -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    # Headers, such as a key, come from OTEL_EXPORTER_OTLP_HEADERS.
    return OTLPSpanExporter(endpoint.rstrip("/") + _TRACES_PATH, timeout=_EXPORT_S)


def _begun(  # noqa: PLR0913, PLR0917 - all that a span is begun with
    tracer: "Tracer", name: str, kind: Kind, context: Any, began_ns: int, attributes: Mapping[str, Value | None]
) -> "OtelSpan":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return tracer.start_span(name, context, SpanKind[kind.upper()], _named(attributes), start_time=began_ns)


def _named(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return them with dots, as OpenTelemetry's names have them: ``a__b`` is ``a.b``."""
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}


def _wall_ns(at_s: float | None, to_wall_ns: int) -> int:
    return (time.monotonic_ns() if at_s is None else int(at_s * 1e9)) + to_wall_ns


def _between_clocks_ns() -> int:
    # A process may be held up between reading one and the other: of a few readings the quickest counts.
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(_READINGS)]
    before_ns, wall_ns, after_ns = min(readings, key=lambda reading: reading[2] - reading[0])
    return wall_ns - (before_ns + after_ns) // 2
