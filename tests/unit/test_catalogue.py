"""The list of models that are served, with what was done to it at run time."""

import asyncio
import json
from pathlib import Path

import pytest

from app import catalogue
from app.catalogue import Catalogue, ModelList, version_of
from app.entry import Entry
from app.errors import CatalogueError
from deployments.hosting import HostedModels
from deployments.types import AdapterSpec, ModelSpec
from tests.support.handles import LocalHandle

NAME = ".models.json"


def entry(model_id: str, pool: str = "default", **engine: object) -> Entry:
    spec = ModelSpec(model_id, "/nowhere", engine, adapters=(AdapterSpec("a", "/nowhere/a", "0"),))
    return Entry(spec, {"tool_call_parser": "hermes"}, pool, {"id": model_id, "engine": engine})


def ids(models: ModelList) -> set[str]:
    return set(models.entries())


def test_changes_outlive_a_restart(tmp_path: Path) -> None:
    configured = [entry("kept"), entry("changed"), entry("removed")]
    models = ModelList(configured, tmp_path / NAME)
    models.put(entry("added"))
    models.put(entry("changed", max_model_len=7))
    models.remove("removed")
    again = ModelList(configured, tmp_path / NAME)
    assert again.entries() == models.entries()
    assert ids(again) == {"kept", "changed", "added"}
    assert again.entries()["changed"].spec.engine == {"max_model_len": 7}
    assert version_of(again.entries().values()) == version_of(models.entries().values())


def test_who_edits_the_configuration_means_it(tmp_path: Path) -> None:
    models = ModelList([entry("a"), entry("b"), entry("c")], tmp_path / NAME)
    models.put(entry("a", max_model_len=7))
    models.remove("b")
    models.put(entry("new"))
    edited = [entry("a", max_model_len=8), entry("b", max_model_len=8), entry("new", max_model_len=8)]
    assert ModelList(edited, tmp_path / NAME).entries() == {each.spec.id: each for each in edited}


def test_what_is_put_back_as_configured_is_no_change(tmp_path: Path) -> None:
    models = ModelList([entry("a")], tmp_path / NAME)
    models.remove("a")
    models.put(entry("a"))
    models.put(entry("b"))
    models.remove("b")
    assert json.loads((tmp_path / NAME).read_text()) == {}


def test_a_list_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    models = ModelList([entry("a")], tmp_path / "file" / NAME)
    with pytest.raises(CatalogueError):
        models.put(entry("b"))
    assert ids(models) == {"a"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": {"entry": 7}}', b"\xff"])
def test_a_broken_file_keeps_nothing_from_being_served(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert ids(ModelList([entry("a")], tmp_path / NAME)) == {"a"}


async def test_who_follows_hears_of_every_change_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_FOLLOW_S", 30.0)
    owner = Catalogue([entry("a"), entry("elsewhere", pool="other")], tmp_path)
    heard: list[list[str]] = []
    hosted = HostedModels(LocalHandle(owner), "default", lambda specs: heard.append([spec.id for spec in specs]))
    hosted.run()
    try:
        assert await hosted.until(lambda: True, 10)
        assert heard == [["a"]]
        await owner.put(entry("b"))
        assert await hosted.until(lambda: heard[-1] == ["a", "b"], 10)
        await owner.remove("a")
        assert await hosted.until(lambda: heard[-1] == ["b"], 10)
        assert len(heard) == 3
        assert not await hosted.until(lambda: len(heard) > 3, 0.01)
        hosted.check()
    finally:
        hosted.close()


async def test_a_question_without_an_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_FOLLOW_S", 0.01)
    owner = Catalogue([entry("a")], tmp_path)
    found = await owner.entries(None)
    assert found is not None
    assert await owner.entries(found[0]) is None


async def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    owner = Catalogue([], tmp_path)
    await asyncio.gather(*(owner.put(entry(f"m{index}")) for index in range(20)))
    assert len(ModelList([], tmp_path / NAME).entries()) == 20
