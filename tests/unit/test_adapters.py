from hypothesis import given
from hypothesis import strategies as st

from deployments.adapters import AdapterTable, engine_name
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
