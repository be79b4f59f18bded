"""What operators see of a real service: a scrape under load, and what was logged, through Serve and Ray."""

import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dashboards import DASHBOARDS
from tests.support.collector import Collector
from tests.support.declared_metrics import documented
from tests.support.prometheus import PROMETHEUS, prometheus
from tests.support.promql import metrics_in
from tests.support.service import CHAT_MODEL, Service
from tests.support.tenants import KeysFile
from tests.support.waiting import until

ACME, ROOT = "acme", "root"
# Not for a load that nothing happens to, on one replica without a GPU.
NOT_BY_LOAD = {
    "flashserve_stream_resumes_total", "flashserve_stream_moves_total", "flashserve_stream_given_up_total",
    "flashserve_device_transfers_total", "flashserve_prewarms_total", "flashserve_engines_ahead_total",
    "flashserve_adapter_unloads_total",
    "flashserve_promotions_failed_total", "flashserve_evictions_total", "flashserve_scaling_replicas",
    "flashserve_plan_age_seconds", "flashserve_forecast_requests_per_second", "flashserve_forecast_error",
    "flashserve_fetched_bytes_total", "flashserve_peer_given_bytes_total", "flashserve_peers_failed_total",
}  # fmt: skip
RAYS_LABELS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId", "le"}
TELEMETRYS_LABELS = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
_SERIES = re.compile(r"^ray_(flashserve_\w+?)(?:_bucket|_sum|_count)?\{(.*?)\} ", re.MULTILINE)
_QUEUED = re.compile(r"^ray_vllm_request_queue_time_seconds_sum\{.*?\} (\S+)$", re.MULTILINE)


class Operators:
    def __init__(self, service: Service, file: KeysFile) -> None:
        self.service = service
        self._file = file

    def ask(self, method: str, path: str, key: str, request_id: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._file.keys.get(key, key)}"}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        json = body or None
        return httpx.request(method, f"{self.service.url}{path}", headers=headers, json=json, timeout=60)

    def key(self, tenant: str) -> str:
        return self._file.keys[tenant]

    def logged(self, request_id: str) -> list[str]:
        """The lines of Serve's logs that are about a request."""
        logs = Path(self.service.ray_process.cwd(), "session_latest", "logs", "serve")
        texts = (path.read_text(errors="replace") for path in logs.glob("replica_*Gateway*.log"))
        return [line for text in texts for line in text.splitlines() if f"request_id={request_id} " in line]


@pytest.fixture
def operators(guarded: Service, keys_file: KeysFile) -> Operators:
    return Operators(guarded, keys_file)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "pirate", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4} | more


def test_a_scrape_has_every_metric_that_is_documented_and_no_other(operators: Operators) -> None:
    assert operators.ask("POST", "/admin/sleep", ROOT, model=CHAT_MODEL).status_code == 200
    assert operators.ask("POST", "/v1/chat/completions", ACME, **chat(stream=True)).status_code == 200
    assert operators.ask("POST", "/v1/chat/completions", "nobody's", **chat()).status_code == 401
    labels = {metric.name: metric.labels for metric in documented()}

    def scraped() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for series, told in _SERIES.findall(operators.ask("GET", "/metrics", ROOT).text):
            found.setdefault(series, set()).update(re.findall(r'(\w+)="', told))
        return found

    def everything_is_there() -> bool:
        # Again and again: Ray drops what a process counts before it has found its node's agent.
        assert operators.ask("POST", "/v1/chat/completions", ACME, **chat()).status_code == 200
        return wanted <= scraped().keys()

    wanted = labels.keys() - NOT_BY_LOAD
    try:
        until(everything_is_there, 60)
    except AssertionError:
        assert wanted - scraped().keys() == set()
    found = scraped()
    assert found.keys() <= labels.keys()
    others = RAYS_LABELS | TELEMETRYS_LABELS
    assert {name: told - others for name, told in found.items()} == {name: set(labels[name]) for name in found}
    assert "NodeAddress" in found["flashserve_tier_used_bytes"], "dashboards and alerts go by it"
    # What vLLM's scheduler tells of itself comes from the engine's own process.
    assert any(float(seconds) > 0 for seconds in _QUEUED.findall(operators.ask("GET", "/metrics", ROOT).text))


