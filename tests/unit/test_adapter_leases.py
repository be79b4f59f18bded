"""A replica's adapters on disk: fetched once, held while they are needed, removed when no list knows them."""

import asyncio
import shutil
from pathlib import Path

import pytest

from deployments import adapter_leases
from deployments.adapter_leases import AdapterLeases
from deployments.errors import EngineUnavailableError
from deployments.types import AdapterRef
from storage.adapter_files import AdapterFiles
from tests.support.adapters import BASE, write_adapter
from tests.support.waiting import until_it_returns


class Node:
    def __init__(self, root: Path) -> None:
        self.source = write_adapter(root / "there")
        self.files = AdapterFiles(root / "disk")
        digest = AdapterFiles(root / "elsewhere").take("a", str(self.source), BASE, 16).digest
        self.adapter: AdapterRef = {"id": "a", "path": str(self.source), "digest": digest, "owner": None}
        self.leases = AdapterLeases(self.files)

    async def digests(self) -> set[str]:
        return self.files.digests()

    async def use(self, leases: AdapterLeases) -> str:
        async with leases.held("m", self.adapter) as found:
            assert found is not None
            assert found["path"] == str(self.files._root / self.adapter["digest"])
            assert await self.digests() == {self.adapter["digest"]}
            return found["path"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(adapter_leases, "KEEP_GONE_S", 0.0)
    return Node(tmp_path)


async def test_it_is_fetched_once_and_used_from_there(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[str] = []
    copy = AdapterFiles._copy
    monkeypatch.setattr(AdapterFiles, "_copy", lambda *given: copies.append("copy") or copy(*given))
    paths = await asyncio.gather(*(node.use(node.leases) for _ in range(20)))
    assert len(set(paths)) == 1
    assert paths[0] != str(node.source)
    assert copies == ["copy"]
    assert repr(node.leases) == "<AdapterLeases 0 held>"


async def test_what_no_list_knows_goes_after_its_last_request_on_the_node(node: Node) -> None:
    others = AdapterLeases(node.files)
    for leases in (node.leases, others):
        leases.keep(frozenset({node.adapter["digest"]}))
    async with others.held("m", node.adapter):
        async with node.leases.held("m", node.adapter):
            node.leases.keep(frozenset())
            assert await node.digests()
        await asyncio.sleep(0.05)  # as long as a removal takes, ten times over
        assert await node.digests(), "another replica of the node has requests for it"
        others.keep(frozenset())
    await until_it_returns(node.digests, set())


async def test_one_that_comes_back_stays(node: Node) -> None:
    known = frozenset({node.adapter["digest"]})
    node.leases.keep(known)
    async with node.leases.held("m", node.adapter):
        node.leases.keep(frozenset())
        node.leases.keep(known)
    await node.use(node.leases)
    assert await node.digests() == known


async def test_what_cannot_be_had_does_not_say_where_it_should_be(node: Node) -> None:
    hidden = node.source.rename(node.source.with_name("hidden"))
    with pytest.raises(EngineUnavailableError) as caught:
        await node.use(node.leases)
    assert "files of the adapter" in str(caught.value)
    assert str(node.source) not in str(caught.value)
    hidden.rename(node.source)
    await node.use(node.leases)
    shutil.rmtree(node.source)
    await node.use(node.leases)


async def test_without_adapters_nothing_is_done(node: Node) -> None:
    async with node.leases.held("m", None) as found:
        assert found is None
    async with AdapterLeases(None).held("m", node.adapter) as found:
        assert found == node.adapter


async def test_requests_that_are_on_their_way_still_find_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_leases, "KEEP_GONE_S", 0.05)
    node.leases.keep(frozenset({node.adapter["digest"]}))
    await node.use(node.leases)
    node.leases.keep(frozenset())
    shutil.rmtree(node.source)
    await node.use(node.leases)
    await until_it_returns(node.digests, set())
