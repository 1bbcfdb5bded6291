"""Chunks that a thread reads ahead."""

import threading

import pytest

from narcore import errors
from narcore.concurrency.readahead import ReadAhead
from tests.cache.support import until


class TestReadAhead:
    class Source:
        """Counts, and can fail."""

        def __init__(self, chunks: int, error: BaseException | None = None) -> None:
            self.left, self.error, self.closed, self.given = chunks, error, 0, 0

        def __iter__(self) -> "TestReadAhead.Source":
            return self

        def __next__(self) -> bytes:
            if not self.left:
                raise self.error or StopIteration
            self.left -= 1
            self.given += 1
            return b"%d" % self.left

        def close(self) -> None:
            self.closed += 1

    @pytest.mark.parametrize("chunks", [0, 1, 3, 50])
    @pytest.mark.parametrize("error", [None, errors.CorruptStream("damaged"), KeyboardInterrupt()])
    def test_all_that_comes_and_what_it_ends_with(self, chunks: int, error: BaseException | None) -> None:
        source = self.Source(chunks, error)
        ahead = ReadAhead(source)
        got = [next(ahead) for _ in range(chunks)]
        assert got == [b"%d" % number for number in reversed(range(chunks))]
        for _ in range(2):  # the end stays
            with pytest.raises(StopIteration if error is None else type(error)):
                next(ahead)
        ahead.close()
        assert source.closed == 1

    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_given_up(self, taken: int) -> None:
        before = threading.active_count()
        source = self.Source(10**9)
        ahead = ReadAhead(source)
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert (source.closed, threading.active_count()) == (1, before)
        assert source.given <= taken + 8  # no further ahead than the queue is long

    def test_it_is_ahead(self) -> None:
        source = self.Source(3)
        ahead = ReadAhead(source)
        next(ahead)
        until(lambda: source.given == 3)
        ahead.close()
