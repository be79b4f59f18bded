"""``flashserve``: the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app import admin_cli, doctor_cli, forecast_cli, monitoring_cli, plan_cli, replay_cli
from app.errors import AppError, ServiceUnreachableError
from app.history_cli import cli as history_cli
from app.key_cli import key_cli
from app.snapshot_cli import cli as snapshot_cli
from app.telling import FAILED, UNREACHABLE, AsJson, tell
from autoscaler.errors import AutoscalerError
from deployments.errors import DeploymentError
from storage.errors import StorageError

cli = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
cli.add_typer(snapshot_cli, name="snapshot")
cli.add_typer(history_cli, name="history")
cli.add_typer(admin_cli.model_cli, name="model")
cli.add_typer(key_cli, name="key")
cli.command()(admin_cli.status)
cli.command()(admin_cli.wake)
cli.command()(admin_cli.sleep)
cli.command()(admin_cli.stop)
cli.command()(admin_cli.migrate)
cli.command()(admin_cli.models)
cli.command()(admin_cli.adapters)
cli.command()(admin_cli.tenants)
cli.command()(admin_cli.tiers)
cli.command(name="doctor")(doctor_cli.run)
cli.command(name="monitoring")(monitoring_cli.run)
cli.command(name="replay")(replay_cli.run)
cli.command(name="forecast")(forecast_cli.run)
cli.command(name="plan")(plan_cli.run)
console = Console()

ConfigFile = Annotated[Path, typer.Argument(help="Serve config file that names app.builder:build_app")]


@cli.command()
def serve(
    config_file: ConfigFile = Path("serve_config.yaml"),
    log_file: Annotated[Path, typer.Option(help="what Ray and the engines print")] = Path(".flashserve/serve.log"),
) -> None:
    """Serve the configured models on this machine until Ctrl-C."""
    from app.launch import check_machine, read_plan, run  # noqa: PLC0415 - keeps --help quick

    plan = read_plan(config_file)
    check_machine(plan)
    with console.status("Checking the configuration …"):
        from app.model_specs import check_models  # noqa: PLC0415 - imports vLLM

        check_models(plan.config)
    raise typer.Exit(run(plan, log_file, console))


@cli.command()
def check(config_file: ConfigFile = Path("serve_config.yaml"), *, as_json: AsJson = False) -> None:
    """Check a config file: keys, values, model and adapter files, engine arguments."""
    from app.launch import read_plan  # noqa: PLC0415
    from app.model_specs import check_models  # noqa: PLC0415 - imports vLLM

    specs = [entry.spec for entry in check_models(read_plan(config_file).config)]
    adapters = {spec.id: [adapter.id for adapter in spec.adapters] for spec in specs}

    def show() -> None:
        for model, names in adapters.items():
            console.print(f"[green]ok[/] {model} ({', '.join(names) or 'no adapters'})", highlight=False)

    tell({"models": [{"id": model, "adapters": names} for model, names in adapters.items()]}, show, as_json=as_json)


def main() -> None:
    """Run the command line; an error of ours is one message on standard error, and a status (``telling``)."""
    try:
        cli()
    except (AppError, AutoscalerError, DeploymentError, StorageError) as error:
        Console(stderr=True).print(f"flashserve: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(UNREACHABLE if isinstance(error, ServiceUnreachableError) else FAILED) from None


if __name__ == "__main__":
    main()
