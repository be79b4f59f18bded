"""What an engine was computing when it ended."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.batch_record import BatchRecord, keep_record, read_record, record_path, was_computing


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = record_path(tmp_path, 7)
    # Taken back at the end, with what is set in its place.
    monkeypatch.setenv("FLASHSERVE_BATCH_RECORD", "")
    keep_record(path)
    return path


def test_the_last_two_batches_are_told(path: Path) -> None:
    record = BatchRecord()
    assert read_record(path) == frozenset(), "nothing has been computed"
    for batch, told in (["a-0", "b-0"], "a-0 b-0"), (["b-0"], "a-0 b-0"), (["b-0"], "b-0"), ([], "b-0"), ([], ""):
        record.computing(batch)
        assert read_record(path) == frozenset(told.split())


@given(batches=st.lists(st.sets(st.integers(0, 10**12).map(str), max_size=40), min_size=2, max_size=10))
def test_however_many_they_are(tmp_path_factory: pytest.TempPathFactory, batches: list[set[str]]) -> None:
    path = record_path(tmp_path_factory.mktemp("record"), 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHSERVE_BATCH_RECORD", str(path))
        record = BatchRecord()
    for batch in batches:
        record.computing(batch)
    assert read_record(path) == batches[-1] | batches[-2]


def test_nothing_is_written_where_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASHSERVE_BATCH_RECORD", raising=False)
    monkeypatch.chdir(tmp_path)
    BatchRecord().computing(["a"])
    assert list(tmp_path.iterdir()) == []
    assert read_record(record_path(tmp_path, 7)) is None


def test_ids_are_known_with_what_vllm_adds() -> None:
    record = frozenset({"chat-1-0a1b2c3d", "plain"})
    assert [was_computing(record, each) for each in ("chat-1", "plain", "chat", "chat-1-0a", "other")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert was_computing(None, "anything"), "who keeps no record excuses nobody"
