"""The three servers the benches compare, each as a context manager that ends what it started and nothing else.

All have the same engine arguments and the same environment, in particular the same number of compute threads: Ray
would set OMP_NUM_THREADS by the CPUs an actor asks for, and vLLM's own core binding differs by process.

All are up at the same time, because a start takes up to a minute. An idle Ray Serve cluster is not idle: with one model
it was measured at 18 % of a core (controller, GCS, proxy, dashboard, agents), and an idle engine at 2 %, which on a
small machine would disturb whoever is being measured. So only the server under measurement runs and the process
trees of the others are stopped (SIGSTOP). A Ray cluster survives that, since everything in it stops and resumes
together: after 30, 75 and 120 s it answered the next request in 0.3 to 0.6 s and from then on as before, with no health
check failed. The first run after a thaw carries the check-ups that were missed, so `Server.running` waits `SETTLE_S`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import yaml
from process_tree import freeze, thaw

from app.launch import RAY_SETTINGS

BENCH_DIR = Path(__file__).parent
REPOSITORY = BENCH_DIR.parent.parent
DEFAULT_MODEL_DIR = REPOSITORY / ".flashserve" / "models" / "smollm2-135m-instruct"
HOST = "127.0.0.1"
START_DEADLINE_S = 300
STOP_GRACE_S = 30
SETTLE_S = 2
POLL_S = 0.5
LOG_TAIL_LINES = 15
DEPLOYMENT_FAILED = "failed with exception"
# Serve's own limits must not be what is measured; no run has more requests at a time.
MAX_ONGOING_REQUESTS = 256
# Ray counts CPUs only to place actors; a small machine would otherwise refuse Ray Serve LLM's three.
RAY_LOGICAL_CPUS = 4

EMPTY: Mapping[str, str] = MappingProxyType({})
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 256 * 2**20,
    "enforce_eager": True,
    "enable_prefix_caching": True,
    "enable_lora": False,
}


class ServerError(RuntimeError):
    """A server that could not be started; `reason` is one sentence."""

    def __init__(self, reason: str, log_tail: str) -> None:
        super().__init__(reason, log_tail)
        self.reason = reason
        self.log_tail = log_tail

    def __str__(self) -> str:
        return f"{self.reason} The end of its log:\n{self.log_tail}"


@dataclass(frozen=True)
class Server:
    """A running server; `supervisor_pid` is the parent of its whole process tree."""

    name: str
    base_url: str
    model_id: str
    supervisor_pid: int
    log_file: Path

    @contextmanager
    def running(self) -> Iterator[None]:
        """Thaws the server for the time of the block."""
        thaw(self.supervisor_pid)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            freeze(self.supervisor_pid)


Command = Callable[[Path, int, Path], list[str]]
"""From the model's directory, the port to serve on and a directory to work in to a command line."""


@contextmanager
def started(
    name: str, model_dir: Path, work_dir: Path, command_of: Command | None = None, variables: Mapping[str, str] = EMPTY
) -> Iterator[Server]:
    """Starts a server, waits until it generates, and ends it on leaving.

    It is that of the name in `COMMANDS` unless `command_of` is given; `variables` are added to its environment. Raises
    ServerError if it ends or is not ready within `START_DEADLINE_S`.
    """
    port, log_file = free_port(), work_dir / f"{name}.log"
    command = (command_of or COMMANDS[name])(model_dir, port, work_dir)
    with log_file.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, str(BENCH_DIR / "supervisor.py"), str(STOP_GRACE_S), *command],
            cwd=REPOSITORY,
            env=server_environment(work_dir) | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        server = Server(name, f"http://{HOST}:{port}", model_dir.name, supervisor.pid, log_file)
        wait_until_ready(server, supervisor)
        yield server
    finally:
        supervisor.terminate()
        supervisor.wait()


