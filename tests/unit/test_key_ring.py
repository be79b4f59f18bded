"""Whose a key is: what is remembered, and how the file is followed."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import api_keys, key_ring
from app.api_keys import new_key
from app.errors import KeyRefusedError, KeysUnavailableError
from app.key_ring import KeyRing
from tests.support.tenants import KeysFile, stored


class Comparing:
    """Stands before the slow comparison: counts, and holds it up when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.may_go = threading.Event()
        self.may_go.set()

    def fits(self, key: str, stored_hash: str) -> bool:
        self.count += 1
        self.may_go.wait(10)
        return api_keys.fits(key, stored_hash)


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch) -> Comparing:
    monkeypatch.setattr(api_keys, "_LOG_COST", 10)
    made = Comparing()
    monkeypatch.setattr(key_ring, "fits", made.fits)
    return made


@pytest.fixture
def file(tmp_path: Path, comparing: Comparing) -> KeysFile:  # noqa: ARG001 - it makes hashing quick
    return KeysFile(tmp_path / "keys.yaml", acme={}, globex={})


@pytest.fixture
def ring(file: KeysFile) -> Iterator[KeyRing]:
    made = KeyRing(file.path)
    yield made
    made.close()


def lookalike(key: str) -> str:
    """Another key with the id of this one."""
    return key[:16] + new_key()[16:]


async def changed(ring: KeyRing) -> None:
    """Twice: what has changed is read once it no longer changes."""
    await ring.look()
    await ring.look()


async def test_keys_lead_to_their_owners(ring: KeyRing, file: KeysFile) -> None:
    for name in ("acme", "globex"):
        assert (await ring.owner(file.keys[name])).name == name


async def test_a_key_is_compared_once(ring: KeyRing, file: KeysFile, comparing: Comparing) -> None:
    for _ in range(5):
        await ring.owner(file.keys["acme"])
    assert comparing.count == 1


async def test_however_many_ask_with_it_at_once(ring: KeyRing, file: KeysFile, comparing: Comparing) -> None:
    comparing.may_go.clear()
    asking = [asyncio.ensure_future(ring.owner(file.keys["acme"])) for _ in range(200)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    comparing.may_go.set()
    assert {tenant.name for tenant in await asyncio.gather(*asking[1:])} == {"acme"}
    assert comparing.count == 1


async def test_a_wrong_key_is_refused_and_compared_once(ring: KeyRing, file: KeysFile, comparing: Comparing) -> None:
    wrong = lookalike(file.keys["acme"])
    for _ in range(3):
        with pytest.raises(KeyRefusedError):
            await ring.owner(wrong)
    assert comparing.count == 1
    assert (await ring.owner(file.keys["acme"])).name == "acme"
    with pytest.raises(KeyRefusedError):
        await ring.owner(wrong)


async def test_a_key_that_nobody_has_is_not_compared_at_all(ring: KeyRing, comparing: Comparing) -> None:
    for key in (new_key(), "", "none", "x" * 100_000, "ключ"):
        with pytest.raises(KeyRefusedError):
            await ring.owner(key)
    assert comparing.count == 0


async def test_a_flood_of_wrong_keys_is_bounded(ring: KeyRing, file: KeysFile, comparing: Comparing) -> None:
    await ring.owner(file.keys["globex"])
    comparing.may_go.clear()
    asking = [asyncio.ensure_future(ring.owner(lookalike(file.keys["acme"]))) for _ in range(200)]
    await asyncio.sleep(0)
    # Who was here before doesn't notice.
    assert (await ring.owner(file.keys["globex"])).name == "globex"
    comparing.may_go.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {KeyRefusedError, KeysUnavailableError}
    assert comparing.count == 1 + key_ring._MAX_COMPARING


async def test_a_new_file_counts_without_a_restart(ring: KeyRing, file: KeysFile) -> None:
    await ring.owner(file.keys["acme"])
    before = file.keys["acme"]
    file.keys["acme"] = new_key()
    file.change("acme", keys=[stored(file.keys["acme"])], weight=3)
    await changed(ring)
    assert (await ring.owner(file.keys["acme"])).weight == 3
    with pytest.raises(KeyRefusedError):
        await ring.owner(before)


async def test_a_tenant_that_has_changed_is_another_with_the_same_key(
    ring: KeyRing, file: KeysFile, comparing: Comparing
) -> None:
    await ring.owner(file.keys["acme"])
    file.change("acme", admin=True)
    await changed(ring)
    assert (await ring.owner(file.keys["acme"])).is_admin
    assert comparing.count == 1


async def test_a_hash_under_the_same_id_is_another_key(ring: KeyRing, file: KeysFile) -> None:
    await ring.owner(file.keys["acme"])
    other = lookalike(file.keys["acme"])
    file.change("acme", keys=[stored(other)])
    await changed(ring)
    assert (await ring.owner(other)).name == "acme"
    with pytest.raises(KeyRefusedError):
        await ring.owner(file.keys["acme"])


@pytest.mark.parametrize("text", ["tenants: [", "", "tenants: []", None])
async def test_a_broken_file_keeps_the_old_and_says_so(
    ring: KeyRing, file: KeysFile, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if text is None:
        file.path.unlink()
    else:
        file.write_text(text)
    await changed(ring)
    assert (await ring.owner(file.keys["acme"])).name == "acme"
    assert ring.problem is not None
    assert str(file.path) in ring.problem
    assert ring.problem in caplog.text
    assert file.keys["acme"] not in caplog.text
    file.write()
    await changed(ring)
    assert ring.problem is None


async def test_a_file_that_is_being_written_is_not_read(ring: KeyRing, file: KeysFile) -> None:
    whole = file.path.read_text()
    # As long as it grows it may hold fewer tenants than it will, and be valid.
    for text in ("tenants: [{name: initech}]", "tenants: [{name: initech}, {name: hooli}]"):
        file.path.write_text(text)
        await ring.look()
        assert set(ring.tenants()) == {"acme", "globex"}
    file.path.write_text(whole)
    await changed(ring)
    assert set(ring.tenants()) == {"acme", "globex"}


async def test_nobody_is_let_in_before_there_was_a_file(tmp_path: Path, file: KeysFile) -> None:
    late = KeyRing(tmp_path / "late.yaml")
    with pytest.raises(KeysUnavailableError):
        await late.owner(file.keys["acme"])
    file.path.rename(tmp_path / "late.yaml")
    await changed(late)
    assert (await late.owner(file.keys["acme"])).name == "acme"
    late.close()


async def test_it_follows_by_itself(ring: KeyRing, file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "LOOK_PERIOD_S", 0.001)
    ring.run()
    file.change("acme", weight=7)
    async with asyncio.timeout(10):
        while (await ring.owner(file.keys["acme"])).weight != 7:  # noqa: ASYNC110 - it announces nothing
            await asyncio.sleep(0.001)
    ring.check()
