"""Measures how fast snapshots reach host memory: from S3 and from disk, beside the raw limits and other loaders.

Every round runs each way once, in an order that rotates, and the ways are compared within the round. The raw limit of
S3 is the same ranged GETs into the same kind of memory, in as many threads, with nothing checked; that of the disk is
`dd` with direct reads. The targets are in `COMPARISONS`; missing one is a result, not a failure.

Usage: python tests/bench/staging.py [--rounds 5] [--gib 2]
"""

import argparse
import http.client
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import psutil
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report
from staging_plot import plot

from storage.folders import DirectoryFolder, Folder
from storage.manifest import CHUNK_BYTES, MANIFEST_NAME, Manifest, Origin
from storage.promote import DEFAULT_THREADS, CopyPolicy, copy_snapshot
from storage.s3 import S3Folder
from storage.snapshot import describe_directory
from storage.tier import LocalTier

NAME = "storage"
CAPPED_BYTES_PER_S = 200e6
MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - the tier itself
WEIGHTS = "rank-000.safetensors"
GIB = 2**30
OURS = "FlashServe"

# What is compared: (title, ours, other, target of the ratio ours / other, in bytes per second).
COMPARISONS = (
    ("S3 to dram", "raw ranged GETs", Target(0.9, "min")),
    ("S3 to dram", "boto3 download_file", Target(1.0, "min", strict=True)),
    ("S3 at 200 MB/s to dram", "raw ranged GETs", Target(0.9, "min")),
    ("S3 at 200 MB/s to dram", "boto3 download_file", Target(1.0, "min", strict=True)),
    ("disk to dram", "dd, direct", Target(0.9, "min")),
)
MAX_EXTRA_BYTES = 200e6


class Bench:
    """The snapshot, where it lies, and what was measured: (step, way) → bytes per second, a round each."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.published = directory / "published"
        self.published.mkdir()
        self.manifest = make_snapshot(self.published, size_bytes)
        self.samples: dict[tuple[str, str], list[float]] = {}
        self.extra_bytes: list[float] = []

    def measure(self, step: str, ways: dict[str, Callable[[], None]], round_index: int) -> None:
        """Each way once, beginning with another one each round."""
        names = list(ways)
        shift = round_index % len(names)
        for name in names[shift:] + names[:shift]:
            begin_s = time.perf_counter()
            ways[name]()
            bytes_per_s = self.manifest.size_bytes / (time.perf_counter() - begin_s)
            self.samples.setdefault((step, name), []).append(bytes_per_s)


def make_snapshot(directory: Path, size_bytes: int) -> Manifest:
    """A snapshot of one tensor of random bytes."""
    import torch  # noqa: PLC0415 - only here, and it takes seconds

    from storage.weights import write_tensors  # noqa: PLC0415

    tensor = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8)
    write_tensors(directory / WEIGHTS, {"weights": tensor})
    manifest = describe_directory("bench", Origin("0" * 64, "uint8", None, 1, "cpu", "0"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


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


@contextmanager
def memory_tier() -> Iterator[LocalTier]:
    """An empty dram tier."""
    directory = Path(tempfile.mkdtemp(dir=MEMORY_DIR, prefix="bench-"))
    try:
        yield LocalTier("dram", directory)
    finally:
        shutil.rmtree(directory)


def promote(manifest: Manifest, source: Folder) -> None:
    """Ours: into the dram tier, checked and committed."""
    with memory_tier() as tier, tier.begin(manifest) as partial:
        copy_snapshot(manifest, source, [partial], CopyPolicy())
        partial.commit()


def raw_gets(manifest: Manifest, url: str) -> None:
    """The limit: the same ranges into the same kind of memory, nothing else."""
    (file,) = manifest.files
    local = threading.local()
    address = urlsplit(url).netloc

    def get(index: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(address)
        start, end = file.chunk_range(index)
        local.connection.request("GET", f"/bucket/{file.path}", headers={"Range": f"bytes={start}-{end - 1}"})
        reply, out = local.connection.getresponse(), memoryview(mapped)[start:end]
        while len(out):
            out = out[reply.readinto(out) :]
        reply.read()

    with tempfile.TemporaryFile(dir=MEMORY_DIR) as memory:
        os.posix_fallocate(memory.fileno(), 0, file.size_bytes)
        mapped = mmap.mmap(memory.fileno(), file.size_bytes)
        with ThreadPoolExecutor(DEFAULT_THREADS) as pool:
            list(pool.map(get, range(len(file.chunks))))


def boto3_download(url: str) -> None:
    """What most people do."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as directory:
        boto3.client("s3", endpoint_url=url).download_file("bucket", WEIGHTS, f"{directory}/{WEIGHTS}")


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def direct_read(path: Path) -> None:
    """The disk's limit."""
    command = ["dd", f"if={path}", "of=/dev/null", f"bs={CHUNK_BYTES}", "iflag=direct", "status=none"]
    subprocess.run(command, check=True)


