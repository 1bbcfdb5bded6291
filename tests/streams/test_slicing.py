import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import TruncatedStream
from narcore.streams.slicing import skip_and_limit
from tests.streams.codecs import Source

chunk_lists = st.lists(st.binary(max_size=6), max_size=8)


@given(chunk_lists, st.integers(0, 50), st.integers(0, 50))
def test_the_result_is_that_of_a_slice(chunks: list[bytes], one: int, other: int) -> None:
    start, stop = sorted((one, other))
    whole = b"".join(chunks)
    if start < stop and stop > len(whole):
        with pytest.raises(TruncatedStream, match=f"ends at byte {len(whole)}, before byte {stop}"):
            list(skip_and_limit(chunks, start, stop))
    else:
        parts = list(skip_and_limit(chunks, start, stop))
        assert all(parts)
        assert b"".join(parts) == whole[start:stop]


def test_nothing_is_read_after_the_last_byte() -> None:
    source = Source(b"aaaa", b"bbbb", b"cccc")
    assert list(skip_and_limit(source, 2, 8)) == [b"aa", b"bbbb"]
    assert source.read == 2
    assert source.closed


def test_nothing_is_read_for_an_empty_part() -> None:
    source = Source(b"aaaa")
    assert list(skip_and_limit(source, 4, 4)) == []
    assert source.read == 0
    assert source.closed


def test_whole_chunks_are_not_copied() -> None:
    middle = bytes(1000)
    assert list(skip_and_limit([b"ab", middle, b"cd"], 1, 1003))[1] is middle
