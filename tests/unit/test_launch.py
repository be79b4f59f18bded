"""What is checked before a minute of start-up, each with one sentence."""

import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from app.config import SecurityConfig
from app.errors import ConfigError, LaunchError
from app.launch import Plan, check_exposure, check_machine, read_plan
from app.machine import memory_needed_bytes
from tests.support.ray_head import free_port
from tests.support.service import serve_config


def written(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"0" * 1000)
    args = {"models": [{"id": "m", "source": str(model), "engine": {"kv_cache_memory_bytes": 5000}}]}
    return read_plan(written(tmp_path, serve_config(free_port(), args)))


def test_a_good_plan_passes(plan: Plan) -> None:
    check_machine(plan)
    assert plan.url == f"http://127.0.0.1:{plan.port}"


def test_a_port_that_is_taken_is_named(plan: Plan) -> None:
    with socket.socket() as taken:
        taken.bind((plan.host, plan.port))
        taken.listen()
        with pytest.raises(LaunchError, match=f"Port {plan.port} on 127.0.0.1 can't be used"):
            check_machine(plan)


def test_a_missing_compiler_is_named(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LaunchError, match=r"no C\+\+ compiler 'no-such-compiler'"):
        check_machine(plan)


def test_too_little_memory_is_named(plan: Plan) -> None:
    huge = plan.config.models[0].model_copy(update={"engine": {"kv_cache_memory_bytes": 2 * _total_bytes()}})
    config = plan.config.model_copy(update={"models": [huge]})
    with pytest.raises(LaunchError, match="GB of memory are needed"):
        check_machine(Plan(plan.config_file, config, plan.host, plan.port, plan.route_prefix))


def _total_bytes() -> int:
    return psutil.virtual_memory().total


def test_weights_and_cache_count(plan: Plan) -> None:
    more = plan.config.models[0].model_copy(update={"engine": {"kv_cache_memory_bytes": 7000}})
    grown = plan.config.model_copy(update={"models": [more]})
    assert memory_needed_bytes(grown) - memory_needed_bytes(plan.config) == 2000


def test_a_cache_of_no_number_of_bytes_is_for_vllm_to_refuse(plan: Plan) -> None:
    odd = plan.config.models[0].model_copy(update={"engine": {"kv_cache_memory_bytes": "plenty"}})
    assert memory_needed_bytes(plan.config.model_copy(update={"models": [odd]})) > memory_needed_bytes(plan.config)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "import_path"),
        ({"applications": []}, "import_path"),
        ({"applications": [{"import_path": "other:app"}]}, "import_path"),
        ([1], "import_path"),
        (serve_config(1, {"models": []}), "models: list should have"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_plan(written(tmp_path, document))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_plan(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="can't be read"):
        read_plan(tmp_path / "bad.yaml")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "example.org"])
def test_without_keys_it_listens_to_its_own_machine(plan: Plan, host: str) -> None:
    exposed = Plan(plan.config_file, plan.config, host, plan.port, plan.route_prefix)
    with pytest.raises(LaunchError, match=f"is {host}, and there are no API keys"):
        check_exposure(exposed)
    for security in ({"allow_anonymous": True}, {"api_keys_file": "keys.yaml"}):
        config = plan.config.model_copy(update={"security": SecurityConfig.model_validate(security)})
        check_exposure(Plan(plan.config_file, config, host, plan.port, plan.route_prefix))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_its_own_machine_has_more_than_one_name(plan: Plan, host: str) -> None:
    check_exposure(Plan(plan.config_file, plan.config, host, plan.port, plan.route_prefix))


def test_a_wrong_file_of_keys_is_found_before_anything_starts(tmp_path: Path) -> None:
    args = {"models": [{"id": "m", "source": "x"}], "security": {"api_keys_file": str(tmp_path / "keys.yaml")}}
    file = written(tmp_path, serve_config(1, args))
    with pytest.raises(ConfigError, match=r"there is no file .*keys\.yaml"):
        read_plan(file)
    (tmp_path / "keys.yaml").write_text("tenants: [{name: acme}]")
    assert read_plan(file).config.security.api_keys_file == tmp_path / "keys.yaml"
