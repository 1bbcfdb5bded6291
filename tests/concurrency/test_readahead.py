"""Read-ahead in a thread."""

import threading
from collections.abc import Iterator

import pytest

from narcore import errors
from narcore.concurrency.readahead import ReadAhead
from tests.cache.support import until


class TestReadAhead:
    class Source:
        """Counts the chunks that were read, and can end with an error."""

        def __init__(self, chunks: int, error: BaseException | None = None) -> None:
            self.remaining, self.error, self.closed, self.read = chunks, error, 0, 0

        def __iter__(self) -> "TestReadAhead.Source":
            return self

        def __next__(self) -> bytes:
            if not self.remaining:
                raise self.error or StopIteration
            self.remaining -= 1
            self.read += 1
            return b"%d" % self.remaining

        def close(self) -> None:
            self.closed += 1

    @pytest.mark.parametrize("chunks", [0, 1, 3, 50])
    @pytest.mark.parametrize("error", [None, errors.CorruptStream("damaged"), KeyboardInterrupt()])
    def test_all_chunks_and_then_the_end_or_the_error_are_returned(
        self, chunks: int, error: BaseException | None
    ) -> None:
        source = self.Source(chunks, error)
        ahead = ReadAhead(source)
        got = [next(ahead) for _ in range(chunks)]
        assert got == [b"%d" % number for number in reversed(range(chunks))]
        for _ in range(2):  # the end is permanent
            with pytest.raises(StopIteration if error is None else type(error)):
                next(ahead)
        ahead.close()
        assert source.closed == 1

    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_an_abandoned_source_is_closed(self, taken: int) -> None:
        before = threading.active_count()
        source = self.Source(10**9)
        ahead = ReadAhead(source)
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert (source.closed, threading.active_count()) == (1, before)
        assert source.read <= taken + 8  # reads ahead at most as far as the queue is long

    def test_is_ready_waits_for_a_chunk_or_the_end_and_takes_nothing(self) -> None:
        gate = threading.Event()

        def source() -> Iterator[bytes]:
            gate.wait(10)
            yield b"x"

        ahead = ReadAhead(source())
        assert not ahead.is_ready(0.01)
        gate.set()
        assert ahead.is_ready(10)
        assert ahead.is_ready(0)
        assert list(ahead) == [b"x"]
        assert ahead.is_ready(0)
        ahead.close()

    def test_chunks_are_read_before_they_are_requested(self) -> None:
        source = self.Source(3)
        ahead = ReadAhead(source)
        next(ahead)
        until(lambda: source.read == 3)
        ahead.close()
