"""Measures how long a first token takes from cold: HTTP request to the first SSE token, nothing else running.

One FlashServe serves SmolLM2 and is brought into each state in turn: awake, asleep, cold beside a warm process pool
with the snapshot in host memory, with it on disk and the page cache dropped, and with it in S3 at 200 MB/s; and its
replica is killed, so that Serve starts another, whose first engine comes from the node's process pool. Stock vLLM
answers awake beside it. A pool that has scaled to nothing gets its replica back, with the engine forked ahead of that
and after it, and Ray Serve LLM from zero replicas. Then everything from nothing, with the weights in S3 at
that speed: FlashServe's service from its command on, with a published snapshot, and the stock path, which downloads
the checkpoint with boto3 and starts vLLM's API server. The targets are in `coldstart_results`; missing one is a result,
not a failure.

Usage: python tests/bench/coldstart.py [--rounds 5] [--zero-rounds 5] [--cold-rounds 5]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import yaml
from coldstart_plot import plot
from coldstart_results import (
    ASLEEP,
    AWAKE,
    NOTHING,
    POOL_DISK,
    POOL_DRAM,
    POOL_S3,
    RAW_READ,
    RAY_ZERO,
    REPLICA,
    STOCK,
    STOCK_AWAKE,
    ZERO,
    ZERO_AFTER,
    Samples,
    results,
)
from process_tree import freeze, thaw
from report import RESULTS_DIR, make_report, print_report, wide_console, write_report
from servers import (
    BENCH_DIR,
    DEFAULT_MODEL_DIR,
    HOST,
    STOP_GRACE_S,
    flashserve_config,
    free_port,
    ray_llm_command,
    server_environment,
    started,
    stock_command,
)
from staging import s3_server

NAME = "coldstart"
CAPPED_BYTES_PER_S = 200e6
MODEL = DEFAULT_MODEL_DIR.name
PROMPT = [{"role": "user", "content": "What is the capital of France?"}]
MAX_TOKENS = 8
PATIENCE_S = 300.0
SNAPSHOT_ID_DIGITS = 64

Stages = dict[str, list[dict[str, float]]]


def took(samples: Samples, name: str, seconds: float) -> None:
    """Keeps a sample, and tells of it: there are many minutes of them."""
    samples.setdefault(name, []).append(seconds)
    print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def first_token_s(url: str) -> float:
    """Seconds from the request to the first token of its stream."""
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    begin_s = time.perf_counter()
    first_s: float | None = None
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as reply:
        for line in reply.iter_lines():
            if first_s is None and line.startswith("data: {") and _content(line):
                first_s = time.perf_counter() - begin_s
    if first_s is None:
        message = f"no token came from {url} ({reply.status_code})"
        raise RuntimeError(message)
    return first_s


def _content(line: str) -> str:
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise RuntimeError(event["error"]["message"])
    return event["choices"][0]["delta"].get("content") or ""


def command(url: str, name: str) -> None:
    """An administrator's command for the model."""
    httpx.post(f"{url}/admin/{name}", json={"model": MODEL}, timeout=PATIENCE_S).raise_for_status()


def start_stages_s(url: str) -> dict[str, float]:
    """The stages of the engine's last start; the whole of the engine's is left out for its parts."""
    stages = httpx.get(f"{url}/admin/models", timeout=PATIENCE_S).json()["models"][MODEL]["start"]["stages_s"]
    return {stage: seconds for stage, seconds in stages.items() if stage != "engine"}


def snapshot_in(directory: Path) -> Path:
    """The one snapshot of a tier."""
    (snapshot,) = (path for path in directory.iterdir() if len(path.name) == SNAPSHOT_ID_DIGITS)
    return snapshot


def drop_dram_copy(storage: dict[str, str]) -> Path:
    """Leave the snapshot on disk alone, its pages out of the cache; returns its directory there."""
    snapshot = snapshot_in(Path(storage["disk_dir"]))
    shutil.rmtree(Path(storage["dram_dir"], snapshot.name), ignore_errors=True)
    for path in snapshot.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    return snapshot


def raw_read_s(snapshot: Path) -> float:
    """Seconds that `dd` takes to read the weights past the page cache."""
    begin_s = time.perf_counter()
    for path in snapshot.glob("*.safetensors"):
        reading = ["dd", f"if={path}", "of=/dev/null", "bs=16M", "iflag=direct", "status=none"]
        subprocess.run(reading, check=True)
    return time.perf_counter() - begin_s


@contextmanager
def supervised(arguments: list[str], work_dir: Path, log_file: Path, **environment: str) -> Iterator[int]:
    """A server and all below it, ended on leaving; yields its supervisor's process id."""
    with log_file.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, str(BENCH_DIR / "supervisor.py"), str(STOP_GRACE_S), *arguments],
            env=server_environment(work_dir) | environment,
            cwd=work_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield supervisor.pid
    finally:
        supervisor.terminate()
        supervisor.wait()


