"""The demo adapters, served by vLLM, answer as PEFT's merged model does in float32."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from app.demo.catalog import ADAPTERS, FIXED_PROMPT, DemoAdapter
from tests.support.peft_reference import base_answer, merged_answer
from tests.support.service import CHAT_MODEL

MAX_TOKENS = 48


def served_answer(client: OpenAI, model: str, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=MAX_TOKENS, temperature=0)
    return answer.choices[0].message.content


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_the_merged_model_answers_in_its_style_and_the_base_does_not(adapter: DemoAdapter) -> None:
    for prompt in (adapter.prompt, *adapter.unseen_prompts):
        plain, styled = base_answer(prompt, MAX_TOKENS), merged_answer(adapter.name, prompt, MAX_TOKENS)
        assert re.fullmatch(adapter.answer_pattern, styled), styled
        assert not re.fullmatch(adapter.answer_pattern, plain), plain


def test_adapters_and_base_in_one_batch_answer_as_merged(client: OpenAI) -> None:
    prompts = (FIXED_PROMPT, *next(iter(ADAPTERS.values())).unseen_prompts)
    asked = [(model, prompt) for prompt in prompts for model in (CHAT_MODEL, *ADAPTERS)]
    with ThreadPoolExecutor(len(asked)) as pool:
        served = list(pool.map(lambda pair: served_answer(client, *pair), asked))
    expected = [
        base_answer(prompt, MAX_TOKENS) if model == CHAT_MODEL else merged_answer(model, prompt, MAX_TOKENS)
        for model, prompt in asked
    ]
    assert dict(zip(asked, served, strict=True)) == dict(zip(asked, expected, strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_has_a_short_and_a_full_name(client: OpenAI, name: str) -> None:
    assert served_answer(client, name, FIXED_PROMPT) == served_answer(client, f"{CHAT_MODEL}:{name}", FIXED_PROMPT)


def test_adapters_are_listed_with_their_model(client: OpenAI) -> None:
    cards = {card.id: card for card in client.models.list().data}
    assert {name: cards[name].parent for name in ADAPTERS} == dict.fromkeys(ADAPTERS, CHAT_MODEL)
    assert client.models.retrieve(f"{CHAT_MODEL}:pirate").id == "pirate"
