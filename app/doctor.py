"""What is wrong with a machine, or could be, for a given configuration, and how to mend each.

Pure: ``findings`` makes sentences of ``Facts``. Does not cover: finding the facts (``doctor_facts``), showing them
(``doctor_cli``), what only vLLM can tell about a model (`flashserve check`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.machine import Compiler, Memory

Level = Literal["ok", "warning", "broken"]
PYTHON = (3, 11), (3, 13)
# Beyond the budgets: what else runs there wants some too.
_LOW_MEMORY_SHARE = 0.1
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """What one check has found; ``mend`` says what to do about it, and is empty when there is nothing to do."""

    check: str
    level: Level
    message: str
    mend: str = ""


@dataclass(frozen=True)
class Room:
    """Memory or disk: what it is asked to hold, what a tier there holds already, and what is free, in bytes."""

    path: str
    wanted_bytes: int
    held_bytes: int
    free_bytes: int
    is_writable: bool = True


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Gpus:
    """The GPUs there are, how many are asked for, and why the driver can't be asked, if it can't."""

    wanted: float = 0
    found: tuple[Gpu, ...] = ()
    driver: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Facts:
    """What was found out. Without a configuration that can be read, what depends on it is not there."""

    python: tuple[int, ...]
    versions: Mapping[str, tuple[str, str | None]]
    """By distribution: the version that is pinned, and the one that is installed."""
    compiler: Compiler
    config_file: str
    config_problems: tuple[str, ...] = ()
    gpus: Gpus = Gpus()
    memory: Memory | None = None
    dram: Room | None = None
    disk: Room | None = None
    locked_limit_bytes: int | None = None
    """What a process may lock in memory; None without a limit."""
    sources: Mapping[str, str | None] = field(default_factory=dict)
    """Where models and adapters come from, and what is wrong with each, if anything is."""
    port: tuple[str, int, str | None] | None = None
    """Host, port, and why it can't be used, if it can't."""


def findings(facts: Facts) -> list[Finding]:
    """Return what each check has found, in the order in which to mend it."""
    return [
        *_python(facts), *_versions(facts), *_config(facts), *_compiler(facts), *_gpus(facts.gpus), *_memory(facts),
        *_dram(facts), *_locked(facts), *_disk(facts), *_sources(facts), *_port(facts),
    ]  # fmt: skip


def is_broken(found: list[Finding]) -> bool:
    """Tell whether the service can't run as things are."""
    return any(finding.level == "broken" for finding in found)


def _python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    least, before = (".".join(map(str, each)) for each in PYTHON)
    if PYTHON[0] <= facts.python[:2] < PYTHON[1]:
        yield Finding("python", "ok", f"Python {version}")
    else:
        mend = f"Create the environment with Python {least}: `make setup PYTHON=python{least}`."
        yield Finding("python", "broken", f"Python {version}, and {least} up to below {before} is needed", mend)


def _versions(facts: Facts) -> Iterator[Finding]:
    for name, (wanted, found) in facts.versions.items():
        if found is None:
            mend = "Install what the lock file says: `pip install --no-deps -r requirements.lock`."
            yield Finding("version", "broken", f"{name} {wanted} is not installed", mend)
        elif found.split("+")[0] != wanted.split("+")[0]:
            mend = f"Install the version that is tested: `pip install --no-deps {name}=={wanted}`."
            yield Finding("version", "warning", f"{name} is {found}, and {wanted} is what is tested", mend)
        else:
            yield Finding("version", "ok", f"{name} {found}")


def _config(facts: Facts) -> Iterator[Finding]:
    if not facts.config_problems:
        yield Finding("config", "ok", f"{facts.config_file} can be read")
    for problem in facts.config_problems:
        mend = f"Change it in {facts.config_file}; every key is described in README.md."
        yield Finding("config", "broken", problem, mend)


def _compiler(facts: Facts) -> Iterator[Finding]:
    name = facts.compiler.name
    if facts.compiler.is_there:
        yield Finding("compiler", "ok", f"a C++ compiler, {name}")
    else:
        yield Finding("compiler", "broken", f"there is no C++ compiler '{name}'", "Install g++, or set CXX.")


