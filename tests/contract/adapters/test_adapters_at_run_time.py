"""Adapters registered, replaced, removed and found while a whole gateway runs; engines that need no model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app import adapter_list
from app.catalogue import Catalogue
from app.entry import Entry
from app.errors import CatalogueError
from tests.support.adapters import tensors_of, write_adapter
from tests.support.gateway_with_adapters import JSON, PIRATE, Admin, on_disk, resident
from tests.support.gateway_with_tenants import error_of
from tests.support.gateways import InProcess, PacedEngine, demo_digest, model
from tests.support.service import ADAPTERS
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_one_is_registered_asked_and_removed(admin: Admin, service: InProcess) -> None:
    starts = [engine["restarts"] for engine in (await admin("GET", "/admin/models")).json()["models"].values()]
    assert (await admin.ask("new")).status_code == 404
    new = await admin("POST", "/admin/adapters", json={"model": "m", "id": "new", "source": PIRATE})
    assert new.status_code == 200, new.text
    assert new.json()["state"] == "ready"
    assert (new.json()["rank"], new.json()["digest"]) == (8, demo_digest("pirate"))
    for name in ("new", "m:new"):
        asked = await admin.asked(name)
        assert asked == {"id": "new", "path": PIRATE, "digest": demo_digest("pirate"), "owner": None}
    assert (await admin.listed())["/new"]["state"] == "resident"
    assert "new" in {card["id"] for card in (await admin("GET", "/v1/models")).json()["data"]}
    assert (await admin("GET", "/v1/models/m:new")).json()["parent"] == "m"
    again = await admin("POST", "/admin/adapters", json={"model": "m", "id": "new", "source": PIRATE})
    assert (again.status_code, error_of(again)["param"]) == (400, "id")

    removed = await admin.delete("new")
    assert removed.json()["state"] == "unknown"
    assert (await admin.ask("new")).status_code == (await admin.delete("new")).status_code == 404
    assert "new" not in (await admin("GET", "/v1/models")).text
    await until_it_returns(lambda: resident(service), [])
    await until_it_returns(lambda: on_disk(service), set())
    now = [engine["restarts"] for engine in (await admin("GET", "/admin/models")).json()["models"].values()]
    assert now == starts, "engines don't notice"


async def test_a_new_version_takes_over_and_what_began_ends_on_the_old(admin: Admin, service: InProcess) -> None:
    await admin.put("a", PIRATE)
    PacedEngine.may_go_on.clear()
    running = asyncio.ensure_future(admin.ask("a"))
    await until_it_returns(lambda: resident(service), [f"a@{demo_digest('pirate')[:16]}"])
    assert (await admin.put("a", JSON)).json()["digest"] == demo_digest("json")
    both = asyncio.ensure_future(admin.ask("a"))
    names = sorted(f"a@{demo_digest(name)[:16]}" for name in ("json", "pirate"))
    await until_it_returns(lambda: resident(service), names)
    assert [ask["adapter"]["digest"] for ask in service.asked("m")[-2:]] == [
        demo_digest("pirate"), demo_digest("json"),
    ]  # fmt: skip
    assert await on_disk(service) == {demo_digest("pirate"), demo_digest("json")}, "the old one may be loaded again"
    PacedEngine.may_go_on.set()
    assert (await running).status_code == (await both).status_code == 200
    await until_it_returns(lambda: resident(service), [f"a@{demo_digest('json')[:16]}"])
    await until_it_returns(lambda: on_disk(service), {demo_digest("json")})


async def test_two_names_of_one_content_are_one_copy_which_goes_with_the_last(admin: Admin, service: InProcess) -> None:
    await admin.put("one", PIRATE)
    await admin.put("same", PIRATE)
    await admin.asked("one")
    await admin.asked("same")
    assert await on_disk(service) == {demo_digest("pirate")}
    await admin.delete("one")
    await until_it_returns(lambda: resident(service), [f"same@{demo_digest('pirate')[:16]}"])
    assert await on_disk(service) == {demo_digest("pirate")}
    await admin.asked("same")


async def test_tenants_of_one_name_never_meet(admin: Admin, service: InProcess) -> None:
    for owner, source in ((None, PIRATE), ("acme", JSON), ("globex", PIRATE)):
        assert (await admin.put("same", source, owner)).status_code == 200
    for key, owner, name in (("acme", "acme", "json"), ("globex", "globex", "pirate"), ("every", None, "pirate")):
        for called in ("same", "m:same"):
            asked = await admin.asked(called, key)
            assert asked is not None
            assert (asked["owner"], asked["digest"]) == (owner, demo_digest(name))
        for other in {"acme", "globex"} - {key}:
            for called in (f"{other}/same", f"m:{other}/same"):
                missing, refused = await admin.ask("nobody", key), await admin.ask(called, key)
                assert refused.text == missing.text.replace("nobody", called)
        cards = (await admin("GET", "/v1/models", key)).json()["data"]
        assert [card["id"] for card in cards if card["parent"]] == ["same"]
        assert not [secret for secret in ("acme", "globex", "adapters/") if secret in json.dumps(cards)]
    assert [await admin.asked(name) for name in ("same", "acme/same", "m:globex/same")] == [
        {"id": "same", "path": source, "digest": demo_digest(Path(source).name), "owner": owner}
        for owner, source in ((None, PIRATE), ("acme", JSON), ("globex", PIRATE))
    ]
    assert await resident(service) == sorted(
        f"{owner}same@{demo_digest(name)[:16]}"
        for owner, name in (("", "pirate"), ("acme/", "json"), ("globex/", "pirate"))
    )
    await admin.delete("same", "acme")
    assert (await admin.ask("same", "acme")).status_code == 404, "the operator's is not among what it reaches"
    assert (await admin.asked("same", "globex")) is not None


async def test_who_registers_at_once_in_opposite_orders_gets_the_same(admin: Admin) -> None:
    sources = {f"n{index}": (PIRATE, JSON)[index % 2] for index in range(20)}
    orders = [list(sources.items()), list(reversed(sources.items()))]
    answers = await asyncio.gather(*(admin.put(name, source) for order in orders for name, source in order))
    assert {answer.status_code for answer in answers} == {200}
    found = {key.removeprefix("/"): each["digest"] for key, each in (await admin.listed()).items()}
    assert found == {name: demo_digest(Path(source).name) for name, source in sources.items()}


async def test_gateways_that_hear_of_adapters_in_opposite_orders_mean_the_same(
    service: InProcess, file: KeysFile
) -> None:
    """Ids of a gateway's own would be mixed up by a replica that both ask."""
    sources = {"acme": PIRATE, "globex": JSON}
    async with service.beside() as beside:
        both = [Admin(each, file) for each in (service, beside)]
        for number, (admin, order) in enumerate(zip(both, (list(sources), list(reversed(sources))), strict=True)):
            for owner in order:
                for name in ("same", f"own-{number}"):
                    assert (await admin.put(name, sources[owner], owner)).status_code == 200
        for owner, source in sources.items():
            for name in ("same", "own-0", "own-1"):
                asked = [await admin.asked(name, owner) for admin in both]
                assert asked[0] == asked[1] == {
                    "id": name, "path": source, "digest": demo_digest(Path(source).name), "owner": owner,
                }  # fmt: skip
        expected = {f"{owner}/{name}" for owner in sources for name in ("same", "own-0", "own-1")}
        assert [set(await admin.listed()) for admin in both] == [expected, expected]


