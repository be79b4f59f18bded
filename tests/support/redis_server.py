"""A Redis of a test's own, for Ray's state to outlive its head."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.ray_head import free_port

REDIS = shutil.which(os.environ.get("REDIS_SERVER", "redis-server"))


@contextmanager
def running_redis() -> Iterator[str]:
    """Yields its address."""
    assert REDIS is not None
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        process = subprocess.Popen(
            [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
            cwd=directory, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