def _gpus(gpus: Gpus) -> Iterator[Finding]:
    if gpus.found:
        named = ", ".join(f"{gpu.name} ({gpu.memory_bytes / _GB:.0f} GB)" for gpu in gpus.found)
        yield Finding("gpu", "ok", f"{named}, driver {gpus.driver}")
    elif not gpus.wanted:
        yield Finding("gpu", "ok", "no GPU, and none is asked for: engines run on the CPU")
    if gpus.wanted > len(gpus.found):
        why = f": {gpus.problem}" if gpus.problem else ""
        message = f"pools ask for {gpus.wanted:g} GPUs and {len(gpus.found)} are here{why}"
        mend = "Install NVIDIA's driver, or serve on the CPU with pools[].num_gpus: 0. Other nodes' GPUs count as well."
        yield Finding("gpu", "warning" if gpus.found else "broken", message, mend)


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory is None:
        return
    needed_bytes, free_bytes = facts.memory.needed_bytes, facts.memory.free_bytes
    message = f"{needed_bytes / _GB:.1f} GB of memory are needed and {free_bytes / _GB:.1f} GB are free"
    mend = "Serve fewer models, lower engine.kv_cache_memory_bytes, or end what else runs here."
    if not facts.memory.is_enough:
        yield Finding("memory", "broken", message, mend)
    elif needed_bytes > free_bytes * (1 - _LOW_MEMORY_SHARE):
        yield Finding("memory", "warning", message, mend)
    else:
        yield Finding("memory", "ok", message)


def _room(check: str, room: Room, key: str, what: str) -> Finding:
    within_bytes = room.free_bytes + room.held_bytes
    if not room.is_writable:
        return Finding(check, "broken", f"{room.path} can't be written to", f"Let this user write there, or {what}.")
    message = f"{key} is {room.wanted_bytes / _GB:.1f} GB, and {room.path} has room for {within_bytes / _GB:.1f} GB"
    if room.wanted_bytes <= within_bytes:
        return Finding(check, "ok", message)
    # What doesn't fit is not kept, and that is all: no reason not to run.
    return Finding(check, "warning", message, f"Lower {key} to what is there, or {what}.")


def _dram(facts: Facts) -> Iterator[Finding]:
    if facts.dram is not None:
        yield _room(
            "shared memory", facts.dram, "storage.dram_bytes",
            "make it larger: `mount -o remount,size=8g /dev/shm`; in a container `docker run --shm-size=8g`",
        )  # fmt: skip


def _locked(facts: Facts) -> Iterator[Finding]:
    if facts.dram is None or not facts.gpus.wanted:
        return
    limit_bytes, wanted_bytes = facts.locked_limit_bytes, facts.dram.wanted_bytes
    if limit_bytes is None or limit_bytes >= wanted_bytes:
        yield Finding("locked memory", "ok", "as much of the memory as is needed may be locked for the GPU")
        return
    message = f"a process may lock {limit_bytes / _GB:.2f} GB, and the dram tier has {wanted_bytes / _GB:.1f} GB"
    mend = "Say `ulimit -l unlimited`, or `docker run --ulimit memlock=-1`; else wakes copy through a ring of buffers."
    yield Finding("locked memory", "warning", message, mend)


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk is not None:
        yield _room("disk", facts.disk, "storage.disk_bytes", "have storage.disk_dir on a larger disk")


def _sources(facts: Facts) -> Iterator[Finding]:
    for source, problem in facts.sources.items():
        if problem is None:
            yield Finding("source", "ok", f"{source} can be read")
        else:
            is_remote = source.startswith("s3://")
            mend = (
                "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, and storage.s3.endpoint_url for "
                "a server other than Amazon's; the key needs s3:ListBucket and s3:GetObject."
                if is_remote
                else "Correct the path, or run `make models` for the demo models."
            )
            yield Finding("source", "broken", problem if source in problem else f"{source}: {problem}", mend)


def _port(facts: Facts) -> Iterator[Finding]:
    if facts.port is None:
        return
    host, port, problem = facts.port
    if problem is None:
        yield Finding("port", "ok", f"port {port} on {host} is free")
    else:
        mend = f"Stop what listens there, or set http_options.port in {facts.config_file}."
        yield Finding("port", "broken", f"port {port} on {host} can't be used ({problem})", mend)
