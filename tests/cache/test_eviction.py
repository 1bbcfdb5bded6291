"""Eviction: which entries are evicted for new ones, and how reserved space is counted."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.cache import eviction
from narcore.cache.eviction import RELEASE_SECONDS, RecentEvictions, entries, make_room
from narcore.cache.layout import Layout, NarKey
from narcore.cache.locks import OPEN_FLAGS, try_lock
from narcore.cache.slots import Slot, Slots, reserved_parts
from narcore.errors import CacheFailure, CapacityError


def digits(number: int) -> str:
    return f"{number:052d}"


def key(number: int, size: int) -> NarKey:
    return NarKey(digits(number), size)


def put(layout: Layout, number: int, size: int, used: int, listing: int = 0) -> None:
    """Create an entry that was last used at the second ``used``."""
    layout.nar(digits(number)).write_bytes(bytes(size))
    os.utime(layout.nar(digits(number)), (used, 1))
    if listing:
        layout.listing(digits(number)).write_bytes(bytes(listing))


def put_part(layout: Layout, part: NarKey, size: int) -> None:
    layout.part(part).write_bytes(bytes(size))


@contextmanager
def reserved(layout: Layout, number: int, part: NarKey) -> Iterator[None]:
    """Reserve room for a part file, as another process does."""
    fd = os.open(layout.slot(number), OPEN_FLAGS, 0o600)
    assert try_lock(fd)
    slot = Slot(fd)
    slot.reserve(layout.part(part).name)
    try:
        yield
    finally:
        slot.close()


def has_room(slot: Slot) -> bool:
    return True


class TestMakeRoom:
    @given(
        have=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=8),
        part=st.tuples(st.integers(1, 50), st.integers(0, 60), st.booleans()) | st.none(),
        size=st.integers(0, 120),
        limit=st.integers(1, 150),
    )
    def test_evicts_the_least_recently_used_and_no_more_than_needed(
        self, have: list[tuple[int, int]], part: tuple[int, int, bool] | None, size: int, limit: int
    ) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
            layout = Layout(Path(name))
            for number, (nar_size, used) in enumerate(have):
                put(layout, number, nar_size, used)
            others = 0
            if part:
                put_part(layout, key(90, part[0]), part[1])
                others = max(part[:2]) if part[2] else part[1]  # without a reservation, its current size
            before = entries(layout)
            slot = reserved(layout, 0, key(90, part[0])) if part and part[2] else reserved(layout, 1, key(91, 1))
            with slot:
                if size > limit:
                    with pytest.raises(CacheFailure):
                        make_room(layout, key(99, size), limit)
                    evicted = []
                else:
                    found = make_room(layout, key(99, size), limit)
                    assert (found is None) == (size + others > limit)
                    evicted = found or []
            after = entries(layout)
            assert evicted + after == before  # the first ones were evicted, in the order of use
            assert [entry.used for entry in before] == sorted(entry.used for entry in before)
            if size <= limit and found is not None:
                total = sum(entry.size for entry in after)
                assert total + others + size <= limit
                assert not evicted or total + evicted[-1].size + others + size > limit

    def test_listing_counts_and_is_evicted_with_its_nar(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        put(layout, 1, 10, 1, listing=7)
        put(layout, 2, 10, 2, listing=7)
        assert [entry.size for entry in entries(layout)] == [17, 17]
        assert [entry.digits for entry in make_room(layout, key(9, 6), 39) or []] == [digits(1)]
        assert {path.name for path in tmp_path.iterdir()} == {".lock", f"{digits(2)}.nar", f"{digits(2)}.listing"}

    def test_free_space_of_the_file_system_limits_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = Layout(tmp_path)
        for number in range(4):
            put(layout, number, 10, number)
        disk = 50

        def free(directory: Path) -> int:
            return disk - sum(path.stat().st_size for path in directory.iterdir() if path.name[0] != ".")

        monkeypatch.setattr(eviction, "free_bytes", free)
        put_part(layout, key(90, 9), 1)
        with reserved(layout, 0, key(90, 9)):  # 8 bytes of it are not written yet
            assert [entry.digits for entry in make_room(layout, key(9, 20), 1000) or []] == [digits(0), digits(1)]
            assert make_room(layout, key(9, 45), 1000) is None  # there may be room when the other fill has ended
            with pytest.raises(CacheFailure):
                make_room(layout, key(9, 51), 1000)
        assert len(entries(layout)) == 2  # nothing is evicted if the NAR can't fit

    def test_open_evicted_files_get_time_before_more_is_evicted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout, clock = Layout(tmp_path), 0.0
        for number in range(4):
            put(layout, number, 10, number)
        still_open = True

        def free(directory: Path) -> int:
            freed = 0 if still_open else 10 * (4 - len(entries(layout)))
            return 5 + freed

        monkeypatch.setattr(eviction, "free_bytes", free)
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        recent = RecentEvictions()
        for _ in range(3):
            assert make_room(layout, key(9, 12), 1000, recent=recent) is None
            assert len(entries(layout)) == 3
        clock += RELEASE_SECONDS
        assert make_room(layout, key(9, 12), 1000, recent=recent) is None
        assert len(entries(layout)) == 2, "the file was not closed in time: another entry is evicted"
        still_open = False
        assert [entry.digits for entry in make_room(layout, key(9, 12), 1000, recent=recent) or []] == [
            digits(0),
            digits(1),
        ]

    def test_unknown_files_are_not_evicted(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        unknown = [tmp_path / name for name in (f"{digits(1)[:32]}.nar", "x.nar", "notes.txt", f"{digits(1)}.nar.bak")]
        for path in unknown:
            path.write_bytes(bytes(1000))
        (tmp_path / f"{digits(2)}.nar").symlink_to("/etc/passwd")
        (tmp_path / f"{digits(3)}.nar").mkdir()
        assert make_room(layout, key(9, 10), 10) == []
        assert all(path.exists() for path in unknown)


class TestSlots:
    def test_slots_are_limited_over_all_processes(self, tmp_path: Path) -> None:
        one, two = (Slots(Layout(tmp_path), 2, patience=0.05) for _ in range(2))  # as in two processes
        with one.hold(has_room), two.hold(has_room):
            with pytest.raises(CapacityError) as raised, one.hold(has_room):
                pass
            assert type(raised.value) is CapacityError
            assert raised.value.retry_after > 0
        with two.hold(has_room), two.hold(has_room):
            pass

    def test_waiting_fill_gets_the_next_free_slot(self, tmp_path: Path) -> None:
        slots = Slots(Layout(tmp_path), 1, patience=5)
        got = threading.Event()

        def wait() -> None:
            with slots.hold(has_room):
                got.set()

        thread = threading.Thread(target=wait)
        with slots.hold(has_room):
            thread.start()
            assert not got.wait(0.1)
        assert got.wait(5)
        thread.join()

    def test_slot_is_released_if_there_is_no_room(self, tmp_path: Path) -> None:
        slots = Slots(Layout(tmp_path), 1, patience=0.0)
        with pytest.raises(CacheFailure), slots.hold(lambda slot: False):
            pass
        with pytest.raises(ZeroDivisionError), slots.hold(lambda slot: bool(1 / 0)):
            pass
        with slots.hold(has_room):
            pass

    def test_hold_waits_for_room(self, tmp_path: Path) -> None:
        slots = Slots(Layout(tmp_path), 1, patience=5)
        since = time.monotonic()
        with slots.hold(lambda slot: time.monotonic() > since + 0.1):
            assert time.monotonic() > since + 0.1

    def test_reservation_ends_with_its_process(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        with reserved(layout, 7, key(1, 5)):  # more than our own limit: other processes may have a higher one
            assert reserved_parts(layout) == {layout.part(key(1, 5)).name}
        assert reserved_parts(layout) == set()
        layout.slot(3).write_text(layout.part(key(2, 5)).name)  # written by a process that was killed
        assert reserved_parts(layout) == set()
