"""OpenAI's API as the official client sees it, over real engines."""

import json
import math
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, **({"temperature": 0} | options))


def test_chat_answers(client: OpenAI) -> None:
    answer = ask(client, max_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client: OpenAI) -> None:
    whole = ask(client, max_tokens=20)
    chunks = list(ask(client, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_max_tokens_cuts(client: OpenAI) -> None:
    answer = ask(client, max_tokens=3)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_n_gives_different_choices_with_a_seed_each_time_the_same(client: OpenAI) -> None:
    texts = [
        [choice.message.content for choice in ask(client, n=3, seed=5, temperature=1.0, max_tokens=12).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_n_streams_every_choice(client: OpenAI) -> None:
    options = {"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    pieces = {0: "", 1: "", 2: ""}
    for chunk in ask(client, stream=True, **options):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert list(pieces.values()) == [choice.message.content for choice in ask(client, **options).choices]


def test_stop_ends_before_the_string(client: OpenAI) -> None:
    answer = ask(client, max_tokens=30, stop=["Paris"])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.strip() == "The capital of France is"


def test_logprobs_put_the_chosen_token_first_and_sum_to_less_than_one(client: OpenAI) -> None:
    answer = ask(client, max_tokens=5, logprobs=True, top_logprobs=3)
    for position in answer.choices[0].logprobs.content:
        assert position.top_logprobs[0].token == position.token
        assert len(position.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in position.top_logprobs) <= 1.0 + 1e-5


def test_logprobs_of_a_token_that_was_not_the_best(client: OpenAI) -> None:
    answer = ask(client, max_tokens=30, logprobs=True, top_logprobs=2, temperature=1.5, seed=3)
    # vLLM puts the chosen token first, then the best by rank.
    positions = answer.choices[0].logprobs.content
    pairs = [position.top_logprobs for position in positions]
    unlikely = [(own, best) for own, best in pairs if own.logprob < best.logprob]
    assert unlikely, "at this temperature some token is not the best one"
    assert all(own.token == position.token for (own, _), position in zip(pairs, positions, strict=True))


def test_logit_bias_forces_a_token(client: OpenAI, service: Service) -> None:
    body = {"model": CHAT_MODEL, "prompt": " Berlin", "add_special_tokens": False}
    (token_id,) = httpx.post(f"{service.url}/tokenize", json=body).json()["tokens"]
    answer = ask(client, max_tokens=2, logit_bias={str(token_id): 100})
    assert answer.choices[0].message.content == " Berlin Berlin"


def test_json_schema_is_kept(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    value = json.loads(ask(client, max_tokens=80, response_format=response_format).choices[0].message.content)
    assert set(value) == {"city", "people"}
    assert isinstance(value["people"], int)


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = ask(client, max_tokens=60, tools=[tool], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_completions_and_echo(client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT_MODEL, prompt="Once upon a", max_tokens=4, temperature=0, echo=True)
    assert answer.choices[0].text.startswith("Once upon a")
    assert answer.usage.completion_tokens == 4


def test_completions_of_several_prompts(client: OpenAI) -> None:
    prompts = ["The sky is", "Two and two make"]
    together = client.completions.create(model=CHAT_MODEL, prompt=prompts, max_tokens=6, temperature=0)
    alone = [client.completions.create(model=CHAT_MODEL, prompt=p, max_tokens=6, temperature=0) for p in prompts]
    assert [c.text for c in together.choices] == [answer.choices[0].text for answer in alone]


def test_embeddings_know_what_is_alike(client: OpenAI) -> None:
    texts = ["a cat sits", "a kitten is sitting", "stock markets fell"]
    answer = client.embeddings.create(model=EMBEDDING_MODEL, input=texts, encoding_format="float")
    cat, kitten, stocks = (item.embedding for item in answer.data)
    assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > 0.7
    assert sum(a * b for a, b in zip(cat, stocks, strict=True)) < 0.2
    assert answer.usage.prompt_tokens > 0


def test_tokenize_and_back(service: Service) -> None:
    body = {"model": CHAT_MODEL, "prompt": "Hello, wörld"}
    tokens = httpx.post(f"{service.url}/tokenize", json=body).json()["tokens"]
    back = httpx.post(f"{service.url}/detokenize", json={"model": CHAT_MODEL, "tokens": tokens}).json()
    assert back["prompt"] == "Hello, wörld"


def test_models_are_listed_and_found(client: OpenAI) -> None:
    cards = {card.id: card for card in client.models.list().data}
    assert {CHAT_MODEL, EMBEDDING_MODEL} <= set(cards)
    assert cards[CHAT_MODEL].max_model_len == 1024
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.body["param"] == "model"


def test_health_names_every_model(service: Service) -> None:
    response = httpx.get(f"{service.url}/health")
    assert response.status_code == 200
    assert response.json()["models"] == {CHAT_MODEL: "awake", EMBEDDING_MODEL: "awake"}
