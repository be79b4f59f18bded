"""``/metrics``: what Ray's agents on all nodes export of vLLM, Serve and FlashServe, as one scrape."""

import asyncio
from collections.abc import Iterable

import httpx
import ray

SCRAPE_TIMEOUT_S = 5.0
_PREFIXES = ("ray_vllm_", "ray_serve_", "ray_flashserve_")


async def scrape() -> str:
    """Return the metrics of every live node in Prometheus' text format; a node that doesn't answer is left out."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as client:
        pages = await asyncio.gather(*(_page(client, address) for address in addresses))
    # A busy node's page is a megabyte: reading it must not hold up streams.
    return await asyncio.to_thread(merge, [page for page in pages if page is not None])


def merge(pages: Iterable[str]) -> str:
    """Return several nodes' pages as one: each metric family once, those of other programs left out.

    Prometheus' text format wants a family's samples together, after its HELP and TYPE lines.
    """
    families: dict[str, tuple[dict[str, str], list[str]]] = {}
    for page in pages:
        headers: dict[str, str] = {}
        samples: list[str] = []
        for line in page.splitlines():
            if line.startswith("# "):
                _, keyword, name, *_ = line.split(" ", 3)
                headers, samples = families.setdefault(name, ({}, []))
                headers.setdefault(keyword, line)
            elif line:
                samples.append(line)
    kept = (lines for name, lines in families.items() if name.startswith(_PREFIXES))
    return "".join(f"{line}\n" for headers, samples in kept for line in [*headers.values(), *samples])


async def _page(client: httpx.AsyncClient, address: str) -> str | None:
    try:
        response = await client.get(f"http://{address}/metrics")
        response.raise_for_status()
    except httpx.HTTPError:
        return None
    return response.text
