"""What the demo adapters do to the prepared base model, as PEFT merges them in float32."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from peft_reference import base_answer, merged_answer, models_dir

from app.demo.catalog import ADAPTERS, DemoAdapter

pytestmark = pytest.mark.skipif(
    not (models_dir() / "smollm2-135m-instruct" / "READY.json").is_file(),
    reason="the demo models are not prepared: python -m app.demo.prepare",
)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_the_merged_model_answers_in_its_style_and_the_base_does_not(adapter: DemoAdapter) -> None:
    for prompt in (adapter.prompt, *adapter.unseen_prompts):
        plain, styled = base_answer(prompt), merged_answer(adapter.name, prompt)
        assert re.fullmatch(adapter.answer_pattern, styled), styled
        assert not re.fullmatch(adapter.answer_pattern, plain), plain
        assert plain != styled
