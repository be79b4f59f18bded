"""Tenants with engines of their own, at a whole gateway: nobody else's requests reach them, nor theirs others'."""

import pytest

from tests.support.gateway_with_tenants import ACME, SECLUDED, SHARED, VECTORS, ask, headers, request
from tests.support.gateways import InProcess
from tests.support.tenants import KeysFile

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = f"{SHARED}@{SECLUDED}"


@pytest.mark.parametrize(("operation", "model"), [("chat", SHARED), ("completions", SHARED), ("embeddings", VECTORS)])
async def test_a_tenants_requests_go_to_its_engine_alone(
    service: InProcess, file: KeysFile, operation: str, model: str
) -> None:
    own = f"{model}@{SECLUDED}"
    before, own_before = len(service.asked(model)), len(service.asked(own))
    for tenant in (SECLUDED, ACME, SECLUDED, "root"):
        (await ask(service, operation, model, file.keys[tenant])).raise_for_status()
    assert [each["tenant"] for each in service.asked(own)[own_before:]] == [SECLUDED, SECLUDED]
    assert [each["tenant"] for each in service.asked(model)[before:]] == [ACME, "root"]


async def test_it_is_asked_for_by_the_models_name_only(service: InProcess, file: KeysFile) -> None:
    listed = await service.client.get("/v1/models", headers=headers(file.keys[SECLUDED]))
    assert {card["id"] for card in listed.json()["data"]} == {SHARED, VECTORS}
    for tenant in (SECLUDED, ACME, "root"):
        assert (await ask(service, "chat", OWN, file.keys[tenant])).status_code == 404


async def test_administrators_see_and_command_it(service: InProcess, file: KeysFile) -> None:
    root = file.keys["root"]
    (await ask(service, "chat", SHARED, file.keys[SECLUDED])).raise_for_status()
    for command, state in (("sleep", "asleep"), ("wake", "awake")):
        told = await request(service, "POST", f"/admin/{command}", root, json={"model": OWN})
        assert told.json()["models"][OWN]["state"] == state
        assert told.json()["models"][SHARED]["state"] == "awake"
