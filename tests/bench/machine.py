"""What the bench ran on: the `machine` part of every result file."""

import platform
from pathlib import Path
from typing import TypedDict

import psutil
import pynvml


class Machine(TypedDict):
    """`cores` are logical ones; `gpu` is its name or "no GPU"."""

    cpu: str
    cores: int
    memory_bytes: int
    os: str
    gpu: str


def describe_machine() -> Machine:
    """Reads it from the operating system and NVML."""
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "gpu": gpu_name(),
    }


def cpu_model() -> str:
    """The model name Linux gives; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def gpu_name() -> str:
    """The name of each GPU, or "no GPU" where NVML finds no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "no GPU"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return ", ".join(pynvml.nvmlDeviceGetName(handle) for handle in handles) or "no GPU"
    finally:
        pynvml.nvmlShutdown()
