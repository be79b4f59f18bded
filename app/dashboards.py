"""Grafana dashboards as data, and the JSON that Grafana is provisioned with.

Pure. Covers: what each dashboard shows. Does not cover: writing files (``monitoring_cli``), alerts (``alerts.yaml``).
Metrics have the names that Ray exports; README has the table. Every query is checked against it.
"""

from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["s", "bytes", "Bps", "reqps", "short", "percentunit", "none"]
_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2
_MODELS = 'model=~"$model"'
# Not their sum: a store that was started again may be there twice for a while.
_TIER = "ray_flashserve_tier"
_BY_TIER = "max by (tier, NodeAddress)"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """A time series; ``queries`` are PromQL with the legend of each."""

    title: str
    unit: Unit
    queries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Dashboard:
    """One of Grafana's; ``id`` is the last part of its address."""

    id: str
    title: str
    panels: tuple[Panel, ...]


def _quantiles(metric: str, by: str, selector: str = _MODELS) -> tuple[tuple[str, str], ...]:
    rate = f"rate({metric}_bucket{{{selector}}}[$__rate_interval])"
    return tuple(
        (f"histogram_quantile({quantile}, sum by (le, {by}) ({rate}))", f"p{quantile * 100:g} {{{{{by}}}}}")
        for quantile in (0.5, 0.95)
    )


def _rate(metric: str, by: str, selector: str = "") -> tuple[tuple[str, str], ...]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return ((f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))", legend),)


