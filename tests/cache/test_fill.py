"""One fill and its readers, in one process and in several."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from narcore.cache import failures, narcache, part
from narcore.cache import fill as fill_module
from narcore.cache.errors import LeaderGaveUp
from narcore.cache.fill import Fill
from narcore.cache.layout import Layout, is_verified
from narcore.cache.locks import OPEN_FLAGS, try_lock
from narcore.cache.narcache import NarCache
from narcore.errors import (
    CacheFailure,
    CapacityError,
    CorruptStream,
    HashMismatch,
    IntegrityError,
    NarError,
    StoreTimeout,
    StoreUnavailable,
)
from tests.cache.conftest import MakeCache, descriptors
from tests.cache.support import (
    Source,
    keep,
    kept,
    key_of,
    names,
    nar_of,
    no_check,
    read_all,
    read_until_error,
    reader_of,
    until,
)

NAR = nar_of(400_000)
NEARLY_DONE = 500_000


@pytest.fixture(autouse=True)
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "NEARLY_DONE", NEARLY_DONE)


def available(fill: Fill) -> int:
    return fill._available


class TestReading:
    def test_what_is_filled_is_kept(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)
        assert fill.wait().nar_size == len(NAR)
        assert read_all(fill) == NAR
        until(lambda: names(directory) == {f"{source.key.digits}.nar", f"{source.key.digits}.ls"})
        assert kept(cache, source.key) == NAR
        listing = cache.listing(source.key)
        assert listing == fill.wait()
        assert (source.fetched, source.closed) == (1, 1)
        for suffix in ("nar", "ls"):
            status = (directory / f"{source.key.digits}.{suffix}").stat()
            assert is_verified(status)
            assert status.st_mode & 0o777 == 0o444

    def test_bytes_are_given_out_as_they_come_and_the_last_one_when_all_is_right(self, cache: NarCache) -> None:
        source = Source(NAR, gated=True)
        fill = cache.fill(source.key, source)
        reader = fill.read(10, 70_000, no_check)
        chunks = iter(reader)
        source.allow(1 << 16)
        got = next(chunks)
        assert got == NAR[10 : 1 << 16]
        source.allow(1 << 17)
        got += next(chunks)
        assert got == NAR[10:69_999]
        late = []
        thread = threading.Thread(target=lambda: late.append(next(chunks)))
        thread.start()
        source.allow(len(NAR) - 1)  # all but the last chunk
        thread.join(0.1)
        assert late == []
        source.allow()
        thread.join()
        assert late == [NAR[69_999:70_000]]
        reader.close()

    def test_the_check_comes_before_the_last_byte(self, cache: NarCache) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)

        def check(listing: object) -> None:
            raise IntegrityError("not what was looked up")

        reader = fill.read(0, 1000, check)
        got, error = read_until_error(reader)
        reader.close()
        assert isinstance(error, IntegrityError)
        assert len(got) < 1000
        assert NAR.startswith(got)

    def test_whole_gives_nothing_before_all_is_right(self, cache: NarCache) -> None:
        source = Source(NAR, sent=NAR[:-1000] + bytes(1000))
        reader = cache.fill(source.key, source).read(0, 100, no_check, whole=True)
        with pytest.raises(HashMismatch):
            next(iter(reader))
        reader.close()

    def test_many_readers_and_one_fetch(self, make_cache: MakeCache, directory: Path) -> None:
        """Two caches, as in two processes: random parts, all at once, some of them slow."""
        caches, source = [make_cache(), make_cache()], Source(NAR, chunk=10_000)

        def read(number: int) -> bool:
            start = number * 7919 % len(NAR)
            cache = caches[number % 2]
            fill = cache.joinable(source.key)
            if fill is None and (nar := cache.open(source.key)) is not None:
                with_disk = nar.read(start, len(NAR))
                got = b"".join(with_disk)
                with_disk.close()
                return got == NAR[start:]
            return read_all(fill or cache.fill(source.key, source), start) == NAR[start:]

        with ThreadPoolExecutor(40) as pool:
            assert all(pool.map(read, range(80)))
        assert source.fetched == 1
        assert all(cache.joinable(source.key) is None for cache in caches)


class TestJoiningAndLeaving:
    def test_a_reader_that_never_reads_is_let_go(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR, gated=True)
        reader = reader_of(cache.fill(source.key, source))
        reader.close()
        reader.close()
        source.allow()
        until(lambda: cache.is_cached(source.key))  # little was left

    @pytest.mark.parametrize(
        ("size", "done", "goes_on"),
        [
            (200_000, 0, True),  # little is left
            (NEARLY_DONE * 3, NEARLY_DONE // 2, False),
            (NEARLY_DONE * 3, NEARLY_DONE * 2, True),  # more than half
        ],
    )
    def test_when_the_last_one_leaves(
        self, cache: NarCache, directory: Path, size: int, done: int, goes_on: bool
    ) -> None:
        source = Source(nar_of(size), gated=True)
        fill = cache.fill(source.key, source)
        other = cache.fill(source.key, source)
        assert other is fill
        source.allow(done)
        until(lambda: available(fill) >= done - source.chunk)
        reader_of(other).close()
        source.allow(done + source.chunk)
        time.sleep(0.02)
        assert cache.joinable(source.key) is fill  # one is there still
        fill.leave()
        fill.leave()
        source.allow()
        until(lambda: source.closed == 1 and descriptors(directory) == [])
        assert (kept(cache, source.key) == source.nar) == goes_on
        assert goes_on or names(directory) == set()
        assert cache.counters._pending["failure"] == 0

    def test_nothing_is_fetched_for_nobody(self, make_cache: MakeCache, directory: Path) -> None:
        """Those who wanted it left while it waited for a slot."""
        cache = make_cache(max_fills=1)
        first, second = Source(NAR, gated=True), Source(nar_of(NEARLY_DONE * 3))
        fill = cache.fill(first.key, first)
        until(lambda: first.fetched == 1)
        cache.fill(second.key, second).leave()
        first.allow()
        assert read_all(fill) == NAR
        until(lambda: descriptors(directory) == [])
        assert (second.fetched, cache.is_cached(second.key)) == (0, False)

    def test_a_newcomer_after_that_begins_anew(self, cache: NarCache) -> None:
        source = Source(nar_of(NEARLY_DONE * 3), gated=True)
        fill = cache.fill(source.key, source)
        source.allow(source.chunk)
        until(lambda: available(fill) > 0)
        fill.leave()
        source.allow(source.chunk * 2)
        until(lambda: fill._closed)
        source.allow()
        # One that comes a moment sooner may follow the part that is about to go: then its readers go on with a stream.
        until(lambda: not cache.layout.part(source.key).exists())
        again = cache.fill(source.key, source)
        assert again is not fill
        assert read_all(again) == source.nar
        assert source.fetched == 2

    def test_given_up_here_while_another_process_reads(self, make_cache: MakeCache) -> None:
        one, two = make_cache(), make_cache()
        source = Source(nar_of(NEARLY_DONE * 3), gated=True)
        leader = one.fill(source.key, source)
        source.allow(source.chunk)
        until(lambda: available(leader) > 0)
        follower = two.fill(source.key, source)
        until(lambda: available(follower) > 0)
        leader.leave()
        source.allow()
        assert read_all(follower) == source.nar  # the leader went on for it
        assert source.fetched == 1

    def test_a_follower_that_comes_as_the_leader_gives_up(self, make_cache: MakeCache) -> None:
        """At any moment: it gets the NAR by the cache, and never an error."""
        one, two = make_cache(), make_cache()
        for seed in range(12):
            source = Source(nar_of(NEARLY_DONE * 2 + 100_000, seed), gated=True)
            leader = one.fill(source.key, source)
            leader.leave()
            threading.Timer(seed / 4000, source.allow).start()
            time.sleep(0.0015)
            assert read_all(two.fill(source.key, source)) == source.nar

    def test_joining_a_fill_that_has_just_ended(self, cache: NarCache) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)
        assert fill.wait()
        assert fill.join()  # while somebody reads from it
        fill.leave()
        fill.leave()
        assert not fill.join()  # its file is closed
        assert read_all(cache.fill(source.key, source)) == NAR
        assert source.fetched == 1  # it was on disk

    def test_adopting_what_is_on_disk_leaves_nothing(self, cache: NarCache, directory: Path) -> None:
        key = keep(cache, NAR)
        source = Source(NAR)
        assert read_all(cache.fill(key, source)) == NAR
        assert source.fetched == 0
        assert names(directory) == {f"{key.digits}.nar", f"{key.digits}.ls"}


class TestFailure:
    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            (Source(NAR, fault=StoreUnavailable("cut")), StoreUnavailable),
            (Source(NAR, fault=StoreTimeout("slow")), StoreTimeout),
            (Source(NAR, fault=CorruptStream("damaged")), CorruptStream),
            (Source(NAR, fault=MemoryError()), MemoryError),
            (Source(NAR, sent=NAR[:200_000] + b"x" + NAR[200_001:]), HashMismatch),
            (Source(NAR, sent=b"not a NAR at all" * 10, chunk=8), NarError),
            (Source(b"no NAR, but the right hash" * 10), NarError),
            (Source(NAR[:-8]), NarError),
        ],
    )
    def test_is_everybodys_and_nothing_is_kept(
        self, make_cache: MakeCache, directory: Path, source: Source, kind: type[Exception]
    ) -> None:
        caches = [make_cache(), make_cache()]
        source.gated = True
        fills = [caches[number % 2].fill(source.key, source) for number in range(6)]
        errors, wrong = [], []

        def read(fill: Fill) -> None:
            reader = reader_of(fill)
            got, error = read_until_error(reader)
            errors.append(error)
            reader.close()
            if len(got) >= len(source.nar):
                wrong.append(got)

        threads = [threading.Thread(target=read, args=(fill,)) for fill in fills]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        source.allow()
        for thread in threads:
            thread.join()
        assert wrong == []
        # A fault that is no error of ours is not told to other processes: they try for themselves, or stream the rest.
        allowed = {LeaderGaveUp} if kind is MemoryError else set()
        assert {type(error) for error in errors} - allowed == {kind}
        assert len({id(error) for error in errors}) == 6
        assert all(name.endswith(".error") for name in names(directory))

    def test_is_remembered_for_seconds_by_every_process(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(failures, "SECONDS", 0.4)
        one, two = make_cache(), make_cache()
        source = Source(NAR, fault=CorruptStream("damaged"))
        with pytest.raises(CorruptStream):
            read_all(one.fill(source.key, source))
        for cache in (one, two, one, two):
            with pytest.raises(CorruptStream, match="damaged") as raised:
                cache.fill(source.key, source)
            assert len(raised.traceback) < 4  # no pile of those before
        assert source.fetched == 1
        time.sleep(0.5)
        source.fault = None
        assert read_all(two.fill(source.key, source)) == NAR

    def test_an_error_keeps_its_fields(self, cache: NarCache) -> None:
        for seed, fault in enumerate((NarError("bad", where="offset 96"), CapacityError("none", retry_after=17))):
            source = Source(nar_of(10, seed), fault=fault)
            with pytest.raises(type(fault)) as raised:
                read_all(cache.fill(source.key, source))
            assert raised.value is not fault
            assert (str(raised.value), vars(raised.value)) == (str(fault), vars(fault))

    def test_a_listener_that_raises_hurts_no_reader(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def trace(event: str, fields: dict[str, object]) -> None:
            if event == "cache.fill":
                raise ZeroDivisionError

        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        source = Source(NAR)
        assert read_all(make_cache(trace=trace).fill(source.key, source)) == NAR

    def test_no_thread_to_be_had(self, cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        source = Source(NAR)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(CapacityError):
                read_all(cache.fill(source.key, source))
        assert read_all(cache.fill(source.key, source)) == NAR

    def test_a_stall(self, cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
        """Readers wait as long as something comes, be it not for them, and no longer."""
        monkeypatch.setattr(fill_module, "STALL_SECONDS", 0.3)
        source = Source(NAR, gated=True, chunk=20_000)
        fill = cache.fill(source.key, source)
        reader = reader_of(cache.fill(source.key, source))
        got: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: got.append(read_until_error(reader)[1]))
        thread.start()
        since = time.monotonic()
        waiting = fill.read(len(NAR) - 10, len(NAR), no_check)
        for step in range(1, 6):
            threading.Timer(step / 10, source.allow, (step * 20_000,)).start()
        with pytest.raises(StoreTimeout):
            next(iter(waiting))
        assert 0.75 < time.monotonic() - since < 3
        thread.join()
        assert isinstance(got[0], StoreTimeout)
        assert fill._waiting == []
        source.allow()
        reader.close()
        waiting.close()

    def test_larger_than_the_cache(self, make_cache: MakeCache) -> None:
        source = Source(NAR)
        with pytest.raises(CacheFailure):
            make_cache(len(NAR) - 1).fill(source.key, source)

    def test_no_slot(self, make_cache: MakeCache, directory: Path) -> None:
        one, two = make_cache(max_fills=1, patience=0.05), make_cache(max_fills=1, patience=0.05)
        first, second = Source(NAR, gated=True), Source(nar_of(1000, 1))
        fill = one.fill(first.key, first)
        until(lambda: first.fetched == 1)
        with pytest.raises(CapacityError) as raised:
            read_all(two.fill(second.key, second))
        assert not isinstance(raised.value, CacheFailure)
        first.allow()
        assert read_all(fill) == NAR
        assert read_all(two.fill(second.key, second)) == second.nar  # at once: that was no failure of the NAR

    def test_waiting_fills_take_no_room(self, make_cache: MakeCache) -> None:
        """Only two fit at a time; the others wait for their turn, and all are kept or make room."""
        cache = make_cache(2 * len(NAR) + 200_000, max_fills=4, patience=10)
        sources = [Source(nar_of(400_000, seed)) for seed in range(6)]
        fills = [cache.fill(source.key, source) for source in sources]
        for fill, source in zip(fills, sources, strict=True):
            assert read_all(fill) == source.nar
        assert [source.fetched for source in sources] == [1] * 6


class TestTakeover:
    def hold_as_leader(self, directory: Path, source: Source, written: bytes) -> int:
        """As a process that has begun a fill: close the descriptor to kill it."""
        directory.mkdir(exist_ok=True)
        fd = os.open(Layout(directory).part(source.key), OPEN_FLAGS, 0o600)
        assert try_lock(fd)
        os.pwrite(fd, written, 0)
        return fd

    @pytest.mark.parametrize("written", [0, 1, 100_000, len(NAR)])
    def test_one_who_reads_takes_over(self, cache: NarCache, directory: Path, written: int) -> None:
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, NAR[:written])
        fill = cache.fill(source.key, source)
        until(lambda: available(fill) == written)
        assert source.fetched == 0
        os.close(leader)
        assert read_all(fill) == NAR
        assert source.fetched == 1
        assert kept(cache, source.key) == NAR

    def test_other_bytes_than_before_are_a_lie(self, cache: NarCache, directory: Path) -> None:
        """Readers may have got what was written; so the NAR has to be the same as far as that goes."""
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, b"x" * 100)
        fill = cache.fill(source.key, source)
        until(lambda: available(fill) == 100)
        reader = fill.read(0, 1000, no_check)
        assert next(iter(reader)) == b"x" * 100
        os.close(leader)
        with pytest.raises(IntegrityError):
            b"".join(reader)
        reader.close()

    def test_a_leftover_that_is_too_long(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR)
        os.close(self.hold_as_leader(directory, source, NAR + b"more"))
        assert read_all(cache.fill(source.key, source)) == NAR

    def test_the_start_removes_what_nobody_holds(self, make_cache: MakeCache, directory: Path) -> None:
        source, living = Source(NAR), Source(nar_of(10, 1))
        os.close(self.hold_as_leader(directory, source, NAR[:100]))
        leader = self.hold_as_leader(directory, living, b"")
        digits = source.key.digits
        (directory / f"{digits}.5.readers").touch()
        (directory / f"{digits}.ls").touch()
        (directory / f".{digits}.ls.123-456.new").touch()
        (directory / "..counters.123-456.new").touch()
        (directory / f"{digits}.5.error").touch()
        os.utime(directory / f"{digits}.5.error", (0, 0))
        (directory / "somebody else's.part").touch()
        make_cache()
        assert names(directory) == {f"{living.key.digits}.{living.key.size}.part", "somebody else's.part"}
        os.close(leader)
        assert make_cache().clean() == 0  # it went when that cache was made
        assert names(directory) == {"somebody else's.part"}

    def test_a_part_that_somebody_reads_stays(self, make_cache: MakeCache, directory: Path) -> None:
        """Its leader has just died, and its reader has not yet noticed; a third process starts."""
        source = Source(NAR, gated=True)
        leader = self.hold_as_leader(directory, source, NAR[:100])
        cache = make_cache()
        fill = cache.fill(source.key, source)
        until(lambda: available(fill) == 100)
        os.close(leader)
        for _ in range(20):
            make_cache()
        source.allow()
        assert read_all(fill) == NAR
        assert kept(cache, source.key) == NAR

    def test_the_part_is_taken_away(self, make_cache: MakeCache, directory: Path) -> None:
        """Before a byte of it came to a reader: then it is begun anew."""
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, b"")
        cache = make_cache()
        fill = cache.fill(source.key, source)
        until(lambda: len(descriptors(directory)) >= 3)
        for path in directory.glob("*.part"):
            path.unlink()
        os.close(leader)
        assert read_all(fill) == NAR


class TestTheEndOfTheProcess:
    @pytest.mark.parametrize("read_elsewhere", [False, True])
    def test_ends_its_fills(self, make_cache: MakeCache, directory: Path, read_elsewhere: bool) -> None:
        one, two = make_cache(), make_cache()
        source = Source(NAR, gated=True)
        reader = reader_of(one.fill(source.key, source))
        source.allow(1 << 17)
        assert next(iter(reader))
        follower = two.fill(source.key, source) if read_elsewhere else None
        if follower:
            until(lambda: available(follower) > 0)
        threading.Timer(0.05, source.allow).start()
        one.close()
        with suppress(CacheFailure):
            b"".join(reader)
        reader.close()
        if follower:
            assert read_all(follower) == NAR
            assert kept(two, key_of(NAR)) == NAR
        else:
            assert names(directory) == set()

    def test_waits_no_longer_than_it_must(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, directory: Path
    ) -> None:
        monkeypatch.setattr(narcache, "STOP_SECONDS", 0.1)
        cache, source = make_cache(), Source(NAR, gated=True)
        reader = reader_of(cache.fill(source.key, source))
        until(lambda: source.fetched == 1)
        since = time.monotonic()
        cache.close()
        assert time.monotonic() - since < 1
        source.allow()
        reader.close()
        until(lambda: descriptors(directory) == [])


def test_a_disk_that_fails_while_it_is_written(
    cache: NarCache, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    source = Source(NAR)
    write: Callable[..., int] = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > 200_000:
            raise OSError(28, "No space left on device")
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        reader = reader_of(cache.fill(source.key, source))
        got, error = read_until_error(reader)
        assert isinstance(error, CacheFailure)
        assert NAR.startswith(got)
        assert reader.again(0, 1000) == NAR[:1000]
        reader.close()
    assert names(directory) == set()
    assert read_all(cache.fill(source.key, source)) == NAR  # nothing of that is remembered


def test_a_directory_that_was_taken_away(cache: NarCache, directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    keep(cache, NAR)
    assert directory.stat().st_mode & 0o777 == 0o700
