"""What a process forked from the zygote does: become the asking process's, start the engine, watch, end with it.

Covers: surroundings, the start by vLLM's own launcher, the life line. Does not cover: the zygote's own life
(``zygote``) and the asking side (``forked_engine``).

The processes of an engine are one process group, each dies with its parent, and each holds the life line. So whichever
dies takes the others along, and the line ends at the other side when the last of them is gone. It has no softer end:
an engine holds nothing worth saving, and a killed one leaves in ``/dev/shm`` nothing that its tracker doesn't remove.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from logging import INFO, getLogger
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

import torch
from vllm.platforms import current_platform
from vllm.v1.engine.utils import CoreEngineProcManager, get_engine_zmq_addresses, launch_core_engines

from deployments.batch_record import keep_record, record_path
from deployments.pool_wire import (
    EngineRequest,
    Report,
    Surroundings,
    pack_report,
    receive_frame,
    receive_surroundings,
)
from deployments.start_marks import MarkHandler

# What libraries read while they are imported; a fork comes too late to change it.
READ_ON_IMPORT = (
    *("HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "LD_PRELOAD"),
    *("VLLM_LOGGING_", "VLLM_PLUGINS", "VLLM_BATCH_INVARIANT"),
)

_DEFAULTS = {
    # How large the KV cache can be is measured at the first start, and remembered beside what was compiled.
    "VLLM_ENABLE_STARTUP_PLAN": "1",
    # On a CPU vLLM 0.29 fails to load what it has compiled ahead of time and so compiles anew at every start; without
    # this torch's own cache serves.
    **({"VLLM_USE_AOT_COMPILE": "0"} if current_platform.is_cpu() else {}),
}

_CACHES = {"VLLM_CACHE_ROOT": "", "TORCHINDUCTOR_CACHE_DIR": "/inductor", "TRITON_CACHE_DIR": "/triton"}

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def run_engine(line: socket.socket) -> NoReturn:
    """Serve one request of the pool and end; ``line`` is the connection to the client."""
    status = 1
    try:
        _run(line)
        status = 0
    except EOFError:
        pass  # the client went away before it had asked
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(line: socket.socket) -> None:
    # The zygote ignores the end of its children; this process waits for its own.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    marks_s = {"forked": time.monotonic()}
    surroundings = receive_surroundings(line)
    different = _unfit(surroundings.environment)
    if different:
        reason = f"{different} is read on import and differs from the pool's"
        line.sendall(pack_report(Report("refused", reason)))
        return
    # Still in the zygote's process group: it outlives the engine and removes the shared memory of a killed one.
    resource_tracker.ensure_running()
    os.setsid()
    _become(surroundings)
    keep_record(record_path(Path(line.getsockname()).parent, os.getpid()))
    line.sendall(pack_report(Report("forked", process_id=os.getpid())))
    request: EngineRequest = pickle.loads(receive_frame(line))  # noqa: S301 - see pool_wire
    marks_s["asked"] = time.monotonic()
    threading.Thread(target=_end_with_client, args=(line,), daemon=True).start()
    os.register_at_fork(after_in_child=_take_on_worker_settings)
    _launch(line, marks_s, request)


def _launch(line: socket.socket, marks_s: dict[str, float], request: EngineRequest) -> None:
    marks = _listen_to_logs()
    try:
        config, executor_class = pickle.loads(request.engine)  # noqa: S301 - see pool_wire
        if request.snapshot:
            config.load_config.model_loader_extra_config = {"snapshot": request.snapshot}
        # Here and not by the client: a killed engine leaves its sockets behind, and here they go with the pool.
        addresses = get_engine_zmq_addresses(config)
        line.sendall(pack_report(Report("launching", addresses=[addresses.inputs[0], addresses.outputs[0]])))
        # With its statistics: its scheduler has what vLLM's metrics of it tell.
        with launch_core_engines(config, executor_class, True, addresses) as launch:
            marks_s["launched"] = time.monotonic()
    except Exception as error:  # noqa: BLE001 - whatever vLLM's parts raise, the client is told
        traceback.print_exc()
        _, first_error = marks.collect()
        line.sendall(pack_report(Report("failed", first_error or f"{type(error).__name__}: {error}")))
        _kill_group()
    marks_s |= marks.collect()[0] | {"ready": time.monotonic()}
    line.sendall(pack_report(Report("ready", marks_s=marks_s)))
    manager = launch.engine_manager
    if isinstance(manager, CoreEngineProcManager):
        manager.monitor_engine_liveness()
    _kill_group()


def _unfit(environment: dict[str, str]) -> str | None:
    names = sorted(name for name in environment.keys() | os.environ.keys() if name.startswith(READ_ON_IMPORT))
    return next((name for name in names if environment.get(name) != os.environ.get(name)), None)


def _become(surroundings: Surroundings) -> None:
    """Take on the environment, the directory and the log file of the asking process."""
    os.environ.clear()
    os.environ.update(_DEFAULTS | surroundings.environment | {"VLLM_WORKER_MULTIPROC_METHOD": "fork"})
    if surroundings.cache_dir:
        # Torch has put its own default there when it was imported.
        os.environ |= {variable: surroundings.cache_dir + part for variable, part in _CACHES.items()}
    os.chdir(surroundings.working_directory)
    log_fd = os.open(surroundings.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    null_fd = os.open(os.devnull, os.O_RDONLY)
    for target_fd, source_fd in ((0, null_fd), (1, log_fd), (2, log_fd)):
        os.dup2(source_fd, target_fd)


def _listen_to_logs() -> MarkHandler:
    marks = MarkHandler()
    vllm_logger, own_logger = getLogger("vllm"), getLogger("deployments")
    own_logger.setLevel(INFO)
    own_logger.handlers = [*vllm_logger.handlers, marks]
    vllm_logger.addHandler(marks)
    return marks


def _end_with_client(line: socket.socket) -> None:
    # A client that was killed with a report unread has broken the connection.
    with contextlib.suppress(OSError):
        line.recv(1)
    _kill_group()


def _kill_group() -> None:
    os.killpg(0, signal.SIGKILL)


def _take_on_worker_settings() -> None:
    """In each process forked from here: die with the parent, and use the cores vLLM assigns to it.

    vLLM hands threads and cores to a worker in its environment, which libgomp read long ago, in the zygote.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if thread_count := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(thread_count))
    if assigned := os.environ.get("GOMP_CPU_AFFINITY"):
        cores = {int(core) for core in assigned.split()}
        is_asked_for = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto"
        os.sched_setaffinity(0, cores if is_asked_for else _as_near(cores))


def _as_near(cores: set[int]) -> set[int]:
    """Return the cores of the same NUMA nodes.

    vLLM assigns every engine the same ones, as if it were alone: two that compute would share them while others idle.
    """
    nodes = {_node_of(core) for core in cores}
    return {core for core in os.sched_getaffinity(0) if _node_of(core) in nodes}


def _node_of(core: int) -> str:
    return next((node.name for node in Path(f"/sys/devices/system/cpu/cpu{core}").glob("node[0-9]*")), "")
