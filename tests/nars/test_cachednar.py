"""NARs out of the disk cache for who keeps them open: whole and verified, whatever becomes of the entry."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from narcore.binarycache import FETCH_TRIES, BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import CacheFailure, HashMismatch, NarTooLarge, SettingsError, StoreError
from narcore.formats.narinfo import NarInfo
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.cachednar import LocalNar
from narcore.settings import Settings
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
    """Makes a hall with a disk cache, over a store that holds two paths."""
    made: list[BinaryCache] = []

    def hall(
        files: dict[str, bytes] = FILES, *, limit: int = 1 << 30, strict: bool = True, largest: int | None = None
    ) -> BinaryCache:
        nars = NarCache(directory, size=lambda _directory: limit, max_fills=2)
        made.append(BinaryCache([MemoryStore(files)], cache=nars, strict=strict, max_nar_size=largest))
        return made[-1]

    yield hall
    for each in made:
        each.close()


def info_of(hall: BinaryCache, name: str = NAME) -> PathInfo:
    return hall.path_info(hash_part(name))


def read_and_close(nar: LocalNar, start: int, stop: int) -> bytes:
    try:
        return nar.read(start, stop)
    finally:
        nar.close()


def entry(directory: Path) -> Path:
    (found,) = directory.glob("*.nar")
    return found


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_not_there_is_fetched(make: Make, strict: bool) -> None:
    hall = make(strict=strict)
    info = info_of(hall)
    assert hall.local(info) is None
    assert hall.fetched_total() == 0
    nar = hall.fetch_local(info)
    for start, stop in ((0, len(NAR)), (5, 5), (0, 1), (1000, 300_000), (len(NAR) - 1, len(NAR))):
        assert nar.read(start, stop) == NAR[start:stop]
    for start, stop in ((-1, 5), (7, 5), (0, len(NAR) + 1)):
        with pytest.raises(ValueError, match="no bytes"):
            nar.read(start, stop)
    nar.drop_pages(0, len(NAR))
    assert read_and_close(nar, 0, 100) == NAR[:100]
    again = hall.local(info)
    assert again is not None
    assert read_and_close(again, 0, len(NAR)) == NAR
    assert hall.fetched_total() == len(NAR)
    assert hall.fetched(info) == 0  # nothing is under way


def test_touching_keeps_it(make: Make, directory: Path) -> None:
    hall = make()
    nar = hall.fetch_local(info_of(hall))
    os.utime(entry(directory), (1000, entry(directory).stat().st_mtime))
    nar.touch()
    assert entry(directory).stat().st_atime > 1_000_000
    assert read_and_close(nar, 0, 10) == NAR[:10]  # that was no change


def test_what_is_evicted_is_read_on(make: Make, directory: Path) -> None:
    hall = make(limit=600_000)
    nar = hall.fetch_local(info_of(hall))
    assert not nar.is_evicted
    hall.fetch_local(info_of(hall, "other-1")).close()
    assert nar.is_evicted
    assert nar.read(0, len(NAR)) == NAR
    hall.fetch_local(info_of(hall)).close()
    assert nar.is_evicted  # another file has taken its place
    nar.close()


def test_evicted_before_it_can_be_opened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hall = make()
    info = info_of(hall)
    tries: list[int] = []
    keep = hall._source.keep

    def kept_briefly(info: PathInfo) -> None:
        keep(info)
        tries.append(1)
        if len(tries) < rounds:
            assert hall._cache is not None
            hall._cache.clear()

    monkeypatch.setattr(hall._source, "keep", kept_briefly)
    rounds = FETCH_TRIES - 1
    assert read_and_close(hall.fetch_local(info), 0, len(NAR)) == NAR
    assert hall._cache is not None
    hall._cache.clear()
    tries.clear()
    rounds = 100
    with pytest.raises(CacheFailure, match="evicted"):
        hall.fetch_local(info)
    assert len(tries) == FETCH_TRIES


@pytest.mark.parametrize("change", ["written", "cut", "longer"])
def test_what_was_changed_is_not_read(make: Make, directory: Path, change: str) -> None:
    hall = make()
    nar = hall.fetch_local(info_of(hall))
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
    assert hall.local(info_of(hall)) is None
    assert read_and_close(hall.fetch_local(info_of(hall)), 0, len(NAR)) == NAR


def test_what_is_too_large(make: Make) -> None:
    hall = make(largest=100_000)
    for ask in (hall.local, hall.fetch_local):
        with pytest.raises(NarTooLarge, match="NAR_MAX_NAR_SIZE"):
            ask(info_of(hall))
    hall = make(limit=100_000)
    with pytest.raises(NarTooLarge, match="NAR_CACHE_SIZE"):
        hall.local(info_of(hall))
    hall = make(limit=100_000, strict=False)
    assert hall.local(info_of(hall)) is None
    with pytest.raises(CacheFailure):
        hall.fetch_local(info_of(hall))


def test_an_address_has_to_be_proved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hall = make()
    info = info_of(hall)
    hall.fetch_local(info).close()

    def refuse(info: PathInfo) -> None:
        raise HashMismatch("the contents are not those of the address")

    monkeypatch.setattr(hall._proof, "check", refuse)
    for ask in (hall.local, hall.fetch_local):
        with pytest.raises(HashMismatch):
            ask(info)


def test_a_store_that_fails(make: Make) -> None:
    files = {name: content for name, content in FILES.items() if not name.startswith("nar/")}
    hall = make(files)
    with pytest.raises(StoreError):
        hall.fetch_local(info_of(hall))


def test_a_store_that_lies(make: Make) -> None:
    hall = make()
    info = info_of(hall)
    other = info_of(hall, "other-1").narinfo
    lie = replace(info.narinfo, nar_hash=other.nar_hash)
    assert isinstance(lie, NarInfo)
    with pytest.raises(HashMismatch):
        hall.fetch_local(replace(info, narinfo=lie))


def test_without_a_disk_cache() -> None:
    hall = BinaryCache([MemoryStore(FILES)])
    info = info_of(hall)
    assert hall.local(info) is None
    assert (hall.fetched(info), hall.fetched_total()) == (0, 0)
    with pytest.raises(CacheFailure, match="no disk cache"):
        hall.fetch_local(info)
    hall.close()


def test_from_settings(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name, content in FILES.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    environ = {"NAR_CACHE_URL": store.as_uri() + "?trusted=true", "NAR_CACHE_DIR": str(tmp_path / "nars")}
    settings = Settings.from_environ(environ)
    for strict in (None, True, False):
        hall = BinaryCache.from_settings(settings, strict=strict, patience=0.5)
        assert hall._strict is (strict is True)
        assert hall._cache is not None
        assert hall._cache._slots._patience == 0.5
        hall.close()
    strictly = Settings.from_environ(environ | {"NAR_VERIFY": "strict"})
    for strict in (None, False):
        hall = BinaryCache.from_settings(strictly, strict=strict)
        assert hall._strict is (strict is None)
        hall.close()
    (tmp_path / "file").touch()
    for directory in (None, tmp_path / "file"):
        with pytest.raises(SettingsError):
            BinaryCache.from_settings(replace(settings, cache_dir=directory), strict=True)
        BinaryCache.from_settings(replace(settings, cache_dir=directory), strict=False).close()
