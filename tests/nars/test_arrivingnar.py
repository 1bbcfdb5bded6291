"""NARs that are read while they are fetched: bytes are returned as they arrive, and `finish` fails if the NAR is wrong."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache import part
from narcore.cache.fill import Fill
from narcore.cache.narcache import NarCache
from narcore.errors import CacheFailure, HashMismatch, NarTooLarge, StoreTimeout, StoreUnavailable
from narcore.lookup.addressproof import AddressProof
from narcore.nars.opennar import ArrivingNar
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part
from tests.cache.conftest import MakeCache, cache, directory, make_cache, nothing_left_open
from tests.cache.support import Source, add_to_cache, names, nar_of, until

__all__ = ["cache", "directory", "make_cache", "nothing_left_open"]  # fixtures

NAR = nar_of(400_000)
CHUNK = 1 << 16


@pytest.fixture
def arriving(cache: NarCache) -> Iterator[Callable[..., ArrivingNar]]:
    """Opens the NAR of a source, and closes it at the end of the test."""
    made = []

    def join(source: Source, *, whole: bool = False) -> ArrivingNar:
        made.append(ArrivingNar(cache.fill(source.key, source), whole=whole))
        return made[-1]

    yield join
    for each in made:
        each.close()


Arriving = Callable[..., ArrivingNar]


def test_bytes_are_returned_as_they_arrive(arriving: Arriving, cache: NarCache) -> None:
    source = Source(NAR, gated=True)
    nar = arriving(source)
    assert nar.wait_for(0) == 0
    source.allow(CHUNK)
    assert nar.read(CHUNK - 5, CHUNK) == NAR[CHUNK - 5 : CHUNK]  # the last byte is not withheld
    assert nar.wait_for(CHUNK) == CHUNK
    assert cache.bytes_fetched(source.key) == cache.total_bytes_fetched() == CHUNK
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(nar.read, CHUNK - 5, CHUNK + 5)
        listing = pool.submit(nar.finish)
        assert not late.done()
        source.allow(2 * CHUNK)
        assert late.result(10) == NAR[CHUNK - 5 : CHUNK + 5]
        assert not listing.done()
        source.allow()
        assert listing.result(10).nar_size == len(NAR)
    assert nar.wait_for(10**9) == len(NAR)
    assert nar.read(0, len(NAR)) == NAR
    assert (nar.read(7, 7), source.fetched) == (b"", 1)
    for start, stop in ((-1, 5), (7, 5), (0, len(NAR) + 1)):
        with pytest.raises(ValueError, match="no bytes"):
            nar.read(start, stop)
    until(lambda: cache.bytes_fetched(source.key) == 0)
    assert cache.total_bytes_fetched() == len(NAR)


def test_whole_returns_nothing_before_verification(arriving: Arriving) -> None:
    source = Source(NAR, gated=True)
    nar = arriving(source, whole=True)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(nar.read, 0, 5)
        source.allow(3 * CHUNK)
        assert not first.done()
        source.allow()
        assert first.result(10) == NAR[:5]
    wrong = Source(nar_of(400_000, 1), sent=NAR)
    with pytest.raises(HashMismatch):
        arriving(wrong, whole=True).wait_for(1)


@pytest.mark.parametrize("fault", [None, StoreUnavailable("broken off")])
def test_all_calls_raise_the_error_after_a_failure(arriving: Arriving, fault: Exception | None) -> None:
    source = Source(NAR, gated=True, sent=NAR[:-100] + bytes(100), fault=fault)
    expected = type(fault) if fault else HashMismatch
    nar = arriving(source)
    source.allow(CHUNK)
    assert nar.read(0, CHUNK) == NAR[:CHUNK]
    source.allow()
    for call in (nar.finish, partial(nar.wait_for, 1), partial(nar.read, 0, 5), partial(nar.wait_for, len(NAR))):
        with pytest.raises(expected):
            call()


def test_evicted_nar_can_be_read_while_it_is_open(arriving: Arriving, cache: NarCache) -> None:
    nar = arriving(Source(NAR))
    nar.finish()
    assert len(cache.clear()) == 1
    assert nar.read(0, len(NAR)) == NAR


@pytest.mark.parametrize("written", ["while it arrives", "afterwards"])
def test_changed_file_is_not_read(arriving: Arriving, directory: Path, written: str) -> None:
    source = Source(NAR, gated=True)
    nar = arriving(source)
    source.allow(2 * CHUNK)
    if written == "afterwards":
        source.allow()
        nar.finish()
        path = directory / f"{source.key.digits}.nar"
        until(lambda: path.stat().st_mtime == 1)  # synced
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"x")
    else:
        nar.wait_for(2 * CHUNK)
        (path,) = directory.glob("*.part")
        with path.open("r+b") as file:
            file.truncate(10)
    with pytest.raises(CacheFailure):
        nar.read(5, 100)
    source.allow()


def test_cached_nar_is_not_fetched(arriving: Arriving, cache: NarCache) -> None:
    add_to_cache(cache, NAR)
    source = Source(NAR)
    nar = arriving(source)
    assert nar.read(0, len(NAR)) == NAR
    assert nar.finish().nar_size == len(NAR)
    assert source.fetched == 0


def test_bytes_that_another_process_fetches_are_read_and_counted(make_cache: MakeCache) -> None:
    """Two caches simulate two processes."""
    caches, source = [make_cache(), make_cache()], Source(NAR, gated=True)
    nars = [ArrivingNar(each.fill(source.key, source), whole=False) for each in caches]
    source.allow(CHUNK)
    for nar in nars:
        assert nar.read(0, CHUNK) == NAR[:CHUNK]
    assert [each.total_bytes_fetched() for each in caches] == [CHUNK, CHUNK]
    source.allow()
    for nar in nars:
        assert nar.finish().nar_size == len(NAR)
        assert nar.read(0, len(NAR)) == NAR
        nar.close()
    assert source.fetched == 1


class TestClosing:
    def test_close_ends_a_fill_without_readers(
        self, arriving: Arriving, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(part, "NEARLY_DONE", 0)
        source = Source(NAR, gated=True)
        nar = arriving(source)
        source.allow(CHUNK)
        nar.wait_for(1)
        nar.close()
        nar.close()  # has no effect
        source.allow(2 * CHUNK)
        source.allow()
        until(lambda: source.closed == 1)
        until(lambda: names(directory) == set())
        for call in (nar.finish, partial(nar.wait_for, 1), partial(nar.read, 0, 5)):
            with pytest.raises(ValueError, match="closed"):
                call()

    def test_running_reads_complete_after_close(self, arriving: Arriving, monkeypatch: pytest.MonkeyPatch) -> None:
        waiting, wait_until = threading.Semaphore(0), Fill.wait_until

        def noticed(fill: Fill, stop: int) -> int:
            waiting.release()
            return wait_until(fill, stop)

        monkeypatch.setattr(Fill, "wait_until", noticed)
        source = Source(NAR, gated=True)
        nar = arriving(source)
        got: list[bytes] = []
        threads = [threading.Thread(target=lambda: got.append(nar.read(0, len(NAR)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert all(waiting.acquire(timeout=10) for _ in threads)
        nar.close()
        source.allow()
        for thread in threads:
            thread.join(10)
        assert got == [NAR] * 4


def test_many_threads_read_at_once(arriving: Arriving) -> None:
    source = Source(NAR, chunk=10_000)
    nars = [arriving(source) for _ in range(2)]

    def read(number: int) -> bool:
        start = number * 7919 % len(NAR)
        return nars[number % 2].read(start, len(NAR)) == NAR[start:]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(64)))
    assert source.fetched == 1


def test_read_times_out_if_no_bytes_arrive(arriving: Arriving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narcore.cache.fill.STALL_SECONDS", 0.05)
    source = Source(NAR, gated=True)
    nar = arriving(source)
    with pytest.raises(StoreTimeout):
        nar.wait_for(1)
    source.allow()
    monkeypatch.undo()
    assert nar.read(0, 5) == NAR[:5]


FILES = binary_cache({"x-1": {"data": NAR}})


class TestBinaryCache:
    @pytest.mark.parametrize("strict", [True, False])
    def test_open_arriving_returns_a_readable_nar(self, cache: NarCache, strict: bool) -> None:
        caches = BinaryCache([MemoryStore(FILES)], cache=cache, strict=strict)
        info = caches.path_info(hash_part("x-1"))
        with ThreadPoolExecutor(2) as pool:
            nars = list(pool.map(caches.open_arriving, [info, info]))
        for nar in nars:
            whole = nar.read(0, info.narinfo.nar_size)
            assert NAR in whole
            node = nar.finish().node(1)
            assert whole[node.nar_offset : node.nar_offset + node.size] == NAR
            nar.close()
        caches.close()

    def test_open_arriving_rejects_a_nar_that_may_not_be_served(
        self, cache: NarCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caches = BinaryCache([MemoryStore(FILES)], cache=cache, max_nar_size=1000)
        info = caches.path_info(hash_part("x-1"))
        with pytest.raises(NarTooLarge):
            caches.open_arriving(info)
        caches = BinaryCache([MemoryStore(FILES)], cache=cache)
        with monkeypatch.context() as patch:
            patch.setattr(AddressProof, "check", lambda proof, info: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                caches.open_arriving(info)
        caches = BinaryCache([MemoryStore(FILES)])
        with pytest.raises(CacheFailure, match="no disk cache"):
            caches.open_arriving(info)
