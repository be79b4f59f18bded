"""A pool that scales to nothing and back: the engine is forked ahead of the replica, which takes it over."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import SPARED
from tests.support.service import Service
from tests.support.tenants import KeysFile
from tests.support.waiting import until


@pytest.fixture
def http(guarded: Service, keys_file: KeysFile) -> Iterator[httpx.Client]:
    authorized = {"Authorization": f"Bearer {keys_file.keys['root']}"}
    with httpx.Client(base_url=guarded.url, headers=authorized, timeout=120) as asking:
        yield asking


def answer(http: httpx.Client) -> None:
    body = {"model": SPARED, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    given = http.post("/v1/completions", json=body)
    assert given.is_success, given.text
    assert "Paris" in given.json()["choices"][0]["text"]


def start_stages(http: httpx.Client) -> Any:
    return http.get("/admin/models").json()["models"][SPARED]["start"]["stages_s"]


def claimed(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    found = [each for each in lines if each.startswith("ray_flashserve_engines_ahead_total") and SPARED in each]
    return sum(float(each.rsplit(" ", 1)[1]) for each in found if 'outcome="claimed"' in each)


def test_the_replica_that_comes_finds_its_engine(guarded: Service, http: httpx.Client) -> None:
    def replicas() -> int:
        return len(guarded.processes("ServeReplica:flashserve:Engines-spare"))

    # It was there when the service came up, so that the node knows how the engine is started.
    until(lambda: replicas() == 0, 90)
    before = claimed(http)
    answer(http)
    stages_s = start_stages(http)
    assert "take over the engine" in stages_s
    assert "fork" not in stages_s
    until(lambda: claimed(http) == before + 1, 30)