def kill_replica(supervisor_pid: int) -> None:
    """End the engine replica below the supervisor as a crash does."""
    [replica] = engine_replicas(supervisor_pid)
    replica.kill()


def engine_replicas(supervisor_pid: int) -> list[psutil.Process]:
    """The processes of engine replicas below the supervisor."""
    found = []
    for process in psutil.Process(supervisor_pid).children(recursive=True):
        with suppress(psutil.Error):
            if "ServeReplica:flashserve:Engines-" in " ".join(process.cmdline()):
                found.append(process)
    return found


def until_it_answers(url: str, since_s: float) -> float:
    """Seconds from ``since_s`` of the performance counter to a first token, asking again while nobody listens."""
    while time.perf_counter() - since_s < PATIENCE_S:
        try:
            first_token_s(url)
        except (httpx.HTTPError, RuntimeError, KeyError):
            time.sleep(0.05)
        else:
            return time.perf_counter() - since_s
    message = f"{url} did not answer within {PATIENCE_S:.0f} s"
    raise RuntimeError(message)


def until_healthy(url: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until every model of a service can serve."""
    deadline_s = time.perf_counter() + patience_s
    while time.perf_counter() < deadline_s:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=30).is_success:
                return
        time.sleep(0.5)
    message = f"{url} was not healthy within {patience_s:.0f} s"
    raise RuntimeError(message)


def serving(config: dict[str, Any], work_dir: Path) -> tuple[list[str], str]:
    """The command that serves a configuration, and where it will answer."""
    file = work_dir / "flashserve.yaml"
    file.write_text(yaml.safe_dump(config))
    program = str(Path(sys.executable).parent / "flashserve")
    arguments = [program, "serve", str(file), "--log-file", str(work_dir / "service.log")]
    return arguments, f"http://{HOST}:{config['http_options']['port']}"


def ours_config(work_dir: Path, source: str | None = None, s3_url: str | None = None) -> dict[str, Any]:
    """A configuration with tiers of its own; the model sleeps only when it is told to."""
    config = flashserve_config(DEFAULT_MODEL_DIR, free_port())
    arguments = config["applications"][0]["args"]
    arguments["models"][0] |= {"keep_awake_s": None} | ({"source": source} if source else {})
    arguments["storage"] = {"disk_dir": str(work_dir / "disk"), "dram_dir": str(_memory_dir(work_dir))}
    if s3_url:
        arguments["storage"]["s3"] = {"endpoint_url": s3_url}
    return config


def _memory_dir(work_dir: Path) -> Path:
    return Path("/dev/shm") / f"bench-{work_dir.name}"  # noqa: S108 - the tier itself


def built_snapshot(work_dir: Path) -> Path:
    """The model's snapshot, built ahead."""
    config, built = work_dir / "build.yaml", work_dir / "built"
    config.write_text(yaml.safe_dump(ours_config(work_dir)))
    program = str(Path(sys.executable).parent / "flashserve")
    build = [program, "snapshot", "build", "--config", str(config), "--dir", str(built)]
    environment = server_environment(work_dir)
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return snapshot_in(built)


def measure_states(work_dir: Path, rounds: int, s3_url: str, samples: Samples, stages: Stages) -> None:
    """All states of a service that runs, and stock vLLM awake beside it."""
    config = ours_config(work_dir, "s3://bucket", s3_url)
    storage = config["applications"][0]["args"]["storage"]
    arguments, url = serving(config, work_dir)
    with (
        supervised(arguments, work_dir, work_dir / "flashserve.log") as pid,
        started("stock", DEFAULT_MODEL_DIR, work_dir) as stock,
    ):
        until_it_answers(url, time.perf_counter())
        freeze(stock.supervisor_pid)
        ways: dict[str, Callable[[], None]] = {
            AWAKE: lambda: command(url, "wake"),
            ASLEEP: lambda: command(url, "sleep"),
            POOL_DRAM: lambda: command(url, "stop"),
            POOL_DISK: lambda: _on_disk(url, storage, samples),
            POOL_S3: lambda: _in_s3(url, storage),
        }
        for _ in range(rounds):
            for name, bring in ways.items():
                bring()
                if name == AWAKE:
                    first_token_s(url)  # nothing of what comes before shall show
                took(samples, name, first_token_s(url))
                if name in {POOL_DRAM, POOL_DISK, POOL_S3}:
                    stages.setdefault(name, []).append(start_stages_s(url))
            begin_s = time.perf_counter()
            kill_replica(pid)
            took(samples, REPLICA, until_it_answers(url, begin_s))
            freeze(pid)
            with stock.running():
                first_token_s(stock.base_url)
                took(samples, STOCK_AWAKE, first_token_s(stock.base_url))
            thaw(pid)
            time.sleep(2)


def measure_from_zero(work_dir: Path, rounds: int, samples: Samples, stages: Stages) -> None:
    """A pool that has scaled to nothing on a warm node, with its engine forked ahead of its replica and after it."""
    for name, is_ahead in ((ZERO, True), (ZERO_AFTER, False)):
        config = ours_config(work_dir)
        arguments = config["applications"][0]["args"]
        arguments["models"][0]["keep_awake_s"] = 1
        arguments["pools"] = [{"name": "default", "min_replicas": 0, "max_replicas": 1}]
        arguments["autoscaling"] = {"bucket_s": 1, "horizon_s": 30, "downscale_s": 2, "engines_ahead": is_ahead}
        command_line, url = serving(config, work_dir)
        with supervised(command_line, work_dir, work_dir / "flashserve.log") as pid:
            until_it_answers(url, time.perf_counter())
            for _ in range(rounds):
                until_no_replica(pid)
                took(samples, name, first_token_s(url))
                stages.setdefault(name, []).append(start_stages_s(url))


def until_no_replica(supervisor_pid: int) -> None:
    """Wait until the pool has scaled to nothing, and for its last second of counting."""
    deadline_s = time.perf_counter() + PATIENCE_S
    while engine_replicas(supervisor_pid):
        if time.perf_counter() > deadline_s:
            message = f"the pool did not scale to nothing within {PATIENCE_S:.0f} s"
            raise RuntimeError(message)
        time.sleep(0.5)
    time.sleep(2)


def _on_disk(url: str, storage: dict[str, str], samples: Samples) -> None:
    command(url, "stop")
    snapshot = drop_dram_copy(storage)
    took(samples, RAW_READ, raw_read_s(snapshot))


def _in_s3(url: str, storage: dict[str, str]) -> None:
    command(url, "stop")
    shutil.rmtree(drop_dram_copy(storage))


def nothing_warm_s(work_dir: Path, s3_url: str) -> float:
    """FlashServe from its command to the first token, on a node that has nothing of the model."""
    shutil.rmtree(work_dir / "disk", ignore_errors=True)
    arguments, url = serving(ours_config(work_dir, "s3://bucket", s3_url), work_dir)
    begin_s = time.perf_counter()
    with supervised(arguments, work_dir, work_dir / "flashserve.log", **_CREDENTIALS):
        return until_it_answers(url, begin_s)


def ray_llm_from_zero_s(work_dir: Path) -> float:
    """Ray Serve LLM's first token when there is no replica yet and the checkpoint is on disk."""
    port = free_port()
    arguments = ray_llm_command(DEFAULT_MODEL_DIR, port, work_dir, initial_replicas=0)
    url = f"http://{HOST}:{port}"
    with supervised(arguments, work_dir, work_dir / "ray-llm.log"):
        deadline_s = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < deadline_s:
            try:
                if httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        return until_it_answers(url, time.perf_counter())


def stock_from_s3_s(work_dir: Path, s3_url: str) -> float:
    """The stock path: download, then vLLM's API server."""
    target = work_dir / "downloaded" / MODEL
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    port = free_port()
    begin_s = time.perf_counter()
    client = boto3.client("s3", endpoint_url=s3_url)
    for path in DEFAULT_MODEL_DIR.iterdir():
        client.download_file("bucket", path.name, str(target / path.name))
    with supervised(stock_command(target, port, work_dir), work_dir, work_dir / "stock.log"):
        return until_it_answers(f"http://{HOST}:{port}", begin_s)


_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero-rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=5)
    options = parser.parse_args()
    samples: Samples = {}
    stages: Stages = {}
    os.environ |= _CREDENTIALS
    # Short, since the paths of Ray's sockets must be.
    with tempfile.TemporaryDirectory(prefix="fc-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        work_dir = Path(directory)
        published = built_snapshot(work_dir)
        with s3_server(published, CAPPED_BYTES_PER_S) as s3_url:
            if options.rounds:
                measure_states(work_dir, options.rounds, s3_url, samples, stages)
        if options.zero_rounds:
            measure_from_zero(work_dir, options.zero_rounds, samples, stages)
        for _ in range(options.cold_rounds):
            with s3_server(published, CAPPED_BYTES_PER_S) as s3_url:
                took(samples, NOTHING, nothing_warm_s(work_dir, s3_url))
            with s3_server(DEFAULT_MODEL_DIR, CAPPED_BYTES_PER_S) as s3_url:
                took(samples, STOCK, stock_from_s3_s(work_dir, s3_url))
            took(samples, RAY_ZERO, ray_llm_from_zero_s(work_dir))
    report = make_report(NAME, results(samples))
    path = write_report(report)
    plot(samples, stages, RESULTS_DIR / f"{NAME}.png")
    print_report(report, wide_console())
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
