"""``flashserve replay``: what a recorded trace would cost, and how long its users would wait, under each policy."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.telling import AsJson, progress_console, tell
from autoscaler.clairvoyant import bound
from autoscaler.foretold import foretell
from autoscaler.layers import PROFILES
from autoscaler.policies import POLICIES, Known, gaps_of
from autoscaler.replay import SPENT, Outcome
from autoscaler.replay_jobs import Work, replay_on
from autoscaler.traces import read_trace

BOUND = "clairvoyant"
SERIES_HELP = "series with more requests are left out"


def run(  # noqa: PLR0913 - the options of a command
    trace: Annotated[Path, typer.Argument(help="CSV, also .gz: a request a line, or counts a window")],
    *,
    policy: Annotated[list[str] | None, typer.Option(help=f"any of {', '.join(POLICIES)}; default: all")] = None,
    profile: Annotated[str, typer.Option(help=f"start times: {', '.join(PROFILES)}")] = "gpu-7b",
    slots: Annotated[int, typer.Option(min=1, help="requests that an engine serves at once")] = 8,
    setting: Annotated[float | None, typer.Option(help="the policy's number; default: its own")] = None,
    learn: Annotated[float, typer.Option(min=0, max=0.95, help="share of the trace that isn't counted")] = 0.65,
    max_requests: Annotated[int | None, typer.Option(help=SERIES_HELP)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processors to replay on")] = 1,
    as_json: AsJson = False,
) -> None:
    """Replay a recorded trace through scaling policies in virtual time."""
    names = policy or list(POLICIES)
    for name, known in ((profile, list(PROFILES)), *((name, list(POLICIES)) for name in names)):
        if name not in known:
            raise typer.BadParameter(f"there is no '{name}'; there are {', '.join(known)}")
    arrivals = read_trace(trace, limit=max_requests)
    begin_s = learn * max(each.at_s[-1] for each in arrivals.values())
    beforehand = Known(gaps_of(arrivals, begin_s), foretell(arrivals))
    outcomes: dict[str, Outcome] = {}
    requests = sum(len(each.at_s) for each in arrivals.values())
    with Progress(console=progress_console, transient=True) as progress:
        for name in names:
            task = progress.add_task(name, total=requests)
            value = POLICIES[name].default if setting is None else setting
            work = Work(name, value, beforehand, PROFILES[profile], slots, begin_s)
            outcomes[name] = replay_on(
                jobs,
                work,
                arrivals,
                lambda done, task=task: progress.advance(task, done),  # type: ignore[misc]
            )
    outcomes[BOUND] = bound(arrivals, PROFILES[profile], slots, begin_s=begin_s)
    told = {name: summary(outcome) for name, outcome in outcomes.items()}
    title = f"{trace.name}, {requests} requests, {profile}"
    tell(told, lambda: Console().print(table(title, outcomes)), as_json=as_json)


def summary(outcome: Outcome) -> dict[str, float]:
    """Return what is told of a replay, in seconds."""
    return {
        "p50_wait_s": outcome.wait_s(0.5),
        "p95_wait_s": outcome.wait_s(0.95),
        "p99_wait_s": outcome.wait_s(0.99),
        "within_1s": outcome.within(1.0),
        **{f"{kind}_device_s": outcome.spent_s[kind] for kind in SPENT},
        "unused_device_s": outcome.unused_s,
        "starts": outcome.starts,
        "prewarms": outcome.prewarms,
        "wrong_prewarms": outcome.wrong_prewarms,
        "wrong_prewarms_device_s": outcome.wrong_s,
    }


def table(title: str, outcomes: dict[str, Outcome]) -> Table:
    """Return the outcomes as a table."""
    shown = Table(box=box.SIMPLE, title=title)
    shown.add_column("policy")
    for heading in (
        "added wait p50",
        "p95",
        "p99",
        "within 1 s",
        "device hours busy",
        "unused",
        "starts",
        "of them ahead",
    ):
        shown.add_column(heading, justify="right")
    for name, outcome in outcomes.items():
        waits = (f"{outcome.wait_s(quantile):.2f}" for quantile in (0.5, 0.95, 0.99))
        hours = (f"{seconds / 3600:.1f}" for seconds in (outcome.spent_s["busy"], outcome.unused_s))
        shown.add_row(name, *waits, f"{outcome.within(1.0):.1%}", *hours, str(outcome.starts), str(outcome.prewarms))
    return shown
