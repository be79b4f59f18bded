"""What tenants ask for and what it costs, as Ray metrics: in the dashboard, and on ``/metrics``, which is not for them.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_tenant_requests_total`` | counter | ``tenant``, ``outcome``: ``admitted``, or the limit it was over |
| ``flashserve_tenant_tokens_total`` | counter | ``tenant`` |
"""

from ray.util.metrics import Counter


class TenantMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._requests = Counter(
            "flashserve_tenant_requests_total", "Requests of tenants, let in or over a limit.", ("tenant", "outcome")
        )
        self._tokens = Counter("flashserve_tenant_tokens_total", "Tokens that tenants read and wrote.", ("tenant",))

    def asked(self, tenant: str, outcome: str) -> None:
        """Count a request."""
        self._requests.inc(1, {"tenant": tenant, "outcome": outcome})

    def spent(self, tenant: str, tokens: int) -> None:
        """Count tokens."""
        if tokens > 0:
            self._tokens.inc(tokens, {"tenant": tenant})
