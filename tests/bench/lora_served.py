"""The part `served` of `lora.py`: many adapters through the whole of a server, beside stock vLLM and Ray Serve LLM.

FlashServe and Ray Serve LLM find the adapters in S3 (on the loopback) when they are first asked for; vLLM's own server
has them loaded by its administrator, from disk, since it knows no S3. All have the same engine arguments, 16 slots and
room for all adapters in the engine's host cache; they compute in float32, since bfloat16 is slow on many a CPU. The
first pass asks for each adapter once, which is when they come from S3; then one adapter and many are measured by turns,
with the other server stopped. FlashServe runs beside one of them, then beside the other: three servers with 128
adapters each take more than 24 GB.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from loadgen import Load, LoadGenerator
from lora_adapters import RANK
from lora_engine import INPUT_TOKENS, OUTPUT_TOKENS, Samples
from process_tree import freeze
from report import Result, median_result
from servers import (
    DEFAULT_MODEL_DIR,
    ENGINE_ARGS,
    Command,
    Server,
    flashserve_command,
    flashserve_config,
    ray_llm_command,
    started,
    stock_command,
)

from tests.support.s3_server import S3Server, serve_s3

OURS, STOCK, RAY = "FlashServe", "stock vLLM", "Ray Serve LLM"
OTHERS = (RAY, STOCK)
BUCKET = "s3://adapters/all"
SLOTS, CONCURRENCY, REQUESTS = 16, 16, 32
FIRST, ONE, MANY = KINDS = "first pass", "1 adapter", "many adapters"
LOADING = "served, loading all beforehand"
LOAD_WITHIN_S = 300.0


def served_panels() -> dict[str, tuple[str, ...]]:
    """Return the samples' names by titles of panels."""
    return {f"beside {other}": tuple(_beside(kind, other) for kind in KINDS) for other in OTHERS}


def measure_served(adapters: Sequence[Path], rounds: int, samples: Samples, progress: Callable[[str], None]) -> None:
    """Beside each of the others: both up at the same time, one running at a time."""
    with serve_s3() as s3:
        names = [f"a{number:03}" for number in range(len(adapters))]
        for name, directory in zip(names, adapters, strict=True):
            for file in directory.iterdir():
                s3.objects[f"adapters/all/{name}/{file.name}"] = file.read_bytes()
        for other in OTHERS:
            _measure_pair(other, dict(zip(names, adapters, strict=True)), s3, rounds, samples, progress)


def _measure_pair(  # noqa: PLR0913, PLR0917 - who, of what, how often, and where to
    other: str,
    adapters: Mapping[str, Path],
    s3: S3Server,
    rounds: int,
    samples: Samples,
    progress: Callable[[str], None],
) -> None:
    names, pair = [*adapters], (OURS, other)
    with ExitStack() as stack:
        # Short, since paths of sockets are limited.
        short = tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp", ignore_cleanup_errors=True)
        work_dir = Path(stack.enter_context(short))
        generator = stack.enter_context(LoadGenerator(work_dir))
        servers = {}
        for whose in pair:
            progress(f"starting {whose}")
            servers[whose] = stack.enter_context(_server(whose, len(names), s3, work_dir))
            freeze(servers[whose].supervisor_pid)

        def measure(kind: str, whose: str, asked: Sequence[str], requests: int, seed: int) -> None:
            server = servers[whose]
            prefix = f"{server.model_id}:" if whose == RAY else ""
            load = Load(CONCURRENCY, requests, INPUT_TOKENS, OUTPUT_TOKENS, tuple(prefix + each for each in asked))
            with server.running():
                result = generator.run(server.base_url, server.model_id, DEFAULT_MODEL_DIR, load, seed)
            samples.add(_beside(kind, other), whose, result.output_tokens_per_s)

        if other == STOCK:
            progress(f"{STOCK} loads {len(names)} adapters")
            with servers[STOCK].running():
                samples.add(LOADING, STOCK, _load_all(servers[STOCK], adapters))
        for whose in pair:
            progress(f"{whose}: each adapter once")
            measure(FIRST, whose, names, len(names), seed=1_000_000)
        for number in range(rounds):
            progress(f"beside {other}: round {number + 1} of {rounds}")
            # Others each round, so that all have their turn.
            begin = number * REQUESTS % len(names)
            some = [*names[begin:], *names[:begin]]
            for turn, whose in enumerate(pair[:: -1 if number % 2 else 1]):
                for kind, asked in ((ONE, names[:1]), (MANY, some))[:: -1 if (number + turn) % 2 else 1]:
                    measure(kind, whose, asked, REQUESTS, seed=number)


