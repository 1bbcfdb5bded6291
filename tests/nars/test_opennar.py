"""Cached NARs that are held open: complete and verified, even after the entry is evicted."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from narcore.binarycache import FETCH_TRIES, BinaryCache
from narcore.cache.cached import CachedNar
from narcore.cache.layout import Layout, NarKey
from narcore.cache.narcache import NarCache
from narcore.cache.slots import Slots
from narcore.errors import CacheFailure, CapacityError, HashMismatch, NarTooLarge, StoreError
from narcore.formats import nixbase32
from narcore.formats.narinfo import NarInfo
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.nars.opennar import OpenNar
from narcore.settings import Settings
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import Tree, binary_cache, exe, hash_part, link, nar

BIN: Mapping[str, Tree] = {"tool": exe(b"#!" + bytes(range(256)) * 2000)}
TREE: Mapping[str, Tree] = {"bin": BIN, "empty": b"", "etc": link("bin"), "note": b"text"}
NAR = nar(TREE)
NAME = "tool-1"
FILES = binary_cache({NAME: TREE, "other-1": {"data": os.urandom(300_000)}})

Make = Callable[..., BinaryCache]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "nars"


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    """Makes a BinaryCache with a disk cache and a store that has two paths."""
    made: list[BinaryCache] = []

    def open_nix_cache(
        files: dict[str, bytes] = FILES, *, limit: int = 1 << 30, strict: bool = True, largest: int | None = None
    ) -> BinaryCache:
        nars = NarCache(directory, size=lambda _directory: limit, max_fills=2)
        made.append(BinaryCache([MemoryStore(files)], cache=nars, strict=strict, max_nar_size=largest))
        return made[-1]

    yield open_nix_cache
    for each in made:
        each.close()


def info_of(nix_cache: BinaryCache, name: str = NAME) -> PathInfo:
    return nix_cache.path_info(hash_part(name))


def read_and_close(nar: OpenNar, start: int, stop: int) -> bytes:
    try:
        return nar.read(start, stop)
    finally:
        nar.close()


def entry(directory: Path) -> Path:
    (found,) = directory.glob("*.nar")
    return found


@pytest.mark.parametrize("strict", [True, False])
def test_missing_nar_is_fetched(make: Make, strict: bool) -> None:
    nix_cache = make(strict=strict)
    info = info_of(nix_cache)
    assert nix_cache.open_cached(info) is None
    assert nix_cache.total_bytes_fetched() == 0
    nar = nix_cache.open_fetched(info)
    for start, stop in ((0, len(NAR)), (5, 5), (0, 1), (1000, 300_000), (len(NAR) - 1, len(NAR))):
        assert nar.read(start, stop) == NAR[start:stop]
    for start, stop in ((-1, 5), (7, 5), (0, len(NAR) + 1)):
        with pytest.raises(ValueError, match="no bytes"):
            nar.read(start, stop)
    nar.drop_pages(0, len(NAR))
    assert read_and_close(nar, 0, 100) == NAR[:100]
    again = nix_cache.open_cached(info)
    assert again is not None
    assert read_and_close(again, 0, len(NAR)) == NAR
    assert nix_cache.total_bytes_fetched() == len(NAR)
    assert nix_cache.bytes_fetched(info) == 0  # no fill is running


def test_touch_updates_only_the_access_time(make: Make, directory: Path) -> None:
    nix_cache = make()
    nar = nix_cache.open_fetched(info_of(nix_cache))
    os.utime(entry(directory), (1000, entry(directory).stat().st_mtime))
    nar.touch()
    assert entry(directory).stat().st_atime > 1_000_000
    assert read_and_close(nar, 0, 10) == NAR[:10]  # the file does not count as changed


def test_evicted_nar_can_be_read_while_it_is_open(make: Make, directory: Path) -> None:
    nix_cache = make(limit=600_000)
    nar = nix_cache.open_fetched(info_of(nix_cache))
    assert not nar.is_evicted
    nix_cache.open_fetched(info_of(nix_cache, "other-1")).close()
    assert nar.is_evicted
    assert nar.read(0, len(NAR)) == NAR
    nix_cache.open_fetched(info_of(nix_cache)).close()
    assert nar.is_evicted  # another file has taken its place
    nar.close()


class EvictingCache(NarCache):
    """A cache that another process empties before each of the next ``evictions`` calls of ``open``."""

    evictions = 0

    def open(self, key: NarKey) -> CachedNar | None:
        if self.evictions:
            self.evictions -= 1
            self.clear()
        return super().open(key)


class CountingStore(MemoryStore):
    """Counts the requests for NARs."""

    nars = 0

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.nars += path.startswith("nar/")
        return super().get_file(path, start, stop)


def test_nar_evicted_before_it_is_opened_is_fetched_again_up_to_a_limit(directory: Path) -> None:
    nars, store = EvictingCache(directory, size=lambda _directory: 1 << 30, max_fills=2), CountingStore(FILES)
    with BinaryCache([store], cache=nars, strict=True) as nix_cache:
        info = info_of(nix_cache)
        nars.evictions = FETCH_TRIES - 1
        assert read_and_close(nix_cache.open_fetched(info), 0, len(NAR)) == NAR
        assert store.nars == FETCH_TRIES - 1
        nars.evictions = 100
        with pytest.raises(CacheFailure, match="evicted"):
            nix_cache.open_fetched(info)
        assert store.nars == 2 * FETCH_TRIES - 1


@pytest.mark.parametrize("change", ["written", "cut", "longer"])
def test_changed_nar_is_removed_and_fetched_again(make: Make, directory: Path, change: str) -> None:
    nix_cache = make()
    nar = nix_cache.open_fetched(info_of(nix_cache))
    path = entry(directory)
    path.chmod(0o600)
    with path.open("r+b") as file:
        if change == "written":
            file.write(b"x")
        else:
            file.truncate(100 if change == "cut" else len(NAR) + 1)
    with pytest.raises(CacheFailure):
        nar.read(50, 200)
    nar.close()
    assert not path.exists()
    assert nix_cache.open_cached(info_of(nix_cache)) is None
    assert read_and_close(nix_cache.open_fetched(info_of(nix_cache)), 0, len(NAR)) == NAR


def test_too_large_nar_is_rejected(make: Make) -> None:
    nix_cache = make(largest=100_000)
    for ask in (nix_cache.open_cached, nix_cache.open_fetched):
        with pytest.raises(NarTooLarge, match="NAR_MAX_NAR_SIZE"):
            ask(info_of(nix_cache))
    nix_cache = make(limit=100_000)
    with pytest.raises(NarTooLarge, match="NAR_CACHE_SIZE"):
        nix_cache.open_cached(info_of(nix_cache))
    nix_cache = make(limit=100_000, strict=False)
    assert nix_cache.open_cached(info_of(nix_cache)) is None
    with pytest.raises(CacheFailure):
        nix_cache.open_fetched(info_of(nix_cache))


def test_content_address_is_checked_before_opening(make: Make) -> None:
    nix_cache = make()
    info = info_of(nix_cache)
    nix_cache.open_fetched(info).close()
    address = f"fixed:r:sha512:{nixbase32.encode(bytes(64))}"  # of other contents; the NarHash is not part of it
    addressed = replace(info, narinfo=replace(info.narinfo, ca=address), trust=Trust.ADDRESS)
    for ask in (nix_cache.open_cached, nix_cache.open_fetched):
        with pytest.raises(HashMismatch):
            ask(addressed)


def test_store_error_is_raised(make: Make) -> None:
    files = {name: content for name, content in FILES.items() if not name.startswith("nar/")}
    nix_cache = make(files)
    with pytest.raises(StoreError):
        nix_cache.open_fetched(info_of(nix_cache))


def test_nar_with_another_hash_is_rejected(make: Make) -> None:
    nix_cache = make()
    info = info_of(nix_cache)
    other = info_of(nix_cache, "other-1").narinfo
    forged = replace(info.narinfo, nar_hash=other.nar_hash)
    assert isinstance(forged, NarInfo)
    with pytest.raises(HashMismatch):
        nix_cache.open_fetched(replace(info, narinfo=forged))


def test_nothing_is_cached_without_a_disk_cache() -> None:
    nix_cache = BinaryCache([MemoryStore(FILES)])
    info = info_of(nix_cache)
    assert nix_cache.open_cached(info) is None
    assert (nix_cache.bytes_fetched(info), nix_cache.total_bytes_fetched()) == (0, 0)
    with pytest.raises(CacheFailure, match="no disk cache"):
        nix_cache.open_fetched(info)
    nix_cache.close()


def test_settings_and_arguments_determine_strict(tmp_path: Path) -> None:
    """In strict mode, a NAR that the cache can't hold is an error; otherwise it is not in the cache."""
    store = tmp_path / "store"
    for name, content in FILES.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    environ = {
        "NAR_CACHE_URL": store.as_uri() + "?trusted=true",
        "NAR_CACHE_DIR": str(tmp_path / "nars"),
        "NAR_CACHE_SIZE": "100000",
    }
    for settings, argument, strict in [
        (environ, None, False),
        (environ, True, True),
        (environ, False, False),
        (environ | {"NAR_VERIFY": "strict"}, None, True),
        (environ | {"NAR_VERIFY": "strict"}, False, False),
    ]:
        with BinaryCache.from_settings(Settings.from_environ(settings), strict=argument) as nix_cache:
            info = info_of(nix_cache)
            if strict:
                with pytest.raises(NarTooLarge, match="NAR_CACHE_SIZE"):
                    nix_cache.open_cached(info)
            else:
                assert nix_cache.open_cached(info) is None


def test_a_fill_waits_for_its_turn_only_as_long_as_the_argument_says(tmp_path: Path) -> None:
    nars = tmp_path / "nars"
    environ = {"NAR_CACHE_DIR": str(nars), "NAR_MAX_FILLS": "1", "NAR_CACHE_URL": (tmp_path / "store").as_uri()}
    with BinaryCache.from_settings(Settings.from_environ(environ), patience=0.01) as nix_cache:
        info = replace(info_of(BinaryCache([MemoryStore(FILES)])), store=MemoryStore(FILES))
        held = Slots(Layout(nars), 1, patience=0)  # as in another process
        with held.hold(lambda _slot: True), pytest.raises(CapacityError):
            nix_cache.open_fetched(info)
