"""Stores on several raylets that fill from each other through Ray's object store: S3 is read once, peers may fail."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from s3_server import S3Server, serve_s3
from snapshot_samples import make_snapshot_of_files

from storage.actor import NAMESPACE, store_name
from storage.manifest import MANIFEST_NAME, Manifest
from storage.peer_folder import PeerPolicy
from storage.snapshot import verify
from storage.store import StoreConfig
from tests.support import faulty_store
from tests.support.waiting import until

APPLICATION = "peers-test"
# Ray's waiting without an end can't be ended by a test's timeout either.
WITHIN_S = 120
JOINERS = 4
# Large enough to go through the object store, which small results don't.
FILES, EACH_BYTES = 32, 300_000
SIZE_BYTES = FILES * EACH_BYTES
URL = "s3://models/snapshot"

StartStore = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with serve_s3() as server:
        yield server


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """The ids of a head and of nodes that join it; workers find the credentials in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "any")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        small = {"num_cpus": 1, "object_store_memory": 100 << 20}
        made = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
        for _ in range(JOINERS - 1):
            made.add_node(wait=False, **small)
        made.wait_for_nodes()
        cloudpickle.register_pickle_by_value(sys.modules[faulty_store.__name__])
        ray.init(address=made.address, namespace=NAMESPACE, log_to_driver=False)
        yield [node["NodeID"] for node in ray.nodes()]
        ray.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[faulty_store.__name__])
        made.shutdown()


@pytest.fixture
def manifest(s3: S3Server, tmp_path: Path) -> Manifest:
    directory = tmp_path / "published"
    made = make_snapshot_of_files(directory, FILES, EACH_BYTES)
    names = [MANIFEST_NAME, *(file.path for file in made.files)]
    s3.objects = {f"models/snapshot/{name}": (directory / name).read_bytes() for name in names}
    s3.read_bytes, s3.bytes_per_s = 0, None
    return made


@pytest.fixture
def start_store(nodes: list[str], s3: S3Server, tmp_path: Path) -> Iterator[StartStore]:
    """Starts the store of the node with this number; its directories are its own, as on machines of their own."""
    started: dict[str, Any] = {}

    def start(number: int, *fault: Any) -> tuple[Any, Path]:
        node_id = nodes[number]
        root = tmp_path / f"node-{number}"
        policy = PeerPolicy(read_s=1.0)
        config = StoreConfig(root / "dram", 64 << 20, root / "disk", 0, s3_endpoint_url=s3.url, peer=policy)
        name = store_name(APPLICATION, node_id)
        actor = ray.remote(faulty_store.FaultyStore).options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        started[name] = actor.remote(config, *fault)
        ray.get(started[name].describe.remote(), timeout=WITHIN_S)
        return started[name], root / "dram"

    yield start
    for actor in started.values():
        ray.kill(actor)
    # The next test's have the same names.
    until(lambda: not {each["name"] for each in list_named_actors(all_namespaces=True)} & started.keys())


def test_a_group_reads_s3_about_once_and_who_joins_reads_none(
    s3: S3Server, manifest: Manifest, start_store: StartStore
) -> None:
    # Slow enough that they see each other before they are done.
    s3.bytes_per_s = 5e6
    stores = [start_store(number) for number in range(JOINERS - 1)]
    ray.get([store.acquire.remote(manifest.id, URL) for store, _ in stores], timeout=WITHIN_S)
    for _, dram in stores:
        verify(manifest, dram / manifest.id)
    assert SIZE_BYTES <= s3.read_bytes <= 1.5 * SIZE_BYTES

    # It needs no source at all, as for a model whose checkpoint another node has made a snapshot of.
    read_bytes = s3.read_bytes
    store, dram = start_store(JOINERS - 1)
    ray.get(store.acquire.remote(manifest.id, None), timeout=WITHIN_S)
    verify(manifest, dram / manifest.id)
    assert s3.read_bytes == read_bytes


@pytest.mark.parametrize("fault", ["dies", "hangs", "lies"])
def test_a_peer_that_fails_in_the_middle_is_replaced_by_s3(
    s3: S3Server, manifest: Manifest, start_store: StartStore, fault: str
) -> None:
    seed, _ = start_store(0, fault, FILES // 2)
    ray.get(seed.acquire.remote(manifest.id, URL), timeout=WITHIN_S)
    read_bytes = s3.read_bytes
    store, dram = start_store(1)
    ray.get(store.acquire.remote(manifest.id, URL), timeout=WITHIN_S)
    verify(manifest, dram / manifest.id)
    # The half that was given is not read again; what was on its way when the peer failed may be.
    assert SIZE_BYTES / 2 <= s3.read_bytes - read_bytes <= SIZE_BYTES / 2 + 3 * EACH_BYTES + _manifest_bytes(s3)


def _manifest_bytes(s3: S3Server) -> int:
    return len(s3.objects[f"models/snapshot/{MANIFEST_NAME}"])
