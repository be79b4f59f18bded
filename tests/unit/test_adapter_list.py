"""The adapters of a model, with what was done to them at run time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.adapter_list import AdapterList
from app.catalogue import Catalogue
from app.entry import Entry
from app.errors import CatalogueError
from deployments.types import AdapterSpec, ModelSpec

NAME = ".adapters.json"
GIVEN = (AdapterSpec("a", "/there/a", "1"), AdapterSpec("b", "/there/b", "2"))
NEW = AdapterSpec("new", "/elsewhere", "3", owner="acme", rank=8, size_bytes=7)
FOUND = AdapterSpec("found", "/there/found", "4")


def made(file: Path, given: tuple[AdapterSpec, ...] = GIVEN) -> AdapterList:
    return AdapterList({"m": given}, file / NAME)


def names(adapters: AdapterList, given: tuple[AdapterSpec, ...] = GIVEN) -> list[str]:
    return [spec.id for spec in adapters.of("m", given)]


def test_changes_outlive_a_restart(tmp_path: Path) -> None:
    adapters = made(tmp_path)
    adapters.put("m", NEW, GIVEN)
    adapters.put("m", replace(GIVEN[0], digest="9"), GIVEN)
    adapters.remove(("m", None, "b"), GIVEN)
    again = made(tmp_path)
    assert again.of("m", GIVEN) == adapters.of("m", GIVEN) == (replace(GIVEN[0], digest="9"), NEW)
    assert again.of("other", ()) == ()


def test_who_edits_what_is_configured_means_it(tmp_path: Path) -> None:
    adapters = made(tmp_path)
    adapters.put("m", replace(GIVEN[0], digest="9"), GIVEN)
    adapters.remove(("m", None, "b"), GIVEN)
    adapters.put("m", AdapterSpec("c", "/elsewhere", "3"), GIVEN)
    edited = (AdapterSpec("a", "/there/a", "5"), AdapterSpec("b", "/there/b", "6"), AdapterSpec("c", "/there/c", "7"))
    assert made(tmp_path, edited).of("m", edited) == edited


def test_owners_are_apart(tmp_path: Path) -> None:
    adapters = made(tmp_path, ())
    for owner in (None, "acme", "globex"):
        adapters.put("m", AdapterSpec("same", "/there", owner or "", owner=owner), ())
    adapters.remove(("m", "acme", "same"), ())
    assert [spec.owner for spec in made(tmp_path, ()).of("m", ())] == [None, "globex"]


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_was_discovered_and_removed_is_not_found_again(tmp_path: Path, *, is_listed: bool) -> None:
    """Whether or not the next start finds it by itself: directories are listed then, remote places are not."""
    adapters = made(tmp_path, ())
    adapters.put("m", FOUND, (), discovered=True)
    given = (FOUND,) if is_listed else ()
    again = made(tmp_path, given)
    assert names(again, given) == ["found"]
    again.remove(("m", None, "found"), given)
    for listed in (again, made(tmp_path, given)):
        assert (names(listed, given), listed.removed("m", given)) == ([], ("found",))
    again.put("m", replace(FOUND, digest="5"), given)
    assert (names(again, given), again.removed("m", given)) == (["found"], ())


def test_what_was_registered_and_removed_leaves_nothing(tmp_path: Path) -> None:
    adapters = made(tmp_path)
    adapters.put("m", NEW, GIVEN)
    adapters.remove(("m", "acme", "new"), GIVEN)
    adapters.remove(("m", None, "a"), GIVEN)
    adapters.put("m", GIVEN[0], GIVEN)
    assert json.loads((tmp_path / NAME).read_text()) == []
    assert adapters.removed("m", GIVEN) == ()


def test_a_list_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    adapters = made(tmp_path / "file")
    with pytest.raises(CatalogueError):
        adapters.put("m", NEW, GIVEN)
    assert names(adapters) == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"{", b'[{"model": 7}]', b"\xff"])
def test_a_broken_file_keeps_nothing_from_being_served(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert names(made(tmp_path)) == ["a", "b"]


async def test_a_change_is_a_new_version_and_the_same_engine(tmp_path: Path) -> None:
    spec = ModelSpec("m", "/nowhere", adapters=GIVEN)
    owner = Catalogue([Entry(spec, {}, "default", {})], tmp_path)
    first = await owner.entries(None)
    await owner.put_adapter("m", NEW)
    second = await owner.entries(None)
    assert first is not None
    assert second is not None
    assert first[0] != second[0]
    assert [entry.spec.revision for entry in second[1]] == [spec.revision]
    assert second[1][0].spec.adapters == (*GIVEN, NEW)
    await owner.remove_adapter(("m", "acme", "new"))
    assert await owner.entries(None) == first
    await owner.put_adapter("nobody", NEW)
    assert await owner.entries(None) == first


async def test_adapters_go_with_their_model(tmp_path: Path) -> None:
    entry = Entry(ModelSpec("m", "/nowhere"), {}, "default", {})
    owner = Catalogue([], tmp_path)
    await owner.put(entry)
    await owner.put_adapter("m", NEW)
    await owner.remove("m")
    await owner.put(entry)
    found = await owner.entries(None)
    assert found is not None
    assert found[1] == [entry]
