"""Who comes in, and when: limits, counting, what is told of them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import api_keys
from app.callers import ANYBODY
from app.door import Door, check_admin
from app.errors import KeyRefusedError, LimitReachedError, NotPermittedError
from app.key_ring import KeyRing
from tests.support.tenants import KeysFile


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeysFile:
    monkeypatch.setattr(api_keys, "_LOG_COST", 10)
    return KeysFile(
        tmp_path / "keys.yaml",
        slow={"requests_per_minute": 3, "tokens_per_minute": 100},
        narrow={"max_concurrent_requests": 2},
        root={"admin": True},
    )


@pytest.fixture
def ring(file: KeysFile) -> Iterator[KeyRing]:
    made = KeyRing(file.path)
    yield made
    made.close()


def refused(door: Door, caller: Any) -> LimitReachedError:
    with pytest.raises(LimitReachedError) as caught, door.visit(caller):
        pass
    return caught.value


async def test_without_keys_anybody_comes_in_with_any_key() -> None:
    door = Door(None, gateways=1)
    for key in (None, "none", "x" * 10_000):
        caller = await door.identify(key)
        assert caller == ANYBODY
        check_admin(caller)
        assert door.headers(caller) == {}
        with door.visit(caller):
            caller.spend(5)
    assert door.describe() == {"problem": None, "tenants": {}}


async def test_with_keys_nobody_comes_in_without(ring: KeyRing) -> None:
    for key in (None, "", "none"):
        with pytest.raises(KeyRefusedError):
            await Door(ring, gateways=1).identify(key)


async def test_requests_are_counted(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    caller = await door.identify(file.keys["slow"])
    for left in (2, 1, 0):
        with door.visit(caller):
            assert door.headers(caller)["x-ratelimit-remaining-requests"] == str(left)
    error = refused(door, caller)
    assert (error.limit, 19 < error.retry_after_s <= 20) == ("requests", True)
    assert str(error) == "Your limit of requests per minute is reached; please try again in 20 s."


async def test_tokens_are_counted_and_may_be_overdrawn_once(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    caller = await door.identify(file.keys["slow"])
    with door.visit(caller):
        caller.spend(30)
        assert door.headers(caller)["x-ratelimit-remaining-tokens"] == "70"
        caller.spend(120)
        told = door.headers(caller)
    assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("100", "0")
    assert told["x-ratelimit-reset-tokens"] == "1m30s"
    error = refused(door, caller)
    assert (error.limit, 30 < error.retry_after_s <= 31) == ("tokens", True)


async def test_a_request_in_hand_is_let_go_however_it_ends(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    caller = await door.identify(file.keys["narrow"])
    begun = asyncio.Event()

    async def visitor() -> None:
        with door.visit(caller):
            begun.set()
            await asyncio.Event().wait()

    staying = [asyncio.ensure_future(visitor()) for _ in range(2)]
    await begun.wait()
    await asyncio.sleep(0)
    assert refused(door, caller).limit == "concurrent"
    staying[0].cancel()
    await asyncio.gather(staying[0], return_exceptions=True)
    with pytest.raises(ZeroDivisionError), door.visit(caller):
        _ = 1 / 0
    with door.visit(caller):
        assert refused(door, caller).limit == "concurrent"
    staying[1].cancel()


async def test_one_tenants_limits_are_nobody_elses(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    slow, narrow = [await door.identify(file.keys[name]) for name in ("slow", "narrow")]
    for _ in range(3):
        with door.visit(slow):
            pass
    refused(door, slow)
    with door.visit(narrow):
        assert door.headers(narrow) == {}


async def test_limits_that_change_keep_what_was_spent(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    before = await door.identify(file.keys["slow"])
    for _ in range(3):
        with door.visit(before):
            pass
    file.change("slow", requests_per_minute=4)
    await ring.look()
    await ring.look()
    now = await door.identify(file.keys["slow"])
    with door.visit(now):
        # A request that came in before the change goes on.
        before.spend(7)
        assert door.headers(now)["x-ratelimit-limit-requests"] == "4"
        assert door.headers(now)["x-ratelimit-remaining-tokens"] == "93"
    assert refused(door, now).limit == "requests"


async def test_gateways_have_each_their_part(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=3)
    caller = await door.identify(file.keys["slow"])
    with door.visit(caller):
        pass
    assert refused(door, caller).limit == "requests"


async def test_only_administrators_administer(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    check_admin(await door.identify(file.keys["root"]))
    with pytest.raises(NotPermittedError):
        check_admin(await door.identify(file.keys["slow"]))


async def test_it_tells_administrators_how_things_stand(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    caller = await door.identify(file.keys["slow"])
    with door.visit(caller):
        caller.spend(40)
        told = door.describe()
    assert told["problem"] is None
    assert told["tenants"]["slow"] == {
        "admin": False, "weight": 1.0, "requests_in_hand": 1, "requests_left": 2, "tokens_left": 60,
    }  # fmt: skip
    assert told["tenants"]["root"]["requests_left"] is None
    assert not any(key in str(told) for key in file.keys.values())


async def test_salts_of_tenants_never_meet(ring: KeyRing, file: KeysFile) -> None:
    door = Door(ring, gateways=1)
    slow, narrow = [await door.identify(file.keys[name]) for name in ("slow", "narrow")]
    own = [None, "", "x", "narrow:x", "slow:x", ":"]
    salts = {(caller.name, caller.cache_salt(salt)) for caller in (slow, narrow) for salt in own}
    assert len({salt for _, salt in salts}) == len(salts)
    assert {salt for name, salt in salts if name == "slow"}.isdisjoint({s for name, s in salts if name == "narrow"})
    assert ANYBODY.cache_salt("x") == "x"
    assert ANYBODY.cache_salt(None) is None