@pytest.mark.skipif(PROMETHEUS is None, reason="there is no Prometheus; the variable PROMETHEUS may name one")
def test_no_panel_is_empty_in_a_real_prometheus(operators: Operators, tmp_path: Path) -> None:
    by_load = {f"ray_{metric.name}" for metric in documented() if metric.name not in NOT_BY_LOAD}
    asked = [
        (f"{dashboard.title}, {panel.title}", query.replace("$__rate_interval", "1m").replace("$model", ".*"), query)
        for dashboard in DASHBOARDS for panel in dashboard.panels for query, _ in panel.queries
    ]  # fmt: skip
    empty = [("", "nothing was asked")]
    with prometheus(tmp_path, operators.service.url, operators.key(ROOT)) as scraped:

        def nothing_is_empty() -> bool:
            # Again and again: what counts is told every few seconds, and a rate takes two tellings.
            assert operators.ask("POST", "/v1/chat/completions", ACME, **chat()).status_code == 200
            empty[:] = [
                (panel, expression)
                for panel, expression, query in asked
                if metrics_in(query) <= by_load and not scraped.ask(expression)
            ]
            return not empty

        with suppress(AssertionError):
            until(nothing_is_empty, 60)
    assert empty == []


def test_a_trace_leads_from_the_client_to_the_engine(operators: Operators, collector: Collector) -> None:
    assert operators.ask("POST", "/admin/sleep", ROOT, model=CHAT_MODEL).status_code == 200
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{'1' * 16}-01", "Authorization": f"Bearer {operators.key(ACME)}"}
    url = f"{operators.service.url}/v1/chat/completions"
    assert httpx.post(url, headers=headers, json=chat(model=CHAT_MODEL), timeout=60).status_code == 200

    def within(*path: str) -> set[str]:
        parents = {"1" * 16}
        for name in path:
            parents = {
                span.span_id for span in collector.of(trace_id) if span.parent_id in parents and span.name == name
            }
        return {span.name for span in collector.of(trace_id) if span.parent_id in parents}

    # Each process sends its own every few seconds.
    until(lambda: {"attempt", "generate"} <= {span.name for span in collector.of(trace_id)} and within(), 30)
    assert within() == {"chat"}
    assert within("chat") == {"queue", "attempt"}
    assert within("chat", "attempt", "generate") == {"hold", "queue", "prefill", "decode"}
    assert within("chat", "attempt", "generate", "hold") == {"wake"}
    stages = {"stage", "map the snapshot", "pack weights", "ask the canary"}
    assert within("chat", "attempt", "generate", "hold", "wake") == stages
    assert {span.process for span in collector.of(trace_id)} == {"flashserve-gateway", "flashserve-engines"}


def test_an_answer_says_which_request_it_is_for_and_so_does_the_log(operators: Operators) -> None:
    for request_id, key, body, status in (
        ("of-an-answer", ACME, chat(), 200),
        ("of-a-stream", ACME, chat(stream=True), 200),
        ("of-an-error", ACME, chat(max_tokens=-1), 400),
        ("of-nobody", "nobody's", chat(), 401),
    ):
        answer = operators.ask("POST", "/v1/chat/completions", key, request_id, **body)
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, [request_id])
        (line,) = until(lambda request_id=request_id: operators.logged(request_id), 10)  # type: ignore[misc]
        assert "operation=chat " in line
        assert f"status={status} " in line
        assert ("tenant=acme " in line) == (key == ACME)
    made = operators.ask("POST", "/v1/chat/completions", ACME, **chat()).headers.get_list("x-request-id")
    assert len(made) == 1
    assert until(lambda: operators.logged(made[0]), 10)
    (other,) = operators.ask("GET", "/nowhere", ROOT).headers.get_list("x-request-id")
    assert other
