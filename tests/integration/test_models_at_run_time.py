"""Models are added, changed and removed while the service runs, and the others don't notice."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from openai import BadRequestError, NotFoundError, OpenAI

from tests.support.ray_head import command
from tests.support.service import ADAPTERS, CHAT_MODEL, MODELS, Service
from tests.support.waiting import until

ADDED = "team/added"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SECTION: dict[str, Any] = {
    "source": str(MODELS / CHAT_MODEL),
    "engine": {
        "dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 67108864, "enforce_eager": True,
    },
}  # fmt: skip


def put(service: Service, model: str, section: dict[str, Any]) -> httpx.Response:
    return httpx.put(f"{service.url}/admin/models/{model}", json=section, timeout=120)


def engines(service: Service) -> dict[str, Any]:
    return httpx.get(f"{service.url}/admin/models", timeout=60).json()["models"]


def ask(client: OpenAI, model: str, content: str = "What is the capital of France?") -> str | None:
    messages: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
    return answer.choices[0].message.content


def owners(service: Service) -> list[psutil.Process]:
    return service.processes("ServeReplica:flashserve:Models")


@pytest.fixture(scope="module")
def added(service: Service, client: OpenAI) -> Any:
    """The model, added; removed again at the end."""
    ask(client, CHAT_MODEL)
    before = engines(service)
    answer = put(service, ADDED, SECTION)
    assert answer.is_success, answer.text
    yield before
    httpx.delete(f"{service.url}/admin/models/{ADDED}", timeout=120)
    until(lambda: ADDED not in engines(service), 120)


def test_it_answers_and_the_others_were_not_touched(service: Service, client: OpenAI, added: Any) -> None:
    assert ask(client, ADDED) == ask(client, CHAT_MODEL)
    assert ADDED in [model.id for model in client.models.list()]
    now = engines(service)
    for other, engine in added.items():
        assert (now[other]["restarts"], now[other]["started_in_s"]) == (engine["restarts"], engine["started_in_s"])


@pytest.mark.usefixtures("added")
def test_it_is_changed(service: Service, client: OpenAI) -> None:
    long = "word " * 100
    assert ask(client, ADDED, long)
    changed = SECTION | {"engine": SECTION["engine"] | {"max_model_len": 64}}
    assert put(service, ADDED, changed).is_success
    with pytest.raises(BadRequestError, match="64"):
        ask(client, ADDED, long)
    assert ask(client, ADDED, "Hi")


@pytest.mark.usefixtures("added")
def test_it_outlives_the_owner_of_the_list(service: Service, client: OpenAI) -> None:
    [owner] = owners(service)
    owner.kill()
    until(lambda: [process for process in owners(service) if process.pid != owner.pid])
    assert put(service, ADDED, SECTION).is_success
    assert ask(client, ADDED)
    assert ask(client, CHAT_MODEL)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "source"),
        (SECTION | {"sorce": "x"}, "did you mean 'source'"),
        (SECTION | {"source": "/nowhere/at/all"}, "/nowhere/at/all"),
        (SECTION | {"engine": {"max_modle_len": 7}}, "did you mean 'max_model_len'"),
        (SECTION | {"engine": {"max_model_len": 10**9}}, "max_model_len"),
    ],
)
def test_a_wrong_section_changes_nothing(service: Service, section: dict[str, Any], said: str) -> None:
    answer = put(service, "wrong", section)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert "wrong" not in engines(service)


def test_from_the_command_line(service: Service, client: OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump(SECTION | {"id": "from-a-file", "keep_awake_s": 5}))
    flashserve = [command("flashserve"), "model"]
    shown = subprocess.run(
        [*flashserve, "add", str(file), "--url", service.url], check=True, capture_output=True, text=True
    )
    assert "from-a-file" in shown.stdout
    assert ask(client, "from-a-file")
    subprocess.run([*flashserve, "rm", "from-a-file", "--url", service.url], check=True, capture_output=True)
    with pytest.raises(NotFoundError):
        ask(client, "from-a-file")
    until(lambda: "from-a-file" not in engines(service), 60)
    refused = subprocess.run(
        [*flashserve, "rm", "from-a-file", "--url", service.url], check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "does not exist" in refused.stderr


def test_an_adapter_comes_and_goes_and_its_engine_does_not_notice(service: Service, client: OpenAI) -> None:
    path, prompt = f"{service.url}/admin/adapters/{CHAT_MODEL}/corsair", "What is the capital of France?"
    as_configured = ask(client, "pirate", prompt)
    before = engines(service)[CHAT_MODEL]
    answer = httpx.put(path, json={"source": str(ADAPTERS / "pirate")}, timeout=60)
    assert answer.is_success, answer.text
    assert ask(client, "corsair", prompt) == ask(client, f"{CHAT_MODEL}:corsair", prompt) == as_configured
    shown = subprocess.run(
        [command("flashserve"), "adapters", "--url", service.url], check=True, capture_output=True, text=True
    )
    assert f"{CHAT_MODEL}:corsair" in shown.stdout
    states = {
        each["id"]: each["state"] for each in httpx.get(f"{service.url}/admin/adapters", timeout=60).json()["adapters"]
    }
    assert states["corsair"] == "resident"
    answer = httpx.post(
        f"{service.url}/v1/unload_lora_adapter", json={"lora_name": f"{CHAT_MODEL}:corsair"}, timeout=60
    )
    assert answer.is_success, answer.text
    with pytest.raises(NotFoundError):
        ask(client, "corsair", prompt)
    assert ask(client, "pirate", prompt) == as_configured
    now = engines(service)[CHAT_MODEL]
    assert (now["restarts"], now["started_in_s"]) == (before["restarts"], before["started_in_s"])