@pytest.mark.parametrize(
    "name", ["..", ".", ".hidden", "-", "a/b", "a:b", "a b", "a%2fb", "%2e%2e", "a\\b", "a\nb", "a" * 129, "é", "a\0"]
)
async def test_names_that_lead_elsewhere(admin: Admin, name: str) -> None:
    answer = await admin("POST", "/admin/adapters", json={"model": "m", "id": name, "source": PIRATE})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "id")
    answer = await admin("POST", "/v1/load_lora_adapter", json={"lora_name": f"m:{name}", "lora_path": PIRATE})
    assert answer.status_code == 400
    assert (await admin.ask(f"m:{name}", "every")).status_code == 404
    assert await admin.listed() == {}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody"}, 404, "`nobody` does not exist"),
        ({"model": "plain"}, 400, "no `lora` section"),
        ({"owner": "nobody"}, 400, "no tenant `nobody`"),
        ({"owner": ""}, 400, "no tenant"),
        ({"source": ""}, 400, "source"),
        ({"source": "there"}, 400, "absolute path"),
        ({"source": "ftp://there/x"}, 400, "'ftp://' is not understood"),
        ({"source": "s3://"}, 400, "s3://bucket/prefix"),
        ({"source": "/nowhere/at/all"}, 400, "nothing at its source"),
        ({"source": str(ADAPTERS)}, 400, "no adapter_config.json"),
        ({"extra": 7}, 400, "extra"),
    ],
)
async def test_what_cannot_be_registered(admin: Admin, body: dict[str, Any], status: int, said: str) -> None:
    body = {"model": "m", "id": "bad", "source": PIRATE} | body
    answer = await admin("POST", "/admin/adapters", json=body)
    assert answer.status_code == status
    assert said in error_of(answer)["message"]
    assert {name: each["state"] for name, each in (await admin.listed()).items()} in ({}, {"/bad": "failed"})


