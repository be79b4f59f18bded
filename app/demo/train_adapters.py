"""Trains the demo adapters with PEFT on a CPU: ``python -m app.demo.train_adapters [NAME…]``.

The results are part of the package, so this runs only when the pairs or the recipe change. With one thread the
same versions give the same bytes.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo.catalog import ADAPTERS, DEFAULT_MODELS_DIR, DemoAdapter
from app.demo.training_pairs import EXAMPLES

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
_EPOCHS = 6
_BATCH = 8
_PEAK_LEARNING_RATE = 2e-3
_SEED = 7
_IGNORED = -100  # what torch's cross entropy leaves out


class TrainingReport(NamedTuple):
    """The mean loss of the first and the last epoch, and the duration in seconds."""

    first_loss: float
    last_loss: float
    duration_s: float


class _Sample(NamedTuple):
    ids: list[int]
    labels: list[int]


def train_adapter(adapter: DemoAdapter, models_dir: Path) -> TrainingReport:
    """Train ``adapter`` on its prepared base model in ``models_dir`` and write it into the package.

    Raises:
        OSError: The base model is not prepared.
    """
    started_s = time.monotonic()
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)
    base_dir = models_dir / adapter.base_model
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=2 * adapter.rank,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
        base_model_name_or_path=adapter.base_model,
    )
    network = get_peft_model(base, config)
    losses = _run_epochs(network, [_sample(tokenizer, *pair) for pair in _pairs(adapter.name)])
    _write(network, config, adapter)
    return TrainingReport(losses[0], losses[-1], time.monotonic() - started_s)


def _pairs(name: str) -> list[tuple[str, str]]:
    return [(row.question, row.as_json if name == "json" else row.pirate) for row in EXAMPLES]


def _sample(tokenizer: Any, question: str, answer: str) -> _Sample:
    """Token ids of one turn; only those of the answer and its end count in the loss."""
    turn = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(text, add_special_tokens=False)
    answer_ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return _Sample(prompt_ids + answer_ids, [_IGNORED] * len(prompt_ids) + answer_ids)


def _run_epochs(network: Any, samples: list[_Sample]) -> list[float]:
    """Train in place and return the mean loss of every epoch."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_PEAK_LEARNING_RATE, weight_decay=0.0)
    steps = _EPOCHS * -(-len(samples) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    network.train()
    epoch_losses = []
    for epoch in range(_EPOCHS):
        losses = []
        for batch in _batches(samples, epoch):
            loss = network(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        epoch_losses.append(sum(losses) / len(losses))
    return epoch_losses


def _batches(samples: list[_Sample], epoch: int) -> Iterator[dict[str, Any]]:
    order = random.Random(_SEED + epoch).sample(samples, len(samples))  # noqa: S311 - a fixed shuffle
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        length = max(len(row.ids) for row in rows)
        yield {
            "input_ids": torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows]),
            "labels": torch.tensor([row.labels + [_IGNORED] * (length - len(row.ids)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows]),
        }


def _write(network: Any, config: LoraConfig, adapter: DemoAdapter) -> None:
    """Write PEFT's layout by hand: its own writer adds a model card and the path of the base model."""
    adapter.path.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(network)
    half = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in sorted(weights.items())}
    weights_path = adapter.path / "adapter_model.safetensors"
    save_file(half, weights_path, metadata={"format": "pt"})
    weights_path.chmod(0o644)  # safetensors lets only the owner read
    content = config.to_dict() | {
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "target_modules": list(TARGET_MODULES),
    }
    text = json.dumps(content, indent=2, sort_keys=True, default=str)
    (adapter.path / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Adapters to train; all by default.")] = None,
    models_dir: Annotated[Path, typer.Option(help="Where the prepared models are.")] = DEFAULT_MODELS_DIR,
) -> None:
    """Train the demo adapters and write them into the package."""
    console = Console()
    for name in names or list(ADAPTERS):
        report = train_adapter(ADAPTERS[name], models_dir)
        console.print(
            f"{name}: loss {report.first_loss:.3f} in the first epoch, {report.last_loss:.3f} in the last, "
            f"{report.duration_s:.0f} s"
        )


if __name__ == "__main__":
    typer.run(main)
