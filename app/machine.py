"""What this machine is like for a service that is to run on it: its port, its compiler, its memory.

Covers: finding out. Does not cover: what follows from it (``launch`` refuses to start, ``doctor`` says how to mend it).
"""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.config import AppConfig, ModelConfig

# Measured: an engine's two processes and what they import, beside weights and KV cache.
ENGINE_OVERHEAD_BYTES = 1_500_000_000
SERVICE_OVERHEAD_BYTES = 2_500_000_000
DEFAULT_KV_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that vLLM would call on a CPU, and whether it is there."""

    name: str
    is_there: bool


@dataclass(frozen=True)
class Memory:
    """Host memory that engines on CPUs and the service need, by estimate, and what is free, in bytes."""

    needed_bytes: int
    free_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether what is free will do."""
        return self.free_bytes >= self.needed_bytes


def port_problem(host: str, port: int) -> str | None:
    """Return why nothing can listen there; None when something can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def find_compiler() -> Compiler:
    """Return the compiler that ``CXX`` names, else g++."""
    name = os.environ.get("CXX", "g++")
    return Compiler(name, shutil.which(name) is not None)


def memory_for(config: AppConfig) -> Memory:
    """Return what a configuration needs of the host's memory and what there is."""
    return Memory(memory_needed_bytes(config), psutil.virtual_memory().available)


def memory_needed_bytes(config: AppConfig) -> int:
    """Estimate the host memory that the configured engines on CPUs and the service need."""
    total_bytes = SERVICE_OVERHEAD_BYTES
    for model in config.models:
        pool = config.pool_of(model.id)
        if pool.num_gpus:
            continue
        total_bytes += engine_bytes(model, Path(model.source).expanduser()) * pool.min_replicas
    return total_bytes


def engine_bytes(model: ModelConfig, directory: Path) -> int:
    """Estimate the memory of a model's engine on a CPU, for as long as nobody has measured it."""
    weights_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    kv_bytes = model.engine.get("kv_cache_memory_bytes")
    # vLLM says so if it is no number.
    return weights_bytes + (kv_bytes if isinstance(kv_bytes, int) else DEFAULT_KV_BYTES) + ENGINE_OVERHEAD_BYTES
