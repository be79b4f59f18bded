"""A process that has imported vLLM and forks engines; the command line names the socket at which it is asked.

Covers: importing once, listening, one fork a request. Does not cover: what a forked process does
(``engine_launch``), and who starts this one and keeps it running (``process_pool``).

It must stay a process that can be forked: one thread, no OpenMP or torch thread pool, no CUDA. It reads nothing from a
connection itself, so that no client can hold it up, and it ends with its owner, whose life line is its standard
input; engines already forked don't need it.
"""

import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle as set_process_title
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

from deployments.engine_launch import adopt_orphans, run_engine
from deployments.forked_worker import run_worker
from deployments.worker_launcher import SOCKET

# What an engine imports on the way to its first answer, besides its model.
_ENGINE_MODULES = [
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.structured_output.backend_xgrammar",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.compilation.decorators",
    "vllm.compilation.backends",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch._inductor.codecache",
    "deployments.snapshot_loader",
]
_CPU_MODULES = [
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "deployments.cpu_executor",
    "deployments.cpu_worker",
    "deployments.resuming_scheduler",
]
_GPU_MODULES = ["vllm.v1.worker.gpu_worker"]
# The architectures most models are of; another one is imported by its engine, which takes a second or two more.
_MODEL_MODULES = ["bert", "gemma3", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"]


def preload() -> None:
    """Import what engines need, in the surroundings vLLM gives them."""
    # Without a model it sets nothing but the environment variables its platform wants, some of them read on import.
    VllmConfig()
    device_modules = _CPU_MODULES if current_platform.is_cpu() else _GPU_MODULES
    models = [f"vllm.model_executor.models.{name}" for name in _MODEL_MODULES]
    for name in [*_ENGINE_MODULES, *device_modules, *models]:
        importlib.import_module(name)
    load_general_plugins()


def serve(asked_at: Mapping[socket.socket, Callable[[socket.socket], NoReturn]], owner: socket.socket) -> None:
    """Fork a process for each connection to one of the sockets, to run what it is for, until the owner goes away."""
    while True:
        readable, _, _ = select.select([*asked_at, owner], [], [])
        if owner in readable:
            return
        for listener in readable:
            line, _ = listener.accept()
            if os.fork() == 0:
                # The owner's is its standard input, which it replaces.
                for each in asked_at:
                    each.close()
                asked_at[listener](line)
            line.close()


def listening(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def main() -> None:
    """Preload, listen on the socket named on the command line, say so, serve."""
    path, modules = Path(sys.argv[1]), sys.argv[2:]
    # Here, because a title is written over it; and not what is in the environment now, which imports have changed.
    begun_with = set(Path("/proc/self/environ").read_bytes().split(b"\0"))
    # The place for a title is found by the environment of the program's start, which forked processes give up: from now
    # on they know it, and vLLM can name its processes.
    set_process_title("FlashServe::Zygote")
    preload()
    for name in modules:
        importlib.import_module(name)
    # As if a worker had imported it all itself.
    set_by_imports = {
        name: value for name, value in os.environ.items() if os.fsencode(f"{name}={value}") not in begun_with
    }
    engines, workers = listening(path), listening(path.with_name(SOCKET))
    adopt_orphans()
    # The kernel then collects the children; a forked process sets it back, since it waits for its own.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Objects that no collection visits stay in pages shared with the forked processes.
    gc.collect()
    gc.freeze()
    gc.enable()
    threads = list(Path("/proc/self/task").iterdir())
    if len(threads) > 1:
        sys.exit(f"{len(threads)} threads run after the imports; forking would lose all but one")
    with contextlib.suppress(OSError), socket.socket(fileno=sys.stdin.fileno()) as owner:
        owner.send(b"r")
        serve({engines: run_engine, workers: partial(run_worker, set_by_imports=set_by_imports)}, owner)
    # The owner has gone, perhaps without a chance to tidy up.
    shutil.rmtree(path.parent, ignore_errors=True)
