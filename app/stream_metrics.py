"""What streams have been through, as Ray metrics: in the dashboard, and on ``/metrics``.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_stream_resumes_total`` | counter | ``model``, ``failure``: what ended the attempt before |
| ``flashserve_stream_moves_total`` | counter | ``model`` |
| ``flashserve_stream_given_up_total`` | counter | ``model``, ``reason`` |
"""

from ray.util.metrics import Counter


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

    def resumed(self, failure: str) -> None:
        """Count an attempt that was lost."""
        self._resumes.inc(1, self._labels | {"failure": failure})

    def moved(self) -> None:
        """Count a hand-over."""
        self._moves.inc(1, self._labels)

    def given_up(self, reason: str) -> None:
        """Count a request that had been lost and ends with an error."""
        self._given_up.inc(1, self._labels | {"reason": reason})
