"""A Ray head of a test's own, which can be lost and come back."""

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


class RayHead:
    """Runs once it is made; ``address`` is the cluster's, ``dashboard`` a URL, ``process`` the root of its own.

    ``logs`` is the directory of its logs, which ends with it.
    """

    process: psutil.Process

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        options: Sequence[str],
        within: Sequence[str] = (),
        host: str | None = None,
    ) -> None:
        port, dashboard_port = free_port(), free_port()
        self.address, self.dashboard = f"{host or '127.0.0.1'}:{port}", f"http://127.0.0.1:{dashboard_port}"
        self._directory = directory
        self.logs = directory / "session_latest" / "logs"
        self._environment = dict(environment)
        # What runs it in a namespace ends with it, and not when it is asked to.
        self._ends_when_asked = not within
        self._command = [
            *within, command("ray"), "start", "--head", "--block", f"--port={port}",
            f"--dashboard-port={dashboard_port}", f"--temp-dir={directory}", "--disable-usage-stats",
            *([f"--node-ip-address={host}"] if host else []), *(options or ("--num-cpus=8",)),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Begin, or again as it was."""
        with (self._directory / "head.log").open("ab") as log:
            self._running = subprocess.Popen(
                self._command, env=self._environment, cwd=self._directory, start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.process = psutil.Process(self._running.pid)

    def lose(self) -> None:
        """End all its processes at once, as when the power goes."""
        below = self.process.children(recursive=True)
        for each in (self.process, *below):
            # The last of a namespace take the others with them.
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._running.wait(30)
        psutil.wait_procs(below, timeout=30)

    def end(self) -> None:
        """End it in order, and what doesn't end without."""
        below = self.process.children(recursive=True) if self._running.poll() is None else []
        if not self._ends_when_asked and below:
            self.lose()
        self._running.terminate()
        self._running.wait(60)
        _, left = psutil.wait_procs(below, timeout=10)
        for orphan in left:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()


@contextmanager
def ray_head(
    environment: Mapping[str, str], *options: str, within: Sequence[str] = (), host: str | None = None
) -> Iterator[RayHead]:
    """A Ray head of its own, with these options of ``ray start`` beside what a head needs; run by ``within``.

    ``host`` is its address for the others of its cluster, if not the one that Ray finds.
    """
    # Short, because a Unix socket's path must be.
    directory = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    head = RayHead(directory, environment, options, within, host)
    try:
        yield head
    finally:
        head.end()
        shutil.rmtree(directory, ignore_errors=True)
