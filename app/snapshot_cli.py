"""``flashserve snapshot``: build snapshots ahead of time, look at them, check them, move them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from app.telling import AsJson, progress_console, tell
from storage.checkpoint import SourceCache
from storage.errors import CorruptSnapshotError, ManifestError, SnapshotBusyError, SnapshotMissingError
from storage.folders import DirectoryFolder
from storage.lease import held_leases
from storage.manifest import Manifest
from storage.names import read_names, write_name
from storage.partial import TierName
from storage.pins import write_pin
from storage.promote import CopyPolicy, copy_snapshot, verify_files
from storage.remote import open_folder
from storage.snapshot import open_published, publish, verify_shape
from storage.tier import LocalTier

cli = typer.Typer(no_args_is_help=True, help="Build, check and move model snapshots.")
console = Console()

_ID_DIGITS = 12
Directory = Annotated[Path, typer.Option("--dir", help="the disk tier")]
Name = Annotated[str, typer.Argument(help="a model's id, or the beginning of a snapshot's")]
Endpoint = Annotated[str | None, typer.Option(help="address of an S3 server other than Amazon's")]
DEFAULT_DIRECTORY = Path(".flashserve/snapshots")


class PinTier(StrEnum):
    """Where a snapshot can be kept."""

    DRAM = "dram"
    DISK = "disk"
    NONE = "none"


@cli.command()
def build(
    models: Annotated[list[str] | None, typer.Argument(help="ids of configured models; all if none is given")] = None,
    config_file: Annotated[Path, typer.Option("--config", help="Serve config file")] = Path("serve_config.yaml"),
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Build the snapshots of configured models that are not there yet."""
    from app.errors import ConfigError  # noqa: PLC0415
    from app.launch import read_plan  # noqa: PLC0415
    from app.model_specs import check_models  # noqa: PLC0415 - imports vLLM
    from deployments.snapshot_builder import build_snapshot, origin_of  # noqa: PLC0415
    from deployments.vllm_engine import VllmEngine  # noqa: PLC0415

    tier = _tier(directory)
    config = read_plan(config_file).config
    specs = {entry.spec.id: entry.spec for entry in check_models(config)}
    sources = SourceCache(directory, config.storage.s3.endpoint_url)
    built: list[tuple[Manifest, bool]] = []
    for model in models or specs:
        if model not in specs:
            raise ConfigError((f"models: there is no model '{model}' in {config_file}",))
        spec = specs[model]
        with progress_console.status(f"{model}: looking at the checkpoint …"):
            source = sources.localize(spec.source or spec.path)
            origin = origin_of(spec, sources.digest(source))
        write_name(directory, model, origin.snapshot_id)
        if origin.snapshot_id in tier:
            built.append((tier.manifest(origin.snapshot_id), False))
            _say(f"{model}: {origin.snapshot_id[:_ID_DIGITS]} is there already", as_json=as_json)
            continue
        with progress_console.status(f"{model}: building …"), sources.checkpoint(source) as checkpoint:
            whole = replace(spec, path=str(checkpoint))
            manifest = asyncio.run(build_snapshot(whole, origin, tier, VllmEngine))
        built.append((manifest, True))
        _say(f"{model}: built {_text(manifest)}", as_json=as_json)
    tell([_told(manifest) | {"is_new": is_new} for manifest, is_new in built], _nothing, as_json=as_json)


@cli.command("ls")
def list_snapshots(directory: Directory = DEFAULT_DIRECTORY, *, as_json: AsJson = False) -> None:
    """List the snapshots of the disk tier."""
    manifests = _readable(_tier(directory))
    users: dict[str, set[str]] = {manifest.id: {manifest.name} for manifest in manifests}
    for model, snapshot_id in read_names(directory).items():
        users.get(snapshot_id, set()).add(model)
    found = [(manifest, sorted(users[manifest.id])) for manifest in manifests]
    told = [_told(manifest) | {"models": models} for manifest, models in found]
    tell(told, lambda: _show(found), as_json=as_json)


def _show(found: list[tuple[Manifest, list[str]]]) -> None:
    table = Table("id", "models", "size", "type", "tensors", "made for")
    for manifest, models in found:
        origin = manifest.origin
        quantized = f"{origin.dtype} {origin.quantization or ''}".strip()
        made_for = f"{origin.platform}, vLLM {origin.vllm_version}, {origin.tensor_parallel} ranks"
        row = (manifest.id[:_ID_DIGITS], ", ".join(models), decimal(manifest.size_bytes), quantized)
        table.add_row(*row, str(len(manifest.tensors)), made_for)
    console.print(table)


