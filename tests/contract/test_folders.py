"""Every kind of folder does the same: directories, S3 over its protocol, the hub over its API, peers."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import serve_hub
from peers import Town
from s3_server import serve_s3
from snapshot_samples import origin

from storage.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
    SourceError,
)
from storage.exchange import Exchange, Shelves
from storage.folders import DirectoryFolder, Folder, read_into, read_whole
from storage.hub import HubFolder
from storage.manifest import Manifest
from storage.peer_folder import PeerFolder, PeerPolicy
from storage.remote import open_folder
from storage.s3 import S3Folder
from storage.snapshot import describe_file

FILES = {"config.json": b"{}", "a/model.safetensors": bytes(range(256)) * 40, "empty.txt": b""} | {
    f"part-{number}.txt": bytes([number]) for number in range(12)
}


@dataclass
class Place:
    """A folder with ``FILES``, an empty one beside it, and a way to replace a file, or to break the next read."""

    folder: Folder
    nothing: Folder
    replace: Callable[[str, bytes], None]
    break_next: Callable[[int | str], None] | None = None


@contextmanager
def directory_place(tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "model"
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    def replace(path: str, content: bytes) -> None:
        (root / "new").write_bytes(content)
        (root / "new").rename(root / path)

    yield Place(DirectoryFolder(root), DirectoryFolder(tmp_path / "nothing"), replace)


@contextmanager
def s3_place(_: Path) -> Iterator[Place]:
    with serve_s3() as server:
        server.objects = {f"models/some/model/{path}": content for path, content in FILES.items()}
        server.objects["models/some/model-2/other"] = b"of another model"
        yield Place(
            S3Folder("s3://models/some/model", server.url),
            S3Folder("s3://models/some/nothing", server.url),
            lambda path, content: server.objects.update({f"models/some/model/{path}": content}),
            server.faults.append,
        )


@contextmanager
def hub_place(_: Path) -> Iterator[Place]:
    with serve_hub() as server:
        commit = server.commit("some/model", FILES)
        yield Place(
            HubFolder("hf://some/model", server.url),
            HubFolder("hf://some/nothing@main", server.url),
            lambda path, content: server.repositories["some/model"][commit].update({path: content}),
            server.faults.append,
        )


@contextmanager
def peers_place(tmp_path: Path) -> Iterator[Place]:
    """Two peers have it whole, nothing else has."""
    roots = [tmp_path / "peer-1" / "model", tmp_path / "peer-2" / "model"]
    for root in roots:
        for path, content in FILES.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    directory = DirectoryFolder(roots[0])
    entries = tuple(describe_file(directory, info) for info in directory.list_files())
    manifest = Manifest("model", origin(), entries, ())
    town = Town()
    with running_loop() as run:

        async def opened() -> PeerFolder:
            for root in roots:
                shelves = Shelves(lambda _: manifest, lambda _, root=root: [root], lambda _: [])  # type: ignore[misc]
                name = root.parent.name
                town.exchanges[name] = Exchange(town.of(name), shelves)
            folder = PeerFolder(manifest, town.of("me"), None, PeerPolicy(block_bytes=4000))
            await folder.meet()
            return folder

        folder = run(opened())

        def replace(path: str, content: bytes) -> None:
            # Bytes are what counts, not files: of a longer one the beginning would be as it should.
            for root in roots:
                (root / path).write_bytes(content[::-1])

        yield Place(folder, DirectoryFolder(tmp_path / "nothing"), replace)
        run(folder.close())


@contextmanager
def running_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread of its own, by what runs something in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "x"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=[directory_place, s3_place, hub_place, peers_place], ids=["directory", "s3", "hub", "peers"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(tmp_path) as made:
        yield made


@pytest.fixture(params=[directory_place, s3_place, hub_place], ids=["directory", "s3", "hub"])
def searched_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Not peers: their folder is made when it is known that they have something."""
    with request.param(tmp_path) as made:
        yield made


@pytest.fixture(params=[s3_place, hub_place], ids=["s3", "hub"])
def far_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(tmp_path) as made:
        yield made


def test_it_lists_every_file_with_its_size(place: Place) -> None:
    files = place.folder.list_files()
    assert [(file.path, file.size_bytes) for file in files] == sorted((path, len(FILES[path])) for path in FILES)


