"""One tenant floods a pool, and the other doesn't notice: a whole gateway, engines that need no model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from app import api_keys
from tests.support.gateways import InProcess, gateway_of, model
from tests.support.tenants import KeysFile

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAKES, TOKEN_S = 4, 0.01
TENANTS: dict[str, dict[str, Any]] = {"flood": {"models": "*"}, "other": {"models": "*"}, "heavy": {"models": "*"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysFile]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_keys, "_LOG_COST", 10)
        TENANTS["heavy"]["weight"] = 3
        yield KeysFile(tmp_path_factory.mktemp("keys") / "keys.yaml", **TENANTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(file: KeysFile, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_of(directory, model("m"), keys_file=file.path, takes=TAKES, token_time_s=TOKEN_S) as running:
        await ask(running, file.keys["flood"])
        yield running


class Ends:
    """Who got an answer, in order."""

    def __init__(self, service: InProcess, file: KeysFile) -> None:
        self.order: list[str] = []
        self._service = service
        self._file = file
        self.asking: list[asyncio.Task[None]] = []

    def ask(self, tenant: str, count: int, **body: Any) -> None:
        self.asking += [asyncio.ensure_future(self._one(tenant, body)) for _ in range(count)]

    async def _one(self, tenant: str, body: dict[str, Any]) -> None:
        answer = await ask(self._service, self._file.keys[tenant], **body)
        assert "error" not in answer, answer
        self.order.append(tenant)

    async def are(self, count: int) -> None:
        await self._until(lambda: len(self.order) >= count)

    async def hold(self, tenant: str, since: int) -> None:
        await self._until(lambda: tenant in self.order[since:])

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - nothing announces an answer
                await asyncio.sleep(0.001)


async def ask(service: InProcess, key: str, **body: Any) -> dict[str, Any]:
    return await service.gateway.call("completions", {"model": "m", "prompt": "a b", "max_tokens": 5} | body, key)


async def test_what_the_other_waits_for_is_one_end(service: InProcess, file: KeysFile) -> None:
    ends = Ends(service, file)
    ends.ask("flood", 20 * TAKES)
    await ends.are(TAKES)
    for _ in range(5):
        before = len(ends.order)
        ends.ask("other", 1)
        await ends.hold("other", before)
        # It takes the first place that is free; those beside it may end before it.
        assert ends.order[before:].index("other") <= 2 * TAKES
    assert ends.order.count("flood") < 15 * TAKES, "the flood was still there"
    await asyncio.gather(*ends.asking)


async def test_each_choice_of_an_answer_takes_a_place(service: InProcess, file: KeysFile) -> None:
    """Or else one request would be a flood that counts as one."""
    ends = Ends(service, file)
    ends.ask("flood", 1, n=100)
    ends.ask("flood", 1, prompt=["a b"] * 100)
    await asyncio.sleep(0.05)
    ends.ask("other", 1)
    await asyncio.gather(*ends.asking)
    assert ends.order[0] == "other"


async def test_two_floods_share_by_weight(service: InProcess, file: KeysFile) -> None:
    ends = Ends(service, file)
    for tenant in ("flood", "heavy"):
        ends.ask(tenant, 60)
    await ends.are(60)
    assert ends.order[:60].count("heavy") == pytest.approx(45, abs=6)
    await asyncio.gather(*ends.asking)


async def test_nothing_is_left_in_the_line(service: InProcess) -> None:
    assert repr(service.gateway._gateway._lines["default"]) == f"<FairQueue 0 of {TAKES} places, 0 wait, 0 tenants>"
