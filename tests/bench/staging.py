"""Measures how fast snapshots get from S3 and from disk into host memory, and from there to an engine's first answer.

Every round runs each way once, in an order that rotates, and the ways are compared within the round. What is compared
is in `staging_ways` and `staging_engine`; the targets are here, and missing one is a result, not a failure.

Usage: python tests/bench/staging.py [--rounds 7] [--gib 2] [--without-engines]
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report
from staging_plot import plot
from staging_ways import (
    WEIGHTS,
    RunaiStreamer,
    StreamerFailedError,
    boto3_download,
    direct_read,
    direct_read_into_memory,
    forget,
    promote,
    raw_gets,
    raw_gets_into_memory,
    s3_server,
)

from storage.folders import DirectoryFolder, Folder
from storage.manifest import MANIFEST_NAME, Manifest, Origin
from storage.s3 import S3Folder
from storage.snapshot import describe_directory

if TYPE_CHECKING:
    from staging_engine import EngineSamples

NAME = "storage"
ROOT = Path(__file__).parents[2]
CAPPED_BYTES_PER_S = 200e6
GIB = 2**30
TENSORS = 16
OURS = "FlashServe"
RUNAI = "runai-model-streamer"
KEPT = ", kept in memory"
Way = Callable[[], Path | None]

# What is compared: (title, ours, other, target of the ratio ours / other, in bytes per second).
FAST, CAPPED, DISK = "S3 to dram", "S3 at 200 MB/s to dram", "disk to dram"
COMPARISONS = (
    *(
        (step, other, target)
        for step in (FAST, CAPPED)
        for other, target in (
            ("raw ranged GETs", Target(0.9, "min")),
            (f"raw ranged GETs{KEPT}", None),
            ("boto3 download_file", Target(1.0, "min", strict=True)),
            (RUNAI, Target(1.0, "min", strict=True)),
        )
    ),
    (DISK, "dd, direct", Target(0.9, "min")),
    (DISK, f"dd, direct{KEPT}", None),
)
MAX_EXTRA_BYTES = 200e6
MAX_OF_PACKING = 1.15


class Bench:
    """The snapshot, where it lies, and what was measured: (step, way) → bytes per second, a round each."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.published = directory / "published"
        self.published.mkdir()
        self.manifest = make_snapshot(self.published, size_bytes)
        self.samples: dict[tuple[str, str], list[float]] = {}
        self.extra_bytes: list[float] = []
        # Other people's ways that failed; they are not tried again, and are left out of the comparison.
        self.gave_up: list[tuple[str, str]] = []

    def measure(self, step: str, ways: dict[str, Way], round_index: int) -> None:
        """Each way once, beginning with another one each round; clearing up doesn't count."""
        names = list(ways)
        shift = round_index % len(names)
        for name in names[shift:] + names[:shift]:
            begin_s = time.perf_counter()
            try:
                directory = ways[name]()
            except StreamerFailedError:
                self.gave_up.append((step, name))
                self.samples.pop((step, name), None)
                continue
            bytes_per_s = self.manifest.size_bytes / (time.perf_counter() - begin_s)
            if directory is not None:
                shutil.rmtree(directory)
            self.samples.setdefault((step, name), []).append(bytes_per_s)


