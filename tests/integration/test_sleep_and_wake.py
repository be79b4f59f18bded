"""Models of the running service fall asleep and wake on the next request, with the same answers."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.support.ray_head import command
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service
from tests.support.waiting import until

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def engines(service: Service) -> dict[str, Any]:
    return httpx.get(f"{service.url}/admin/models", timeout=60).json()["models"]


def tell(service: Service, what: str, model: str) -> None:
    answer = httpx.post(f"{service.url}/admin/{what}", json={"model": model}, timeout=120)
    assert answer.is_success, answer.text


def ask(client: OpenAI, model: str) -> str | None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    return answer.choices[0].message.content


def test_it_answers_after_a_sleep_as_before(service: Service, client: OpenAI) -> None:
    names = (CHAT_MODEL, "pirate", "json")
    before = [ask(client, name) for name in names]
    assert len(set(before)) == 3
    for name in names:
        tell(service, "sleep", CHAT_MODEL)
        assert engines(service)[CHAT_MODEL]["state"] == "asleep"
        assert httpx.get(f"{service.url}/health").is_success, "asleep is well"
        assert ask(client, name) == before[names.index(name)]
    assert [ask(client, name) for name in names] == before


def test_an_embedding_model_too(service: Service, client: OpenAI) -> None:
    before = client.embeddings.create(model=EMBEDDING_MODEL, input="a cat sits").data[0].embedding
    tell(service, "sleep", EMBEDDING_MODEL)
    assert client.embeddings.create(model=EMBEDDING_MODEL, input="a cat sits").data[0].embedding == before


def test_however_many_ask_it_wakes_once(service: Service, client: OpenAI) -> None:
    before = ask(client, CHAT_MODEL)
    tell(service, "sleep", CHAT_MODEL)
    wakes = engines(service)[CHAT_MODEL]["wakes"]
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(lambda _: ask(client, CHAT_MODEL), range(32))) == {before}
    assert engines(service)[CHAT_MODEL]["wakes"] == wakes + 1


def test_a_stopped_one_is_forked_anew(service: Service, client: OpenAI) -> None:
    before = ask(client, CHAT_MODEL)
    tell(service, "stop", CHAT_MODEL)
    assert engines(service)[CHAT_MODEL]["state"] == "cold"
    assert ask(client, CHAT_MODEL) == before
    start = engines(service)[CHAT_MODEL]["start"]
    assert start["weights_from"] == "dram", "the second start on a node reads no checkpoint"
    assert "fork" in start["stages_s"]


def test_the_command_line(service: Service, client: OpenAI) -> None:
    shown = subprocess.run(
        [command("flashserve"), "sleep", EMBEDDING_MODEL, "--url", service.url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "asleep" in shown
    refused = subprocess.run(
        [command("flashserve"), "wake", "nobody", "--url", service.url], check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "`nobody` does not exist" in refused.stderr
    assert client.embeddings.create(model=EMBEDDING_MODEL, input="x").data


def test_a_request_says_how_long_its_model_stays_awake(service: Service, client: OpenAI) -> None:
    body: Any = {"keep_alive": 0}
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=2, extra_body=body)
    assert answer.choices[0].message.content
    until(lambda: engines(service)[CHAT_MODEL]["state"] == "asleep")
    body = {"keep_alive": "a while"}
    with pytest.raises(BadRequestError, match="keep_alive"):
        client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=2, extra_body=body)


def test_starts_and_wakes_are_measured(service: Service, client: OpenAI) -> None:
    tell(service, "sleep", CHAT_MODEL)
    ask(client, CHAT_MODEL)

    def measured() -> bool:
        lines = httpx.get(f"{service.url}/metrics", timeout=30).text.splitlines()
        own = [line for line in lines if f'model="{CHAT_MODEL}"' in line]
        stages = [line for line in own if line.startswith("ray_flashserve_start_stage_seconds_count")]
        woken = [line for line in own if line.startswith("ray_flashserve_wake_seconds_count") and 'tier="dram"' in line]
        return bool(woken) and all(any(f'stage="{stage}"' in line for line in stages) for stage in ("all", "engine"))

    until(measured)
