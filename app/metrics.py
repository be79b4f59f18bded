"""``/metrics``: what Ray's agents on all nodes export of vLLM, Serve and FlashServe, as one scrape."""

import asyncio
from collections.abc import Iterable

import httpx
import ray
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

SCRAPE_TIMEOUT_S = 5.0
_PREFIXES = ("ray_vllm_", "ray_serve_", "ray_flashserve_")


async def scrape() -> str:
    """Return the metrics of every live node in Prometheus' text format; a node that doesn't answer is left out."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as client:
        pages = await asyncio.gather(*(_page(client, address) for address in addresses))
    return merge(page for page in pages if page is not None)


def merge(pages: Iterable[str]) -> str:
    """Return several nodes' pages as one, each metric family once, those of other programs left out."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if family.name.startswith(_PREFIXES):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _page(client: httpx.AsyncClient, address: str) -> str | None:
    try:
        response = await client.get(f"http://{address}/metrics")
        response.raise_for_status()
    except httpx.HTTPError:
        return None
    return response.text
