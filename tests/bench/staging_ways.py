"""The ways into host memory that `staging.py` compares: ours, the raw limits, and other loaders.

A raw limit is measured twice: with the bytes thrown away, which is what the link gives and what the targets are about,
and with the bytes kept in new shared memory, which is the least that anybody has to do who stages a snapshot. A way
that keeps them returns the directory they are in, for the caller to remove.
"""

import http.client
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import boto3

from storage.folders import Folder
from storage.manifest import CHUNK_BYTES, Manifest
from storage.promote import DEFAULT_THREADS, PIECE_BYTES, CopyPolicy, copy_snapshot
from storage.tier import LocalTier

MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - the tier itself
WEIGHTS = "rank-000.safetensors"


@contextmanager
def s3_server(directory: Path, bytes_per_s: float = 0.0) -> Iterator[str]:
    """The server as a process of its own; yields its URL."""
    command = [sys.executable, str(Path(__file__).with_name("s3_files.py")), str(directory), str(bytes_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def new_directory() -> Path:
    """An empty directory in memory."""
    return Path(tempfile.mkdtemp(dir=MEMORY_DIR, prefix="bench-"))


def promote(manifest: Manifest, source: Folder) -> Path:
    """Ours: into the dram tier, checked and committed."""
    directory = new_directory()
    with LocalTier("dram", directory).begin(manifest) as partial:
        copy_snapshot(manifest, source, [partial], CopyPolicy())
        partial.commit()
    return directory


def raw_gets(manifest: Manifest, url: str) -> None:
    """What the link gives: the same ranges in as many threads, thrown away."""
    _get_all(manifest, url, lambda _start, _piece: None)


def raw_gets_into_memory(manifest: Manifest, url: str) -> Path:
    """The same, kept in a new file in shared memory; nothing is checked."""
    directory = new_directory()
    with (directory / WEIGHTS).open("wb") as memory:
        _get_all(manifest, url, lambda start, piece: os.pwrite(memory.fileno(), piece, start))
    return directory


def _get_all(manifest: Manifest, url: str, take: Callable[[int, memoryview], object]) -> None:
    (file,) = manifest.files
    local = threading.local()
    address = urlsplit(url).netloc

    def get(index: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(address)
            local.buffer = memoryview(bytearray(PIECE_BYTES))
        start, end = file.chunk_range(index)
        local.connection.request("GET", f"/bucket/{file.path}", headers={"Range": f"bytes={start}-{end - 1}"})
        reply = local.connection.getresponse()
        while start < end:
            piece = local.buffer[: end - start]
            filled = 0
            while filled < len(piece):
                filled += reply.readinto(piece[filled:])
            take(start, piece)
            start += len(piece)
        reply.read()

    with ThreadPoolExecutor(DEFAULT_THREADS) as pool:
        list(pool.map(get, range(len(file.chunks))))


def boto3_download(url: str) -> Path:
    """What most people do."""
    directory = new_directory()
    boto3.client("s3", endpoint_url=url).download_file("bucket", WEIGHTS, f"{directory}/{WEIGHTS}")
    return directory


class StreamerFailedError(Exception):
    """Run:ai's streamer gave up; what it says stands on standard error."""


class RunaiStreamer:
    """Run:ai's streamer, where it is installed; see ``runai_stream``."""

    def __init__(self, url: str, size_bytes: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("runai_stream.py")), url, f"s3://bucket/{WEIGHTS}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._size_bytes = size_bytes
        assert self._answer() == "ready"

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("runai_model_streamer") is not None

    def stream(self) -> None:
        """Every tensor of the file, once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise StreamerFailedError
        assert int(answer) >= self._size_bytes

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def direct_read(path: Path, target: str = "/dev/null") -> None:
    """The disk's limit, and with a target in shared memory the least that staging has to do."""
    command = ["dd", f"if={path}", f"of={target}", f"bs={CHUNK_BYTES}", "iflag=direct", "status=none"]
    subprocess.run(command, check=True)


def direct_read_into_memory(path: Path) -> Path:
    """The same, kept in a new file in shared memory."""
    directory = new_directory()
    direct_read(path, f"{directory}/{WEIGHTS}")
    return directory
