"""Complete NARs: what is taken for one, and what happens to one that was touched."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narcore.cache import cached, eviction
from narcore.cache.layout import DURABLE, THIS_BOOT, NarKey, is_verified
from narcore.cache.narcache import NarCache, check_private
from narcore.cache.upkeep import verify
from narcore.errors import CacheFailure, CorruptStream
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from tests import needs
from tests.cache.conftest import MakeCache
from tests.cache.support import Source, keep, kept, key_of, names, nar_of, read_all, read_until_error, until

NAR = nar_of(600_000)
KEY = key_of(NAR)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each NAR that is hashed."""
    found: list[int] = []
    has_digest = cached.has_digest

    def counted(fd: int, digits: str) -> bool:
        found.append(fd)
        return has_digest(fd, digits)

    monkeypatch.setattr(cached, "has_digest", counted)
    return found


def spoil(path: Path, change: Callable[[Path], object]) -> None:
    path.chmod(0o600)
    change(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(300_000)
        file.write(b"wrong")


def link_away(path: Path) -> None:
    path.rename(path.with_suffix(".x"))
    path.symlink_to(path.with_suffix(".x"))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED: dict[str, Callable[[Path], object]] = {
    "corrupted": overwrite,
    "truncated": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(NAR + b"x"),
    "deleted": lambda path: path.unlink(),
    "a link": link_away,
    "a pipe": make_pipe,
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_what_was_spoiled_is_not_used(cache: NarCache, directory: Path, change: Callable[[Path], object]) -> None:
    keep(cache, NAR)
    path = directory / f"{KEY.digits}.nar"
    spoil(path, change)
    assert cache.open(KEY) is None
    assert cache.listing(KEY) is None
    assert not path.is_file() or path.is_symlink()
    source = Source(NAR)
    assert read_all(cache.fill(KEY, source)) == NAR
    assert source.fetched == 1
    assert kept(cache, KEY) == NAR


@pytest.mark.parametrize(
    ("change", "when"),
    [("corrupted", 0), ("corrupted", 1), ("truncated", 0), ("truncated", 1), ("longer", 1)],
)
def test_what_is_spoiled_while_it_is_read(cache: NarCache, directory: Path, change: str, when: int) -> None:
    """Never all of it, if it is wrong: the last bytes come after a look at the file."""
    keep(cache, NAR)
    nar = cache.open(KEY)
    assert nar is not None
    reader = nar.read(0, KEY.size)
    chunks = iter(reader)
    got = b"".join(next(chunks) for _ in range(when))
    spoil(directory / f"{KEY.digits}.nar", SPOILED[change])
    more, error = read_until_error(chunks)
    got += more
    assert isinstance(error, CacheFailure)
    assert len(got) < len(NAR)
    reader.close()
    assert cache.open(KEY) is None
    assert names(directory) == set()


def test_what_is_deleted_or_replaced_while_it_is_read(cache: NarCache, directory: Path) -> None:
    keep(cache, NAR)
    nar, another = cache.open(KEY), cache.open(KEY)
    assert nar is not None
    assert another is not None
    assert len(cache.clear()) == 1
    reader = nar.read(0, KEY.size)
    assert b"".join(reader) == NAR
    reader.close()
    keep(cache, NAR)
    another.check_untouched()
    os.fchmod(another.fd, 0o600)
    os.truncate(f"/proc/self/fd/{another.fd}", 10)
    with pytest.raises(CacheFailure):
        another.check_untouched()
    another.close()
    assert kept(cache, KEY) == NAR  # the new one has nothing to do with that


def test_a_disk_that_cant_be_read(cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, NAR)
    nar = cache.open(KEY)
    assert nar is not None

    def fail(fd: int, size: int, start: int) -> bytes:
        raise OSError(5, "Input/output error")

    reader = nar.read(0, 100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        with pytest.raises(CacheFailure):
            next(iter(reader))
    reader.close()
    assert cache.open(KEY) is None


class TestPutThereBySomeoneElse:
    """Nix writes the same names, with ordinary times, and its own listings."""

    @pytest.fixture
    def path(self, cache: NarCache, directory: Path) -> Path:
        (directory / f"{KEY.digits}.ls").write_text('{"type":"regular","size":1}')
        path = directory / f"{KEY.digits}.nar"
        path.write_bytes(NAR)
        return path

    def test_is_hashed_once_and_used(self, cache: NarCache, path: Path, hashed: list[int]) -> None:
        for _ in range(3):
            assert kept(cache, KEY) == NAR
        assert cache.listing(KEY) == NarListing.from_events(parse_nar([NAR], contents=False))
        assert len(hashed) == 1
        assert is_verified(path.stat())

    def test_by_one_of_those_who_want_it(self, make_cache: MakeCache, path: Path, hashed: list[int]) -> None:
        caches = [make_cache(), make_cache()]
        threads = [threading.Thread(target=kept, args=(caches[number % 2], KEY)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(hashed) == 1

    def test_is_removed_if_it_is_wrong(self, cache: NarCache, path: Path) -> None:
        overwrite(path)
        assert cache.open(KEY) is None
        assert not path.exists()

    def test_of_another_boot(self, cache: NarCache, path: Path, hashed: list[int]) -> None:
        os.utime(path, (0, THIS_BOOT - 1))
        assert kept(cache, KEY) == NAR
        os.utime(path, (0, DURABLE))
        assert kept(cache, KEY) == NAR
        assert len(hashed) == 1

    def test_where_nothing_can_be_changed(self, hashed: list[int], as_nobody: Path) -> None:
        """Another user's files: read, hashed once, and no error because they can't be marked."""
        (as_nobody / f"{KEY.digits}.nar").write_bytes(NAR)
        (as_nobody / f"{'0' * 52}.5.part").touch()
        as_nobody.chmod(0o755)
        os.seteuid(65534)
        cache = NarCache(as_nobody, size=lambda _: 1 << 30, max_fills=1)
        for _ in range(3):
            assert kept(cache, KEY) == NAR
        assert cache.listing(KEY) is not None
        assert len(hashed) == 1
        source = Source(nar_of(10, 1))
        with pytest.raises(CacheFailure):
            read_all(cache.fill(source.key, source))
        cache.close()


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory of root's that others can get to. The test may become nobody."""
    needs.root()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "nars").mkdir()
        yield Path(name) / "nars"
        os.seteuid(0)


class TestPrivacy:
    @pytest.mark.parametrize(("mode", "accepted"), [(0o700, True), (0o755, True), (0o777, False), (0o1777, False)])
    def test_nobody_else_may_write(self, tmp_path: Path, mode: int, accepted: bool) -> None:
        tmp_path.chmod(mode)
        if accepted:
            check_private(tmp_path)
        else:
            with pytest.raises(CacheFailure):
                NarCache(tmp_path, size=lambda _: 1000, max_fills=1)

    def test_nor_own_it(self, tmp_path: Path) -> None:
        needs.root()
        theirs, link = tmp_path / "theirs", tmp_path / "link"
        theirs.mkdir()
        link.symlink_to(tmp_path)
        os.chown(theirs, 65534, -1)
        os.lchown(link, 65534, -1)
        for path in (theirs, link):
            with pytest.raises(CacheFailure):
                check_private(path)

    def test_a_directory_of_our_own_making(self, cache: NarCache, directory: Path) -> None:
        assert directory.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("name", ["file", "file/below", "/proc/nars"])
    def test_what_can_be_no_directory(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CacheFailure):
            NarCache(tmp_path / name, size=lambda _: 1000, max_fills=1)


class TestUpkeep:
    def test_least_recently_used_goes_first(self, make_cache: MakeCache) -> None:
        nars = [nar_of(100_000, seed) for seed in range(4)]
        cache = make_cache(350_000)
        for nar in nars[:3]:
            keep(cache, nar)
        assert kept(cache, key_of(nars[0])) == nars[0]
        keep(cache, nars[3])
        assert [cache.is_cached(key_of(nar)) for nar in nars] == [True, False, True, True]

    def test_what_is_evicted_is_read_on(self, make_cache: MakeCache) -> None:
        cache = make_cache(700_000)
        keep(cache, NAR)
        nar = cache.open(KEY)
        assert nar is not None
        reader = nar.read(0, KEY.size)
        keep(cache, nar_of(500_000, 1))
        assert not cache.is_cached(KEY)
        assert b"".join(reader) == NAR
        reader.close()

    def test_collect_and_clear(self, make_cache: MakeCache, directory: Path) -> None:
        nars = [nar_of(100_000, seed) for seed in range(4)]
        large = make_cache()
        for nar in nars:
            keep(large, nar)
        assert [entry.digits for entry in make_cache(250_000).collect()] == [key_of(nar).digits for nar in nars[:2]]
        assert [entry.digits for entry in large.entries()] == [key_of(nar).digits for nar in nars[2:]]
        assert len(large.clear()) == 2
        assert names(directory) == set()

    def test_verify_finds_what_no_mark_tells(self, cache: NarCache, directory: Path) -> None:
        """Bytes that went bad on the disk: the times are as they were."""
        nars = [nar_of(100_000 + seed, seed) for seed in range(4)]
        for nar in nars:
            keep(cache, nar)
        paths = [directory / f"{key_of(nar).digits}.nar" for nar in nars]
        until(lambda: all(path.stat().st_mtime == DURABLE for path in paths))  # settled
        os.utime(paths[0], (1000, 5000))
        os.utime(paths[1], (2000, DURABLE))
        paths[1].chmod(0o600)
        with paths[1].open("r+b") as file:
            file.seek(50_000)
            file.write(b"rotten")
        os.utime(paths[1], (2000, DURABLE))
        assert kept(cache, key_of(nars[1])) != nars[1]
        before = {path: path.stat().st_atime_ns for path in paths}
        seen: list[int] = []
        found = {entry.digits: right for entry, right in verify(cache.layout, seen.append)}
        assert found == {key_of(nar).digits: number != 1 for number, nar in enumerate(nars)}
        assert sum(seen) == sum(map(len, nars))
        assert not paths[1].exists()
        assert is_verified(paths[0].stat())
        del before[paths[1]]
        assert {path: path.stat().st_atime_ns for path in before} == before  # that was no use

    def test_what_goes_while_it_is_verified(self, cache: NarCache, directory: Path) -> None:
        for seed in range(3):
            keep(cache, nar_of(1000, seed))
        found = []
        for _, right in verify(cache.layout):
            found.append(right)
            cache.clear()
        assert found == [True]

    def test_what_was_left_is_looked_for_now_and_then(self, cache: NarCache, directory: Path) -> None:
        (directory / f"{'0' * 52}.5.part").touch()
        keep(cache, nar_of(1000))
        assert (directory / f"{'0' * 52}.5.part").exists()
        cache._cleaned = time.monotonic() - 1000
        keep(cache, nar_of(1000, 1))
        until(lambda: not (directory / f"{'0' * 52}.5.part").exists())

    def test_events_and_counters(self, make_cache: MakeCache) -> None:
        events: list[str] = []
        cache = make_cache(700_000, trace=lambda event, fields: events.append(event))
        source = Source(NAR, gated=True)
        fills = [cache.fill(KEY, source), cache.fill(KEY, source), cache.joinable(KEY)]
        source.allow()
        for fill in fills:
            assert fill is not None
            assert read_all(fill) == NAR
        assert kept(cache, KEY) == NAR
        keep(cache, nar_of(500_000, 1))
        bad = Source(nar_of(10, 2), fault=CorruptStream("damaged"))
        with pytest.raises(CorruptStream):
            read_all(cache.fill(bad.key, bad))
        cache.counters.flush()
        counted = {f"cache.{name}": count for name, count in cache.counters.read().items()}
        assert counted == {name: events.count(name) for name in counted}
        assert events[:5] == ["cache.miss", "cache.join", "cache.join", "cache.fill", "cache.hit"]
        assert events.count("cache.evict") == 1

    def test_what_went_for_room_that_did_not_come_is_counted(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was still open somewhere, all the time."""
        events: list[str] = []
        cache = make_cache(patience=0, trace=lambda event, fields: events.append(event))
        keep(cache, nar_of(1000))
        monkeypatch.setattr(eviction, "_free", lambda directory: 500)
        wanted = Source(nar_of(1000, 1))
        with pytest.raises(CacheFailure, match="evicted and are still open"):
            read_all(cache.fill(wanted.key, wanted))
        assert cache.entries() == []
        assert events.count("cache.evict") == 1

    def test_so_is_what_is_collected_on_a_disk_that_others_fill(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = make_cache()
        older, newer = (keep(cache, nar_of(1000, number)) for number in range(2))
        monkeypatch.setattr(eviction, "_free", lambda directory: -1)  # with what has been promised to them
        gone = make_cache(older.size + newer.size - 1).collect()
        assert [entry.digits for entry in gone] == [older.digits]
        assert [entry.digits for entry in cache.entries()] == [newer.digits]


def test_a_narinfo_that_lies_about_the_size_does_no_harm_to_the_entry(cache: NarCache) -> None:
    key = keep(cache, nar_of(1000))
    for lie in (key.size - 8, key.size + 8):
        assert cache.open(NarKey(key.digits, lie)) is None
    assert kept(cache, key) == nar_of(1000)
