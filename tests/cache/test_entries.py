"""Complete NARs: which files are accepted, and what happens if a file is modified."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narcore.cache import cached, eviction, narcache
from narcore.cache.layout import DURABLE, THIS_BOOT, NarKey, is_verified
from narcore.cache.narcache import NarCache, check_private
from narcore.cache.upkeep import verify
from narcore.errors import CacheFailure, CorruptStream
from narcore.formats.listing import NarListing
from narcore.formats.nar.parser import parse_nar
from tests import needs
from tests.cache.conftest import MakeCache
from tests.cache.support import (
    Source,
    add_to_cache,
    cached_bytes,
    key_of,
    names,
    nar_of,
    read_all,
    read_until_error,
    until,
)

NAR = nar_of(600_000)
KEY = key_of(NAR)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one item per NAR that was hashed."""
    found: list[int] = []
    has_digest = cached.has_digest

    def counted(fd: int, digits: str) -> bool:
        found.append(fd)
        return has_digest(fd, digits)

    monkeypatch.setattr(cached, "has_digest", counted)
    return found


def damage(path: Path, change: Callable[[Path], object]) -> None:
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


DAMAGED: dict[str, Callable[[Path], object]] = {
    "corrupted": overwrite,
    "truncated": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(NAR + b"x"),
    "deleted": lambda path: path.unlink(),
    "a link": link_away,
    "a pipe": make_pipe,
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_entry_is_removed_and_fetched_again(
    cache: NarCache, directory: Path, change: Callable[[Path], object]
) -> None:
    add_to_cache(cache, NAR)
    path = directory / f"{KEY.digits}.nar"
    damage(path, change)
    assert cache.open(KEY) is None
    assert cache.listing(KEY) is None
    assert not path.is_file() or path.is_symlink()
    source = Source(NAR)
    assert read_all(cache.fill(KEY, source)) == NAR
    assert source.fetched == 1
    assert cached_bytes(cache, KEY) == NAR


@pytest.mark.parametrize(
    ("change", "when"),
    [("corrupted", 0), ("corrupted", 1), ("truncated", 0), ("truncated", 1), ("longer", 1)],
)
def test_reading_an_entry_that_is_being_damaged_fails(cache: NarCache, directory: Path, change: str, when: int) -> None:
    """A reader never gets all bytes of a damaged NAR: the file is checked before the last bytes are returned."""
    add_to_cache(cache, NAR)
    nar = cache.open(KEY)
    assert nar is not None
    reader = nar.read(0, KEY.size)
    chunks = iter(reader)
    got = b"".join(next(chunks) for _ in range(when))
    damage(directory / f"{KEY.digits}.nar", DAMAGED[change])
    more, error = read_until_error(chunks)
    got += more
    assert isinstance(error, CacheFailure)
    assert len(got) < len(NAR)
    reader.close()
    assert cache.open(KEY) is None
    assert names(directory) == set()


def test_open_entry_can_be_read_after_it_was_deleted_or_replaced(cache: NarCache, directory: Path) -> None:
    add_to_cache(cache, NAR)
    nar, another = cache.open(KEY), cache.open(KEY)
    assert nar is not None
    assert another is not None
    assert len(cache.clear()) == 1
    reader = nar.read(0, KEY.size)
    assert b"".join(reader) == NAR
    reader.close()
    add_to_cache(cache, NAR)
    another.check_untouched()
    os.fchmod(another.fd, 0o600)
    os.truncate(f"/proc/self/fd/{another.fd}", 10)
    with pytest.raises(CacheFailure):
        another.check_untouched()
    another.close()
    assert cached_bytes(cache, KEY) == NAR  # the new entry is not affected


def test_disk_error_removes_the_entry(cache: NarCache, monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_cache(cache, NAR)
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


class TestEntryWrittenByNix:
    """Nix uses the same file names, with current modification times, and its own format of listings."""

    @pytest.fixture
    def path(self, cache: NarCache, directory: Path) -> Path:
        (directory / f"{KEY.digits}.ls").write_text('{"type":"regular","size":1}')
        path = directory / f"{KEY.digits}.nar"
        path.write_bytes(NAR)
        return path

    def test_entry_is_hashed_once_and_used(self, cache: NarCache, path: Path, hashed: list[int]) -> None:
        for _ in range(3):
            assert cached_bytes(cache, KEY) == NAR
        assert cache.listing(KEY) == NarListing.from_events(parse_nar([NAR], contents=False))
        assert len(hashed) == 1
        assert is_verified(path.stat())

    def test_concurrent_readers_hash_the_entry_once(self, make_cache: MakeCache, path: Path, hashed: list[int]) -> None:
        caches = [make_cache(), make_cache()]
        threads = [threading.Thread(target=cached_bytes, args=(caches[number % 2], KEY)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(hashed) == 1

    def test_wrong_entry_is_removed(self, cache: NarCache, path: Path) -> None:
        overwrite(path)
        assert cache.open(KEY) is None
        assert not path.exists()

    def test_entry_marked_in_another_boot_is_hashed_again(self, cache: NarCache, path: Path, hashed: list[int]) -> None:
        os.utime(path, (0, THIS_BOOT - 1))
        assert cached_bytes(cache, KEY) == NAR
        os.utime(path, (0, DURABLE))
        assert cached_bytes(cache, KEY) == NAR
        assert len(hashed) == 1

    def test_read_only_directory_of_another_user_can_be_read(self, hashed: list[int], as_nobody: Path) -> None:
        """The files are hashed once although they can't be marked."""
        (as_nobody / f"{KEY.digits}.nar").write_bytes(NAR)
        (as_nobody / f"{'0' * 52}.5.part").touch()
        as_nobody.chmod(0o755)
        os.seteuid(65534)
        cache = NarCache(as_nobody, size=lambda _: 1 << 30, max_fills=1)
        for _ in range(3):
            assert cached_bytes(cache, KEY) == NAR
        assert cache.listing(KEY) is not None
        assert len(hashed) == 1
        source = Source(nar_of(10, 1))
        with pytest.raises(CacheFailure):
            read_all(cache.fill(source.key, source))
        cache.close()


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory of root that other users can read. The test may become the user nobody."""
    needs.root()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "nars").mkdir()
        yield Path(name) / "nars"
        os.seteuid(0)


class TestPrivacy:
    @pytest.mark.parametrize(
        ("mode", "accepted"),
        [(0o700, True), (0o755, True), (0o777, False), (0o1777, False), (0o775, False), (0o2770, False)],
    )
    def test_directory_that_others_or_a_group_may_write_to_is_rejected(
        self, tmp_path: Path, mode: int, accepted: bool
    ) -> None:
        tmp_path.chmod(mode)
        if accepted:
            check_private(tmp_path)
        else:
            with pytest.raises(CacheFailure):
                NarCache(tmp_path, size=lambda _: 1000, max_fills=1)

    def test_directory_or_link_of_another_user_is_rejected(self, tmp_path: Path) -> None:
        needs.root()
        other, link = tmp_path / "other", tmp_path / "link"
        other.mkdir()
        link.symlink_to(tmp_path)
        os.chown(other, 65534, -1)
        os.lchown(link, 65534, -1)
        for path in (other, link):
            with pytest.raises(CacheFailure):
                check_private(path)

    def test_new_directory_is_private(self, cache: NarCache, directory: Path) -> None:
        assert directory.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("name", ["file", "file/below", "/proc/nars"])
    def test_path_that_cannot_be_a_directory_is_rejected(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CacheFailure):
            NarCache(tmp_path / name, size=lambda _: 1000, max_fills=1)


class TestUpkeep:
    def test_least_recently_used_entry_is_evicted_first(self, make_cache: MakeCache) -> None:
        nars = [nar_of(100_000, seed) for seed in range(4)]
        cache = make_cache(350_000)
        for nar in nars[:3]:
            add_to_cache(cache, nar)
        assert cached_bytes(cache, key_of(nars[0])) == nars[0]
        add_to_cache(cache, nars[3])
        assert [cache.is_cached(key_of(nar)) for nar in nars] == [True, False, True, True]

    def test_evicted_entry_can_be_read_while_it_is_open(self, make_cache: MakeCache) -> None:
        cache = make_cache(700_000)
        add_to_cache(cache, NAR)
        nar = cache.open(KEY)
        assert nar is not None
        reader = nar.read(0, KEY.size)
        add_to_cache(cache, nar_of(500_000, 1))
        assert not cache.is_cached(KEY)
        assert b"".join(reader) == NAR
        reader.close()

    def test_collect_evicts_down_to_the_limit_and_clear_removes_all(
        self, make_cache: MakeCache, directory: Path
    ) -> None:
        nars = [nar_of(100_000, seed) for seed in range(4)]
        large = make_cache()
        for nar in nars:
            add_to_cache(large, nar)
        assert [entry.digits for entry in make_cache(250_000).collect()] == [key_of(nar).digits for nar in nars[:2]]
        assert [entry.digits for entry in large.entries()] == [key_of(nar).digits for nar in nars[2:]]
        assert len(large.clear()) == 2
        assert names(directory) == set()

    def test_verify_removes_entries_with_wrong_bytes(self, cache: NarCache, directory: Path) -> None:
        """The bytes were damaged on the disk: the modification times did not change."""
        nars = [nar_of(100_000 + seed, seed) for seed in range(4)]
        for nar in nars:
            add_to_cache(cache, nar)
        paths = [directory / f"{key_of(nar).digits}.nar" for nar in nars]
        until(lambda: all(path.stat().st_mtime == DURABLE for path in paths))  # synced
        os.utime(paths[0], (1000, 5000))
        os.utime(paths[1], (2000, DURABLE))
        paths[1].chmod(0o600)
        with paths[1].open("r+b") as file:
            file.seek(50_000)
            file.write(b"broken")
        os.utime(paths[1], (2000, DURABLE))
        assert cached_bytes(cache, key_of(nars[1])) != nars[1]
        before = {path: path.stat().st_atime_ns for path in paths}
        seen: list[int] = []
        found = {entry.digits: right for entry, right in verify(cache.layout, seen.append)}
        assert found == {key_of(nar).digits: number != 1 for number, nar in enumerate(nars)}
        assert sum(seen) == sum(map(len, nars))
        assert not paths[1].exists()
        assert is_verified(paths[0].stat())
        del before[paths[1]]
        assert {path: path.stat().st_atime_ns for path in before} == before  # verifying does not count as use

    def test_verify_stops_readers_that_hold_a_wrong_nar_open(self, cache: NarCache, directory: Path) -> None:
        nar = nar_of(100_000)
        add_to_cache(cache, nar)
        path = directory / f"{key_of(nar).digits}.nar"
        until(lambda: path.stat().st_mtime == DURABLE)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"broken")
        os.utime(path, (1000, DURABLE))
        opened = cache.open(key_of(nar))
        assert opened is not None
        opened.check_untouched()  # bytes that the disk has damaged are not noticed without hashing
        assert [right for _, right in verify(cache.layout)] == [False]
        with pytest.raises(CacheFailure, match="changed"):
            opened.check_untouched()
        opened.close()

    def test_verify_skips_entries_that_are_evicted_in_between(self, cache: NarCache, directory: Path) -> None:
        for seed in range(3):
            add_to_cache(cache, nar_of(1000, seed))
        found = []
        for _, right in verify(cache.layout):
            found.append(right)
            cache.clear()
        assert found == [True]

    def test_leftovers_are_cleaned_from_time_to_time(
        self, cache: NarCache, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / f"{'0' * 52}.5.part").touch()
        add_to_cache(cache, nar_of(1000))
        assert (directory / f"{'0' * 52}.5.part").exists()
        monkeypatch.setattr(narcache, "CLEAN_SECONDS", 0)
        add_to_cache(cache, nar_of(1000, 1))
        until(lambda: not (directory / f"{'0' * 52}.5.part").exists())

    def test_events_and_counters_agree(self, make_cache: MakeCache) -> None:
        events: list[str] = []
        cache = make_cache(700_000, trace=lambda event, fields: events.append(event))
        source = Source(NAR, gated=True)
        fills = [cache.fill(KEY, source), cache.fill(KEY, source), cache.joinable(KEY)]
        source.allow()
        for fill in fills:
            assert fill is not None
            assert read_all(fill) == NAR
        assert cached_bytes(cache, KEY) == NAR
        add_to_cache(cache, nar_of(500_000, 1))
        bad = Source(nar_of(10, 2), fault=CorruptStream("damaged"))
        with pytest.raises(CorruptStream):
            read_all(cache.fill(bad.key, bad))
        cache.counters.flush()
        counted = {f"cache.{name}": count for name, count in cache.counters.read().items()}
        assert counted == {name: events.count(name) for name in counted}
        assert events[:5] == ["cache.miss", "cache.join", "cache.join", "cache.fill", "cache.hit"]
        assert events.count("cache.evict") == 1

    def test_evictions_are_counted_even_if_the_fill_finds_no_room(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The evicted file is still open somewhere, so its space is not freed yet."""
        events: list[str] = []
        cache = make_cache(patience=0, trace=lambda event, fields: events.append(event))
        add_to_cache(cache, nar_of(1000))
        monkeypatch.setattr(eviction, "free_bytes", lambda directory: 500)
        source = Source(nar_of(1000, 1))
        with pytest.raises(CacheFailure, match="evicted files that are still open"):
            read_all(cache.fill(source.key, source))
        assert cache.entries() == []
        assert events.count("cache.evict") == 1

    def test_collect_reports_evictions_on_a_full_disk(
        self, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = make_cache()
        older, newer = (add_to_cache(cache, nar_of(1000, number)) for number in range(2))
        monkeypatch.setattr(eviction, "free_bytes", lambda directory: -1)  # less than is reserved
        evicted = make_cache(older.size + newer.size - 1).collect()
        assert [entry.digits for entry in evicted] == [older.digits]
        assert [entry.digits for entry in cache.entries()] == [newer.digits]


def test_narinfo_with_a_wrong_size_does_not_affect_the_entry(cache: NarCache) -> None:
    key = add_to_cache(cache, nar_of(1000))
    for wrong_size in (key.size - 8, key.size + 8):
        assert cache.open(NarKey(key.digits, wrong_size)) is None
    assert cached_bytes(cache, key) == nar_of(1000)
