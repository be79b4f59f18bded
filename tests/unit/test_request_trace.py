"""Starts and wakes that a request waited for, laid out within its hold."""

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.request_trace import TracedDeltas, trace_hold
from deployments.tracing import NO_SPAN, Span, TraceConfig, Tracing
from deployments.types import StartEvent
from deployments.wire import TokenDelta


class Recorder:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._tracing = Tracing(TraceConfig("http://nowhere"), "test", exporter=self._exporter)
        self.root: Span = self._tracing.begin("root", began_s=0.0)

    def spans(self) -> dict[str, ReadableSpan]:
        self.root.end()
        self._tracing.flush()
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def event(ago_s: float, took_s: float) -> StartEvent:
    return {
        "kind": "start", "at_s": time.time() - ago_s, "took_s": took_s, "tier": "disk",
        "stages_s": {"stage": 2.0, "engine": 3.0, "fork": 1.0}, "begins_s": {"stage": 0.0, "engine": 1.0, "fork": 1.0},
    }  # fmt: skip


def length_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_stages_lie_where_they_were(recorder: Recorder) -> None:
    now_s = time.monotonic()
    trace_hold(recorder.root, "cold", now_s - 6, now_s, [event(ago_s=1, took_s=4)])
    spans = recorder.spans()
    assert spans.keys() == {"root", "hold", "start", "stage", "engine", "fork"}
    start, engine = spans["start"], spans["engine"]
    assert start.parent is not None
    assert start.parent.span_id == spans["hold"].context.span_id  # type: ignore[union-attr]
    assert length_s(spans["hold"]) == pytest.approx(6, abs=0.1)
    assert length_s(start) == pytest.approx(4, abs=0.01)
    assert length_s(engine) == pytest.approx(3, abs=0.01)
    assert (engine.start_time - start.start_time) / 1e9 == pytest.approx(1, abs=0.01)  # type: ignore[operator]


def test_what_was_over_before_is_none_of_it(recorder: Recorder) -> None:
    now_s = time.monotonic()
    trace_hold(recorder.root, "asleep", now_s - 2, now_s, [event(ago_s=5, took_s=1)])
    assert recorder.spans().keys() == {"root", "hold"}


def test_an_engine_that_is_awake_holds_nobody(recorder: Recorder) -> None:
    now_s = time.monotonic()
    trace_hold(recorder.root, "awake", now_s, now_s, [])
    trace_hold(NO_SPAN, "cold", now_s - 5, now_s, [])
    assert recorder.spans().keys() == {"root"}


def test_an_answer_that_did_not_come_was_not_decoded(recorder: Recorder) -> None:
    TracedDeltas(recorder.root).end()
    assert recorder.spans().keys() == {"root", "prefill"}


def test_an_engine_that_does_not_tell_has_no_queue(recorder: Recorder) -> None:
    deltas = TracedDeltas(recorder.root)
    deltas.take(TokenDelta("s", [1]))
    deltas.take(TokenDelta("s", [2, 3], "length"))
    deltas.end()
    spans = recorder.spans()
    assert spans.keys() == {"root", "prefill", "decode"}
    assert dict(spans["decode"].attributes or {}) == {"flashserve.tokens": 3}
