"""What outgrows the nodes is asked of Ray's autoscaler, and withdrawn; nothing else is touched."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.nodes_ahead import Bundle, NodesAhead, bundles_for, fit

GPU: Bundle = {"CPU": 1.0, "GPU": 1.0}
NODE: Bundle = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0}


class Ray:
    def __init__(self, marker: Path, *nodes: Bundle) -> None:
        self.nodes = list(nodes)
        self.asked: list[list[Bundle]] = []
        self.marker = marker
        self.ahead = self.restarted()

    def restarted(self) -> NodesAhead:
        self.ahead = NodesAhead(self.marker, lambda bundles: self.asked.append(list(bundles)), lambda: self.nodes)
        self.ahead.pools = {"gpus": GPU, "cpus": {"CPU": 1.0, "GPU": 0.0}}
        return self.ahead


@pytest.fixture
def ray(tmp_path: Path) -> Ray:
    return Ray(tmp_path / "asked", NODE)


def test_what_fits_is_not_asked_for(ray: Ray) -> None:
    ray.ahead.follow({"gpus": [0, 1, 2], "cpus": [4]})
    ray.ahead.follow({})
    ray.ahead.withdraw()
    assert ray.asked == []


def test_what_does_not_fit_is_asked_for_once_and_withdrawn_once(ray: Ray) -> None:
    for _ in range(3):
        ray.ahead.follow({"gpus": [1, 3, 2]})
    assert ray.asked == [[GPU] * 3]
    assert ray.ahead.asked == [GPU] * 3
    for _ in range(3):
        ray.ahead.follow({"gpus": [1, 1, 1]})
    assert ray.asked == [[GPU] * 3, []]


def test_once_the_nodes_are_there_the_request_ends(ray: Ray) -> None:
    ray.ahead.follow({"gpus": [3]})
    ray.nodes.append(NODE)
    ray.ahead.follow({"gpus": [3]})
    assert ray.asked[-1] == []


def test_another_process_withdraws_what_the_one_before_had_asked(ray: Ray) -> None:
    ray.ahead.follow({"gpus": [3]})
    ray.restarted().follow({"gpus": [1]})
    assert ray.asked == [[GPU] * 3, []]
    ray.restarted().follow({"gpus": [1]})
    assert len(ray.asked) == 2


def test_rays_own_call_takes_what_is_asked(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler import sdk  # noqa: PLC0415 - for this test alone

    asked: list[Any] = []
    monkeypatch.setattr(sdk, "request_resources", lambda *, bundles: asked.append(bundles))
    ahead = NodesAhead(ray.marker, nodes=lambda: [NODE])
    ahead.pools = {"gpus": GPU}
    ahead.follow({"gpus": [3]})
    ahead.withdraw()
    assert asked == [[GPU] * 3, []]


@given(
    need=st.dictionaries(st.sampled_from(["gpus", "cpus", "unknown"]), st.integers(0, 30)),
    nodes=st.lists(st.builds(lambda cpus, gpus: {"CPU": cpus, "GPU": gpus}, st.integers(0, 16), st.integers(0, 8))),
)
def test_what_fits_is_never_more_than_there_is(need: dict[str, int], nodes: list[Bundle]) -> None:
    bundles = bundles_for(need, {"gpus": GPU, "cpus": {"CPU": 1.0}})
    assert len(bundles) == need.get("gpus", 0) + need.get("cpus", 0)
    if fit(bundles, nodes):
        for name in ("CPU", "GPU"):
            assert sum(each.get(name, 0) for each in bundles) <= sum(node[name] for node in nodes)
    assert fit(bundles, [*nodes, {"CPU": 1e6, "GPU": 1e6}])
