"""Which engines are awake, who waits for them and what their time is used for, as Ray metrics and on ``/metrics``."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.adapter_metrics import adapter_metrics
from deployments.device_time import Use
from deployments.residency_watch import Unwatched
from deployments.types import EngineState

_BOUNDARIES_S = [0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0]


class ResidencyMetrics(Unwatched):
    """The metrics of one replica's process."""

    def __init__(self, devices: float) -> None:
        """``devices`` is how many an engine of this replica holds; 1 where there are only CPUs."""
        self._devices = devices
        self._held = Histogram(
            "flashserve_request_hold_seconds",
            "How long a request waited in its replica for its engine, by the state that the engine was in.",
            _BOUNDARIES_S,
            ("model", "state"),
        )
        self._states = Gauge(
            "flashserve_engine_state", "1 for the state that an engine is in, 0 for others.", ("model", "state")
        )
        self._changes = Counter(
            "flashserve_engine_transitions_total", "Changes of engines' states, by the new one.", ("model", "state")
        )
        self._seconds = Counter(
            "flashserve_device_seconds_total",
            "Seconds that an engine has held its devices, times their number, by what for and for whom.",
            ("model", "use", "tenant"),
        )
        self._waiting = Gauge("flashserve_requests_held", "Requests that wait for an engine.", ("model",))
        self._bytes = Gauge("flashserve_engine_held_bytes", "What an engine holds of its device.", ("model",))

    def held(self, model_id: str, state: EngineState, seconds: float) -> None:
        """See ``Unwatched.held``."""
        self._held.observe(seconds, {"model": model_id, "state": state})

    def changed(self, model_id: str, before: EngineState | None, now: EngineState) -> None:
        """See ``Unwatched.changed``."""
        if before is not None:
            self._states.set(0, {"model": model_id, "state": before})
            self._changes.inc(1, {"model": model_id, "state": now})

    def spent(self, model_id: str, spent: Mapping[tuple[Use, str], float]) -> None:
        """See ``Unwatched.spent``."""
        for (use, tenant), seconds in spent.items():
            self._seconds.inc(seconds * self._devices, {"model": model_id, "use": use, "tenant": tenant})

    def seen(self, model_id: str, state: EngineState, waiting: int, held_bytes: int) -> None:
        """See ``Unwatched.seen``. Ray exports a gauge only while it is set again and again."""
        self._states.set(1, {"model": model_id, "state": state})
        adapter_metrics().seen(model_id, has_engine=held_bytes > 0)
        self._waiting.set(waiting, {"model": model_id})
        self._bytes.set(held_bytes, {"model": model_id})
