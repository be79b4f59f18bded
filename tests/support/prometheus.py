"""A real Prometheus that scrapes a service, for tests of what is asked of it, where one is installed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.support.ray_head import free_port
from tests.support.waiting import until

# One elsewhere may be named.
PROMETHEUS = os.environ.get("PROMETHEUS") or shutil.which("prometheus")


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """What an expression comes to now."""
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]


@contextmanager
def prometheus(directory: Path, service_url: str, key: str) -> Iterator[Prometheus]:
    """One that scrapes ``service_url`` each second, and has done so three times."""
    assert PROMETHEUS is not None
    target = {"targets": [urlsplit(service_url).netloc]}
    job = {"job_name": "flashserve", "static_configs": [target], "authorization": {"credentials": key}}
    config = directory / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    url = f"http://127.0.0.1:{free_port()}"
    arguments = [
        f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={urlsplit(url).netloc}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen([PROMETHEUS, *arguments])
    try:
        running = Prometheus(url)

        def scraped() -> bool:
            assert process.poll() is None
            try:
                found = running.ask('count_over_time(up{job="flashserve"}[1m])')
            except (httpx.HTTPError, ValueError):
                # It does not listen yet, or says in plain text that it is not ready.
                return False
            return bool(found) and float(found[0]["value"][1]) > 2

        until(scraped, 60)
        yield running
    finally:
        process.terminate()
        process.wait(30)
