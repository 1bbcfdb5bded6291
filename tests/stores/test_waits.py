"""How many requests may wait for a store that sends nothing."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from narcore.concurrency.background import BackgroundThread
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import FileNotInStore, StoreTimeout, StoreUnresponsive
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from narcore.stores.waits import SILENT_SECONDS, CountedStore, StoreWaits
from tests.cache.support import until
from tests.clock import Clock

LIMIT = 3
FILES = {"a": b"a" * 100, "b": b"b" * 100}


class GatedStore(MemoryStore):
    """Sends nothing before its gate is open; raises ``failure`` if it is set."""

    def __init__(self, name: str) -> None:
        super().__init__(FILES, f"memory://{name}")
        self.gate = threading.Event()
        self.asked = 0
        self.failure: Exception | None = None

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.asked += 1
        assert self.gate.wait(20)
        if self.failure is not None:
            raise self.failure
        return super().get_file(path, start, stop)


class Requests:
    """Requests of several clients, each in its own thread."""

    def __init__(self, pool: ThreadPoolExecutor, waits: StoreWaits, store: GatedStore) -> None:
        self.store = store
        self._pool = pool
        self._counted = CountedStore(store, waits)

    def begin(self, number: int) -> list["Future[bytes]"]:
        """Begin requests, and wait until the store has received them."""
        asked = self.store.asked + number
        futures = [self._pool.submit(self.read) for _ in range(number)]
        until(lambda: self.store.asked == asked)
        return futures

    def read(self) -> bytes:
        with self._counted.get_file("a") as file:
            return b"".join(file)


@contextmanager
def waiting(limit: int | None = LIMIT) -> Iterator[tuple[Clock, StoreWaits, Requests]]:
    clock = Clock()
    waits = StoreWaits(limit, clock=clock)
    with waiting_for("silent", waits) as requests:
        yield clock, waits, requests


@contextmanager
def waiting_for(name: str, waits: StoreWaits) -> Iterator[Requests]:
    """Yield the requests for another store, which are counted in ``waits``, too."""
    store = GatedStore(name)
    with ThreadPoolExecutor(40) as pool:
        try:
            yield Requests(pool, waits, store)
        finally:
            store.gate.set()


@pytest.mark.parametrize("number", [LIMIT, LIMIT + 4])
def test_only_waits_of_more_than_two_seconds_count(number: int) -> None:
    with waiting() as (clock, waits, requests):
        futures = requests.begin(number)
        clock.now += SILENT_SECONDS - 0.1
        assert not waits.is_full(requests.store.url)
        clock.now += 0.2
        until(lambda: waits.is_full(requests.store.url) and sum(map(Future.done, futures)) == number - LIMIT)
        for future in filter(Future.done, futures):
            with pytest.raises(StoreUnresponsive, match=r"memory://silent sends nothing to requests .* again in 5 s"):
                future.result()
        asked = requests.store.asked
        with pytest.raises(StoreUnresponsive) as raised:
            requests.read()
        assert raised.value.retry_after > 0
        assert requests.store.asked == asked
        requests.store.gate.set()
        assert [future.result(10) for future in futures if future.exception(10) is None] == [FILES["a"]] * LIMIT
        until(lambda: not waits.is_full(requests.store.url))
        assert requests.read() == FILES["a"]


def test_requests_to_another_store_are_not_refused() -> None:
    with waiting() as (clock, waits, requests):
        requests.begin(LIMIT)
        clock.now += SILENT_SECONDS
        until(lambda: waits.is_full(requests.store.url))
        with CountedStore(MemoryStore(FILES, "memory://other"), waits).get_file("b") as file:
            assert b"".join(file) == FILES["b"]


def test_several_silent_stores_share_a_limit() -> None:
    with (
        waiting(4) as (clock, waits, first),
        waiting_for("second", waits) as second,
        waiting_for("third", waits) as third,
    ):
        first.begin(4)
        futures = second.begin(4)
        clock.now += SILENT_SECONDS + 0.1
        until(lambda: sum(map(Future.done, futures)) == 2)
        assert waits.is_full(second.store.url)
        third.store.gate.set()
        assert third.read() == FILES["a"], "a store that sends something is not refused"


def test_any_number_of_requests_may_wait_for_slow_answers() -> None:
    with waiting() as (clock, _waits, requests):
        futures = requests.begin(30)
        clock.now += SILENT_SECONDS - 0.1
        requests.store.gate.set()
        assert [future.result(10) for future in futures] == [FILES["a"]] * 30


def test_without_a_limit_nothing_is_refused_and_no_thread_is_started() -> None:
    with waiting(None) as (clock, waits, requests):
        futures = requests.begin(30)
        clock.now += 1000
        assert not waits.is_full(requests.store.url)
        assert sum(isinstance(thread, BackgroundThread) for thread in threading.enumerate()) == 0
        requests.store.gate.set()
        assert [future.result(10) for future in futures] == [FILES["a"]] * 30


@pytest.mark.parametrize(
    ("failure", "is_silent"), [(StoreTimeout("no data"), True), (FileNotInStore("none"), False), (None, False)]
)
def test_after_a_timeout_waits_count_from_their_start_until_the_store_answers(
    failure: Exception | None, is_silent: bool
) -> None:
    with waiting() as (clock, waits, requests):
        requests.store.failure = failure
        futures = requests.begin(1)
        clock.now += SILENT_SECONDS
        requests.store.gate.set()
        assert (futures[0].exception(10) is None) == (failure is None)
        requests.store.gate.clear()
        requests.store.failure = None
        futures = requests.begin(LIMIT)
        if is_silent:
            until(lambda: waits.is_full(requests.store.url))
        else:
            clock.now += SILENT_SECONDS - 0.1
            assert not waits.is_full(requests.store.url)
        requests.store.gate.set()
        assert [future.result(10) for future in futures] == [FILES["a"]] * LIMIT
        assert not waits.is_full(requests.store.url)


def test_body_that_stalls_counts_and_is_not_refused() -> None:
    """A response that has begun is never refused: only further requests are."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    class Stalling(MemoryStore):
        def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
            return StoreFile(self._chunks(), size=2)

        def _chunks(self) -> Generator[bytes]:
            yield b"x"
            begun.release()
            assert gate.wait(20)
            yield b"y"

    clock = Clock()
    waits = StoreWaits(LIMIT, clock=clock)
    store = CountedStore(Stalling({}), waits)
    with ThreadPoolExecutor(2 * LIMIT) as pool:
        futures = [pool.submit(lambda: b"".join(store.get_file("a"))) for _ in range(2 * LIMIT)]
        try:
            for _ in futures:
                assert begun.acquire(timeout=10)
            clock.now += SILENT_SECONDS
            until(lambda: waits.is_full(store.url))
            with pytest.raises(StoreUnresponsive):
                store.get_file("a")
        finally:
            gate.set()
        assert [future.result(10) for future in futures] == [b"xy"] * 2 * LIMIT


