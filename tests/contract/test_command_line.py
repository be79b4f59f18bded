"""Every command of `flashserve`, found by walking it: each that tells something tells it as JSON too, and nothing else.

Those that ask a service ask a whole gateway of this process, with engines that need no model.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from typer.main import get_command
from typer.testing import CliRunner, Result

from app import forecast_cli, plan_cli
from app.cli import cli, main
from app.errors import AppError
from autoscaler.errors import AutoscalerError
from autoscaler.history import History, history_file
from autoscaler.types import Count
from deployments.errors import DeploymentError
from storage.errors import StorageError
from tests.support.gateway_with_tenants import SHARED, gateway_with_tenants, keys_file
from tests.support.gateways import InProcess
from tests.support.ray_head import free_port
from tests.support.service import serve_config
from tests.support.snapshot_samples import make_snapshot
from tests.support.tenants import KeysFile

pytestmark = pytest.mark.asyncio(loop_scope="module")
# Tells nothing: it runs until Ctrl-C.
SILENT = {"serve"}
TRACE = Path(__file__).parents[1] / "data" / "traces" / "servegen_clients.csv.gz"
PLAN = {
    "age_s": 1.0, "nodes_ahead": [], "problems": {}, "pools": {"default": {"step_s": 10.0, "need": [1, 1]}},
    "models": {
        "m": {
            "engines": {"r": "awake"}, "measured": 1, "floor": 1, "reason": "asked for each minute", "awake_in_s": 0.0,
            "awake_for_s": 9.0, "rate_per_s": 0.25, "expected_per_s": None, "forecast": None,
        }
    },
}  # fmt: skip


def commands(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(found, "commands"):
        for name, each in found.commands.items():
            yield from commands(each, (*path, name))
    else:
        yield " ".join(path), found


COMMANDS = dict(commands(get_command(cli)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysFile]:
    with keys_file(tmp_path_factory.mktemp("keys")) as written:
        yield written


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(file: KeysFile, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    async with gateway_with_tenants(tmp_path_factory.mktemp("gateway"), file) as running:
        yield running


@pytest.fixture
def url(service: InProcess, file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FLASHSERVE_API_KEY", file.keys["root"])
    monkeypatch.setattr(plan_cli, "get", lambda _url, _path: PLAN)
    monkeypatch.setattr(forecast_cli, "get", lambda _url, _path: PLAN)
    return f"http://127.0.0.1:{service.port}"


@pytest.fixture
def tier(tmp_path: Path) -> Path:
    manifest = make_snapshot(tmp_path / "made", 7)
    (tmp_path / "tier").mkdir()
    (tmp_path / "made").rename(tmp_path / "tier" / manifest.id)
    with History(history_file(tmp_path / "tier")) as history:
        history.push([Count("old", 1000.0, 1, 1)], 1000.0)
    (tmp_path / "log.csv").write_text("timestamp,model\n1700000000,m\n")
    config = serve_config(free_port(), {"models": [{"id": "m", "source": str(tmp_path)}]})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "tier"


async def told(arguments: list[str]) -> Result:
    # Beside the gateway, which answers in this event loop.
    return await asyncio.to_thread(CliRunner().invoke, cli, arguments)


# What is typed for each, and what its JSON is asked for; a command that has to fail says how.
ASKED: dict[str, Callable[[str, Path], list[str]]] = {
    "status": lambda url, _: ["--url", url],
    "models": lambda url, _: ["--url", url],
    "adapters": lambda url, _: ["--url", url],
    "tenants": lambda url, _: ["--url", url],
    "tiers": lambda url, _: ["--url", url],
    "forecast": lambda url, _: ["--url", url],
    "plan": lambda url, _: ["--url", url],
    "sleep": lambda url, _: [SHARED, "--url", url],
    "wake": lambda url, _: [SHARED, "--url", url],
    "stop": lambda url, _: [SHARED, "--url", url],
    "migrate": lambda url, _: [SHARED, "--url", url],
    "snapshot ls": lambda _, tier: ["--dir", str(tier)],
    "snapshot verify": lambda _, tier: ["--dir", str(tier)],
    "snapshot pin": lambda _, tier: ["model-7", "disk", "--dir", str(tier)],
    "snapshot publish": lambda _, tier: ["model-7", str(tier.parent / "shelf"), "--dir", str(tier)],
    "snapshot rm": lambda _, tier: ["model-7", "--dir", str(tier)],
    "history import": lambda _, tier: [str(tier.parent / "log.csv"), "--dir", str(tier)],
    "history rename": lambda _, tier: ["old", "new", "--dir", str(tier)],
    "key new": lambda _url, _tier: ["acme"],
    "monitoring": lambda _, tier: [str(tier.parent / "monitoring")],
    "replay": lambda _url, _tier: [str(TRACE), "--policy", "keep-alive", "--max-requests", "2000"],
}
# What each of these refuses here, which none of them tells as an answer.
REFUSED: dict[str, Callable[[str, Path], list[str]]] = {
    "check": lambda _, tier: [str(tier.parent / "nowhere.yaml")],
    "doctor": lambda _, tier: [str(tier.parent / "config.yaml")],
    "model add": lambda url, tier: [str(tier.parent / "config.yaml"), "--url", url],
    "model rm": lambda url, _: ["nobody", "--url", url],
    "snapshot build": lambda _, tier: ["other", "--config", str(tier.parent / "config.yaml"), "--dir", str(tier)],
    "snapshot fetch": lambda _, tier: [str(tier / "nowhere"), "--dir", str(tier)],
}


async def test_every_command_is_asked_here() -> None:
    assert COMMANDS.keys() == ASKED.keys() | REFUSED.keys() | SILENT


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - SILENT))
async def test_every_command_that_tells_something_tells_it_as_json(command: str) -> None:
    options = {option for each in COMMANDS[command].params for option in each.opts}
    assert "--json" in options
    assert COMMANDS[command].help


@pytest.mark.parametrize("command", sorted(ASKED))
async def test_json_is_all_that_is_on_standard_output(command: str, url: str, tier: Path) -> None:
    arguments = [*command.split(), *ASKED[command](url, tier)]
    result = await told([*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found
    if command not in {"snapshot rm", "history rename"}:
        # Which are gone by now.
        shown = await told(arguments)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.strip()
        with pytest.raises(ValueError, match=r"Expecting|Extra"):
            json.loads(shown.stdout)


@pytest.mark.parametrize("command", sorted(REFUSED))
async def test_a_failure_is_a_status_and_no_answer(command: str, url: str, tier: Path) -> None:
    result = await told([*command.split(), *REFUSED[command](url, tier), "--json"])
    if command == "doctor":
        assert result.exit_code == 1
        assert any(finding["level"] == "broken" for finding in json.loads(result.stdout))
        return
    assert isinstance(result.exception, AppError | AutoscalerError | DeploymentError | StorageError)
    assert result.stdout == ""


async def test_statuses(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def status(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["flashserve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    nobody = f"http://127.0.0.1:{free_port()}"
    asked: list[tuple[int, Any]] = [
        (0, ("status", "--url", url)), (1, ("wake", "nobody", "--url", url)), (2, ("wake",)),
        (3, ("status", "--url", nobody)), (3, ("status", "--url", nobody, "--json")),
    ]  # fmt: skip
    for expected, arguments in asked:
        assert await asyncio.to_thread(status, *arguments) == expected, arguments
    assert "No FlashServe answers at" in capsys.readouterr().err


async def test_what_models_and_the_plan_show(url: str) -> None:
    shown = (await told(["models", "--url", url])).stdout
    assert any("pirate" in line and SHARED in line for line in shown.splitlines())
    assert "1024 tokens" in shown
    assert "asked for each minute" in (await told(["plan", "--url", url])).stdout
