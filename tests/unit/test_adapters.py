from hypothesis import given
from hypothesis import strategies as st

from deployments.adapter_rows import adapter_key
from deployments.adapters import MAX_TOLD, AdapterPlaces, AdapterTable, LoadTimes, engine_name
from deployments.types import AdapterRef

refs = st.builds(
    AdapterRef,
    id=st.sampled_from(["a", "b", "c"]),
    path=st.just("/x"),
    digest=st.sampled_from(["0" * 64, "1" * 64, "f" * 64]),
    owner=st.sampled_from([None, "acme", "globex"]),
)


@given(st.lists(refs))
def test_an_id_stands_for_one_content_and_never_changes(asked: list[AdapterRef]) -> None:
    table = AdapterTable()
    first = [(engine_name(ref), table.int_id(ref)) for ref in asked]
    again = [(engine_name(ref), table.int_id(ref)) for ref in asked]
    assert first == again
    assert len(set(first)) == len({name for name, _ in first}) == len({number for _, number in first})
    assert all(number > 0 for _, number in first)


def test_two_tenants_adapters_of_one_name_and_content_are_two() -> None:
    names = [engine_name({"id": "a", "path": "/x", "digest": "0" * 64, "owner": o}) for o in ("acme", "globex")]
    assert names == ["acme/a@0000000000000000", "globex/a@0000000000000000"]
    assert engine_name({"id": "a", "path": "/x", "digest": "0" * 64}) == "a@0000000000000000"


def test_ids_know_their_content() -> None:
    table = AdapterTable()
    ids = [table.int_id({"id": name, "path": "/x", "digest": name * 64}) for name in "ab"]
    assert table.digests([*ids, 7]) == {"a" * 64, "b" * 64}


def test_gateways_are_told_each_adapter_once_where_it_is_nearest() -> None:
    slots, host, dram = (frozenset(f"{number:064x}" for number in range(until)) for until in (1, 3, 4))
    told = AdapterPlaces(slots, host, dram, 0.01234, 0.0567).news()
    keys = [adapter_key(f"{number:064x}") for number in range(4)]
    assert (told.slots, told.host, told.dram) == (keys[:1], sorted(keys[1:3]), keys[3:])
    assert (told.dram_s, told.elsewhere_s) == (0.012, 0.06)


def test_gateways_are_told_no_more_than_so_many() -> None:
    many = frozenset(f"{number:064x}" for number in range(10_000))
    told = AdapterPlaces(dram=many).news()
    assert len(told.dram) == MAX_TOLD
    assert told == AdapterPlaces(dram=many).news(), "and always the same ones"


def test_load_times_follow_what_is_measured() -> None:
    times = LoadTimes()
    for _ in range(20):
        times.measured(0.5, from_dram=False)
        times.measured(0.02, from_dram=True)
    assert abs(times.elsewhere_s - 0.5) < 0.01
    assert abs(times.dram_s - 0.02) < 0.001
