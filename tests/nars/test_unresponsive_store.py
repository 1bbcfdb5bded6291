"""A store that sends nothing: a limited number of requests waits for it, further ones use the next store or are refused."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import FileNotInStore, StoreUnresponsive
from narcore.lookup.lookup import Strategy
from narcore.lookup.substituter import Substituter
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from narcore.stores.waits import SILENT_SECONDS, StoreWaits
from tests.builders import binary_cache, hash_part
from tests.cache.support import until
from tests.clock import Clock

LIMIT = 4
NAMES = [f"path-{number}" for number in range(20)]
FILES = binary_cache({name: {"file": name.encode() * 100} for name in NAMES})


class SilentStore(MemoryStore):
    """Sends no file that ends in ``silent`` before the gate is open."""

    def __init__(self, silent: str) -> None:
        super().__init__(FILES, "memory://silent")
        self.silent = silent
        self.gate = threading.Event()
        self.waiting = 0

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        if path.endswith(self.silent) and not self.gate.is_set():
            self.waiting += 1
            assert self.gate.wait(20)
        return super().get_file(path, start, stop)


class Setting:
    """A silent store, with or without another store, and a pool of threads that serve requests."""

    def __init__(
        self, directory: Path, pool: ThreadPoolExecutor, silent: str, other: bool, strategy: Strategy, strict: bool
    ) -> None:
        self.clock = Clock()
        self.store = SilentStore(silent)
        self.waits = StoreWaits(LIMIT, clock=self.clock)
        self._pool = pool
        stores = [self.store, *([MemoryStore(FILES, "memory://other")] if other else [])]
        self.cache = BinaryCache(
            [Substituter(store, priority=number, waits=self.waits) for number, store in enumerate(stores)],
            strategy=strategy,
            cache=NarCache(directory, size=lambda _: 1 << 30, max_fills=4, waits=self.waits),
            waits=self.waits,
            strict=strict,
        )

    def read(self, name: str) -> str:
        """Read a file, check it, and return the name of the store whose narinfo was used."""
        info = self.cache.path_info(hash_part(name))
        file = self.cache.open(info).read("file")
        try:
            assert b"".join(file) == name.encode() * 100
        finally:
            file.close()
        return info.store.url.removeprefix("memory://")

    def begin(self, names: list[str]) -> list["Future[str]"]:
        return [self._pool.submit(self.read, name) for name in names]

    def stall(self, names: list[str]) -> list["Future[str]"]:
        """Begin requests that wait for the store, for a time that counts."""
        futures = self.begin(names)
        until(lambda: self.store.waiting == len(set(names)))
        self.clock.now += SILENT_SECONDS
        return futures


MakeSetting = Callable[..., AbstractContextManager[Setting]]


@pytest.fixture
def setting(tmp_path: Path) -> MakeSetting:
    @contextmanager
    def make(
        silent: str, *, other: bool = False, strategy: Strategy = "ordered", strict: bool = False
    ) -> Iterator[Setting]:
        with ThreadPoolExecutor(30) as pool:
            made = Setting(tmp_path, pool, silent, other, strategy, strict)
            try:
                yield made
            finally:
                made.store.gate.set()
        made.cache.close()

    return make


@pytest.mark.parametrize("same_path", [True, False])
@pytest.mark.parametrize(
    ("silent", "strict"),
    [(".narinfo", False), (".narinfo", True), (".ls", False), (".zstd", False), (".zstd", True)],
)
def test_requests_above_the_limit_are_refused_and_the_others_are_answered(
    setting: MakeSetting, silent: str, strict: bool, same_path: bool
) -> None:
    names = [NAMES[0]] * LIMIT if same_path else NAMES[:LIMIT]
    with setting(silent, strict=strict) as server:
        waiting = server.stall(names)
        until(lambda: server.waits.is_full(server.store.url))
        for future in server.begin([*NAMES[LIMIT:8], names[0]]):
            with pytest.raises(StoreUnresponsive):
                future.result(10)
        server.store.gate.set()
        assert [future.result(10) for future in waiting] == ["silent"] * LIMIT
        assert server.read(NAMES[9]) == "silent"


@pytest.mark.parametrize("strategy", ["ordered", "parallel"])
@pytest.mark.parametrize("silent", [".narinfo", ".ls", ".zstd"])
def test_requests_above_the_limit_use_the_next_store(setting: MakeSetting, silent: str, strategy: Strategy) -> None:
    with setting(silent, other=True, strategy=strategy) as server:
        waiting = server.stall(NAMES[:LIMIT])
        until(lambda: server.waits.is_full(server.store.url))
        joining, *further = server.begin([NAMES[0], *NAMES[LIMIT:]])
        assert {future.result(10) for future in further} == {"other"}
        assert joining.result(10) == ("other" if silent == ".narinfo" else "silent")  # the store of the narinfo
        with pytest.raises(StoreUnresponsive):  # the other store does not have it, and the silent one might
            server.cache.path_info(hash_part("nowhere"))
        server.store.gate.set()
        assert all(future.result(10) for future in waiting)
        with pytest.raises(FileNotInStore):
            server.cache.path_info(hash_part("nowhere"))


def test_known_path_whose_nar_does_not_arrive_comes_from_the_next_store(setting: MakeSetting) -> None:
    with setting(".zstd", other=True) as server:
        known = NAMES[10]
        info = server.cache.path_info(hash_part(known))
        assert info.store.url == server.store.url
        server.stall(NAMES[:LIMIT])
        until(lambda: server.waits.is_full(server.store.url))
        assert server.read(known) == "silent"  # whose narinfo is used, with the NAR of the other store


def test_burst_of_requests_keeps_the_limit(setting: MakeSetting) -> None:
    """All begin before the first of them has waited for two seconds."""
    with setting(".narinfo") as server:
        futures = server.stall(NAMES)
        until(lambda: sum(map(Future.done, futures)) == len(NAMES) - LIMIT)
        server.store.gate.set()
        results = [future.exception(10) for future in futures]
        assert sum(result is None for result in results) == LIMIT
        assert all(isinstance(result, StoreUnresponsive) for result in results if result)


def test_cached_path_is_read_while_the_store_sends_nothing(setting: MakeSetting) -> None:
    with setting("") as server:
        server.store.gate.set()
        assert server.read(NAMES[0]) == "silent"
        server.store.gate.clear()
        server.stall(NAMES[1 : LIMIT + 1])
        until(lambda: server.waits.is_full(server.store.url))
        assert server.read(NAMES[0]) == "silent"
