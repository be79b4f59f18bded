"""Runs one command and, when told to stop, ends every process that came from it and no other.

Ray and vLLM detach processes: sessions of their own, parents that exit. This process is a "child subreaper"
(prctl(2)), so whatever its command leaves orphaned becomes its child instead of init's, and the command's whole
tree stays below it. It also ends the tree if the bench itself dies.

Usage: python supervisor.py GRACE_S COMMAND...
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_WAIT_S = 10
WOKEN_BY = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main() -> int:
    """Runs the command of the command line; returns its exit code."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # Background jobs of a shell inherit an ignored SIGINT, which is how `serve run` is asked to end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = subprocess.Popen(command, start_new_session=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, WOKEN_BY)
    while server.poll() is None:
        if signal.sigwait(WOKEN_BY) != signal.SIGCHLD:
            stop(server, grace_s)
        reap_orphans(server.pid)
    end_descendants()
    return server.returncode


def stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """Asks the server to end and gives it `grace_s` seconds; a frozen tree is thawed first, so that it can."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    server.send_signal(signal.SIGINT)
    try:
        server.wait(grace_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def reap_orphans(server_pid: int) -> None:
    """Collects ended orphans; the server itself is left to its Popen object."""
    for child in psutil.Process().children():
        if child.pid != server_pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def end_descendants() -> None:
    """Kills what the server left behind."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=KILL_WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
