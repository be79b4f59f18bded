"""Measures FlashServe's throughput and latency beside stock vLLM's and Ray Serve LLM's.

Each round measures every server once at 16 and once at 1 concurrent request with the same prompts, new ones each round
(the prefix caches are on), in an order that rotates; the rounds are compared in pairs. The targets are in
`throughput_samples.COMPARISONS`; missing one is a result, not a failure: the exit code only says whether it could be
measured.

Usage: python tests/bench/throughput.py [--pairs 9] [--model DIR] [--only stock,ray] [--quick]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadgen import Load, LoadError, LoadGenerator
from process_tree import cpu_between, freeze, idle_cores, read_cpu
from report import RESULTS_DIR, make_report, print_report, wide_console, write_report
from rich.console import Console
from servers import DEFAULT_MODEL_DIR, SETTLE_S, Server, ServerError, started
from throughput_plot import plot
from throughput_samples import BATCH, FLASHSERVE, SINGLE, STOCK, TITLES, Sample, summarize

NAME = "throughput"
LOADS = (Load(concurrency=BATCH, prompts=48), Load(concurrency=SINGLE, prompts=8))
QUICK_LOADS = (Load(concurrency=BATCH, prompts=16), Load(concurrency=SINGLE, prompts=2))
WARM_UP_RUNS = 2
IDLE_PERIOD_S = 10


@dataclass
class Bench:
    """The servers that are up, and what was measured on them."""

    model_dir: Path
    loads: tuple[Load, ...]
    generator: LoadGenerator
    console: Console
    servers: list[Server] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    worker_titles: dict[str, str] = field(default_factory=dict)

    def warm_up(self) -> None:
        """Runs that are not counted: the first ones after a start are much slower."""
        for server in list(self.servers):
            with self.left_out_if_failing(server), server.running():
                for run in range(WARM_UP_RUNS):
                    self.console.print(f"warm-up {run + 1} of {WARM_UP_RUNS}: {TITLES[server.name]}")
                    for load in self.loads:
                        # Seeds apart from the rounds', else these prompts would be in the prefix cache.
                        self.generator.run(server.base_url, server.model_id, self.model_dir, load, 1_000_000 + run)
                time.sleep(SETTLE_S)
                cores = idle_cores(server.supervisor_pid, IDLE_PERIOD_S)
                self.notes.append(
                    f"{TITLES[server.name]} uses {cores:.2f} cores while idle; stopped while another ran."
                )

    def measure(self, rounds: int) -> None:
        """All rounds, with the time that is left."""
        started_s = time.monotonic()
        turns = list(rotated_turns(self.servers, rounds))
        for done, (round_index, server) in enumerate(turns):
            if server not in self.servers:
                continue
            each_s = (time.monotonic() - started_s) / done if done else None
            left = f"about {each_s * (len(turns) - done) / 60:.1f} min left" if each_s else "time left not known yet"
            self.console.print(f"round {round_index + 1} of {rounds}: {TITLES[server.name]}, {left}")
            with self.left_out_if_failing(server), server.running():
                self.samples += [self.measure_once(server, load, round_index) for load in self.loads]

    @contextmanager
    def left_out_if_failing(self, server: Server) -> Iterator[None]:
        """A server that fails a run loses its rows, and the report says so; without stock vLLM nothing is left."""
        try:
            yield
        except LoadError as error:
            if server.name == STOCK:
                raise
            self.console.print(f"{TITLES[server.name]}: {error}", markup=False, style="yellow")
            self.servers.remove(server)
            self.samples = [sample for sample in self.samples if sample.server != server.name]
            self.notes.append(f"{TITLES[server.name]} is left out: {error}")

    def measure_once(self, server: Server, load: Load, round_index: int) -> Sample:
        """One run of the load generator, with the processor time it cost the server."""
        before = read_cpu(server.supervisor_pid)
        result = self.generator.run(server.base_url, server.model_id, self.model_dir, load, seed=round_index)
        cpu = cpu_between(before, read_cpu(server.supervisor_pid))
        self.worker_titles[server.name] = cpu.worker_title
        return Sample(
            round_index=round_index,
            server=server.name,
            concurrency=load.concurrency,
            output_tokens_per_s=result.output_tokens_per_s,
            ttft_ms=result.ttft_ms,
            tpot_ms=result.tpot_ms,
            outside_worker_cpu_ms_per_token=1000 * cpu.outside_worker_s / result.output_tokens,
            serving_cpu_ms_per_token=1000 * cpu.serving_s / result.output_tokens,
        )


def rotated_turns(servers: list[Server], rounds: int) -> Iterator[tuple[int, Server]]:
    """Each server once a round; each round starts with the next one."""
    for round_index in range(rounds):
        shift = round_index % len(servers)
        for server in servers[shift:] + servers[:shift]:
            yield round_index, server


def start_servers(bench: Bench, names: list[str], work_dir: Path, stack: ExitStack) -> None:
    """Starts one after another, each alone on the machine; only stock vLLM is indispensable."""
    for name in names:
        bench.console.print(f"starting {TITLES[name]}")
        try:
            server = stack.enter_context(started(name, bench.model_dir, work_dir))
        except ServerError as error:
            if name == STOCK:
                raise
            bench.console.print(str(error), markup=False, style="yellow")
            bench.notes.append(f"{TITLES[name]} is left out: {error.reason}")
        else:
            freeze(server.supervisor_pid)
            bench.servers.append(server)


def finish(bench: Bench) -> None:
    """Writes the result file and the picture, prints the table."""
    for name, title in bench.worker_titles.items():
        bench.notes.append(f'{TITLES[name]}: processes titled "{title}…" are taken as the worker.')
    report = make_report(NAME, summarize(bench.samples), bench.notes)
    machine = report.machine
    caption = f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu']}, commit {report.commit}"
    picture = RESULTS_DIR / f"{NAME}.png"
    plot(bench.samples, caption, picture)
    path = write_report(report)
    print_report(report, bench.console)
    bench.console.print(f"Written: {path}, {picture}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Throughput beside stock vLLM and Ray Serve LLM.")
    parser.add_argument("--pairs", type=int, default=9, help="rounds, each measuring every server (default 9)")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL_DIR, help="directory of the model")
    parser.add_argument("--only", default=",".join(TITLES), help=f"servers to measure, of {','.join(TITLES)}")
    parser.add_argument("--quick", action="store_true", help="a third of the prompts: a smoke test, not a measurement")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - TITLES.keys():
        parser.error(f"unknown servers: {', '.join(sorted(unknown))}")
    if STOCK not in arguments.only:
        parser.error(f"without {STOCK} there is nothing to compare with")
    if not (arguments.model / "config.json").exists():
        parser.error(f"there is no model in {arguments.model}")
    return arguments


def main() -> int:
    """Returns the exit code: 1 if it could not measure stock vLLM, or FlashServe where it should."""
    arguments, console = parse_arguments(), wide_console()
    loads = QUICK_LOADS if arguments.quick else LOADS
    with ExitStack() as stack:
        work_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True)))
        bench = Bench(arguments.model.resolve(), loads, stack.enter_context(LoadGenerator(work_dir)), console)
        try:
            start_servers(bench, arguments.only, work_dir, stack)
            bench.warm_up()
            bench.measure(arguments.pairs)
        except (ServerError, LoadError) as error:
            console.print(f"Could not measure: {error}", markup=False, style="red")
            return 1
        finish(bench)
    measured = {server.name for server in bench.servers}
    return 1 if FLASHSERVE in arguments.only and FLASHSERVE not in measured else 0


if __name__ == "__main__":
    sys.exit(main())