def test_it_reads_whole_files_and_ranges(place: Place) -> None:
    files = {file.path: file for file in place.folder.list_files()}
    assert {path: read_whole(place.folder, file) for path, file in files.items()} == FILES
    out = bytearray(1000)
    read_into(place.folder, files["a/model.safetensors"], 4711, memoryview(out))
    assert out == FILES["a/model.safetensors"][4711:5711]


def test_a_replaced_file_is_noticed(place: Place) -> None:
    file = next(file for file in place.folder.list_files() if file.path == "a/model.safetensors")
    place.replace(file.path, FILES[file.path] + b"more")
    with pytest.raises(RemoteChangedError, match=r"a/model\.safetensors"):
        read_into(place.folder, file, 0, memoryview(bytearray(10)))


def test_where_nothing_is_nothing_is_listed(searched_place: Place) -> None:
    with pytest.raises(RemoteMissingError, match="nothing"):
        searched_place.nothing.list_files()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(403, RemoteDeniedError), (404, RemoteMissingError), (500, RemoteError), (503, RemoteError), ("cut", RemoteError)],
)
def test_what_goes_wrong_is_told_apart(far_place: Place, fault: int | str, expected: type[RemoteError]) -> None:
    assert far_place.break_next is not None
    file = next(file for file in far_place.folder.list_files() if file.path == "a/model.safetensors")
    far_place.break_next(fault)
    with pytest.raises(RemoteError) as caught:
        read_into(far_place.folder, file, 0, memoryview(bytearray(5000)))
    assert type(caught.value) is expected
    assert "model.safetensors" in str(caught.value)
    assert read_whole(far_place.folder, file) == FILES[file.path], "the next read is whole again"


@pytest.mark.parametrize("status", [301, 307, 400, 501])
def test_s3_is_asked_otherwise_where_signed_urls_lead_nowhere(tmp_path: Path, status: int) -> None:
    with s3_place(tmp_path) as place:
        assert place.break_next is not None
        file = next(file for file in place.folder.list_files() if file.path == "a/model.safetensors")
        place.break_next(status)
        assert read_whole(place.folder, file) == FILES[file.path]


def test_s3_behind_a_proxy_is_read_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve_s3() as behind, serve_s3() as proxy:
        behind.objects = {"models/file": b"past the proxy"}
        proxy.objects = {"models/file": b"by the proxy"}
        monkeypatch.setenv("http_proxy", proxy.url)
        folder = S3Folder("s3://models", behind.url)
        (file,) = folder.list_files()
        assert read_whole(folder, file) == b"by the proxy"


def test_nobody_listens(tmp_path: Path) -> None:
    for folder in (S3Folder("s3://models/x", "http://127.0.0.1:9"), HubFolder("hf://a/b", "http://127.0.0.1:9")):
        with pytest.raises(RemoteError) as caught:
            folder.list_files()
        assert type(caught.value) is RemoteError
    with pytest.raises(RemoteMissingError):
        DirectoryFolder(tmp_path / "no").list_files()


def test_written_files_are_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(9_000_000))
    with serve_s3() as server:
        for folder in (DirectoryFolder(tmp_path / "out"), S3Folder("s3://bucket/out", server.url)):
            folder.write("deep/file", source)
            (file,) = folder.list_files()
            assert (file.path, read_whole(folder, file)) == ("deep/file", source.read_bytes())


def test_links_that_leave_are_refused_and_others_followed(tmp_path: Path) -> None:
    root = tmp_path / "model"
    root.mkdir()
    (root / "real").write_bytes(b"1")
    (root / "inside").symlink_to("real")
    assert [file.path for file in DirectoryFolder(root).list_files()] == ["inside", "real"]
    (tmp_path / "secret").write_bytes(b"2")
    (root / "outside").symlink_to("../secret")
    with pytest.raises(RemoteError, match="leaves"):
        DirectoryFolder(root).list_files()


def test_urls_choose_the_folder(tmp_path: Path) -> None:
    assert isinstance(open_folder("s3://bucket/key", "http://127.0.0.1:9"), S3Folder)
    assert isinstance(open_folder("hf://org/name@v1"), HubFolder)
    assert open_folder(f"file://{tmp_path}").url == open_folder(str(tmp_path)).url == str(tmp_path)
    for wrong in ("gs://bucket", "s3:///key", "hf://name", "hf://a/b/c"):
        with pytest.raises(SourceError, match=wrong):
            open_folder(wrong)