def extra_memory_bytes(manifest: Manifest, source: Folder) -> float:
    """The most memory that this process had beyond the snapshot while it staged one."""
    process, most, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            # PSS less what is in shared memory files: the snapshot.
            info = process.memory_full_info()
            most = max(most, info.pss - info.shared)

    before = process.memory_full_info()
    watcher = threading.Thread(target=watch)
    watcher.start()
    promote(manifest, source)
    done.set()
    watcher.join()
    return max(0.0, most - (before.pss - before.shared))


def run(bench: Bench, rounds: int) -> None:
    """All rounds, with progress."""
    console = wide_console()
    manifest, published = bench.manifest, bench.published
    weights = published / WEIGHTS
    with s3_server(published) as url, s3_server(published, CAPPED_BYTES_PER_S) as slow_url:
        for round_index in range(rounds):
            for step, address in (("S3 to dram", url), ("S3 at 200 MB/s to dram", slow_url)):
                console.print(f"round {round_index + 1} of {rounds}: {step}")
                ways: dict[str, Callable[[], None]] = {
                    OURS: lambda address=address: promote(manifest, S3Folder("s3://bucket", address)),
                    "raw ranged GETs": lambda address=address: raw_gets(manifest, address),
                    "boto3 download_file": lambda address=address: boto3_download(address),
                }
                bench.measure(step, ways, round_index)
            console.print(f"round {round_index + 1} of {rounds}: disk to dram")
            ways = {
                OURS: lambda: (forget(weights), promote(manifest, DirectoryFolder(published)))[1],
                "dd, direct": lambda: direct_read(weights),
            }
            bench.measure("disk to dram", ways, round_index)
            bench.extra_bytes.append(extra_memory_bytes(manifest, S3Folder("s3://bucket", url)))


def summarize(bench: Bench) -> list[Result]:
    """The medians, and the paired ratios with their targets."""
    results = [
        median_result(f"{way}: {step}", [sample / 1e6 for sample in samples], "MB/s")
        for (step, way), samples in bench.samples.items()
    ]
    for step, other, target in COMPARISONS:
        pairs = zip(bench.samples[step, OURS], bench.samples[step, other], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        results.append(median_result(f"{OURS}: {step}", ratios, "ratio", target, other))
    extra = [size / 1e6 for size in bench.extra_bytes]
    target = Target(MAX_EXTRA_BYTES / 1e6, "max")
    return [*results, median_result("memory beyond the snapshot while staging", extra, "MB", target)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How fast snapshots reach host memory.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the snapshot")
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "none"}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        bench = Bench(Path(directory).resolve(), int(arguments.gib * GIB))
        run(bench, arguments.rounds)
    report = make_report(NAME, summarize(bench))
    path, picture = write_report(report), RESULTS_DIR / f"{NAME}.png"
    plot(bench.samples, OURS, picture)
    print_report(report)
    print(f"Written: {path}, {picture}")


if __name__ == "__main__":
    main()
