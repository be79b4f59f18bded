import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.wire import (
    MAX_FRAME_BYTES,
    Hello,
    TokenDelta,
    decode_frame,
    decode_hello,
    encode_deltas,
    encode_hello,
    read_frame,
)

rows = st.tuples(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    st.integers(1, 100_000),
)
deltas = st.builds(
    TokenDelta,
    st.text(),
    st.lists(st.integers(0, 2**31)),
    st.none() | st.sampled_from(["stop", "length", "abort"]),
    st.none() | st.integers(0, 2**31) | st.text(),
    st.none() | st.integers(0, 2**31),
    st.none() | st.lists(rows),
    st.none() | st.lists(rows),
)


def reader_of(*chunks: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    return reader


@given(st.lists(deltas))
def test_deltas_come_back_as_they_went(sent: list[TokenDelta]) -> None:
    async def through() -> bytes | None:
        return await read_frame(reader_of(encode_deltas(sent)))

    body = asyncio.run(through())
    assert body is not None
    assert decode_frame(body) == sent


async def test_frames_follow_each_other_and_then_end() -> None:
    reader = reader_of(encode_hello(Hello("secret")), encode_deltas([]))
    body = await read_frame(reader)
    assert body is not None
    assert decode_hello(body) == Hello("secret")
    assert await read_frame(reader) == b"\x90"
    assert await read_frame(reader) is None


async def test_a_frame_that_is_cut_is_the_end() -> None:
    assert await read_frame(reader_of(encode_hello(Hello("secret"))[:-1])) is None


async def test_a_frame_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="bytes is announced"):
        await read_frame(reader_of((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_what_is_no_delta_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_frame(b"\x81\xa1a\x01")
