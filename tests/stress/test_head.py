"""The head is lost and comes back: with Ray's state in Redis, engines on other nodes go on, and so does the service."""

import time
from collections.abc import Iterator

import psutil
import pytest
from openai import OpenAI

from tests.support.machines import Machines, can_be_played, machines
from tests.support.redis_server import REDIS, running_redis
from tests.support.service import CHAT_MODEL, demo_args, title

pytestmark = [
    pytest.mark.skipif(not can_be_played(), reason="no process and mount namespaces here"),
    pytest.mark.skipif(REDIS is None, reason="there is no redis-server; the variable REDIS_SERVER may name one"),
    pytest.mark.timeout(900),
]

PROMPT, TOKENS = "Once upon a time there was a", 24


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with running_redis() as address, machines(RAY_REDIS_ADDRESS=address) as made:
        yield made


def said(cluster: Machines, name: str) -> str:
    client = OpenAI(base_url=f"{cluster.service.url}/v1", api_key="none", max_retries=0, timeout=300)
    return client.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0).choices[0].text


def workers(root: int) -> set[int]:
    below = psutil.Process(root).children(recursive=True)
    return {process.pid for process in below if title(process).startswith("VLLM::Worker")}


def test_a_head_that_comes_back_finds_its_engines(cluster: Machines) -> None:
    machine = cluster.join()
    models = [model for model in demo_args()["models"] if model["id"] == CHAT_MODEL]
    cluster.deploy(demo_args(models=models, pools=[{"num_cpus": 1}]))
    before = {name: said(cluster, name) for name in (CHAT_MODEL, "pirate")}
    engines = workers(machine.process.pid)
    assert engines

    begin_s = time.monotonic()
    cluster.restart_head()
    cluster.wait_until_served()
    print(f"the service answers {time.monotonic() - begin_s:.0f} s after the head was lost")
    assert {name: said(cluster, name) for name in before} == before
    assert workers(machine.process.pid) == engines
