"""What streams have been through, as Ray metrics: in the dashboard, and on ``/metrics``.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_stream_resumes_total`` | counter | ``model``, ``failure``: what ended the attempt before |
| ``flashserve_stream_moves_total`` | counter | ``model`` |
| ``flashserve_stream_given_up_total`` | counter | ``model``, ``reason`` |
| ``flashserve_inter_token_latency_seconds`` | histogram | ``model`` |
| ``flashserve_queue_seconds`` | histogram | ``model``; of sequences of tenants, before they are given to a replica |
"""

from ray.util.metrics import Counter, Histogram

_BOUNDARIES_S = [0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 30.0]


class StreamMetrics:
    """The metrics of one gateway, for one model."""

    def __init__(self, model_id: str) -> None:
        self._labels = {"model": model_id}
        self._resumes = Counter(
            "flashserve_stream_resumes_total", "Attempts that were lost and asked for again.", ("model", "failure")
        )
        self._moves = Counter("flashserve_stream_moves_total", "Streams that moved while they ran.", ("model",))
        self._given_up = Counter(
            "flashserve_stream_given_up_total", "Requests that were lost and not asked for again.", ("model", "reason")
        )

        self._gaps = Histogram(
            "flashserve_inter_token_latency_seconds",
            "Between two deliveries of tokens of one sequence, with whatever moved or restarted between them.",
            _BOUNDARIES_S,
            ("model",),
        )

        self._queued = Histogram(
            "flashserve_queue_seconds",
            "How long a tenant's sequence waited in the gateway for a place in its pool.",
            _BOUNDARIES_S,
            ("model",),
        )

    def queued(self, seconds: float) -> None:
        """Count a wait for a place."""
        self._queued.observe(seconds, self._labels)

    def gap(self, seconds: float) -> None:
        """Count the time between two deliveries."""
        self._gaps.observe(seconds, self._labels)

    def resumed(self, failure: str) -> None:
        """Count an attempt that was lost."""
        self._resumes.inc(1, self._labels | {"failure": failure})

    def moved(self) -> None:
        """Count a hand-over."""
        self._moves.inc(1, self._labels)

    def given_up(self, reason: str) -> None:
        """Count a request that had been lost and ends with an error."""
        self._given_up.inc(1, self._labels | {"reason": reason})
