"""Concurrent calls with the same key share one call."""

import threading

import pytest

from narcore import errors
from narcore.concurrency.singleflight import SingleFlight
from tests.cache.support import until


class TestSingleFlight:
    def test_concurrent_calls_with_the_same_key_share_one_call(self) -> None:
        single_flight: SingleFlight[str, list[int]] = SingleFlight()
        calls: list[str] = []
        go = threading.Event()

        def call() -> list[int]:
            calls.append("x")
            assert go.wait(10)
            return [1]

        results: list[list[int]] = []
        threads = [threading.Thread(target=lambda: results.append(single_flight.do("k", call))) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: bool(calls))
        assert single_flight.do("another", lambda: [2]) == [2]
        go.set()
        for thread in threads:
            thread.join()
        assert len(calls) < 8  # a late thread may have started another call
        assert all(result == [1] for result in results)
        assert single_flight.do("k", lambda: [3]) == [3]

    def test_each_caller_gets_its_own_copy_of_an_error(self) -> None:
        single_flight: SingleFlight[str, int] = SingleFlight()
        begun, go = threading.Event(), threading.Event()

        def fail() -> int:
            begun.set()
            assert go.wait(10)
            raise errors.NarInfoError("bad", where="line 3")

        caught: list[errors.NarInfoError] = []

        def ask() -> None:
            with pytest.raises(errors.NarInfoError) as raised:
                single_flight.do("k", fail)
            caught.append(raised.value)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        threads[0].start()
        assert begun.wait(10)
        for thread in threads[1:]:
            thread.start()
        go.set()
        for thread in threads:
            thread.join()
        assert len({id(error) for error in caught}) == 4
        assert {(str(error), error.where) for error in caught} == {("bad (line 3)", "line 3")}
