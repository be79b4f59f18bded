"""Workers of Ray's forked from the process pool: as if they had been started, but that vLLM is imported already."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import worker_launcher
from deployments.forked_engine import PoolAddress
from deployments.worker_launcher import pool_link
from tests.support.waiting import until

# Says how it finds itself, then waits for a word.
PROGRAM = """
import json, os, sys, threading
import ray._raylet
ray._raylet.setproctitle("a worker")
found = {
    "id": os.getpid(), "arguments": sys.argv, "directory": os.getcwd(), "environment": dict(os.environ),
    "has_vllm": "vllm.v1.engine.async_llm" in sys.modules, "title": open("/proc/self/cmdline").read().strip("\\0"),
    "main": __name__,
}
print(json.dumps(found), flush=True)
sys.stdin.readline()
print("an error", file=sys.stderr)
sys.exit(int(sys.argv[-1]))
"""


class Started:
    """A launcher, and what the worker said of itself."""

    def __init__(self, directory: Path, node_id: str, *, code: int = 0, patience_s: float | None = None) -> None:
        program = directory / "default_worker.py"
        program.write_text(PROGRAM)
        launcher = [worker_launcher.__file__]
        if patience_s is not None:
            found = f"main = __import__('runpy').run_path({worker_launcher.__file__!r})['main']"
            patience = f"main.__globals__.update(COMING_S={patience_s})"
            launcher = ["-c", f"{found}; {patience}; main()"]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", *launcher, str(program), f"--node-id={node_id}", str(code)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory,
            env={**os.environ, "OF_ITS_OWN": "yes"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline())

    def end(self) -> str:
        """Let it go on to its end; returns what it said on its standard error."""
        _, errors = self.process.communicate("go\n", timeout=60)
        return errors


@pytest.fixture
def node_id(pool_address: PoolAddress) -> Iterator[str]:
    """A node whose zygote is the session's."""
    link = pool_link(uuid.uuid4().hex)
    link.parent.mkdir(mode=0o700, exist_ok=True)
    link.symlink_to(Path(pool_address.socket_path).parent)
    yield link.name
    link.unlink()


def test_it_is_as_if_it_had_been_started(node_id: str, tmp_path: Path) -> None:
    started = Started(tmp_path, node_id)
    said = started.said
    assert said["has_vllm"]
    assert said["id"] != started.process.pid
    assert said["arguments"] == [str(tmp_path / "default_worker.py"), f"--node-id={node_id}", "0"]
    assert said["directory"] == str(tmp_path)
    assert said["environment"]["OF_ITS_OWN"] == "yes"
    assert said["title"] == "a worker", "Ray calls it what it is"
    assert said["main"] == "__main__"
    assert "an error" in started.end()
    assert started.process.returncode == 0


def test_without_a_zygote_it_is_started(tmp_path: Path) -> None:
    started = Started(tmp_path, uuid.uuid4().hex, code=3)
    assert not started.said["has_vllm"]
    assert started.said["id"] == started.process.pid
    started.end()
    assert started.process.returncode == 3


def test_nor_is_one_waited_for_that_does_not_come(tmp_path: Path) -> None:
    link = pool_link(uuid.uuid4().hex)
    link.parent.mkdir(mode=0o700, exist_ok=True)
    link.symlink_to(tmp_path)
    try:
        started = Started(tmp_path, link.name, patience_s=0.2)
    finally:
        link.unlink()
    assert started.said["id"] == started.process.pid
    started.end()


@pytest.mark.parametrize("killed", ["launcher", "worker"])
def test_both_end_together(node_id: str, tmp_path: Path, killed: str) -> None:
    started = Started(tmp_path, node_id)
    worker = psutil.Process(started.said["id"])
    (started.process if killed == "launcher" else worker).kill()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 30)
    started.process.communicate(timeout=30)
