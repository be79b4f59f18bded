"""What a process forked from the zygote does to be a worker of Ray's; the other side of ``worker_launcher``."""

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import NoReturn

import ray._raylet
from setproctitle import getproctitle, setproctitle

from deployments.pool_wire import receive_frame


def run_worker(line: socket.socket, set_by_imports: Mapping[str, str]) -> NoReturn:
    """Be the worker that the launcher at the other end of ``line`` asks for, to its end.

    ``set_by_imports`` is what importing has put into the environment.
    """
    status = 1
    try:
        path = _become(line, set_by_imports)
        threading.Thread(target=_end_with_launcher, args=(line,), daemon=True).start()
        # A process's title can be set by whoever set it first, which the zygote did with vLLM's library, and no other.
        ray._raylet.setproctitle, ray._raylet.getproctitle = setproctitle, getproctitle  # noqa: SLF001
        runpy.run_path(path, run_name="__main__")
        status = 0
    except EOFError:
        pass  # the launcher has gone
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter's own end does, and no other
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _become(line: socket.socket, set_by_imports: Mapping[str, str]) -> str:
    """Take on the launcher's surroundings; return the program to run. Raises EOFError if it has gone."""
    # As in a process of its own: the zygote ignores the end of its children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    _, descriptors, _, _ = socket.recv_fds(line, 1, 3)
    asked = json.loads(receive_frame(line))
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update({**asked["environment"], **set_by_imports})
    paths = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    os.chdir(asked["directory"])
    sys.argv = asked["arguments"]
    line.sendall(b"f")
    return str(sys.argv[0])


def _end_with_launcher(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.recv(1)
    os._exit(1)