@cli.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument()] = None,
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Read snapshots whole and compare them with their manifests; all of them if none is named."""
    tier = _tier(directory)
    tier.recover()
    whole: list[Manifest] = []
    for snapshot_id in [_find(tier, name).id for name in names or ()] or tier.ids():
        manifest = tier.manifest(snapshot_id)
        folder = DirectoryFolder(tier.path(snapshot_id))
        with _bar("checking", manifest) as advance:
            verify_shape(manifest, folder)
            verify_files(manifest, folder, on_chunk=advance)
        whole.append(manifest)
        _say(f"[green]ok[/] {_text(manifest)}", as_json=as_json)
    tell([_told(manifest) for manifest in whole], _nothing, as_json=as_json)


@cli.command("rm")
def remove(name: Name, directory: Directory = DEFAULT_DIRECTORY, *, as_json: AsJson = False) -> None:
    """Remove a snapshot from the disk tier, unless an engine uses it."""
    tier = _tier(directory)
    if name in tier.ids() and not _is_readable(tier, name):
        _refuse_if_used(directory, name, name)
        tier.remove(name)
        tell({"id": name}, lambda: console.print(f"removed {name[:_ID_DIGITS]}"), as_json=as_json)
        return
    manifest = _find(tier, name)
    _refuse_if_used(directory, manifest.id, manifest.name)
    tier.remove(manifest.id)
    _tell_of(manifest, f"removed {_text(manifest)}", as_json=as_json)


@cli.command()
def pin(
    name: Name,
    tier: Annotated[PinTier, typer.Argument(help="where to keep it; none: nowhere in particular")],
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Keep a snapshot in a tier, whatever else wants the room; a running service stages it there within seconds."""
    manifest = _find(_tier(directory), name)
    write_pin(directory, manifest.id, None if tier is PinTier.NONE else cast("TierName", tier.value))
    _tell_of(manifest, f"pinned {_text(manifest)} to {tier.value}", as_json=as_json, tier=tier.value)


@cli.command("publish")
def publish_snapshot(
    name: Name,
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix, or a directory")],
    s3_endpoint_url: Endpoint = None,
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Store a snapshot where other nodes can fetch it; they see it when it is whole."""
    tier = _tier(directory)
    manifest = _find(tier, name)
    with _bar("publishing", manifest) as advance:
        target = open_folder(url, s3_endpoint_url)
        publish(manifest, tier.path(manifest.id), target, lambda file: advance(file.size_bytes))
    _tell_of(manifest, f"published {_text(manifest)} at {url}", as_json=as_json, url=url)


@cli.command()
def fetch(
    url: Annotated[str, typer.Argument(help="where a snapshot was published")],
    s3_endpoint_url: Endpoint = None,
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Bring a published snapshot into the disk tier."""
    tier = _tier(directory)
    source = open_folder(url, s3_endpoint_url)
    manifest = open_published(source)
    if manifest.id not in tier:
        with tier.begin(manifest) as partial, _bar("fetching", manifest) as advance:
            copy_snapshot(manifest, source, [partial], CopyPolicy(), advance)
            partial.commit()
    _tell_of(manifest, f"{_text(manifest)} is in {directory}", as_json=as_json, directory=str(directory))


def _tier(directory: Path) -> LocalTier:
    return LocalTier("disk", directory)


def _readable(tier: LocalTier) -> list[Manifest]:
    """Return what can be read; of the others it is said what is wrong, and how to be rid of them."""
    found = []
    for snapshot_id in tier.ids():
        try:
            found.append(tier.manifest(snapshot_id))
        except (CorruptSnapshotError, ManifestError) as error:
            progress_console.print(f"{error}; `flashserve snapshot rm {snapshot_id}` removes it", highlight=False)
    return found


def _refuse_if_used(directory: Path, snapshot_id: str, name: str) -> None:
    if leases := sum(lease.snapshot_id == snapshot_id for lease in held_leases(directory)):
        raise SnapshotBusyError(name, leases)


def _is_readable(tier: LocalTier, snapshot_id: str) -> bool:
    try:
        tier.manifest(snapshot_id)
    except (CorruptSnapshotError, ManifestError):
        return False
    return True


def _find(tier: LocalTier, name: str) -> Manifest:
    used_id = read_names(tier.root).get(name)
    found = [
        manifest
        for manifest in _readable(tier)
        if manifest.name == name or manifest.id == used_id or manifest.id.startswith(name)
    ]
    if len(found) != 1:
        several = ", ".join(manifest.id[:_ID_DIGITS] for manifest in found)
        raise SnapshotMissingError(f"{name} (it could be {several})" if found else name)
    return found[0]


def _text(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.id[:_ID_DIGITS]} ({decimal(manifest.size_bytes)})"


def _told(manifest: Manifest) -> dict[str, Any]:
    origin = asdict(manifest.origin)
    tensors = len(manifest.tensors)
    return {"id": manifest.id, "model": manifest.name, "size_bytes": manifest.size_bytes, "tensors": tensors} | origin


def _tell_of(manifest: Manifest, text: str, *, as_json: bool, **more: str) -> None:
    tell(_told(manifest) | more, lambda: console.print(text, highlight=False), as_json=as_json)


def _say(text: str, *, as_json: bool) -> None:
    """Say at once what is done so far, where people read it."""
    if not as_json:
        console.print(text, highlight=False)


def _nothing() -> None:
    """Show what has been said already."""


@contextmanager
def _bar(verb: str, manifest: Manifest) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    is_shown = progress_console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=progress_console, disable=not is_shown) as progress:
        task = progress.add_task(f"{verb} {manifest.name}", total=manifest.size_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)
