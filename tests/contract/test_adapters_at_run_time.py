"""Adapters registered, replaced, removed and found while a whole gateway runs; engines that need no model."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app import adapter_finder, adapter_list, api_keys
from app.catalogue import Catalogue, Entry
from app.errors import CatalogueError
from deployments import adapter_shelf
from tests.support.adapters import tensors_of, write_adapter
from tests.support.gateway_with_tenants import error_of
from tests.support.gateways import InProcess, PacedEngine, demo_digest, gateway_of, model
from tests.support.s3_server import S3Server, serve_s3
from tests.support.service import ADAPTERS
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIRATE, JSON = str(ADAPTERS / "pirate"), str(ADAPTERS / "json")
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"models": ["m"], "adapters": ["m:shared", "m:lazy-*", "m:lazy"]},
    "globex": {"models": ["m"], "adapters": []},
    "every": {"models": ["m"], "adapters": ["m:*"]},
    "root": {"admin": True},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysFile]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_keys, "_LOG_COST", 10)
        yield KeysFile(tmp_path_factory.mktemp("keys") / "keys.yaml", **TENANTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where adapters are looked for."""
    return tmp_path_factory.mktemp("adapters")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(file: KeysFile, place: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    directory = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_shelf, "KEEP_GONE_S", 0.0)
        async for running in gateway_with(directory, file, place):
            yield running


async def gateway_with(directory: Path, file: KeysFile, place: Path) -> AsyncIterator[InProcess]:
    specs = model("m", lora=True), model("team/other", lora=True), model("plain")
    async with gateway_of(directory, *specs, keys_file=file.path, lora_source=str(place)) as running:
        running.directory = directory  # type: ignore[attr-defined]
        yield running


