"""A whole FlashServe for integration tests: a Ray head of its own, then ``serve deploy`` or ``serve run``."""

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from app.config import parse_config
from app.launch import RAY_SETTINGS
from tests.support.ray_head import command, free_port, ray_head

ROOT = Path(__file__).parents[2]
MODELS = ROOT / ".flashserve" / "models"
ADAPTERS = ROOT / "app" / "demo" / "adapters"
CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
START_TIMEOUT_S = 500.0


def demo_args(**overrides: Any) -> dict[str, Any]:
    """The application's arguments; float32, so that outputs can be compared with other implementations."""
    return {
        "models": [
            {
                "id": CHAT_MODEL,
                "source": str(MODELS / CHAT_MODEL),
                "engine": {
                    "dtype": "float32", "max_model_len": 1024, "kv_cache_memory_bytes": 268435456,
                    "enforce_eager": True,
                },
                "keep_awake_s": None,
                "lora": {"max_loras": 4, "source": str(ADAPTERS)},
                "openai": {"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
            },
            {
                "id": EMBEDDING_MODEL,
                "source": str(MODELS / EMBEDDING_MODEL),
                "engine": {"runner": "pooling", "dtype": "float32", "enforce_eager": True},
                "keep_awake_s": None,
            },
        ],
        # A busy machine takes longer to refuse a stream than headers wait by default; the refusal would be an event.
        "admission": {"header_wait_s": 20},
    } | overrides  # fmt: skip


def serve_config(port: int, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"name": "flashserve", "route_prefix": "/", "import_path": "app.builder:build_app", "args": args}
        ],
    }


@dataclass(frozen=True)
class Service:
    """A running service; ``ray_address`` is for Ray jobs, ``dashboard`` for ``serve status``, in ``environment``.

    ``directory`` is the one it was deployed from, ``logs`` the one that Ray's logs are in.
    """

    url: str
    ray_address: str
    dashboard: str
    ray_process: psutil.Process
    environment: dict[str, str]
    directory: Path
    logs: Path

    def deploy(self, args: dict[str, Any]) -> None:
        """``serve deploy`` from a directory without code; what is deployed already changes to ``args``."""
        subprocess.run(
            [command("serve"), "deploy", self._written(args), "--address", self.dashboard],
            cwd=self.directory, env=self.environment, check=True,
        )  # fmt: skip

    @contextmanager
    def run(self, args: dict[str, Any]) -> Iterator[None]:
        """``serve run`` from a directory without code."""
        with (self.directory / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [command("serve"), "run", self._written(args), "--address", self.ray_address],
                cwd=self.directory, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield
            assert process.poll() is None, (self.directory / "log.txt").read_text()
        finally:
            process.terminate()
            process.wait(60)

    def _written(self, args: dict[str, Any]) -> str:
        tiers = {"disk_dir": f"{self.directory}/disk", "dram_dir": f"{self.directory}/dram"}
        args = args | {"storage": tiers | args.get("storage", {})}
        config = self.directory / "config.yaml"
        config.write_text(yaml.safe_dump(serve_config(int(self.url.rpartition(":")[2]), args)))
        return str(config)

    def processes(self, name: str) -> list[psutil.Process]:
        """The service's processes whose title holds ``name``."""
        return [process for process in self.ray_process.children(recursive=True) if name in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a user who has installed the package and nothing else, with a Ray token of the test's own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
    defaults = RAY_SETTINGS | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        # Tests wait for metrics, which are exported each ten seconds otherwise.
        "RAY_metrics_report_interval_ms": "1000",
        # A head that is told to end waits this long for other nodes to take its replicas; there are none.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }  # fmt: skip
    return environment | defaults | extra


@contextmanager
def deployed(args: dict[str, Any], *, with_run: bool = False, **environment: str) -> Iterator[Service]:
    """Deploy from an empty directory, without PYTHONPATH, and wait until every model is awake.

    With ``serve deploy``, or ``serve run`` where ``with_run`` says so.
    """
    parse_config(args)  # at once, where the service would take its time to say so
    port = free_port()
    surroundings = clean_environment(**environment)
    # The directory outlives the service, which writes to it until it ends.
    with tempfile.TemporaryDirectory() as empty, ray_head(surroundings) as head:
        ray_process = head.process
        # Any answer will do: without a token it is a refusal.
        wait_until_there(lambda: httpx.get(head.dashboard).status_code > 0, ray_process, "the Ray dashboard")
        url = f"http://127.0.0.1:{port}"
        service = Service(url, head.address, head.dashboard, ray_process, surroundings, Path(empty), head.logs)
        with service.run(args) if with_run else nullcontext(service.deploy(args)):
            wait_until_there(lambda: httpx.get(f"{url}/health", timeout=30).is_success, ray_process, "the service")
            yield service


def wait_until_there(is_there: Any, process: psutil.Process, what: str) -> None:
    """Wait for something of the service whose Ray head is ``process``."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.status() != psutil.STATUS_ZOMBIE, f"Ray ended while {what} started"
        try:
            if is_there():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    message = f"{what} did not come up within {START_TIMEOUT_S:.0f} s"
    raise TimeoutError(message)
