"""A fill and its readers, in one process and in several processes."""

import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from narcore.cache import failures, narcache, pace, part
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
from narcore.stores.waits import StoreWaits
from tests.cache.conftest import MakeCache, descriptors
from tests.cache.support import (
    Source,
    add_to_cache,
    cached_bytes,
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


def conditions() -> int:
    """Return how many objects of this type exist. Each reader that waits has one."""
    gc.collect()
    return sum(isinstance(each, threading.Condition) for each in gc.get_objects())


def take_slot(fill: Fill, source: Source) -> None:
    """Let the first chunk of a gated source arrive, and wait until the fill has a slot."""
    source.allow(source.chunk)
    until(lambda: fill.available == source.chunk)


class TestReading:
    def test_filled_nar_and_listing_are_cached(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)
        assert fill.wait().nar_size == len(NAR)
        assert read_all(fill) == NAR
        until(lambda: names(directory) == {f"{source.key.digits}.nar", f"{source.key.digits}.listing"})
        assert cached_bytes(cache, source.key) == NAR
        listing = cache.listing(source.key)
        assert listing == fill.wait()
        assert (source.fetched, source.closed) == (1, 1)
        for suffix in ("nar", "listing"):
            status = (directory / f"{source.key.digits}.{suffix}").stat()
            assert is_verified(status)
            assert status.st_mode & 0o777 == 0o444

    def test_bytes_are_returned_as_they_arrive_and_the_last_byte_after_verification(self, cache: NarCache) -> None:
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

    def test_check_is_called_before_the_last_byte(self, cache: NarCache) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)

        def check(listing: object) -> None:
            raise IntegrityError("not the expected listing")

        reader = fill.read(0, 1000, check)
        got, error = read_until_error(reader)
        reader.close()
        assert isinstance(error, IntegrityError)
        assert len(got) < 1000
        assert NAR.startswith(got)

    def test_whole_returns_nothing_before_verification(self, cache: NarCache) -> None:
        source = Source(NAR, sent=NAR[:-1000] + bytes(1000))
        reader = cache.fill(source.key, source).read(0, 100, no_check, whole=True)
        with pytest.raises(HashMismatch):
            next(iter(reader))
        reader.close()

    def test_many_readers_share_one_download(self, make_cache: MakeCache, directory: Path) -> None:
        """Two caches, as in two processes; the readers read different ranges at once."""
        caches, source = [make_cache(), make_cache()], Source(NAR, chunk=10_000)

        def read(number: int) -> bool:
            start = number * 7919 % len(NAR)
            cache = caches[number % 2]
            fill = cache.joinable(source.key)
            if fill is None and (nar := cache.open(source.key)) is not None:
                reader = nar.read(start, len(NAR))
                got = b"".join(reader)
                reader.close()
                return got == NAR[start:]
            return read_all(fill or cache.fill(source.key, source), start) == NAR[start:]

        with ThreadPoolExecutor(40) as pool:
            assert all(pool.map(read, range(80)))
        assert source.fetched == 1
        assert all(cache.joinable(source.key) is None for cache in caches)