class Admin:
    """An administrator's client, and tenants' questions."""

    def __init__(self, service: InProcess, file: KeysFile) -> None:
        self.service = service
        self.file = file

    async def __call__(self, method: str, path: str, key: str = "root", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.file.keys[key]}"}
        return await self.service.client.request(method, path, headers=headers, **options)

    async def put(self, name: str, source: str, owner: str | None = None, model_id: str = "m") -> httpx.Response:
        body = {"source": source} | ({} if owner is None else {"owner": owner})
        return await self("PUT", f"/admin/adapters/{model_id}/{name}", json=body)

    async def delete(self, name: str, owner: str | None = None, model_id: str = "m") -> httpx.Response:
        params = {} if owner is None else {"owner": owner}
        return await self("DELETE", f"/admin/adapters/{model_id}/{name}", params=params)

    async def listed(self) -> dict[str, Any]:
        answer = (await self("GET", "/admin/adapters")).json()["adapters"]
        return {f"{each['owner'] or ''}/{each['id']}": each for each in answer if each["model"] == "m"}

    async def ask(self, name: str, key: str = "root", **changes: Any) -> httpx.Response:
        body = {"model": name, "prompt": "one two", "max_tokens": 3} | changes
        return await self("POST", "/v1/completions", key, json=body)

    async def asked(self, name: str, key: str = "root") -> dict[str, Any] | None:
        """What reaches a replica: the adapter that a name stands for."""
        answer = await self.ask(name, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name.rpartition(":")[2].rpartition("/")[2]
        return self.service.asked("m")[-1]["adapter"]


@pytest.fixture
def admin(service: InProcess, file: KeysFile) -> Admin:
    return Admin(service, file)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(service: InProcess, admin: Admin, place: Path) -> AsyncIterator[None]:
    """Each test ends without adapters, in the list, in engines, and on the disk."""
    yield
    for each in (await admin("GET", "/admin/adapters")).json()["adapters"]:
        await admin.delete(each["id"], each["owner"], each["model"])
    await until_it_returns(lambda: resident(service), [])
    await until_it_returns(lambda: on_disk(service), set())
    shutil.rmtree(place)
    await asyncio.to_thread(place.mkdir)


async def resident(service: InProcess) -> list[str]:
    names = await service.pool.target.adapters({})
    return sorted(name for of_model in names.values() for name in of_model)


async def on_disk(service: InProcess) -> set[str]:
    return service.gateway._gateway.adapters._files.digests()


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


async def test_one_is_found_when_it_is_first_asked_for(
    admin: Admin, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_finder, "NEGATIVE_S", 0.0)
    assert (await admin.ask("m:lazy", "acme")).status_code == 404
    shutil.copytree(PIRATE, place / "lazy")
    answers = await asyncio.gather(*(admin.ask("m:lazy", "acme") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await admin.listed())["/lazy"]["source"] == str(place / "lazy")
    with pytest.raises(KeyError):
        (await admin.listed())["acme/lazy"]
    # Bare, it is looked for on every model.
    shutil.copytree(PIRATE, place / "bare")
    assert (await admin.ask("bare")).status_code == 400, "it is there for both"
    assert (await admin.ask("m:bare")).status_code == 200
    # What was removed is not found again, until somebody registers it.
    await admin.delete("lazy")
    assert (await admin.ask("m:lazy", "acme")).status_code == 404
    await admin.put("lazy", str(place / "lazy"))
    assert (await admin.ask("lazy", "acme")).status_code == 200


async def test_what_is_there_and_not_theirs_is_not_looked_for(
    admin: Admin, service: InProcess, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PIRATE, place / "secret")
    looked: list[str] = []
    files = service.gateway._gateway.adapters._files
    monkeypatch.setattr(files, "is_there", lambda source: looked.append(source) or False)
    for name in ("secret", "m:secret", "team/other:secret", "plain:secret"):
        missing, refused = await admin.ask("nobody", "globex"), await admin.ask(name, "globex")
        assert refused.text == missing.text.replace("nobody", name)
        assert await admin.ask(name, "acme")
    assert looked == []
    assert (await admin.ask("m:secret", "every")).status_code == 404
    assert looked == [str(place / "secret")]


async def test_a_storm_of_unknown_names_is_cheap(
    admin: Admin, service: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    files = service.gateway._gateway.adapters._files
    monkeypatch.setattr(files, "is_there", lambda source: looked.append(source) or False)
    answers = await asyncio.gather(*(admin.ask(f"m:storm{index % 5}", "every") for index in range(200)))
    assert {answer.status_code for answer in answers} == {404}
    assert sorted(path.rpartition("/")[2] for path in looked) == [f"storm{index}" for index in range(5)]


async def test_one_that_is_found_and_cannot_be_used_says_so_and_not_where_it_is(admin: Admin, place: Path) -> None:
    write_adapter(place / "broken", tensors_of())
    for _ in range(2):
        answer = await admin.ask("m:broken", "every")
        assert (answer.status_code, error_of(answer)["param"]) == (400, "model")
        assert "made for another base" in answer.text
        assert str(place) not in answer.text
    assert (await admin.listed())["/broken"]["state"] == "failed"


async def test_changes_outlive_the_owner_of_the_list(admin: Admin, service: InProcess) -> None:
    await admin.put("kept", PIRATE, "acme")
    specs = [model("m", lora=True)]
    directory = service.directory  # type: ignore[attr-defined]
    again = await Catalogue([Entry(spec, {}, "default", {}) for spec in specs], directory).entries(None)
    assert again is not None
    assert [(spec.id, spec.owner) for spec in again[1][0].spec.adapters] == [("kept", "acme")]


async def test_from_s3(file: KeysFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(adapter_finder, "NEGATIVE_S", 0.0)
    with serve_s3() as s3:
        upload(s3, "adapters/m/lazy", PIRATE)
        options = {"lora_source": "s3://adapters/m/", "s3_endpoint_url": s3.url}
        async with gateway_of(tmp_path, model("m", lora=True), keys_file=file.path, **options) as running:
            admin = Admin(running, file)
            assert (await admin.ask("m:lazy", "acme")).status_code == 200
            assert (await admin.ask("m:lazy-2", "every")).status_code == 404
            upload(s3, "elsewhere/json", JSON)
            answer = await admin.put("named", "s3://elsewhere/json")
            assert (answer.json()["source"], answer.json()["digest"]) == ("s3://elsewhere/json", demo_digest("json"))
            # Each node fetches for itself.
            assert AdapterFilesOf(running).forget(demo_digest("json"))
            assert (await admin.listed())["/named"]["state"] == "unknown"
            assert (await admin.asked("named")) is not None


def upload(s3: S3Server, key: str, directory: str) -> None:
    for path in Path(directory).iterdir():
        s3.objects[f"{key}/{path.name}"] = path.read_bytes()


class AdapterFilesOf:
    """A gateway's node, whose copies can be lost."""

    def __init__(self, service: InProcess) -> None:
        self._files = service.gateway._gateway.adapters._files

    def forget(self, digest: str) -> bool:
        return self._files.remove(digest)


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