DASHBOARDS = (
    Dashboard(
        "flashserve-service",
        "FlashServe: service",
        (
            Panel("Requests", "reqps", _rate("ray_flashserve_requests_total", "model, outcome", _MODELS)),
            Panel("Turned away", "reqps", _rate("ray_flashserve_requests_refused_total", "reason")),
            Panel("Time to first token", "s", _quantiles("ray_flashserve_time_to_first_token_seconds", "model")),
            Panel("Between tokens", "s", _quantiles("ray_flashserve_inter_token_latency_seconds", "model")),
            Panel("Whole answers", "s", _quantiles("ray_flashserve_e2e_request_latency_seconds", "model")),
            Panel("Tokens made", "short", _rate("ray_flashserve_generation_tokens_total", "model", _MODELS)),
            Panel("Tokens read", "short", _rate("ray_flashserve_prompt_tokens_total", "model", _MODELS)),
            Panel(
                "Streams that moved, resumed, were given up",
                "reqps",
                (
                    ("sum(rate(ray_flashserve_stream_moves_total[$__rate_interval]))", "moved"),
                    ("sum by (failure) (rate(ray_flashserve_stream_resumes_total[$__rate_interval]))", "{{failure}}"),
                    ("sum by (reason) (rate(ray_flashserve_stream_given_up_total[$__rate_interval]))", "{{reason}}"),
                ),
            ),
        ),
    ),
    Dashboard(
        "flashserve-cold-starts",
        "FlashServe: cold starts and residency",
        (
            Panel(
                "Held for an engine",
                "s",
                _quantiles("ray_flashserve_request_hold_seconds", "state", f'{_MODELS}, state!="awake"'),
            ),
            Panel(
                "Waiting now", "none", ((f"sum by (model) (ray_flashserve_requests_held{{{_MODELS}}})", "{{model}}"),)
            ),
            Panel("Wakes", "s", _quantiles("ray_flashserve_wake_seconds", "tier")),
            Panel("Starts, by stage", "s", _quantiles("ray_flashserve_start_stage_seconds", "stage")[:1]),
            Panel(
                "Engines by state",
                "none",
                ((f"sum by (state) (ray_flashserve_engine_state{{{_MODELS}}})", "{{state}}"),),
            ),
            Panel(
                "Changes of state", "reqps", _rate("ray_flashserve_engine_transitions_total", "model, state", _MODELS)
            ),
            Panel(
                "Memory of the device",
                "bytes",
                ((f"sum by (model) (ray_flashserve_engine_held_bytes{{{_MODELS}}})", "{{model}}"),),
            ),
            Panel("Made ready ahead", "reqps", _rate("ray_flashserve_prewarms_total", "outcome", _MODELS)),
            Panel("Forked ahead of replicas", "reqps", _rate("ray_flashserve_engines_ahead_total", "outcome", _MODELS)),
        ),
    ),
    Dashboard(
        "flashserve-tiers",
        "FlashServe: tiers and adapters",
        (
            Panel(
                "Tiers, of what they may hold",
                "percentunit",
                (
                    (
                        f"{_BY_TIER} ({_TIER}_used_bytes) / {_BY_TIER} ({_TIER}_capacity_bytes)",
                        "{{tier}} {{NodeAddress}}",
                    ),
                ),
            ),
            Panel("Snapshots", "none", (("sum by (tier) (ray_flashserve_tier_snapshots)", "{{tier}}"),)),
            Panel(
                "Snapshots asked for, by where they were",
                "reqps",
                _rate("ray_flashserve_snapshot_requests_total", "tier"),
            ),
            Panel("Copied", "Bps", _rate("ray_flashserve_promoted_bytes_total", "origin, tier")),
            Panel(
                "Between nodes",
                "Bps",
                (
                    *_rate("ray_flashserve_fetched_bytes_total", "origin"),
                    ("sum (rate(ray_flashserve_peer_given_bytes_total[$__rate_interval]))", "given to peers"),
                ),
            ),
            Panel("Peers that failed", "reqps", _rate("ray_flashserve_peers_failed_total", "reason")),
            Panel("A copy takes", "s", _quantiles("ray_flashserve_promotion_seconds", "origin", "")),
            Panel(
                "Evictions, and copies that failed",
                "reqps",
                (
                    ("sum by (tier) (rate(ray_flashserve_evictions_total[$__rate_interval]))", "evicted from {{tier}}"),
                    (
                        "sum by (origin) (rate(ray_flashserve_promotions_failed_total[$__rate_interval]))",
                        "failed from {{origin}}",
                    ),
                ),
            ),
            Panel("An adapter takes to load", "s", _quantiles("ray_flashserve_adapter_load_seconds", "model")),
            Panel(
                "Adapters in engines",
                "none",
                ((f"sum by (model) (ray_flashserve_adapters_loaded{{{_MODELS}}})", "{{model}}"),),
            ),
        ),
    ),
    Dashboard(
        "flashserve-forecast",
        "FlashServe: forecast and plan",
        (
            Panel(
                "Expected, and what came",
                "reqps",
                (
                    (
                        f"max by (model, quantile) (ray_flashserve_forecast_requests_per_second{{{_MODELS}}})",
                        "{{model}} q{{quantile}}",
                    ),
                    *_rate("ray_flashserve_requests_total", "model", _MODELS),
                ),
            ),
            Panel(
                "Error of each forecaster (WAPE)",
                "percentunit",
                (
                    (
                        f'max by (model, forecaster) (ray_flashserve_forecast_error{{measure="wape", {_MODELS}}})',
                        "{{model}} {{forecaster}}",
                    ),
                ),
            ),
            Panel(
                "Engines to be awake",
                "none",
                ((f"max by (model) (ray_flashserve_plan_engines{{{_MODELS}}})", "{{model}}"),),
            ),
            Panel(
                "Replicas",
                "none",
                (
                    ("max by (pool, by) (ray_flashserve_scaling_replicas)", "{{pool}} by {{by}}"),
                    ("max by (pool) (ray_flashserve_plan_replicas)", "{{pool}} planned"),
                ),
            ),
            Panel(
                "Age of the plan",
                "s",
                (
                    ("time() - max(ray_flashserve_plan_made_timestamp_seconds)", "made"),
                    ("max by (pool) (ray_flashserve_plan_age_seconds)", "as {{pool}} sees it"),
                ),
            ),
        ),
    ),
    Dashboard(
        "flashserve-tenants",
        "FlashServe: tenants",
        (
            Panel("Requests", "reqps", _rate("ray_flashserve_tenant_requests_total", "tenant, outcome")),
            Panel("Tokens", "short", _rate("ray_flashserve_tenant_tokens_total", "tenant")),
            Panel("Waiting for a place", "s", _quantiles("ray_flashserve_queue_seconds", "model")),
            Panel(
                "Devices busy, for whom", "none", _rate("ray_flashserve_device_seconds_total", "tenant", 'use="busy"')
            ),
            Panel("Devices, for what", "none", _rate("ray_flashserve_device_seconds_total", "model, use", _MODELS)),
        ),
    ),
)


def grafana_json(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it; the data source and the models are chosen in it."""
    return {
        "uid": dashboard.id,
        "title": dashboard.title,
        "tags": ["flashserve"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_DATA_SOURCE, _MODEL]},
        "panels": [_panel(index, panel) for index, panel in enumerate(dashboard.panels)],
    }


_DATA_SOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "data source"}
_MODEL = {
    "name": "model",
    "type": "query",
    "datasource": _SOURCE,
    "query": "label_values(ray_flashserve_engine_state, model)",
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
    "refresh": 2,
    "current": {"text": "All", "value": "$__all"},
}


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(index, _COLUMNS)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }
