"""Wrong requests get a 4xx in OpenAI's shape that names the field; nothing dies, and nobody else notices."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from tests.support.bad_requests import (
    BAD_REQUESTS,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    GENERATING,
    ODD_REQUESTS,
    TOKENIZE,
    Bad,
    chat,
    completion,
    embedding,
    schema,
)
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service

JSON = {"Content-Type": "application/json"}
# There are more than a thousand of them.
AT_ONCE = 8
Answers = dict[str, Future[httpx.Response]]
CLIENT = httpx.Client(timeout=120)
LEAKS = re.compile(r"Traceback| at 0x|File \"|site-packages|<path>|(/[\w.-]+){3}|parameter=|\.(py|cc):\d")
# Every third: how a refusal leaves a stream is the same for all.
STREAMABLE = [
    bad for bad in BAD_REQUESTS if bad.path in GENERATING and not {"stream", "stream_options"} & set(bad.body)
][::3]


class Bystander(threading.Thread):
    """Somebody else, who streams from an adapter the whole time: some requests harm only an engine that is busy."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.leaving = threading.Event()
        self.chunks = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self.leaving.is_set():
                self._listen()
        except openai.OpenAIError as error:
            self.failure = error

    def _listen(self) -> None:
        body = chat(model=f"{CHAT_MODEL}:pirate", max_tokens=900)
        # Closed, or it would be made to its end.
        with self._client.chat.completions.create(**body, stream=True, extra_body={"ignore_eos": True}) as stream:
            for _ in stream:
                self.chunks += 1
                if self.leaving.is_set():
                    return


@pytest.fixture(scope="module")
def _nobody_else_notices(service: Service) -> Iterator[None]:
    bystander = Bystander(service.url)
    bystander.start()
    try:
        yield
    finally:
        bystander.leaving.set()
        bystander.join()
    assert bystander.failure is None
    assert bystander.chunks > 0


@pytest.fixture(scope="module", autouse=True)
def _good_requests_work_afterwards(service: Service, engines: list[psutil.Process]) -> Iterator[None]:
    yield
    assert service.processes("EngineCore") == engines
    assert httpx.get(f"{service.url}/health").json()["models"] == {CHAT_MODEL: "awake", EMBEDDING_MODEL: "awake"}
    assert post(service, CHAT, chat()).json()["usage"]["completion_tokens"] == 2
    assert post(service, EMBEDDINGS, embedding()).json()["usage"]["prompt_tokens"] > 0


@pytest.fixture(scope="module")
def engines(service: Service) -> list[psutil.Process]:
    return service.processes("EngineCore")


@pytest.fixture(autouse=True)
def _engines_live_on(engines: list[psutil.Process]) -> Iterator[None]:
    yield
    assert len(engines) == 2
    assert all(engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE for engine in engines)


def post(service: Service, path: str, body: Any) -> httpx.Response:
    # With NaN and Infinity, as sloppy clients write them.
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(f"{service.url}{path}", content=content, headers=JSON)


def under_way(
    request: pytest.FixtureRequest, threads: ThreadPoolExecutor, service: Service, tests: dict[Any, Any]
) -> Answers:
    """Ask what the selected tests ask for, a few at a time; ``tests`` says how path and body follow from a case."""
    asks = {test.__name__: ask for test, ask in tests.items()}
    return {
        item.name: threads.submit(post, service, *asks[item.originalname](**item.callspec.params))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module == request.module and item.originalname in asks
    }


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, service: Service) -> Iterator[Answers]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield under_way(request, threads, service, {test_the_wrong_field_is_named: lambda case: (case.path, case.body)})


def check(response: httpx.Response, status: int, param: str | None = None) -> None:
    body = response.json()
    assert set(body) == {"error"}, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert (response.status_code, error["code"]) == (status, status), error
    assert 0 < len(error["message"]) < 1100, error
    assert error["message"] != "Internal server error"
    assert not LEAKS.search(error["message"]), error
    if param is not None:
        assert re.split(r"[.\[]", error["param"] or "")[0] == param, error


def case_id(case: Bad) -> str:
    usual = chat() | completion() | embedding()
    changed = {key: value for key, value in case.body.items() if key not in usual or usual[key] != value}
    return f"{case.path.split('/')[-1]} {json.dumps(changed)[:60]}"


@pytest.mark.parametrize("case", BAD_REQUESTS, ids=case_id)
def test_the_wrong_field_is_named(request: pytest.FixtureRequest, answers: Answers, case: Bad) -> None:
    check(answers[request.node.name].result(), case.status, case.param)


@pytest.mark.parametrize("case", STREAMABLE, ids=case_id)
def test_a_stream_that_cannot_begin_has_the_status_too(service: Service, case: Bad) -> None:
    # One at a time: headers wait only so long, and then a refusal is an event.
    check(post(service, case.path, case.body | {"stream": True}), case.status, case.param)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'"text"', b"7", b"null", b'{"model": "\xff\xfe"}', b"\x00\x01\x02", b"[" * 100_000,
        b'{"a":' * 5_000, b'{"model": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE])
def test_what_is_no_json_object_is_refused(service: Service, path: str, content: bytes) -> None:
    check(post(service, path, content), 400)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type_is_refused(service: Service, content_type: str) -> None:
    content = json.dumps(chat(max_tokens=1)).encode()
    response = httpx.post(f"{service.url}{CHAT}", content=content, headers={"Content-Type": content_type}, timeout=60)
    check(response, 400)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb_is_too_large(service: Service, *, chunked: bool) -> None:
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * 50_000_000}])).encode()
    content = iter([body[start : start + 1_000_000] for start in range(0, len(body), 1_000_000)]) if chunked else body
    check(httpx.post(f"{service.url}{CHAT}", content=content, headers=JSON, timeout=120), 413)


def test_paths_and_methods_that_are_not_there(service: Service) -> None:
    check(httpx.get(f"{service.url}/v1/nothing"), 404)
    check(httpx.get(f"{service.url}{CHAT}"), 405)
    check(httpx.delete(f"{service.url}/v1/models"), 405)
    for name in ("nobody", "nobody/at/all", "%00", "%ED%A0%80", "x" * 5000):
        check(httpx.get(f"{service.url}/v1/models/{name}"), 404, "model")


def caught(kind: type[openai.APIStatusError], call: Any, body: dict[str, Any]) -> str | None:
    with pytest.raises(kind) as error:
        call(**body)
    assert isinstance(error.value.body, dict)
    return error.value.body["param"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_client_raises_its_own_errors(client: OpenAI, *, stream: bool) -> None:
    ask = client.chat.completions.create
    assert caught(openai.NotFoundError, ask, chat(model="nobody", stream=stream)) == "model"
    for field, value in {
        "messages": [], "max_tokens": -1, "n": 0, "temperature": 5, "logit_bias": {"99999999": 1},
        "response_format": schema({"type": "nothing"}), "tool_choice": "required",
    }.items():  # fmt: skip
        assert caught(openai.BadRequestError, ask, chat(**{field: value}, stream=stream)) == field
    complete = client.completions.create
    assert caught(openai.BadRequestError, complete, completion(prompt=[10**7], stream=stream)) == "prompt"


def test_the_official_client_raises_for_embeddings(client: OpenAI) -> None:
    embed = client.embeddings.create
    assert caught(openai.BadRequestError, embed, embedding(input=[])) == "input"
    assert caught(openai.BadRequestError, embed, embedding(dimensions=7)) == "dimensions"
    assert caught(openai.BadRequestError, embed, embedding(model=CHAT_MODEL)) == "model"


@pytest.fixture(scope="module")
def odd_answers(request: pytest.FixtureRequest, service: Service, _nobody_else_notices: None) -> Iterator[Answers]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield under_way(
            request, threads, service, {test_an_odd_request_is_answered_or_refused: lambda path, body: (path, body)}
        )


@pytest.mark.usefixtures("path", "body")
@pytest.mark.parametrize(("path", "body"), ODD_REQUESTS, ids=lambda value: str(value)[:60])
def test_an_odd_request_is_answered_or_refused(request: pytest.FixtureRequest, odd_answers: Answers) -> None:
    response = odd_answers[request.node.name].result()
    if response.status_code != 200:
        check(response, 400)
