"""The plan and how well forecasts do, as Ray metrics: in the dashboard, and on ``/metrics``.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_forecast_requests_per_second`` | gauge | ``model``, ``quantile`` |
| ``flashserve_forecast_error`` | gauge | ``model``, ``forecaster``, ``measure``: ``wape``, ``pinball``, ``coverage`` |
| ``flashserve_plan_engines`` | gauge | ``model``: engines that the plan wants awake within the horizon |
| ``flashserve_plan_replicas`` | gauge | ``pool``: replicas that are needed within the horizon |
| ``flashserve_plan_made_timestamp_seconds`` | gauge | |

Models beyond ``MAX_MODELS`` have no labels of their own: they are in the plan.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

MAX_MODELS = 200


class PlanMetrics:
    """The metrics of the forecaster's process."""

    def __init__(self) -> None:
        self._forecast = Gauge(
            "flashserve_forecast_requests_per_second",
            "Requests a second that are expected in the current season bucket.",
            ("model", "quantile"),
        )
        self._error = Gauge(
            "flashserve_forecast_error",
            "How forecasts of the next season bucket did lately.",
            ("model", "forecaster", "measure"),
        )
        self._engines = Gauge(
            "flashserve_plan_engines", "Engines that the plan wants awake within the horizon.", ("model",)
        )
        self._replicas = Gauge("flashserve_plan_replicas", "Replicas that are needed within the horizon.", ("pool",))
        self._made = Gauge("flashserve_plan_made_timestamp_seconds", "When the last plan was made.")
        self._shown: set[str] = set()

    def show(self, plan: Mapping[str, Any]) -> None:
        """Export a plan."""
        self._made.set(plan["made_at_s"])
        for pool, told in plan["pools"].items():
            self._replicas.set(max(told["need"], default=0), {"pool": pool})
        for model, told in plan["models"].items():
            if model not in self._shown and len(self._shown) >= MAX_MODELS:
                continue
            self._shown.add(model)
            self._engines.set(told["floor"], {"model": model})
            self._show_forecast(model, told["forecast"] or {})

    def _show_forecast(self, model: str, forecast: Mapping[str, Any]) -> None:
        for quantile, requests in forecast.get("requests", {}).items():
            if requests and requests[0] is not None:
                self._forecast.set(requests[0] / forecast["step_s"], {"model": model, "quantile": quantile})
        for forecaster, measures in forecast.get("errors", {}).items():
            for measure, value in measures.items():
                if value is not None:
                    labels = {"model": model, "forecaster": forecaster, "measure": measure}
                    self._error.set(value, labels)
