"""Measures how long a group of nodes takes to have a snapshot, and how much of it S3 sends: with peers, and without.

Nodes are raylets on this machine, each with a snapshot store as an actor of Ray; what they give each other goes through
Ray's object store. Each node has a link of its own, which its store keeps to by a token bucket in this bench's code
(`limited_store`): raylets of one machine share its loopback, and namespaces for a link each need rights that few users
have. S3 is a server on this machine. It is measured twice: behind one such link too, as a store in the same rack or a
far one would be, and without a limit of its own, as Amazon's nearly is. Every node begins with nothing, all begin at
once, into host memory alone.

Usage: python tests/bench/cluster.py [--rounds 3] [--nodes 1 2 4 8] [--mib 256]
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from cluster_plot import plot
from limited_store import LimitedStore
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report
from staging_ways import MEMORY_DIR, s3_server

from storage.actor import NAMESPACE, store_name
from storage.manifest import CHUNK_BYTES, MANIFEST_NAME, Manifest, Origin
from storage.snapshot import describe_directory
from storage.store import StoreConfig

NAME = "cluster"
LINK_BYTES_PER_S = 25e6
MIB = 2**20
PEERS, ALONE = "from peers", "each from S3"
ONE_LINK, NO_LIMIT = "S3 behind one link", "S3 without a limit"
ONCE = Target(1.1, "max")
OBJECT_STORE_BYTES = 128 * MIB
STORE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Run:
    """One group's filling: seconds for all, bytes that S3 sent, processor seconds of the machine for each second."""

    took_s: float
    sent_bytes: int
    busy_cores: float


Key = tuple[str, str, int]  # the link of S3, the way, the nodes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long a group of nodes takes to have a snapshot.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--mib", type=int, default=256, help="size of the snapshot")
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "none"}
    console = wide_console()
    samples: dict[Key, list[Run]] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR, prefix="bench-") as made, cluster(max(arguments.nodes)) as nodes:
        manifest = make_snapshot(Path(made, "published"), arguments.mib * MIB)
        for round_index in range(arguments.rounds):
            for link, s3_bytes_per_s in ((ONE_LINK, LINK_BYTES_PER_S), (NO_LIMIT, 0.0)):
                for count in arguments.nodes:
                    for way in (PEERS, ALONE) if round_index % 2 == 0 else (ALONE, PEERS):
                        run = fill(manifest, Path(made), nodes[:count], s3_bytes_per_s, with_peers=way == PEERS)
                        samples.setdefault((link, way, count), []).append(run)
                        copies = run.sent_bytes / manifest.size_bytes
                        console.print(
                            f"round {round_index + 1} of {arguments.rounds}: {link}, {count} nodes, {way}: "
                            f"{run.took_s:.1f} s, {copies:.2f} copies from S3, {run.busy_cores:.1f} cores busy"
                        )
    results = summarize(samples, manifest.size_bytes)
    report = make_report(NAME, results, notes(manifest))
    path, picture = write_report(report), RESULTS_DIR / f"{NAME}.png"
    plot({key: [run.took_s for run in runs] for key, runs in samples.items()}, picture)
    print_report(report)
    print(f"Written: {path}, {picture}")


def fill(manifest: Manifest, root: Path, nodes: Sequence[str], s3_bytes_per_s: float, *, with_peers: bool) -> Run:
    """Starts a store on each node, has all bring the snapshot at once, and ends them."""
    with s3_server(root / "published", s3_bytes_per_s) as s3_url:
        stores = []
        for number, node_id in enumerate(nodes):
            own = root / f"node-{number}"
            config = StoreConfig(own / "dram", 2 * manifest.size_bytes, own / "disk", 0, s3_url, peers=with_peers)
            stores.append(start_store(node_id, config))
        try:
            ray.get([store.describe.remote() for store in stores], timeout=STORE_TIMEOUT_S)
            busy_s, begin_s = busy_core_s(), time.perf_counter()
            places = [store.acquire.remote(manifest.id, "s3://bucket") for store in stores]
            ray.get(places, timeout=STORE_TIMEOUT_S)
            took_s = time.perf_counter() - begin_s
            sent_bytes = int(httpx.get(f"{s3_url}/sent-bytes").text) - len(nodes) * len(manifest.to_json())
            return Run(took_s, sent_bytes, (busy_core_s() - busy_s) / took_s)
        finally:
            for number, store in enumerate(stores):
                ray.kill(store)
                shutil.rmtree(root / f"node-{number}", ignore_errors=True)


def start_store(node_id: str, config: StoreConfig) -> Any:
    """The store of a node, as the application names it."""
    options = {
        "name": store_name("bench", node_id),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
    }
    while True:
        try:
            return ray.remote(LimitedStore).options(**options).remote(config, LINK_BYTES_PER_S)
        except ValueError:
            # The one before is still ending.
            time.sleep(0.1)


@contextmanager
def cluster(count: int) -> Iterator[list[str]]:
    """Raylets on this machine; yields the ids of their nodes."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    made = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    for _ in range(count - 1):
        made.add_node(wait=False, **options)
    made.wait_for_nodes()
    # What this directory has, workers don't find by name.
    for name in ("limited_store", "s3_files"):
        cloudpickle.register_pickle_by_value(sys.modules[name])
    ray.init(address=made.address, namespace=NAMESPACE, log_to_driver=False)
    try:
        yield [node["NodeID"] for node in ray.nodes()]
    finally:
        ray.shutdown()
        made.shutdown()


def make_snapshot(directory: Path, size_bytes: int) -> Manifest:
    """A snapshot of one file of random bytes."""
    directory.mkdir()
    with (directory / "rank-000.weights").open("wb") as file:
        for at in range(0, size_bytes, CHUNK_BYTES):
            file.write(os.urandom(min(CHUNK_BYTES, size_bytes - at)))
    manifest = describe_directory("bench", Origin("0" * 64, "uint8", None, 1, "cpu", "0"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def busy_core_s() -> float:
    """Processor seconds that this machine has worked, whoever for."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait


def summarize(samples: dict[Key, list[Run]], size_bytes: int) -> list[Result]:
    """Medians, the paired ratios of the times, and how often S3 sent the snapshot."""
    results = []
    for (link, way, count), runs in samples.items():
        where = f"{link}, {count} nodes, {way}"
        results.append(median_result(f"time for all: {where}", [run.took_s for run in runs], "s"))
        copies = [run.sent_bytes / size_bytes for run in runs]
        results.append(median_result(f"S3 sent: {where}", copies, "copies", ONCE if way == PEERS else None))
    for (link, way, count), runs in samples.items():
        if way == PEERS and count > 1:
            pairs = zip(runs, samples[link, ALONE, count], strict=True)
            ratios = [ours.took_s / alone.took_s for ours, alone in pairs]
            results.append(median_result(f"time for all: {link}, {count} nodes", ratios, "ratio", None, ALONE))
    busy = [run.busy_cores for runs in samples.values() for run in runs]
    return [*results, median_result("cores of this machine that were busy", busy, "cores")]


def notes(manifest: Manifest) -> Iterator[str]:
    """What the reader needs beside the numbers."""
    link = LINK_BYTES_PER_S / 1e6
    least_s = manifest.size_bytes / LINK_BYTES_PER_S
    yield f"a link carries {link:g} MB/s in and as much out: one copy takes {least_s:.1f} s at least"
    yield "links are token buckets in the bench's own code; all nodes and S3 share the processors of one machine"


if __name__ == "__main__":
    main()
