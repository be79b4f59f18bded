from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from openai import OpenAI

from tests.support.collector import Collector, collecting
from tests.support.service import CHAT_MODEL, Service, demo_args, deployed
from tests.support.tenants import KeysFile

SPARED = "spared"
"""The model of the guarded service's pool that scales to nothing."""
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"models": [CHAT_MODEL], "adapters": ["pirate"]},
    "globex": {"models": [CHAT_MODEL], "max_concurrent_requests": 1},
    "initech": {"models": [CHAT_MODEL]},
    "root": {"admin": True},
}


class OneAtATime:
    """Ends a service before the next one begins: an idle one takes processors and memory too."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def run(self, service: AbstractContextManager[Service]) -> Service:
        """Begin a service instead of the one before."""
        self.end()
        return self._running.enter_context(service)

    def end(self) -> None:
        """End the one that runs, if any does."""
        self._running.close()


@pytest.fixture(scope="package")
def one_at_a_time() -> Iterator[OneAtATime]:
    made = OneAtATime()
    yield made
    made.end()


@pytest.fixture(scope="package")
def service(one_at_a_time: OneAtATime) -> Service:
    """The service that most of these tests share: real Ray, real vLLM. Those of ``guarded`` come after them all."""
    return one_at_a_time.run(deployed(demo_args()))


@pytest.fixture(scope="package")
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="package")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> KeysFile:
    return KeysFile(tmp_path_factory.mktemp("keys") / "keys.yaml", **TENANTS)


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """Takes the traces of the guarded service."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="package")
def guarded(one_at_a_time: OneAtATime, keys_file: KeysFile, collector: Collector) -> Service:
    """A second service, by ``serve run``, with API keys, whose plans are of a second's grain and save any waiting."""
    [chat] = (model for model in demo_args()["models"] if model["id"] == CHAT_MODEL)
    models = [chat | {"own_engines": ["initech"]}, chat | {"id": SPARED, "keep_awake_s": 1.0, "lora": None}]
    security = {"api_keys_file": str(keys_file.path)}
    # Without patience, for a wake takes less than the second that users are supposed not to mind.
    autoscaling = {"bucket_s": 1, "horizon_s": 30, "patience_s": 0, "downscale_s": 2}
    # One that scales to nothing when nobody asks for its model.
    pools = [{"name": "spare", "models": [SPARED], "min_replicas": 0, "max_replicas": 1}, {"name": "default"}]
    # Of requests alone whose clients want them traced.
    tracing = {"endpoint": collector.endpoint, "sample": 0}
    args = {
        "models": models, "pools": pools, "security": security, "autoscaling": autoscaling, "tracing": tracing
    }  # fmt: skip
    return one_at_a_time.run(deployed(args, with_run=True))
