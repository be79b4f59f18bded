"""Adapters that nobody has registered: found where their model says, when they are first asked for."""

import asyncio
import shutil
from pathlib import Path

import pytest

from app import adapter_finder
from tests.support.adapters import tensors_of, write_adapter
from tests.support.gateway_with_adapters import JSON, PIRATE, Admin
from tests.support.gateway_with_tenants import error_of
from tests.support.gateways import InProcess, demo_digest, gateway_of, model
from tests.support.s3_server import S3Server, serve_s3
from tests.support.tenants import KeysFile

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
        assert (await admin.ask(name, "acme")).status_code == 404
    assert looked == []
    assert (await admin.ask("m:secret", "every")).status_code == 404
    assert looked == [str(place / "secret")]


async def test_a_storm_of_unknown_names_is_cheap(
    admin: Admin, service: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    files = service.gateway._gateway.adapters._files
    monkeypatch.setattr(files, "is_there", lambda source: looked.append(source) or False)
    monkeypatch.setattr(adapter_finder, "NEGATIVE_S", 600.0)
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