def served_results(samples: Samples) -> Iterator[Result]:
    """What the part has measured; nothing where it was left out."""
    if (LOADING, STOCK) not in samples.of:
        return
    (loading_s,) = samples.of[LOADING, STOCK]
    yield Result(f"{LOADING}: {STOCK}", loading_s, "s", (loading_s,))
    for other in OTHERS:
        of = {(kind, whose): samples.of[_beside(kind, other), whose] for kind in KINDS for whose in (OURS, other)}
        for (kind, whose), speeds in of.items():
            yield median_result(f"{_beside(kind, other)}: {whose}", speeds, "tokens/s")
        for whose in (OURS, other):
            shares = _ratios(of[MANY, whose], of[ONE, whose])
            yield median_result(f"{_beside(MANY, other)}: {whose}, over 1 adapter", shares, "", None, ONE)
        for kind in KINDS:
            shares = _ratios(of[kind, OURS], of[kind, other])
            yield median_result(f"served, {kind}: {OURS} over {other}", shares, "", None, other)


def _beside(kind: str, other: str) -> str:
    return f"served beside {other}, {kind}"


def _ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _server(whose: str, adapters: int, s3: S3Server, work_dir: Path) -> Any:
    engine = ENGINE_ARGS | {"dtype": "float32", "max_cpu_loras": max(adapters, SLOTS)}
    with_adapters = engine | {"enable_lora": True, "max_loras": SLOTS, "max_lora_rank": RANK}
    credentials = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    in_s3 = credentials | {"AWS_ENDPOINT_URL": s3.url}
    of_ray = {
        "engine_args": with_adapters,
        "lora_config": {"dynamic_lora_loading_path": BUCKET, "max_num_adapters_per_replica": adapters},
    }
    commands: Mapping[str, tuple[str, Command, Mapping[str, str]]] = {
        OURS: ("flashserve", partial(_ours, engine, s3.url), credentials),
        STOCK: ("stock", partial(stock_command, engine=with_adapters), {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}),
        RAY: ("ray", partial(ray_llm_command, changed=of_ray), in_s3),
    }
    kind, command, variables = commands[whose]
    return started(kind, DEFAULT_MODEL_DIR, work_dir, command, variables)


def _ours(engine: Mapping[str, Any], s3_url: str, model_dir: Path, port: int, work_dir: Path) -> list[str]:
    config = flashserve_config(model_dir, port)
    arguments = config["applications"][0]["args"]
    arguments["models"][0] |= {
        "engine": {key: value for key, value in engine.items() if key != "enable_lora"},
        "lora": {"source": BUCKET, "max_loras": SLOTS, "max_rank": RANK},
        "keep_awake_s": None,
    }
    arguments["storage"] = {"disk_dir": str(work_dir / "disk"), "s3": {"endpoint_url": s3_url}}
    return flashserve_command(model_dir, port, work_dir, config)


def _load_all(server: Server, adapters: Mapping[str, Path]) -> float:
    begin_s = time.perf_counter()
    with httpx.Client(base_url=server.base_url, timeout=LOAD_WITHIN_S) as client:
        for name, directory in adapters.items():
            body = {"lora_name": name, "lora_path": str(directory)}
            client.post("/v1/load_lora_adapter", json=body).raise_for_status()
    return time.perf_counter() - begin_s
