"""Requests as their clients see them, as Ray metrics: in the dashboard, and on ``/metrics``.

vLLM has the same of each engine under its own names; these hold the gateway's queue, holding, moves and restarts too.
"""

from ray.util.metrics import Counter, Histogram

from app.request_record import RequestRecord

_LONG_S = [0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0]


class RequestMetrics:
    """The metrics of one gateway. Models are those that are served; an empty one stands for all other names."""

    def __init__(self) -> None:
        self._requests = Counter(
            "flashserve_requests_total",
            "Requests that have ended, by what came of them.",
            ("model", "operation", "outcome"),
        )
        self._refused = Counter(
            "flashserve_requests_refused_total", "Requests that were turned away, by why.", ("model", "reason")
        )
        self._latency = Histogram(
            "flashserve_e2e_request_latency_seconds",
            "From a request's arrival at the gateway to the end of its answer.",
            _LONG_S,
            ("model", "operation"),
        )
        self._first_token = Histogram(
            "flashserve_time_to_first_token_seconds",
            "From a request's arrival at the gateway to its first token, however cold the model was.",
            _LONG_S,
            ("model",),
        )
        self._prompt_tokens = Counter("flashserve_prompt_tokens_total", "Tokens read.", ("model", "tenant"))
        self._generation_tokens = Counter("flashserve_generation_tokens_total", "Tokens made.", ("model", "tenant"))

    def finished(self, record: RequestRecord, now_s: float) -> None:
        """Count a request that has ended."""
        outcome, model = record.outcome(), {"model": record.model}
        self._requests.inc(1, model | {"operation": record.operation, "outcome": outcome})
        if record.refusal is not None and outcome in {"refused", "failed"}:
            self._refused.inc(1, model | {"reason": record.refusal})
        if outcome == "ok":
            self._latency.observe(now_s - record.began_s, model | {"operation": record.operation})
        if record.first_token_s is not None:
            self._first_token.observe(record.first_token_s - record.began_s, model)
        labels = model | {"tenant": record.tenant}
        if record.prompt_tokens:
            self._prompt_tokens.inc(record.prompt_tokens, labels)
        if record.completion_tokens:
            self._generation_tokens.inc(record.completion_tokens, labels)
