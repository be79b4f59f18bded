"""What an engine was computing when it ended."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.batch_record import BatchRecord, keep_record, open_record, read_record, record_path, was_computing


@contextmanager
def both_ends(directory: Path) -> Iterator[tuple[BatchRecord, BinaryIO]]:
    with pytest.MonkeyPatch.context() as patch:
        # Taken back at the end, with what is set in its place.
        patch.setenv("FLASHSERVE_BATCH_RECORD", "")
        keep_record(record_path(directory, 7))
        writer = BatchRecord()
        try:
            with closing(opened(directory)) as reader:
                yield writer, reader
        finally:
            os.close(int(os.environ["FLASHSERVE_BATCH_RECORD"]))


def opened(directory: Path) -> BinaryIO:
    record = open_record(record_path(directory, 7))
    assert record is not None
    return record


def test_the_last_two_batches_are_told(tmp_path: Path) -> None:
    with both_ends(tmp_path) as (writer, reader):
        assert read_record(reader) == frozenset(), "nothing has been computed"
        for batch, told in (["a-0", "b-0"], "a-0 b-0"), (["b-0"], "a-0 b-0"), (["b-0"], "b-0"), ([], "b-0"), ([], ""):
            writer.computing(batch)
            assert read_record(reader) == frozenset(told.split())


@given(batches=st.lists(st.sets(st.integers(0, 10**12).map(str), max_size=40), min_size=2, max_size=10))
def test_however_many_they_are(tmp_path_factory: pytest.TempPathFactory, batches: list[set[str]]) -> None:
    with both_ends(tmp_path_factory.mktemp("record")) as (writer, reader):
        for batch in batches:
            writer.computing(batch)
        assert read_record(reader) == batches[-1] | batches[-2]


def test_it_is_read_after_its_directory_has_gone(tmp_path: Path) -> None:
    directory = tmp_path / "pool"
    directory.mkdir()
    with both_ends(directory) as (writer, reader):
        record_path(directory, 7).unlink()
        directory.rmdir()
        writer.computing(["a-0"])
        assert read_record(reader) == {"a-0"}


def test_nothing_is_written_where_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASHSERVE_BATCH_RECORD", raising=False)
    monkeypatch.chdir(tmp_path)
    BatchRecord().computing(["a"])
    assert list(tmp_path.iterdir()) == []
    assert read_record(open_record(record_path(tmp_path, 7))) is None


def test_ids_are_known_with_what_vllm_adds() -> None:
    record = frozenset({"chat-1-0a1b2c3d", "plain"})
    assert [was_computing(record, each) for each in ("chat-1", "plain", "chat", "chat-1-0a", "other")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert was_computing(None, "anything"), "who keeps no record excuses nobody"
