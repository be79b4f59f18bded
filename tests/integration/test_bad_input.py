"""Wrong requests get a 4xx in OpenAI's shape that names the field; nothing dies, and the next request works."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = [{"role": "user", "content": "Hi"}]
NAN, INF = float("nan"), float("inf")


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "messages": HI, "max_tokens": 2} | fields


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "prompt": "Hi", "max_tokens": 2} | fields


def embedding(**fields: Any) -> dict[str, Any]:
    return {"model": EMBEDDING_MODEL, "input": "Hi"} | fields


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", autouse=True)
def _engines_survive(service: Service) -> Iterator[None]:
    """Whatever this file sends, the same engine processes serve before and after, and well."""
    before = sorted(process.pid for process in service.processes("VLLM::"))
    yield
    states = httpx.get(f"{service.url}/admin/models").json()["models"]
    assert {model: (state["state"], state["requests"]) for model, state in states.items()} == {
        CHAT_MODEL: ("awake", 0),
        EMBEDDING_MODEL: ("awake", 0),
    }
    assert sorted(process.pid for process in service.processes("VLLM::")) == before
    good = httpx.post(f"{service.url}{CHAT}", json=chat(), timeout=60)
    assert good.json()["usage"]["completion_tokens"] == 2


def check(response: httpx.Response, status: int, param: str | None) -> None:
    body = response.json()
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert response.status_code == status == error["code"], error
    assert error["message"], error
    for leak in ("Traceback", "site-packages", " at 0x", 'File "'):
        assert leak not in error["message"]
    if param is not None:
        assert error["param"] is not None, error
        assert error["param"].split(".")[0].split("[")[0] == param, error


# (path, body, status, the field that the answer names)
CASES: list[tuple[str, Any, int, str | None]] = [
    (CHAT, chat(model="nobody"), 404, "model"),
    (CHAT, chat(model=f"{CHAT_MODEL}:nobody"), 404, "model"),
    (CHAT, chat(model="x" * 10_000), 404, "model"),
    (CHAT, chat(model=7), 400, "model"),
    (CHAT, chat(model=None), 400, "model"),
    (CHAT, chat(model=""), 400, "model"),
    (CHAT, {"messages": HI}, 400, "model"),
    (CHAT, {"model": CHAT_MODEL}, 400, "messages"),
    (CHAT, chat(messages=[]), 400, "messages"),
    (CHAT, chat(messages="hi"), 400, "messages"),
    (CHAT, chat(messages=None), 400, "messages"),
    (CHAT, chat(messages=[{"content": "hi"}]), 400, "messages"),
    (CHAT, chat(messages=[{"role": "user", "content": 7}]), 400, "messages"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), 400, None),
    (CHAT, chat(messages=[{"role": "user", "content": "word " * 3000}]), 400, None),
    (CHAT, chat(max_tokens=-1), 400, "max_tokens"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens"),
    (CHAT, chat(max_tokens=10**9), 400, "max_tokens"),
    (CHAT, chat(max_tokens=10**30), 400, "max_tokens"),
    (CHAT, chat(max_tokens="many"), 400, "max_tokens"),
    (CHAT, chat(max_completion_tokens=10**9), 400, "max_completion_tokens"),
    (CHAT, chat(temperature=-1), 400, "temperature"),
    (CHAT, chat(temperature=NAN), 400, "temperature"),
    (CHAT, chat(temperature=INF), 400, "temperature"),
    (CHAT, chat(temperature="hot"), 400, "temperature"),
    (CHAT, chat(top_p=0), 400, "top_p"),
    (CHAT, chat(top_p=2), 400, "top_p"),
    (CHAT, chat(top_p=NAN), 400, "top_p"),
    (CHAT, chat(top_k=-7), 400, "top_k"),
    (CHAT, chat(min_p=3), 400, "min_p"),
    (CHAT, chat(presence_penalty=9), 400, "presence_penalty"),
    (CHAT, chat(frequency_penalty=NAN), 400, "frequency_penalty"),
    (CHAT, chat(repetition_penalty=0), 400, "repetition_penalty"),
    (CHAT, chat(repetition_penalty=NAN), 400, "repetition_penalty"),
    (CHAT, chat(n=0), 400, "n"),
    (CHAT, chat(n=-1), 400, "n"),
    (CHAT, chat(n=100_000, temperature=1), 400, "n"),
    (CHAT, chat(seed=2**70), 400, "seed"),
    (CHAT, chat(logprobs=True, top_logprobs=1000), 400, None),
    (CHAT, chat(top_logprobs=3), 400, "top_logprobs"),
    (CHAT, chat(prompt_logprobs=1), 400, "prompt_logprobs"),
    (CHAT, chat(logit_bias={"x": 1}), 400, "logit_bias"),
    (CHAT, chat(logit_bias={"99999999": 1}), 400, "logit_bias"),
    (CHAT, chat(logit_bias={"1": NAN}), 400, "logit_bias"),
    (CHAT, chat(stop=7), 400, "stop"),
    (CHAT, chat(stop=["a"] * 10_000), 400, "stop"),
    (CHAT, chat(stop=[""]), 400, "stop"),
    (CHAT, chat(stop_token_ids=[10**9]), 400, "stop_token_ids"),
    (CHAT, chat(min_tokens=5), 400, "min_tokens"),
    (CHAT, chat(min_tokens=-5), 400, "min_tokens"),
    (CHAT, chat(stream="maybe"), 400, "stream"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "stream_options"),
    (CHAT, chat(response_format={"type": "poem"}), 400, "response_format"),
    (CHAT, chat(response_format={"type": "json_schema"}), 400, "response_format"),
    (CHAT, chat(response_format=schema({"type": "nothing"})), 400, "response_format"),
    (CHAT, chat(response_format=schema({"$ref": "#/$defs/missing"})), 400, "response_format"),
    (CHAT, chat(structured_outputs={"regex": "("}), 400, "structured_outputs"),
    (CHAT, chat(structured_outputs={"grammar": "not a grammar"}), 400, "structured_outputs"),
    (CHAT, chat(structured_outputs={"choice": []}), 400, "structured_outputs"),
    (CHAT, chat(structured_outputs={"json": "{"}), 400, "structured_outputs"),
    (CHAT, chat(tools="hammer"), 400, "tools"),
    (CHAT, chat(tools=[{"type": "function"}]), 400, "tools"),
    (CHAT, chat(tools=[tool("a")], tool_choice={"type": "function", "function": {"name": "b"}}), 400, "tool_choice"),
    (CHAT, chat(tool_choice="required"), 400, "tool_choice"),
    (CHAT, chat(chat_template="{{ 1 }}"), 400, "chat_template"),
    (CHAT, chat(add_generation_prompt=True, continue_final_message=True), 400, None),
    (CHAT, chat(truncate_prompt_tokens=-7), 400, "truncate_prompt_tokens"),
    (CHAT, chat(allowed_token_ids=[]), 400, "allowed_token_ids"),
    (CHAT, chat(allowed_token_ids=[10**9]), 400, "allowed_token_ids"),
    (CHAT, chat(bad_words=[""]), 400, "bad_words"),
    (CHAT, chat(cache_salt=""), 400, "cache_salt"),
    (CHAT, chat(priority="high"), 400, "priority"),
    (CHAT, chat(priority=7), 400, "priority"),
    (CHAT, chat(model=EMBEDDING_MODEL), 400, "model"),
    (COMPLETIONS, completion(prompt=""), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[]), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[[]]), 400, "prompt"),
    (COMPLETIONS, completion(prompt=None), 400, "prompt"),
    (COMPLETIONS, completion(prompt=7), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[-1]), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[10**7]), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[10**30]), 400, "prompt"),
    (COMPLETIONS, completion(prompt=[5] * 2000), 400, None),
    (COMPLETIONS, completion(prompt="word " * 3000), 400, None),
    (COMPLETIONS, completion(max_tokens=-1), 400, "max_tokens"),
    (COMPLETIONS, completion(max_tokens=10**9), 400, "max_tokens"),
    (COMPLETIONS, completion(logprobs=1000), 400, "logprobs"),
    (COMPLETIONS, completion(logprobs=-3), 400, "logprobs"),
    (COMPLETIONS, completion(echo=True, logprobs=1), 400, "echo"),
    (COMPLETIONS, completion(prompt_embeds="AAAA"), 400, None),
    (EMBEDDINGS, embedding(input=[]), 400, "input"),
    (EMBEDDINGS, embedding(input=""), 400, "input"),
    (EMBEDDINGS, embedding(input=7), 400, "input"),
    (EMBEDDINGS, embedding(input=[10**7]), 400, "input"),
    (EMBEDDINGS, embedding(input=[-1]), 400, "input"),
    (EMBEDDINGS, embedding(input="word " * 3000), 400, None),
    (EMBEDDINGS, embedding(encoding_format="morse"), 400, "encoding_format"),
    (EMBEDDINGS, embedding(dimensions=7), 400, "dimensions"),
    (EMBEDDINGS, embedding(model=CHAT_MODEL), 400, "model"),
    (EMBEDDINGS, embedding(model="nobody"), 404, "model"),
    ("/tokenize", {"model": CHAT_MODEL}, 400, None),
    ("/tokenize", {"model": "nobody", "prompt": "hi"}, 404, "model"),
    ("/detokenize", {"model": CHAT_MODEL, "tokens": "hi"}, 400, "tokens"),
    ("/detokenize", {"model": CHAT_MODEL, "tokens": [-1]}, 400, "tokens"),
    ("/detokenize", {"model": CHAT_MODEL, "tokens": [10**7]}, 400, "tokens"),
]


def case_id(case: tuple[str, Any, int, str | None]) -> str:
    path, body, *_ = case
    defaults = chat() | completion() | embedding()
    changed = {key: value for key, value in body.items() if defaults.get(key) != value or key not in defaults}
    return f"{path.split('/')[-1]} {json.dumps(changed)[:60]}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_wrong_field_is_named(service: Service, case: tuple[str, Any, int, str | None]) -> None:
    path, body, status, param = case
    content = json.dumps(body)  # with NaN and Infinity, as sloppy clients write them
    response = httpx.post(
        f"{service.url}{path}", content=content, headers={"Content-Type": "application/json"}, timeout=60
    )
    check(response, status, param)


STREAMED = [case for case in CASES if case[0] in {CHAT, COMPLETIONS} and "stream" not in case[1] and case[2] == 400]


@pytest.mark.parametrize("case", STREAMED, ids=case_id)
def test_a_stream_that_cannot_begin_has_the_status_too(
    service: Service, case: tuple[str, Any, int, str | None]
) -> None:
    path, body, status, param = case
    if "stream_options" in body:
        return
    content = json.dumps(body | {"stream": True})
    response = httpx.post(
        f"{service.url}{path}", content=content, headers={"Content-Type": "application/json"}, timeout=60
    )
    check(response, status, param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b'{"model": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"model": ' + b'{"a":' * 5_000,
        b"\x00\x01\x02",
    ],
    ids=lambda content: repr(content[:20]),
)
@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/tokenize"])
def test_what_is_no_json_object(service: Service, path: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    check(httpx.post(f"{service.url}{path}", content=content, headers=headers, timeout=60), 400, None)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb(service: Service, *, chunked: bool) -> None:
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * 50_000_000}])).encode()
    content = iter([body[start : start + 1_000_000] for start in range(0, len(body), 1_000_000)]) if chunked else body
    headers = {"Content-Type": "application/json"}
    check(httpx.post(f"{service.url}{CHAT}", content=content, headers=headers, timeout=120), 413, None)


def test_a_path_and_a_method_that_are_not_there(service: Service) -> None:
    check(httpx.get(f"{service.url}/v1/nothing"), 404, None)
    check(httpx.get(f"{service.url}{CHAT}"), 405, None)
    check(httpx.get(f"{service.url}/v1/models/nobody/at/all"), 404, "model")


def test_the_official_client_raises_what_it_should(client: OpenAI) -> None:
    def caught(kind: type[openai.APIStatusError], **fields: Any) -> Any:
        with pytest.raises(kind) as error:
            client.chat.completions.create(**chat(**fields))
        return error.value.body

    assert caught(openai.NotFoundError, model="nobody")["param"] == "model"
    assert caught(openai.BadRequestError, messages=[])["param"] == "messages"
    assert caught(openai.BadRequestError, max_tokens=-1)["param"] == "max_tokens"
    assert caught(openai.BadRequestError, max_tokens=-1, stream=True)["param"] == "max_tokens"
    assert caught(openai.BadRequestError, response_format=schema({"type": "nothing"}))["param"] == "response_format"