def server_environment(work_dir: Path) -> dict[str, str]:
    """The environment of every server; no setting of Ray's that would lead it to another cluster is passed on."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    compute_threads = max(1, (psutil.cpu_count(logical=False) or 1) - 1)
    return {
        **own,
        **RAY_SETTINGS,
        "OMP_NUM_THREADS": str(compute_threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Short, since the paths of Ray's sockets must stay below 108 characters.
        "RAY_TMPDIR": str(work_dir),
        "PYTHONUNBUFFERED": "1",
        # Ray's workers would import whichever checkout is installed.
        "PYTHONPATH": str(REPOSITORY),
    }


def stock_command(model_dir: Path, port: int, work_dir: Path, engine: Mapping[str, Any] = ENGINE_ARGS) -> list[str]:
    """vLLM's own API server."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port)]
    command += ["--model", str(model_dir), "--served-model-name", model_dir.name, "--disable-uvicorn-access-log"]
    arguments = work_dir / "stock.yaml"
    arguments.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in engine.items()}))
    return [*command, "--config", str(arguments)]


def ray_llm_command(
    model_dir: Path, port: int, work_dir: Path, initial_replicas: int = 1, changed: Mapping[str, Any] = EMPTY
) -> list[str]:
    """Ray Serve LLM's OpenAI application; without replicas at first, it starts one for the first request."""
    config = work_dir / "ray.json"
    settings: dict[str, Any] = {
        "host": HOST,
        "port": port,
        "dashboard_port": free_port(),
        "temp_dir": str(work_dir / "ray-llm"),
        "logical_cpus": RAY_LOGICAL_CPUS,
        "model_id": model_dir.name,
        "model_dir": str(model_dir),
        "engine_args": ENGINE_ARGS,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "initial_replicas": initial_replicas,
    }
    config.write_text(json.dumps(settings | changed))
    return [sys.executable, str(BENCH_DIR / "ray_llm_server.py"), str(config)]


def flashserve_command(model_dir: Path, port: int, work_dir: Path, config: dict[str, Any] | None = None) -> list[str]:
    """This project, started as its users start it."""
    file = work_dir / "flashserve.yaml"
    file.write_text(yaml.safe_dump(config or flashserve_config(model_dir, port)))
    log_file = work_dir / "flashserve-service.log"
    return [str(Path(sys.executable).parent / "flashserve"), "serve", str(file), "--log-file", str(log_file)]


def flashserve_config(model_dir: Path, port: int) -> dict[str, Any]:
    """What `serve_config.yaml` would say; adapters are on by a `lora` section, of which there is none."""
    engine = {key: value for key, value in ENGINE_ARGS.items() if key != "enable_lora"}
    args = {
        "models": [{"id": model_dir.name, "source": str(model_dir), "engine": engine}],
        "pools": [{"name": "default", "num_gpus": 0, "min_replicas": 1, "max_replicas": 1, "models": "*"}],
    }
    application = {"name": "flashserve", "route_prefix": "/", "import_path": "app.builder:build_app", "args": args}
    return {"http_options": {"host": HOST, "port": port}, "applications": [application]}


COMMANDS: dict[str, Command] = {
    "stock": stock_command,
    "flashserve": flashserve_command,
    "ray": ray_llm_command,
}


def wait_until_ready(server: Server, supervisor: subprocess.Popen[bytes]) -> None:
    """Returns once the server has generated a token: Ray Serve LLM lists its model long before it can."""
    deadline_s = time.monotonic() + START_DEADLINE_S
    request = {"model": server.model_id, "prompt": "Hello", "max_tokens": 1}
    while time.monotonic() < deadline_s:
        if supervisor.poll() is not None:
            raise ServerError(
                f"{server.name} ended with code {supervisor.returncode} before it was ready.", tail(server)
            )
        # `serve run` stays when its application fails.
        if DEPLOYMENT_FAILED in server.log_file.read_text(errors="replace"):
            raise ServerError(f"{server.name} could not deploy its application.", tail(server))
        try:
            reply = httpx.post(f"{server.base_url}/v1/completions", json=request, timeout=START_DEADLINE_S)
            if reply.is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise ServerError(f"{server.name} was not ready within {START_DEADLINE_S} s.", tail(server))


def tail(server: Server) -> str:
    """The end of the server's log."""
    return "\n".join(server.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
