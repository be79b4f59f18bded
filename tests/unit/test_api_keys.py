"""What keys look like, how they are stored, and what is said of a wrong file."""

import hmac
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from app import api_keys
from app.api_keys import fits, hashed, key_id, new_key, parse_keys, read_keys
from app.cli import cli
from app.errors import ConfigError
from app.tenants import Quota, Reach, Tenant
from tests.support.service import ROOT
from tests.support.tenants import KeysFile

# Always the same, for it is in the names of tests.
KEY = "fs-0123456789ab-" + "Kx7" * 14 + "A"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_LOG_COST", 10)


def test_a_key_fits_its_own_hash_alone() -> None:
    key = new_key()
    other = f"fs-{key_id(key)}-{new_key()[16:]}"
    assert fits(key, hashed(key))
    assert not fits(other, hashed(key))
    assert not fits(key + "A", hashed(key))


def test_hashes_are_salted_and_hold_nothing_of_the_key() -> None:
    key = new_key()
    one, other = hashed(key), hashed(key)
    assert one != other
    assert not any(key[start : start + 6] in one for start in range(len(key) - 6))


def test_right_and_wrong_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    really = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return really(one, other)

    key = new_key()
    stored_hash = hashed(key)
    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare)
    fits(key, stored_hash)
    fits(new_key(), stored_hash)
    assert [len(one) == len(other) == 32 for one, other in compared] == [True, True]


@pytest.mark.parametrize(
    "text",
    ["", "fs", "none", "sk-abc", "fs-zz", KEY + "x", KEY + "\n", KEY.upper(), "x" * 1_000_000,
     "fs-" + "٣" * 12 + "-" + "A" * 43, "fs-0123456789ab-" + "é" * 43, "\x00" * 50],
)  # fmt: skip
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id(text) is None


def test_a_file_is_read(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": 1000, "max_concurrent_requests": 4}
    file = KeysFile(
        tmp_path / "keys.yaml",
        acme={"models": ["m"], "adapters": ["a", "m:b"], "weight": 2} | limits,
        root={"models": "*", "adapters": "*", "admin": True},
    )
    table = read_keys(file.path)
    assert table.tenants == {
        "acme": Tenant("acme", Reach(frozenset({"m"}), frozenset({"a", "m:b"}), "acme"), Quota(60, 1000, 4), 2.0),
        "root": Tenant("root", Reach(None, None, "root"), is_admin=True),
    }
    found = table.keys[key_id(file.keys["acme"]) or ""]
    assert found.tenant.name == "acme"
    assert fits(file.keys["acme"], found.hash)


def test_the_readme_shows_such_a_file() -> None:
    (shown,) = re.findall(r"```yaml\n(# The file.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    table = parse_keys(yaml.safe_load(shown))
    assert [tenant.is_admin for tenant in table.tenants.values()] == [False, True]


def test_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"tenants": [{"name": "acme"}]}')
    assert read_keys(path).tenants == {"acme": Tenant("acme", Reach(tenant="acme"))}


GOOD = {"id": "0123456789ab", "hash": "scrypt:14:AAAA:AAAA"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "args: "),
        ([], "args: "),
        ({"tenants": []}, "tenants: "),
        ({"tenants": [{}]}, "tenants[0].name: this key is required"),
        ({"tenants": [{"name": "a/b"}]}, "tenants[0].name: string should match"),
        ({"tenants": [{"name": "a:b"}]}, "tenants[0].name: string should match"),
        ({"tenants": [{"name": "a\n"}]}, "tenants[0].name: string should match"),
        ({"tenants": [{"name": ""}]}, "tenants[0].name: string should match"),
        ({"tenants": [{"name": "a", "modles": []}]}, "tenants[0].modles: there is no such key; did you mean 'models'?"),
        ({"tenants": [{"name": "a", "requests_per_minute": 0}]}, "tenants[0].requests_per_minute: "),
        ({"tenants": [{"name": "a", "tokens_per_minute": float("inf")}]}, "tenants[0].tokens_per_minute: "),
        ({"tenants": [{"name": "a", "weight": -1}]}, "tenants[0].weight: "),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "tenants[1].name: 'a' is given twice"),
        (
            {"tenants": [{"name": "a", "keys": [GOOD]}, {"name": "b", "keys": [GOOD]}]},
            "tenants[1].keys[0].id: '0123456789ab' is given twice",
        ),
        ({"tenants": [{"name": "a", "keys": [KEY]}]}, "tenants[0].keys[0]: "),
        ({"tenants": [{"name": "a", "keys": [GOOD | {"hash": KEY}]}]}, "tenants[0].keys[0].hash: this is no hash"),
        ({"tenants": [{"name": "a", "keys": [GOOD | {"hash": "scrypt:30:AAAA:AAAA"}]}]}, "tenants[0].keys[0].hash: "),
        ({"tenants": [{"name": "a", "keys": [GOOD | {"hash": "scrypt:14:A:A"}]}]}, "tenants[0].keys[0].hash: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named_and_no_key_quoted(document: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(document)
    assert caught.value.problems[0].startswith(said), caught.value.problems
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", [f"tenants: [{KEY}", f"\ttenants: {KEY}", "[" * 2_000, f"a: b: {KEY}"])
def test_what_is_no_yaml_is_not_quoted_either(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_keys(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary can't be read: it is no text"):
        read_keys(tmp_path / "binary")


def test_the_line_that_is_printed_goes_into_the_file(tmp_path: Path) -> None:
    printed = CliRunner().invoke(cli, ["key", "new", "acme"]).output
    (key,) = re.findall(r"^  (fs-\S+)$", printed, re.MULTILINE)
    (line,) = re.findall(r"^  (- \{.*\})$", printed, re.MULTILINE)
    path = tmp_path / "keys.yaml"
    path.write_text(f"tenants:\n- name: acme\n  keys:\n  {line}\n")
    assert fits(key, read_keys(path).keys[key_id(key) or ""].hash)


def test_a_key_for_nobody() -> None:
    assert isinstance(CliRunner().invoke(cli, ["key", "new", "a/b"]).exception, ConfigError)
