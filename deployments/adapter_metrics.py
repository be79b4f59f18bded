"""How often adapters are loaded into engines and how many are there, exported by Ray."""

from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

_BOUNDARIES_S = [0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0]


class AdapterMetrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._seconds = Histogram(
            "flashserve_adapter_load_seconds", "How long an engine took to load an adapter.", _BOUNDARIES_S, ("model",)
        )
        self._unloads = Counter(
            "flashserve_adapter_unloads_total",
            "Adapters that have left an engine because they were removed.",
            ("model",),
        )
        self._resident = Gauge(
            "flashserve_adapters_loaded",
            "Adapters that an engine has been given; vLLM keeps as many of them in memory as max_loras allows.",
            ("model",),
        )

        self._counts: dict[str, int] = {}

    def loaded(self, model_id: str, seconds: float, resident: int) -> None:
        """Count a load."""
        self._seconds.observe(seconds, {"model": model_id})
        self._counts[model_id] = resident

    def unloaded(self, model_id: str, resident: int) -> None:
        """Count an unload."""
        self._unloads.inc(1, {"model": model_id})
        self._counts[model_id] = resident

    def seen(self, model_id: str, *, has_engine: bool) -> None:
        """Say again how many there are: Ray exports a gauge only while it is set; they go with their engine."""
        if not has_engine:
            self._counts.pop(model_id, None)
        elif model_id in self._counts:
            self._resident.set(self._counts[model_id], {"model": model_id})


@cache
def adapter_metrics() -> AdapterMetrics:
    """Return the metrics of this process, made when they are first needed."""
    return AdapterMetrics()
