"""``flashserve serve``: from a configuration file to a service that answers, and back to nothing on Ctrl-C.

Covers: what can be checked before a minute of start-up, the demo models, the ``serve run`` process and everything
below it. Does not cover: the application (``builder``), what runs inside (``gateway``, ``deployments``).
"""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console

from app.api_keys import read_keys
from app.config import AppConfig, dram_dir, keys_file, parse_config
from app.errors import ConfigError, LaunchError
from app.machine import find_compiler, memory_for, port_problem

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.5

# For the whole Ray cluster; serving without these works, only slower.
RAY_SETTINGS = {
    # Ray runs its workers at niceness 15, and so the engines below them: behind everything else on the machine.
    "RAY_worker_niceness": "0",
    # Serve's own transport between its processes, on ports that it opens either way: cheaper a token than actor calls.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Serve's controller looks around ten times a second by default, which is what a twentieth of a core goes to.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Serve ends a proxy that isn't ready after five seconds and starts another: too soon for a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}

# What `serve run` logs, and goes on running, when the application fails.
DEPLOYMENT_FAILED = "failed with exception"


@dataclass(frozen=True)
class Plan:
    """What is about to be started."""

    config_file: Path
    config: AppConfig
    host: str
    port: int
    route_prefix: str

    @property
    def url(self) -> str:
        """Where the service will answer."""
        return f"http://{self.host}:{self.port}{self.route_prefix.rstrip('/')}"


def read_plan(config_file: Path) -> Plan:
    """Read and check a Serve config file that names FlashServe's builder.

    Raises:
        ConfigError: the file or something in it is wrong.
    """
    try:
        document = yaml.safe_load(config_file.read_text())
    except FileNotFoundError as error:
        raise ConfigError((f"there is no file {config_file}",)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError((f"{config_file} can't be read: {reason}",)) from error
    applications = document.get("applications") if isinstance(document, dict) else None
    ours = [a for a in applications or () if isinstance(a, dict) and a.get("import_path") == "app.builder:build_app"]
    if len(ours) != 1:
        raise ConfigError((f"{config_file}: one application must have import_path: app.builder:build_app",))
    http = document.get("http_options") or {}
    config = parse_config(ours[0].get("args") or {})
    keys = keys_file(config.security)
    if keys is not None:
        read_keys(keys)
    return Plan(
        config_file,
        config,
        http.get("host", "127.0.0.1"),
        http.get("port", 8000),
        ours[0].get("route_prefix", "/"),
    )


def check_machine(plan: Plan) -> None:
    """Check what a start needs of the machine.

    Raises:
        LaunchError: a sentence that says what is missing.
    """
    problem = port_problem(plan.host, plan.port)
    if problem is not None:
        raise LaunchError(
            f"Port {plan.port} on {plan.host} can't be used ({problem}): "
            f"stop what listens there, or set http_options.port in {plan.config_file}."
        )
    check_exposure(plan)
    compiler = find_compiler()
    if not compiler.is_there:
        raise LaunchError(
            f"There is no C++ compiler '{compiler.name}', which vLLM needs on a CPU: install g++ or set CXX."
        )
    memory = memory_for(plan.config)
    if not memory.is_enough:
        raise LaunchError(
            f"{memory.needed_bytes / 1e9:.1f} GB of memory are needed and {memory.free_bytes / 1e9:.1f} GB are free: "
            "serve fewer models, or lower engine.kv_cache_memory_bytes."
        )


def check_exposure(plan: Plan) -> None:
    """Refuse to serve more than this machine without API keys. Raises LaunchError."""
    security = plan.config.security
    if security.api_keys_file is not None or security.allow_anonymous or _is_loopback(plan.host):
        return
    raise LaunchError(
        f"http_options.host in {plan.config_file} is {plan.host}, and there are no API keys: anybody who reaches the "
        "port could use and administer the service. Set security.api_keys_file (`flashserve key new` makes keys), or "
        "http_options.host: 127.0.0.1; or security.allow_anonymous: true where something in front of it checks."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(plan: Plan, log_file: Path, console: Console) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit status.

    Raises:
        LaunchError: the service didn't come up.
    """
    with _service(plan, log_file) as process:
        try:
            _wait_until_healthy(plan, process, log_file, console)
            console.print(_greeting(plan), highlight=False, soft_wrap=True)
            while process.poll() is None:
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            console.print("Stopping …")
            return 0
        raise LaunchError(f"The service ended by itself (status {process.returncode}): see {log_file}.")


@contextmanager
def _service(plan: Plan, log_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``serve run`` with a Ray of its own; at the end, end it and whatever it started."""
    command = [str(Path(sys.executable).with_name("serve")), "run", str(plan.config_file)]
    environment = {
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # Nothing is looked up on the hub that isn't asked for by name.
        "HF_HUB_OFFLINE": "0" if any(model.source.startswith("hf://") for model in plan.config.models) else "1",
    }
    environment |= RAY_SETTINGS | os.environ
    previous = signal.signal(signal.SIGTERM, _interrupt)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        # A session of its own: Ctrl-C reaches us alone, and we end the rest in order.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)  # noqa: S603
        try:
            yield process
        finally:
            _stop(process)
            # Host memory is the service's while it runs; the next start fills it from disk.
            shutil.rmtree(dram_dir(plan.config.storage), ignore_errors=True)
            signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End ``serve run`` in order; then kill what is left of the processes below it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    _, left = psutil.wait_procs(below, timeout=5)
    for orphan in left:
        orphan.kill()
    psutil.wait_procs(left, timeout=5)


def _wait_until_healthy(plan: Plan, process: subprocess.Popen[bytes], log_file: Path, console: Console) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with console.status("Starting Ray …") as status:
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise LaunchError(f"The service ended while it started: {_last_error(log_file)} (see {log_file})")
            if DEPLOYMENT_FAILED in log_file.read_text(errors="replace"):
                raise LaunchError(f"The service could not be deployed: {_last_error(log_file)} (see {log_file})")
            health, states = _health(plan)
            if health == "ok":
                return
            # With API keys nobody is told which.
            if health == "failed" and not states:
                raise LaunchError(f"An engine failed to start: see {log_file}.")
            if states:
                failed = [model for model, state in states.items() if state == "failed"]
                if failed:
                    raise LaunchError(f"The engine of {', '.join(failed)} failed to start: see {log_file}.")
                named = ", ".join(f"{model} {state}" for model, state in states.items())
                status.update(f"Starting engines: {named} …")
            time.sleep(POLL_S)
    raise LaunchError(f"The service was not ready after {START_TIMEOUT_S:.0f} s: see {log_file}.")


def _health(plan: Plan) -> tuple[str, dict[str, str]]:
    """Return the service's status, empty while it gives none, and each model's state."""
    try:
        answer = httpx.get(f"{plan.url}/health", timeout=10).json()
        return answer["status"], answer["models"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "", {}


def _last_error(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["it said nothing"])[-1].strip()


def _greeting(plan: Plan) -> str:
    model = plan.config.models[0].id
    key, header = "none", ""
    if plan.config.security.api_keys_file is not None:
        key, header = "YOUR-KEY", " -H 'Authorization: Bearer YOUR-KEY'"
    return f"""
FlashServe answers on {plan.url}

  curl {plan.url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{plan.url}/v1", api_key="{key}")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "What is the capital of France?"}}])
  print(answer.choices[0].message.content)

Ctrl-C stops it.
"""