async def test_one_that_does_not_fit_is_refused_with_the_reason_and_touches_nothing(
    admin: Admin, service: InProcess, tmp_path: Path
) -> None:
    for rank, said in ((64, "'lora.max_rank' allows 16"), (4, "made for another base")):
        source = write_adapter(tmp_path / "bad", tensors_of(rank=rank), rank=rank)
        asked = len(service.pool.asked)
        answer = await admin.put("bad", str(source))
        assert (answer.status_code, error_of(answer)["param"]) == (400, "source")
        assert said in error_of(answer)["message"]
        failed = (await admin.listed())["/bad"]
        assert failed["state"] == "failed"
        assert said in failed["reason"]
        assert len([ask for ask in service.pool.asked[asked:] if "prompt_token_ids" in ask]) == 0
        assert await on_disk(service) == set()
        assert (await admin.ask("bad")).status_code == 404
    assert (await admin.put("good", PIRATE)).status_code == 200
    assert (await admin.put("good", str(source))).status_code == 400
    kept = (await admin.listed())["/good"]
    assert kept["state"] == "ready"
    assert "a new version was refused" in kept["reason"]
    assert (await admin.asked("good")) is not None
    assert (await admin.put("bad", JSON)).json()["state"] == "ready"
    assert "/bad" in await admin.listed()


async def test_as_vllm_does_it(admin: Admin) -> None:
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    body = {"lora_name": "m:sql", "lora_path": PIRATE}
    answer = await admin("POST", load, json=body)
    assert answer.text == "Success: LoRA adapter 'm:sql' added successfully."
    again = await admin("POST", load, json=body)
    assert "already been loaded" in error_of(again)["message"]
    assert again.status_code == 400
    assert (await admin("POST", load, json=body | {"load_inplace": True, "lora_path": JSON})).is_success
    asked = await admin.asked("sql")
    assert asked is not None
    assert asked["digest"] == demo_digest("json")
    assert "say `model:adapter`" in error_of(await admin("POST", load, json=body | {"lora_name": "sql"}))["message"]
    for wrong in ({"lora_name": "m:x"}, {"lora_name": "m:x", "lora_path": ""}, {"lora_path": PIRATE}, {}):
        assert (await admin("POST", load, json=wrong)).status_code == 400
    answer = await admin("POST", unload, json={"lora_name": "m:sql"})
    assert answer.text == "Success: LoRA adapter 'm:sql' removed successfully."
    gone = await admin("POST", unload, json={"lora_name": "m:sql"})
    assert (gone.status_code, error_of(gone)["message"]) == (404, "The adapter `m:sql` cannot be found.")


async def test_models_with_slashes_in_their_ids_have_adapters_too(admin: Admin) -> None:
    assert (await admin.put("a", PIRATE, model_id="team/other")).json()["model"] == "team/other"
    assert (await admin.ask("team/other:a")).status_code == 200
    assert (await admin.delete("a", model_id="team/other")).status_code == 200


async def test_changes_outlive_the_owner_of_the_list(admin: Admin, service: InProcess) -> None:
    await admin.put("kept", PIRATE, "acme")
    specs = [model("m", lora=True)]
    directory = service.directory  # type: ignore[attr-defined]
    again = await Catalogue([Entry(spec, {}, "default", {}) for spec in specs], directory).entries(None)
    assert again is not None
    assert [(spec.id, spec.owner) for spec in again[1][0].spec.adapters] == [("kept", "acme")]


async def test_one_that_cannot_be_listed_leaves_nothing(
    admin: Admin, service: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise CatalogueError("/there", "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapter_list, "write_kept", full)
        answer = await admin.put("a", PIRATE)
        assert answer.status_code == 503
        assert "stay as they were" in error_of(answer)["message"]
        assert "/there" not in answer.text
    assert await on_disk(service) == set()
    assert await admin.listed() == {}