def test_requests_that_share_one_request_count_as_long_as_the_store_sends_nothing() -> None:
    with waiting() as (clock, waits, requests), ThreadPoolExecutor(2 * LIMIT) as pool:
        shared: SingleFlight[str, bytes] = SingleFlight(wait=waits.wait)
        futures = [pool.submit(shared.do, "key", requests.read) for _ in range(2 * LIMIT)]
        until(lambda: requests.store.asked == 1)
        clock.now += SILENT_SECONDS
        until(lambda: sum(future.done() for future in futures) == LIMIT)
        assert all(isinstance(future.exception(), StoreUnresponsive) for future in futures if future.done())
        requests.store.gate.set()
        assert [future.result(10) for future in futures if future.exception(10) is None] == [FILES["a"]] * LIMIT
        assert requests.store.asked == 1


def test_result_that_arrives_after_its_request_was_refused_is_closed() -> None:
    closed: list[bool] = []

    class Closing(GatedStore):
        def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
            file = super().get_file(path, start, stop)
            return StoreFile(Watched(file, lambda: closed.append(True)), size=file.size)

    clock, store = Clock(), Closing("silent")
    waits = StoreWaits(1, clock=clock)
    with ThreadPoolExecutor(2) as pool:
        requests = Requests(pool, waits, store)
        first = requests.begin(1)[0]
        second = requests.begin(1)[0]
        clock.now += SILENT_SECONDS
        with pytest.raises(StoreUnresponsive):
            second.result(10)
        assert closed == []
        store.gate.set()
        assert first.result(10) == FILES["a"]
    until(lambda: len(closed) == 2)


class Watched:
    """The body of a file; calls ``on_close`` when it is closed."""

    def __init__(self, file: StoreFile, on_close: Callable[[], None]) -> None:
        self._chunks = iter(file)
        self.close = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)
