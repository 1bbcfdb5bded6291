"""The order of stores, the circuit breaker of a failing store, and the effect of a slow store."""

import gzip
import logging
import lzma
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count

import brotli
import pytest
import zstandard

from narcore.binarycache import BinaryCache
from narcore.errors import (
    CacheInfoError,
    FileNotInStore,
    NarcoreError,
    NarInfoError,
    SettingsError,
    StoreError,
    StoresTimeout,
    StoresUnavailable,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.lookup import substituter as module
from narcore.lookup.breaker import FAILURES, LONGEST_PAUSE_SECONDS, PAUSE_SECONDS
from narcore.lookup.lookup import Strategy
from narcore.lookup.substituter import CALLS_AT_ONCE, Substituter
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part
from tests.clock import Clock

STRATEGIES: tuple[Strategy, ...] = ("ordered", "parallel")
GOOD = binary_cache({"hello": b"hello"})
EMPTY = binary_cache({})
INFO = "nix-cache-info"
DOWN, SLOW, GONE = StoreUnavailable("down"), StoreTimeout("slow"), FileNotInStore("gone")
UNREACHABLE = StoreUnavailable("refused", is_unreachable=True)


class FakeStore(MemoryStore):
    """Records requests in ``asked``, then waits for the gate of the file in ``gates``, and raises ``failure`` if it is set."""

    def __init__(
        self, name: str, files: dict[str, bytes] = GOOD, *, asked: list[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(files, f"memory://{name}")
        self.name = name
        self.asked: list[tuple[str, str]] = [] if asked is None else asked
        self.failure: StoreError | None = None
        self.gates: dict[str, threading.Event] = {}

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.asked.append((self.name, path))
        for end, gate in self.gates.items():
            if path.endswith(end):
                gate.wait(10)
        if self.failure is not None:
            raise self.failure
        return super().get_file(path, start, stop)


@contextmanager
def opened(*substituters: Substituter, strategy: Strategy = "ordered") -> Iterator[BinaryCache]:
    cache = BinaryCache(substituters, strategy=strategy)
    try:
        yield cache
    finally:
        cache.close()


def find(cache: BinaryCache, name: str = "hello") -> str:
    """Return the name of the store that has the path, or of the error that is raised."""
    try:
        return cache.path_info(hash_part(name)).store.url.removeprefix("memory://")
    except StoreError as error:
        return type(error).__name__


def took(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Wait until a condition is met. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.001)


# --- order


@pytest.mark.parametrize(
    ("priorities", "expected"),
    [
        ([(None, None), (None, None), (None, None)], "abc"),
        ([(None, "40"), (None, "30"), (None, "41")], "bac"),
        ([(None, "40"), (None, "40"), (None, "40")], "abc"),
        ([(None, None), (None, "49"), (None, "51")], "bac"),  # the default is 50
        ([(None, "51"), (None, None), (None, "50")], "bca"),
        ([(30, "10"), (20, "40"), (10, None)], "cba"),  # the URL takes precedence
        ([(None, "10"), (5, "90"), (None, "7")], "bca"),
        ([(0, None), (None, "-1"), (None, "0")], "bac"),
        ([(None, "x"), (None, "60"), (None, None)], "acb"),  # an invalid priority counts as none
    ],
)
def test_stores_are_asked_in_order_of_priority(priorities: list[tuple[int | None, str | None]], expected: str) -> None:
    cases: list[tuple[dict[str, bytes], Strategy]] = [(EMPTY, "ordered"), (GOOD, "ordered"), (GOOD, "parallel")]
    for files, strategy in cases:
        asked: list[tuple[str, str]] = []
        substituters = []
        for name, (in_url, in_info) in zip("abc", priorities, strict=True):
            line = "" if in_info is None else f"Priority: {in_info}\n"
            info = f"StoreDir: /nix/store\n{line}".encode()
            substituters.append(Substituter(FakeStore(name, files | {INFO: info}, asked=asked), priority=in_url))
        with opened(*substituters, strategy=strategy) as cache:
            assert find(cache) == ("FileNotInStore" if files is EMPTY else expected[0])
            assert [each.url[-1] for each in cache.in_order()] == list(expected)
        in_turn = [name for name, path in asked if path.endswith(".narinfo")]
        if strategy == "ordered":
            assert "".join(in_turn) == (expected if files is EMPTY else expected[0])
        else:
            assert sorted(in_turn) == list("abc")


@pytest.mark.parametrize(
    ("query", "priority", "trusted"),
    [
        ("", 50, False),
        ("?priority=7", 7, False),
        ("?priority=0&trusted=true", 0, True),
        ("?trusted=1&priority=3&priority=4", 4, True),
        ("?trusted=false", 50, False),
        ("?trusted=0&want-mass-query=true&compression=xz", 50, False),
    ],
)
def test_store_url_sets_priority_and_trust(query: str, priority: int, trusted: bool) -> None:
    for url in ("https://user:secret@cache.example/x", "/var/cache", "file:///var/cache"):
        found = Substituter.open(url + query)
        assert (found.priority, found.trusted) == (priority, trusted)
        assert "secret" not in found.url
        assert "?" not in found.url


@pytest.mark.parametrize(
    "query", ["?priority=x", "?priority=1.5", "?priority=-1", "?priority=9999999999", "?trusted=yes", "?trusted="]
)
def test_invalid_parameters_of_a_store_url_are_rejected(query: str) -> None:
    with pytest.raises(SettingsError, match=r"priority|trusted") as caught:
        Substituter.open("https://user:secret@cache.example" + query)
    assert "secret" not in str(caught.value)


# --- nix-cache-info


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slow_cache_info_is_waited_for_once(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_INFO_WAIT_SECONDS", 0.2)
    first, late = FakeStore("first"), FakeStore("late", GOOD | {INFO: b"Priority: 1\n"})
    gate = late.gates[INFO] = threading.Event()
    with opened(Substituter(first), Substituter(late), strategy=strategy) as cache:
        assert 0.1 < took(lambda: find(cache)) < 2
        assert find(cache) == "first"
        assert took(lambda: [find(cache, f"other-{number}") for number in range(200)]) < 0.2 + 1
        assert took(cache.store_dirs) < 0.1
        assert late.asked.count(("late", INFO)) == 1
        gate.set()
        cache.substituters[1].request_cache_info().result(5)
        assert [each.url for each in cache.in_order()] == ["memory://late", "memory://first"]


def test_old_cache_info_is_fetched_again_in_the_background() -> None:
    clock = Clock()
    store = FakeStore("a", GOOD | {INFO: b"Priority: 1\n"})
    substituter = Substituter(store, clock=clock)
    substituter.wait_for_cache_info()
    gate = store.gates[INFO] = threading.Event()
    store.failure = DOWN
    clock.now += 3601
    assert took(substituter.wait_for_cache_info) < 0.1
    assert substituter.priority == 1
    gate.set()
    substituter.request_cache_info().result(5)
    assert substituter.priority == 1  # the store is down, and its previous nix-cache-info stays valid
    assert store.asked.count(("a", INFO)) == 2
    substituter.request_cache_info().result(5)
    assert store.asked.count(("a", INFO)) == 2
    store.failure, store.gates = None, {}
    clock.now += 31
    assert substituter.info().priority == 1
    assert store.asked.count(("a", INFO)) == 3


def test_cache_info_sets_store_dir_and_priority() -> None:
    for files, expected in (
        ({}, ("/nix/store", 50)),
        ({INFO: b""}, ("/nix/store", 50)),
        ({INFO: b"StoreDir: /gnu/store\nPriority: 7\n"}, ("/gnu/store", 7)),
    ):
        substituter = Substituter(FakeStore("a", dict(files)))
        assert substituter.priority == 50
        substituter.info()
        assert (substituter.store_dir, substituter.priority) == expected
    for bad in (b"<html>", b"StoreDir: nix\n", b"\xff"):
        with pytest.raises(CacheInfoError):
            Substituter(FakeStore("a", {INFO: bad})).info()


@pytest.mark.parametrize("compress", [gzip.compress, brotli.compress, zstandard.compress, lzma.compress, bytes])
def test_narinfo_may_be_compressed(compress: Callable[[bytes], bytes]) -> None:
    name = f"{hash_part('hello')}.narinfo"
    for content, expected in ((GOOD[name], "hello"), (b"<html>", NarInfoError), (b"<html>" * 1_000_000, NarcoreError)):
        cache = BinaryCache([FakeStore("a", {**GOOD, name: compress(content)})])
        if isinstance(expected, str):
            assert cache.path_info(hash_part("hello")).narinfo.store_path.name == expected
        else:
            with pytest.raises(expected):
                cache.path_info(hash_part("hello"))


# --- circuit breaker

FILES_BY_NUMBER = {f"{number}.narinfo": b"x" for number in range(100)}


def at_once(check: Callable[[], None]) -> None:
    check()


def breaker_of(
    store: FakeStore, clock: Clock, *, path: Callable[[int], str] = "{}.narinfo".format, is_only: bool = False
) -> Callable[[], str]:
    """Return a function that requests a small file and returns the result in a word, in parentheses if nothing was requested.

    ``path`` returns the file for the number of the request.
    """
    substituter = Substituter(store, clock=clock, run_check=at_once)
    substituter.is_only = is_only
    numbers = count()

    def ask() -> str:
        before = len(store.asked)
        try:
            substituter.read(path(next(numbers)), 1000)
        except StoreError as error:
            name = type(error).__name__
        else:
            name = "ok"
        return name if len(store.asked) > before else f"({name})"

    return ask


@pytest.mark.parametrize("failure", [DOWN, SLOW])
def test_breaker_opens_and_closes_with_growing_pauses(failure: StoreError) -> None:
    clock, store = Clock(), FakeStore("a", FILES_BY_NUMBER)
    ask = breaker_of(store, clock)
    name = type(failure).__name__
    store.failure = failure
    assert [ask() for _ in range(FAILURES)] == [name] * FAILURES
    pause = PAUSE_SECONDS
    for _ in range(12):
        clock.now += pause - 0.1
        assert ask() == f"({name})"  # no request, and the same kind of error
        clock.now += 0.2
        assert ask() == name  # one trial
        assert ask() == f"({name})"
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    assert pause == LONGEST_PAUSE_SECONDS
    clock.now += pause
    store.failure = None
    assert [ask() for _ in range(5)] == ["ok"] * 5
    store.failure = failure
    assert [ask() for _ in range(FAILURES + 1)] == [name] * FAILURES + [f"({name})"]
    clock.now += PAUSE_SECONDS
    assert ask() == name  # the next pause has the shortest length again


def test_any_answer_of_the_store_resets_the_failures() -> None:
    clock, store = Clock(), FakeStore("a", {})
    ask = breaker_of(store, clock)
    for failure in (GONE, StoreError("too long"), DOWN, DOWN, GONE, DOWN, DOWN):
        store.failure = failure
        assert ask() == type(failure).__name__
    store.failure = GONE
    assert ask() == "FileNotInStore"


def test_one_failing_file_never_opens_the_breaker() -> None:
    store = FakeStore("a", {})
    store.failure = DOWN
    ask = breaker_of(store, Clock(), path=lambda _number: "same.narinfo")
    assert [ask() for _ in range(10 * FAILURES)] == ["StoreUnavailable"] * 10 * FAILURES


@pytest.mark.parametrize("answers", [True, False])
def test_failing_files_open_the_breaker_only_if_nix_cache_info_fails_too(answers: bool) -> None:
    class Failing(FakeStore):
        def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
            self.failure = None if path == INFO and answers else DOWN
            return super().get_file(path, start, stop)

    store = Failing("a", {INFO: b"StoreDir: /nix/store"})
    ask = breaker_of(store, Clock())
    found = [ask() for _ in range(2 * FAILURES)]
    open_from = 2 * FAILURES if answers else FAILURES
    assert found == ["StoreUnavailable"] * open_from + ["(StoreUnavailable)"] * (2 * FAILURES - open_from)
    assert sum(path == INFO for _, path in store.asked) == (2 if answers else 1)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("failure", "opens"),
    [(DOWN, False), (SLOW, False), (UNREACHABLE, True), (StoreTimeout("no connection", is_unreachable=True), True)],
)
def test_breaker_of_an_only_store_opens_on_connection_errors_alone(
    failure: StoreUnavailable, opens: bool, same: bool
) -> None:
    store = FakeStore("a", {})
    store.failure = failure
    ask = breaker_of(store, Clock(), is_only=True, path=lambda number: "same" if same else str(number))
    name = type(failure).__name__
    assert [ask() for _ in range(FAILURES + 1)] == [name] * FAILURES + [f"({name})" if opens else name]


def test_trial_with_a_failing_file_closes_the_breaker_if_the_store_answers_again() -> None:
    clock, store = Clock(), FakeStore("a", {})
    ask = breaker_of(store, clock, is_only=True)
    store.failure = UNREACHABLE
    assert [ask() for _ in range(FAILURES + 1)][-1] == "(StoreUnavailable)"
    clock.now += PAUSE_SECONDS
    store.failure = DOWN
    assert [ask() for _ in range(3)] == ["StoreUnavailable"] * 3


def test_concurrent_failures_share_one_attempt() -> None:
    clock, store = Clock(), FakeStore("a", {"x.narinfo": b"x"})
    substituter = Substituter(store, clock=clock, run_check=at_once)

    def call_concurrently(number: int) -> int:
        """Make ``number`` concurrent calls, which all fail; return how many narinfos were requested."""
        store.asked.clear()
        gate = store.gates[".narinfo"] = threading.Event()
        calls = [substituter.soon(partial(substituter.read, f"{each}.narinfo", 1000)) for each in range(number)]
        with suppress(TimeoutError):
            until(lambda: len(store.asked) == number, seconds=0.05)
        gate.set()
        for call in calls:
            with pytest.raises(StoreUnavailable):
                call()
        return sum(path != INFO for _, path in store.asked)

    store.failure = DOWN
    assert call_concurrently(CALLS_AT_ONCE) >= FAILURES
    clock.now += PAUSE_SECONDS + 0.1
    assert call_concurrently(CALLS_AT_ONCE) == 1
    clock.now += PAUSE_SECONDS + 0.1
    assert call_concurrently(3) == 0
    clock.now += PAUSE_SECONDS
    assert call_concurrently(3) == 1


def test_failing_store_is_not_logged_for_every_request(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    dead, other = FakeStore("dead"), FakeStore("other", EMPTY)
    dead.failure = DOWN
    caplog.set_level(logging.INFO, "narcore")
    with opened(Substituter(dead, priority=1, clock=clock, run_check=at_once), Substituter(other, priority=2)) as cache:
        for number in range(300):
            assert find(cache, f"path-{number}") == "StoresUnavailable"
            clock.now += 0.1
        assert len(caplog.messages) <= 2 * (FAILURES + 3)
        assert any("circuit breaker opens" in line for line in caplog.messages)
        dead.failure = None
        clock.now += 60
        assert find(cache) == "dead"
    assert caplog.messages[-1] == "memory://dead answers again: circuit breaker closes"
    assert sum(path.endswith(".narinfo") for _, path in dead.asked) <= FAILURES + 5


# --- errors of several stores


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_path_is_missing_only_if_all_stores_say_so(strategy: Strategy) -> None:
    kinds = {
        "StoresUnavailable": StoresUnavailable,
        "StoresTimeout": StoresTimeout,
        "FileNotInStore": FileNotInStore,
    }
    for failures, expected in (
        ((GONE, GONE, GONE), "FileNotInStore"),
        ((GONE, DOWN, GONE), "StoresUnavailable"),
        ((SLOW, GONE, GONE), "StoresTimeout"),
        ((SLOW, GONE, DOWN), "StoresUnavailable"),
        ((SLOW, SLOW, SLOW), "StoresTimeout"),
    ):
        fakes = [FakeStore(name, EMPTY) for name in "abc"]
        for store, failure in zip(fakes, failures, strict=True):
            store.failure = failure
        with opened(*(Substituter(store, priority=1) for store in fakes), strategy=strategy) as cache:
            for _ in range(10):  # also while the circuit breakers of some are open
                assert find(cache, "nothing") == expected
            with pytest.raises(kinds[expected], match=f"{3 - failures.count(GONE)} of 3 stores|no store has"):
                cache.path_info(hash_part("nothing"))


# --- parallel requests


def test_parallel_lookup_uses_the_first_store_without_waiting_for_others() -> None:
    first, hung, quick = FakeStore("first"), FakeStore("hung"), FakeStore("quick")
    gate = hung.gates[".narinfo"] = threading.Event()
    with opened(*(Substituter(each, priority=1) for each in (first, hung, quick)), strategy="parallel") as cache:
        assert took(lambda: find(cache)) < 1
        assert find(cache) == "first"
        first.failure = GONE
        ask_in_thread = [threading.Thread(target=find, args=(cache, f"path-{number}")) for number in range(40)]
        for thread in ask_in_thread:
            thread.start()
        until(lambda: sum(path.endswith(".narinfo") for _, path in quick.asked) >= CALLS_AT_ONCE)
        # Each store has a limited number of threads, and the quick store is asked although the other one hangs.
        background = [thread for thread in threading.enumerate() if thread.name == "background-call"]
        assert len(background) <= 2 * CALLS_AT_ONCE
        assert all(thread.daemon for thread in background)
        gate.set()
        for thread in ask_in_thread:
            thread.join(5)


def test_one_answering_store_is_enough_to_be_ready() -> None:
    hung, quick = FakeStore("hung"), FakeStore("quick")
    gate = hung.gates[INFO] = threading.Event()
    with opened(Substituter(hung), Substituter(quick)) as cache:
        assert took(cache.check_ready) < 1
        quick.failure = DOWN
        gate.set()
        cache.check_ready()
        hung.failure = DOWN
        with pytest.raises(StoreUnavailable):
            cache.check_ready()
