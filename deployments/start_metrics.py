"""How long engines take to start and to wake, and what was made ready ahead, as Ray metrics and on ``/metrics``.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_start_stage_seconds`` | histogram | ``model``, ``weights_from`` (tier or ``checkpoint``), ``stage`` |
| ``flashserve_wake_seconds`` | histogram | ``model``, ``tier`` of the snapshot |
| ``flashserve_prewarms_total`` | counter | ``model``, ``outcome``: ``used``, ``late``, ``wasted`` (see ``prewarms``) |
| ``flashserve_engines_ahead_total`` | counter | ``model``, ``outcome``: ``claimed``, ``unclaimed``, ``failed`` |
"""

from ray.util.metrics import Counter, Histogram

from deployments.types import StartReport

_BOUNDARIES_S = [0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0]
ALL_STAGES = "all"


class StartMetrics:
    """The metrics of one replica's process."""

    def __init__(self) -> None:
        self._starts = Histogram(
            "flashserve_start_stage_seconds",
            "How long each part of an engine's start took, and all of it.",
            _BOUNDARIES_S,
            ("model", "weights_from", "stage"),
        )
        self._wakes = Histogram(
            "flashserve_wake_seconds",
            "How long an engine took to wake, with bringing its snapshot near.",
            _BOUNDARIES_S,
            ("model", "tier"),
        )

        self._prewarms = Counter(
            "flashserve_prewarms_total",
            "Engines made ready ahead of requests, by what became of it.",
            ("model", "outcome"),
        )

    def prewarmed(self, model_id: str, outcome: str) -> None:
        """Count what became of an engine that was made ready ahead of requests."""
        self._prewarms.inc(1, {"model": model_id, "outcome": outcome})

    def started(self, model_id: str, report: StartReport, seconds: float) -> None:
        """Count a start."""
        labels = {"model": model_id, "weights_from": report["weights_from"]}
        for stage, stage_s in report["stages_s"].items():
            self._starts.observe(stage_s, labels | {"stage": stage})
        self._starts.observe(seconds, labels | {"stage": ALL_STAGES})

    def woke(self, model_id: str, tier: str, seconds: float) -> None:
        """Count a wake."""
        self._wakes.observe(seconds, {"model": model_id, "tier": tier})


class AheadMetrics:
    """The metrics of a node's engines that are forked ahead of their replicas."""

    def __init__(self) -> None:
        self._outcomes = Counter(
            "flashserve_engines_ahead_total",
            "Engines forked ahead of their replicas, by what became of them.",
            ("model", "outcome"),
        )

    def count(self, model_id: str, outcome: str) -> None:
        """Count what became of one."""
        self._outcomes.inc(1, {"model": model_id, "outcome": outcome})
