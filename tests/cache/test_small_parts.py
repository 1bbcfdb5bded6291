"""The parts that the cache is made of, each by itself."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore import errors
from narcore.cache import failures
from narcore.cache.counters import NAMES, Counters
from narcore.cache.layout import DURABLE, THIS_BOOT, Layout, is_verified, mark
from narcore.cache.locks import is_still_at, locked, remove_if_free, replacing, try_lock
from narcore.concurrency.hashing import BackgroundSha256
from narcore.concurrency.lru import LruMemory
from narcore.concurrency.readahead import Ahead
from narcore.concurrency.singleflight import SingleFlight
from narcore.formats.nixhash import NixHash
from narcore.streams.integrity import verified
from tests.cache.support import until


class TestLruMemory:
    @given(st.integers(1, 12), st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(1, 6))))
    def test_as_a_model_does(self, limit: int, steps: list[tuple[bool, int, int]]) -> None:
        """What was used last stays, as much as there is room for, and one at least."""
        memory: LruMemory[int, int] = LruMemory(limit)
        model: OrderedDict[int, int] = OrderedDict()
        for puts, key, weight in steps:
            if puts:
                memory.put(key, weight, weight=weight)
                model.pop(key, None)
                model[key] = weight
                while sum(model.values()) > limit and len(model) > 1:
                    model.popitem(last=False)
            else:
                assert memory.get(key) == model.get(key)
                if key in model:
                    model.move_to_end(key)
        assert {key: memory.get(key) for key in range(7)} == {key: model.get(key) for key in range(7)}

    def test_what_is_old_is_forgotten(self) -> None:
        now = 0.0
        memory: LruMemory[str, str] = LruMemory(3, clock=lambda: now)
        memory.put("short", "a", seconds=5)
        memory.put("long", "b")
        now = 4.9
        assert memory.get("short") == "a"
        now = 5.0
        assert (memory.get("short"), memory.get("long")) == (None, "b")
        memory.put("x", "c", weight=2)  # there is room for it: the old one weighs nothing any more
        assert (memory.get("long"), memory.get("x")) == ("b", "c")
        memory.discard("x")
        assert memory.get("x") is None


class TestSingleFlight:
    def test_one_call_for_all_who_ask_meanwhile(self) -> None:
        flights: SingleFlight[str, list[int]] = SingleFlight()
        calls: list[str] = []
        go = threading.Event()

        def call() -> list[int]:
            calls.append("x")
            assert go.wait(10)
            return [1]

        results: list[list[int]] = []
        threads = [threading.Thread(target=lambda: results.append(flights.do("k", call))) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: bool(calls))
        assert flights.do("another", lambda: [2]) == [2]
        go.set()
        for thread in threads:
            thread.join()
        assert len(calls) < 8  # those that came late may have begun another
        assert all(result == [1] for result in results)
        assert flights.do("k", lambda: [3]) == [3]

    def test_each_gets_an_error_of_its_own(self) -> None:
        flights: SingleFlight[str, int] = SingleFlight()
        begun, go = threading.Event(), threading.Event()

        def fail() -> int:
            begun.set()
            assert go.wait(10)
            raise errors.NarInfoError("bad", where="line 3")

        caught: list[errors.NarInfoError] = []

        def ask() -> None:
            with pytest.raises(errors.NarInfoError) as raised:
                flights.do("k", fail)
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


class TestMemo:
    ALL = sorted(
        (
            value
            for value in vars(errors).values()
            if isinstance(value, type) and issubclass(value, errors.NarcoreError)
        ),
        key=lambda value: value.__name__,
    )

    @pytest.mark.parametrize("kind", ALL)
    def test_any_error_comes_back(self, kind: type[errors.NarcoreError], tmp_path: Path) -> None:
        failures.remember(tmp_path / "e", kind("what – was wrong"))
        found = failures.recall(tmp_path / "e")
        assert type(found) is kind
        assert str(found) == "what – was wrong"
        assert [path.name for path in tmp_path.iterdir()] == ["e"]

    def test_for_seconds(self, tmp_path: Path) -> None:
        path = tmp_path / "e"
        failures.remember(path, errors.StoreTimeout("slow"))
        for age, remembered in ((0.0, True), (failures.SECONDS - 1, True), (failures.SECONDS + 1, False), (-60, False)):
            now = path.stat().st_mtime
            os.utime(path, (now - age, now - age))
            assert (failures.recall(path) is not None) == remembered
            os.utime(path)

    @pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b'"x"', b'{"error":"OSError","message":""}', b'{"error":1}'])
    def test_what_is_no_note(self, note: bytes, tmp_path: Path) -> None:
        (tmp_path / "e").write_bytes(note)
        assert failures.recall(tmp_path / "e") is None
        assert failures.recall(tmp_path / "none") is None

    def test_a_disk_that_does_not_take_it(self, tmp_path: Path) -> None:
        failures.remember(tmp_path / "missing" / "e", errors.StoreTimeout("slow"))


class TestCounters:
    def test_add_up_over_processes(self, tmp_path: Path) -> None:
        one, two = Counters(Layout(tmp_path)), Counters(Layout(tmp_path))
        for _ in range(5):
            one.add("hit")
            two.add("hit", 2)
        two.add("evict")
        one.flush()
        two.flush()
        assert Counters(Layout(tmp_path)).read() == dict.fromkeys(NAMES, 0) | {"hit": 15, "evict": 1}

    @pytest.mark.parametrize("spoiled", [b"", b"[1]", b"\xff\xfe", b'{"hit":null}', b'{"hit":"x"}'])
    def test_count_anew_what_was_spoiled(self, spoiled: bytes, tmp_path: Path) -> None:
        counters = Counters(Layout(tmp_path))
        (tmp_path / ".counters").write_bytes(spoiled)
        counters.add("fill")
        counters.flush()
        assert counters.read()["fill"] == 1

    def test_lose_nothing_while_they_cant_be_written(self, tmp_path: Path) -> None:
        counters = Counters(Layout(tmp_path / "later"))
        counters.add("hit")
        counters.flush()
        (tmp_path / "later").mkdir()
        counters.flush()
        assert json.loads((tmp_path / "later" / ".counters").read_text())["hit"] == 1


class TestBackgroundSha256:
    @given(st.lists(st.binary(max_size=50), max_size=30))
    def test_hashes_as_hashlib_does(self, chunks: list[bytes]) -> None:
        hasher = BackgroundSha256()
        for chunk in chunks:
            hasher.update(chunk)
        assert hasher.digest() == hashlib.sha256(b"".join(chunks)).digest()

    @pytest.mark.parametrize("taken", [0, 1, 3])
    def test_leaves_no_thread_when_a_stream_is_given_up(self, taken: int) -> None:
        before = threading.active_count()
        zero = NixHash("sha256", bytes(32))
        stream = verified([b"x" * 10] * 100, nar_hash=zero, nar_size=1000, hasher=BackgroundSha256())
        for _ in range(taken):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


class TestAhead:
    class Source:
        """Counts, and can fail."""

        def __init__(self, chunks: int, error: BaseException | None = None) -> None:
            self.left, self.error, self.closed, self.given = chunks, error, 0, 0

        def __iter__(self) -> "TestAhead.Source":
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
        ahead = Ahead(source)
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
        ahead = Ahead(source)
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert (source.closed, threading.active_count()) == (1, before)
        assert source.given <= taken + 8  # no further ahead than the queue is long

    def test_it_is_ahead(self) -> None:
        source = self.Source(3)
        ahead = Ahead(source)
        next(ahead)
        until(lambda: source.given == 3)
        ahead.close()


class TestMarks:
    @pytest.mark.parametrize("seconds", [DURABLE, THIS_BOOT])
    def test_are_lost_with_the_first_byte_written(self, seconds: int, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"x")
        assert not is_verified(path.stat())
        os.utime(path, (1000, 2000))
        with path.open("r+b") as file:
            mark(file.fileno(), seconds)
            assert is_verified(path.stat())
            assert path.stat().st_atime == 1000
            file.write(b"y")
            file.flush()
            assert not is_verified(path.stat())

    def test_of_another_boot_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.touch()
        for seconds in (THIS_BOOT + 1, DURABLE + 1, 0):
            os.utime(path, (0, seconds))
            assert not is_verified(path.stat())
        os.utime(path, ns=(0, DURABLE * 10**9 + 1))
        assert not is_verified(path.stat())


class TestLocks:
    def test_are_let_go_and_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with locked(path), path.open("rb") as other:
            assert not try_lock(other.fileno())
            assert is_still_at(other.fileno(), path)
            path.rename(tmp_path / "moved")
            assert not is_still_at(other.fileno(), path)
            path.touch()
            assert not is_still_at(other.fileno(), path)
        with (tmp_path / "moved").open("rb") as other:
            assert try_lock(other.fileno())

    def test_a_file_is_replaced_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"old")

        def fail() -> None:
            with replacing(path) as fd:
                os.write(fd, b"half")
                (new,) = set(tmp_path.iterdir()) - {path}
                assert remove_if_free(new) == []  # its writer lives
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
        with replacing(path) as fd:
            os.write(fd, b"new")
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])

    def test_two_are_removed_together_or_not_at_all(self, tmp_path: Path) -> None:
        one, two = tmp_path / "1", tmp_path / "2"
        two.touch()
        with locked(one):
            assert remove_if_free(two, also=one) == []
        assert remove_if_free(two, also=one) == [two, one]
        assert remove_if_free(two, also=one) == []