def make_snapshot(directory: Path, size_bytes: int) -> Manifest:
    """A snapshot of a few tensors of random bytes."""
    import torch  # noqa: PLC0415 - only here, and it takes seconds

    from storage.weights import write_tensors  # noqa: PLC0415

    tensors = {
        f"weights.{n}": torch.randint(0, 255, (size_bytes // TENSORS,), dtype=torch.uint8) for n in range(TENSORS)
    }
    write_tensors(directory / WEIGHTS, tensors)
    manifest = describe_directory("bench", Origin("0" * 64, "uint8", None, 1, "cpu", "0"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


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
    shutil.rmtree(promote(manifest, source))
    done.set()
    watcher.join()
    return max(0.0, most - (before.pss - before.shared))


def run(bench: Bench, rounds: int) -> None:
    """All rounds, with progress."""
    console = wide_console()
    manifest, published = bench.manifest, bench.published
    weights = published / WEIGHTS
    with (
        s3_server(published) as url,
        s3_server(published, CAPPED_BYTES_PER_S) as slow_url,
        streamers([url, slow_url], manifest) as runai,
    ):
        for round_index in range(rounds):
            # What waits for a slow server varies little, and takes most of the time: every other round will do.
            for step, address in ((FAST, url), (CAPPED, slow_url))[: 2 - round_index % 2]:
                console.print(f"round {round_index + 1} of {rounds}: {step}")
                ways: dict[str, Way] = {
                    OURS: lambda address=address: promote(manifest, S3Folder("s3://bucket", address)),
                    "raw ranged GETs": lambda address=address: raw_gets(manifest, address),
                    f"raw ranged GETs{KEPT}": lambda address=address: raw_gets_into_memory(manifest, address),
                    "boto3 download_file": lambda address=address: boto3_download(address),
                }
                if address in runai and (step, RUNAI) not in bench.gave_up:
                    ways[RUNAI] = runai[address].stream
                bench.measure(step, ways, round_index)
            console.print(f"round {round_index + 1} of {rounds}: {DISK}")
            ways = {
                OURS: lambda: promote(manifest, DirectoryFolder(published)),
                "dd, direct": lambda: direct_read(weights),
                f"dd, direct{KEPT}": lambda: direct_read_into_memory(weights),
            }
            # Once is enough: none of these ways puts it back.
            forget(weights)
            bench.measure(DISK, ways, round_index)
            bench.extra_bytes.append(extra_memory_bytes(manifest, S3Folder("s3://bucket", url)))


@contextmanager
def streamers(urls: list[str], manifest: Manifest) -> Iterator[dict[str, RunaiStreamer]]:
    """Run:ai's streamer for each server; none where it isn't installed."""
    with ExitStack() as stack:
        installed = urls if RunaiStreamer.is_installed() else []
        yield {
            url: stack.enter_context(
                closing(RunaiStreamer(url, sum(tensor.end - tensor.start for tensor in manifest.tensors)))
            )
            for url in installed
        }


def summarize(bench: Bench) -> list[Result]:
    """The medians, and the paired ratios with their targets."""
    results = [
        median_result(f"{way}: {step}", [sample / 1e6 for sample in samples], "MB/s")
        for (step, way), samples in bench.samples.items()
    ]
    for step, other, target in COMPARISONS:
        if (step, other) in bench.samples:
            pairs = zip(bench.samples[step, OURS], bench.samples[step, other], strict=True)
            ratios = [ours / theirs for ours, theirs in pairs]
            results.append(median_result(f"{OURS}: {step}", ratios, "ratio", target, other))
    extra = [size / 1e6 for size in bench.extra_bytes]
    target = Target(MAX_EXTRA_BYTES / 1e6, "max")
    return [*results, median_result("memory beyond the snapshot while staging", extra, "MB", target)]


def summarize_engines(samples: "EngineSamples") -> list[Result]:
    """Of each model the wake beside packing alone, and what two replicas share."""
    results = []
    for model, wakes in samples.wakes.items():
        step = f"dram to first answer, {model}"
        ratios = [wake_s / packing_s for wake_s, packing_s in zip(wakes.wake_s, wakes.packing_s, strict=True)]
        besides = [size / 1e6 for size in wakes.besides_bytes]
        results += [
            median_result(step, wakes.wake_s, "s"),
            median_result(f"packing alone, {model}", wakes.packing_s, "s"),
            median_result(f"the answer alone, awake, {model}", wakes.forward_s, "s"),
            median_result(step, ratios, "ratio", Target(MAX_OF_PACKING, "max"), "packing alone"),
            median_result(f"{step}: bytes of the snapshot copied", wakes.copied_bytes, "bytes", Target(0, "max")),
            median_result(f"{step}: memory beyond packing's", besides, "MB"),
        ]
    shared, file_bytes = samples.shared, samples.shared_file_bytes
    return [
        *results,
        median_result(
            "two replicas: memory of the one snapshot",
            [shared.real_bytes / file_bytes],
            "of its size",
            Target(1.0, "max"),
        ),
        median_result("two replicas: what both see of it", [shared.seen_bytes / file_bytes], "of its size"),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How fast snapshots reach host memory, and engines from there.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the snapshot")
    parser.add_argument("--without-engines", action="store_true", help="only how snapshots reach host memory")
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "none"}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        bench = Bench(Path(directory).resolve(), int(arguments.gib * GIB))
        run(bench, arguments.rounds)
    results = summarize(bench)
    if not arguments.without_engines:
        # Engines import their worker's extension by its name from here.
        sys.path.append(str(ROOT))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        from staging_engine import measure_engines  # noqa: PLC0415 - as said

        results += summarize_engines(measure_engines(arguments.rounds))
    notes = [f"{way} failed at: {step}; see above" for step, way in bench.gave_up]
    report = make_report(NAME, results, notes)
    path, picture = write_report(report), RESULTS_DIR / f"{NAME}.png"
    plot(bench.samples, OURS, picture)
    print_report(report)
    print(f"Written: {path}, {picture}")


if __name__ == "__main__":
    main()