class TestJoiningAndLeaving:
    def test_reader_that_never_reads_can_leave(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR, gated=True)
        reader = reader_of(cache.fill(source.key, source))
        reader.close()
        reader.close()
        source.allow()
        until(lambda: cache.is_cached(source.key))  # completed, since little was left

    @pytest.mark.parametrize(
        ("size", "done", "continues"),
        [
            (200_000, 0, True),  # little is left
            (NEARLY_DONE * 3, NEARLY_DONE // 2, False),
            (NEARLY_DONE * 3, NEARLY_DONE * 2, True),  # more than half
        ],
    )
    def test_fill_without_readers_continues_only_if_it_is_nearly_done(
        self, cache: NarCache, directory: Path, size: int, done: int, continues: bool
    ) -> None:
        source = Source(nar_of(size), gated=True)
        fill = cache.fill(source.key, source)
        other = cache.fill(source.key, source)
        assert other is fill
        source.allow(done)
        until(lambda: fill.available >= done - source.chunk)
        reader_of(other).close()
        source.allow(done + source.chunk)
        time.sleep(0.02)
        assert cache.joinable(source.key) is fill  # one reader is left
        fill.leave()
        fill.leave()
        source.allow()
        until(lambda: source.closed == 1 and descriptors(directory) == [])
        assert (cached_bytes(cache, source.key) == source.nar) == continues
        assert continues or names(directory) == set()
        cache.counters.flush()
        assert cache.counters.read()["failure"] == 0

    def test_fill_without_readers_ends_when_it_gets_a_slot(self, make_cache: MakeCache, directory: Path) -> None:
        """Its readers left while it waited for a slot."""
        cache = make_cache(max_fills=1)
        first, second = Source(NAR, gated=True), Source(nar_of(NEARLY_DONE * 3))
        fill = cache.fill(first.key, first)
        take_slot(fill, first)
        waiting = cache.fill(second.key, second)
        until(lambda: second.fetched == 1)
        waiting.leave()
        first.allow()
        assert read_all(fill) == NAR
        until(lambda: descriptors(directory) == [])
        assert (second.closed, cache.is_cached(second.key)) == (1, False)

    def test_new_reader_after_a_fill_was_given_up_starts_another(self, cache: NarCache) -> None:
        source = Source(nar_of(NEARLY_DONE * 3), gated=True)
        fill = cache.fill(source.key, source)
        source.allow(source.chunk)
        until(lambda: fill.available > 0)
        fill.leave()
        source.allow(source.chunk * 2)
        source.allow()
        # A fill that starts before the part file is removed may follow it; then its readers continue with a stream.
        until(lambda: not cache.layout.part(source.key).exists())
        again = cache.fill(source.key, source)
        assert again is not fill
        assert read_all(again) == source.nar
        assert source.fetched == 2

    def test_fill_without_local_readers_continues_if_another_process_reads(self, make_cache: MakeCache) -> None:
        one, two = make_cache(), make_cache()
        source = Source(nar_of(NEARLY_DONE * 3), gated=True)
        leader = one.fill(source.key, source)
        source.allow(source.chunk)
        until(lambda: leader.available > 0)
        follower = two.fill(source.key, source)
        until(lambda: follower.available > 0)
        leader.leave()
        source.allow()
        assert read_all(follower) == source.nar  # the leader continued the download
        assert source.fetched == 1

    def test_follower_that_starts_while_the_leader_gives_up_gets_the_nar(self, make_cache: MakeCache) -> None:
        """At any moment, the follower gets the NAR through the cache, and never an error."""
        one, two = make_cache(), make_cache()
        for seed in range(12):
            source = Source(nar_of(NEARLY_DONE * 2 + 100_000, seed), gated=True)
            leader = one.fill(source.key, source)
            leader.leave()
            threading.Timer(seed / 4000, source.allow).start()
            time.sleep(0.0015)
            assert read_all(two.fill(source.key, source)) == source.nar

    def test_ended_fill_can_be_joined_while_it_has_readers(self, cache: NarCache) -> None:
        source = Source(NAR)
        fill = cache.fill(source.key, source)
        assert fill.wait()
        assert fill.join()  # it has a reader
        fill.leave()
        fill.leave()
        assert not fill.join()  # its file is closed
        assert read_all(cache.fill(source.key, source)) == NAR
        assert source.fetched == 1  # the second fill found the NAR on disk

    def test_fill_of_a_cached_nar_leaves_no_part_file(self, cache: NarCache, directory: Path) -> None:
        key = add_to_cache(cache, NAR)
        source = Source(NAR)
        assert read_all(cache.fill(key, source)) == NAR
        assert source.fetched == 0
        assert names(directory) == {f"{key.digits}.nar", f"{key.digits}.listing"}


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
    def test_failure_reaches_all_readers_and_nothing_is_cached(
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
        # Only a NarcoreError is reported to other processes. After other errors, they try again, or stream the rest.
        allowed = {LeaderGaveUp} if kind is MemoryError else set()
        assert {type(error) for error in errors} - allowed == {kind}
        assert len({id(error) for error in errors}) == 6
        assert all(name.endswith(".error") for name in names(directory))

    def test_failure_is_remembered_for_seconds_by_all_processes(
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
            assert len(raised.traceback) < 4  # not accumulated over several raises
        assert source.fetched == 1
        time.sleep(0.5)
        source.fault = None
        assert read_all(two.fill(source.key, source)) == NAR

    def test_error_keeps_its_fields(self, cache: NarCache) -> None:
        for seed, fault in enumerate((NarError("bad", where="offset 96"), CapacityError("none", retry_after=17))):
            source = Source(nar_of(10, seed), fault=fault)
            with pytest.raises(type(fault)) as raised:
                read_all(cache.fill(source.key, source))
            assert raised.value is not fault
            assert (str(raised.value), vars(raised.value)) == (str(fault), vars(fault))

    def test_trace_listener_that_raises_does_not_affect_readers(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def trace(event: str, fields: dict[str, object]) -> None:
            if event == "cache.fill":
                raise ZeroDivisionError

        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        source = Source(NAR)
        assert read_all(make_cache(trace=trace).fill(source.key, source)) == NAR

    def test_missing_thread_is_a_capacity_error(self, cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        source = Source(NAR)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(CapacityError):
                read_all(cache.fill(source.key, source))
        assert read_all(cache.fill(source.key, source)) == NAR

    def test_readers_time_out_if_no_bytes_arrive(self, cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
        """Readers wait as long as any bytes of the NAR arrive, even if these are not the ones that they wait for."""
        monkeypatch.setattr(fill_module, "STALL_SECONDS", 0.5)
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
        assert time.monotonic() - since > 0.95
        thread.join()
        assert isinstance(got[0], StoreTimeout)
        source.allow()
        reader.close()
        waiting.close()

    def test_a_reader_that_times_out_leaves_nothing_behind(
        self, cache: NarCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = Source(NAR, gated=True)
        fill = cache.fill(source.key, source)
        before = conditions()
        with monkeypatch.context() as patch:
            patch.setattr(fill_module, "STALL_SECONDS", 0.001)
            for _ in range(20):
                with pytest.raises(StoreTimeout):
                    fill.wait_until(len(NAR))
        assert conditions() < before + 10
        source.allow()
        assert read_all(fill) == NAR

    def test_nar_larger_than_the_cache_is_rejected(self, make_cache: MakeCache) -> None:
        source = Source(NAR)
        with pytest.raises(CacheFailure):
            make_cache(len(NAR) - 1).fill(source.key, source)

    def test_missing_slot_is_a_capacity_error_that_is_not_remembered(
        self, make_cache: MakeCache, directory: Path
    ) -> None:
        one, two = make_cache(max_fills=1, patience=0.05), make_cache(max_fills=1, patience=0.05)
        first, second = Source(NAR, gated=True), Source(nar_of(1000, 1))
        fill = one.fill(first.key, first)
        take_slot(fill, first)
        with pytest.raises(CapacityError) as raised:
            read_all(two.fill(second.key, second))
        assert not isinstance(raised.value, CacheFailure)
        first.allow()
        assert read_all(fill) == NAR
        assert read_all(two.fill(second.key, second)) == second.nar  # immediately, since the NAR did not fail

    def test_waiting_fills_reserve_no_room(self, make_cache: MakeCache) -> None:
        """Only two NARs fit at a time; the other fills wait, and each makes room when it starts."""
        cache = make_cache(2 * len(NAR) + 200_000, max_fills=4, patience=10)
        sources = [Source(nar_of(400_000, seed)) for seed in range(6)]
        fills = [cache.fill(source.key, source) for source in sources]
        for fill, source in zip(fills, sources, strict=True):
            assert read_all(fill) == source.nar
        assert [source.fetched for source in sources] == [1] * 6


class TestSlowStores:
    def test_fill_needs_no_slot_before_its_first_byte_arrives(self, make_cache: MakeCache) -> None:
        cache = make_cache(max_fills=1, patience=0)
        silent = [Source(nar_of(400_000, seed), gated=True) for seed in range(1, 5)]
        waiting = [cache.fill(source.key, source) for source in silent]
        until(lambda: all(source.fetched for source in silent))
        quick = Source(NAR)
        assert read_all(cache.fill(quick.key, quick)) == NAR
        for fill, source in zip(waiting, silent, strict=True):
            source.allow()
            assert read_all(fill) == source.nar

    @pytest.mark.parametrize("max_fills", [1, 2])
    @pytest.mark.parametrize("drips", [True, False])
    def test_slow_fills_give_their_slots_to_others_and_go_on(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, max_fills: int, drips: bool
    ) -> None:
        monkeypatch.setattr(pace, "SLOW_SECONDS", 0.1)
        monkeypatch.setattr(pace, "SLOW_RATE", 1 << 20)
        monkeypatch.setattr(part, "TICK_SECONDS", 0.01)
        caches = make_cache(max_fills=max_fills, patience=3), make_cache(max_fills=max_fills, patience=0.3)
        slow = [Source(nar_of(400_000, seed), gated=True, chunk=1000) for seed in range(1, 2 * max_fills + 1)]
        fills = []
        for source in slow:  # the second half of them gets the slots that the first half gives away
            fills.append(caches[0].fill(source.key, source))
            take_slot(fills[-1], source)
            if drips:
                source.allow(2 * source.chunk)
        quick = Source(NAR)
        with pytest.raises(CapacityError):  # as many slow fills as there are slots go on beside them, and no more
            read_all(caches[1].fill(quick.key, quick))
        slow[0].allow()
        assert read_all(fills[0]) == slow[0].nar
        assert read_all(caches[0].fill(quick.key, quick)) == NAR
        for fill, source in zip(fills[1:], slow[1:], strict=True):
            source.allow()
            assert read_all(fill) == source.nar


class TestTakeover:
    def hold_as_leader(self, directory: Path, source: Source, written: bytes) -> int:
        """Simulate a process that has begun a fill; closing the descriptor simulates its death."""
        directory.mkdir(exist_ok=True)
        fd = os.open(Layout(directory).part(source.key), OPEN_FLAGS, 0o600)
        assert try_lock(fd)
        os.pwrite(fd, written, 0)
        return fd

    @pytest.mark.parametrize("written", [0, 1, 100_000, len(NAR)])
    def test_reader_takes_over_when_the_leader_dies(self, cache: NarCache, directory: Path, written: int) -> None:
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, NAR[:written])
        fill = cache.fill(source.key, source)
        until(lambda: fill.available == written)
        assert source.fetched == 0
        os.close(leader)
        assert read_all(fill) == NAR
        assert source.fetched == 1
        assert cached_bytes(cache, source.key) == NAR

    def test_takeover_fails_if_the_store_sends_different_bytes(self, cache: NarCache, directory: Path) -> None:
        """Readers may have received the bytes in the part file, so the new bytes must be the same."""
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, b"x" * 100)
        fill = cache.fill(source.key, source)
        until(lambda: fill.available == 100)
        reader = fill.read(0, 1000, no_check)
        assert next(iter(reader)) == b"x" * 100
        os.close(leader)
        with pytest.raises(IntegrityError):
            b"".join(reader)
        reader.close()

    def test_part_file_that_is_too_long_is_truncated(self, cache: NarCache, directory: Path) -> None:
        source = Source(NAR)
        os.close(self.hold_as_leader(directory, source, NAR + b"more"))
        assert read_all(cache.fill(source.key, source)) == NAR

    def test_start_removes_files_that_no_process_has_locked(self, make_cache: MakeCache, directory: Path) -> None:
        source, living = Source(NAR), Source(nar_of(10, 1))
        os.close(self.hold_as_leader(directory, source, NAR[:100]))
        leader = self.hold_as_leader(directory, living, b"")
        digits = source.key.digits
        (directory / f"{digits}.5.readers").touch()
        (directory / f"{digits}.listing").touch()
        (directory / f"{digits}.ls").touch()
        (directory / f".{digits}.listing.123-456.new").touch()
        (directory / "..counters.123-456.new").touch()
        (directory / f"{digits}.5.error").touch()
        os.utime(directory / f"{digits}.5.error", (0, 0))
        (directory / "unrelated.part").touch()
        make_cache()
        assert names(directory) == {f"{living.key.digits}.{living.key.size}.part", "unrelated.part"}
        os.close(leader)
        assert make_cache().clean() == 0  # it was removed when that cache was created
        assert names(directory) == {"unrelated.part"}

    def test_part_file_that_has_readers_is_not_removed(self, make_cache: MakeCache, directory: Path) -> None:
        """The leader has just died, its reader has not noticed yet, and other processes start."""
        source = Source(NAR, gated=True)
        leader = self.hold_as_leader(directory, source, NAR[:100])
        cache = make_cache()
        fill = cache.fill(source.key, source)
        until(lambda: fill.available == 100)
        os.close(leader)
        for _ in range(20):
            make_cache()
        source.allow()
        assert read_all(fill) == NAR
        assert cached_bytes(cache, source.key) == NAR

    def test_fill_starts_again_if_the_part_file_is_removed(self, make_cache: MakeCache, directory: Path) -> None:
        """The file is removed before a reader has received a byte of it."""
        source = Source(NAR)
        leader = self.hold_as_leader(directory, source, b"")
        cache = make_cache()
        fill = cache.fill(source.key, source)
        until(lambda: len(descriptors(directory)) >= 3)
        for path in directory.glob("*.part"):
            path.unlink()
        os.close(leader)
        assert read_all(fill) == NAR


class TestProcessExit:
    @pytest.mark.parametrize("read_elsewhere", [False, True])
    def test_exit_ends_the_fills_of_the_process(
        self, make_cache: MakeCache, directory: Path, read_elsewhere: bool
    ) -> None:
        one, two = make_cache(), make_cache()
        source = Source(NAR, gated=True)
        reader = reader_of(one.fill(source.key, source))
        source.allow(1 << 17)
        assert next(iter(reader))
        follower = two.fill(source.key, source) if read_elsewhere else None
        if follower:
            until(lambda: follower.available > 0)
        threading.Timer(0.05, source.allow).start()
        one.close()
        with suppress(CacheFailure):
            b"".join(reader)
        reader.close()
        if follower:
            assert read_all(follower) == NAR
            assert cached_bytes(two, key_of(NAR)) == NAR
        else:
            assert names(directory) == set()

    def test_exit_does_not_wait_for_stalled_downloads(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, directory: Path
    ) -> None:
        monkeypatch.setattr(narcache, "STOP_SECONDS", 0.1)
        cache, source = make_cache(), Source(NAR, gated=True)
        reader = reader_of(cache.fill(source.key, source))
        until(lambda: source.fetched == 1)
        since = time.monotonic()
        cache.close()
        assert time.monotonic() - since < 10, "the source waits for 20 seconds"
        source.allow()
        reader.close()
        until(lambda: descriptors(directory) == [])


def test_full_disk_fails_the_fill_without_being_remembered(
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
    assert read_all(cache.fill(source.key, source)) == NAR  # the error is not remembered


def test_removed_cache_directory_is_created_again(cache: NarCache, directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    add_to_cache(cache, NAR)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_wait_for_another_process_counts_for_the_store_of_that_process(tmp_path: Path) -> None:
    source = Source(nar_of(300_000), gated=True)
    waits = StoreWaits(1, clock=count(0, 0.1).__next__)  # 0.1 s pass at each look at the clock
    leading = NarCache(tmp_path, size=lambda _: 1 << 30, max_fills=1)
    following = NarCache(tmp_path, size=lambda _: 1 << 30, max_fills=1, waits=waits)
    first = leading.fill(source.key, source, source="a", store="memory://a")
    until(lambda: source.fetched == 1)
    second = following.fill(source.key, source, source="b", store="memory://b")
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(second.wait)
        until(lambda: waits.is_full("memory://a"))
        assert not waits.is_full("memory://b")
        source.allow()
        assert len(listing.result(10)) == 2
    first.leave()
    second.leave()
    leading.close()
    following.close()
