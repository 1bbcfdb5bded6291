"""A store on a real socket that answers one narinfo with an error: all other paths stay available."""

import threading
from collections.abc import Iterator

import pytest

from narcore.binarycache import BinaryCache
from narcore.errors import StoreUnavailable
from narcore.lookup.breaker import FAILURES
from narcore.stores.http.store import HttpBinaryCacheStore
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part
from tests.cache.support import until
from tests.stores.flaky_server import Act, FlakyServer, Request, Step, answer, head

NAMES = [f"sound-{number}" for number in range(49)]
FILES = binary_cache(dict.fromkeys(NAMES, b"contents"))
BAD = hash_part("bad")
ATTACKERS = 6
FAULTS: dict[str, list[Step]] = {
    "500": answer(500, b"no"),
    "cut": [head(200, length=500), b"StorePath: /nix", Act.CLOSE],
}


def attack(cache: BinaryCache, stop: threading.Event) -> None:
    """Request the failing narinfo again and again."""
    while not stop.is_set():
        with pytest.raises(StoreUnavailable):
            cache.path_info(BAD)


@pytest.mark.parametrize("has_other_store", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_all_sound_paths_are_answered_beside_a_narinfo_that_fails(fault: str, has_other_store: bool) -> None:
    def script(request: Request) -> Iterator[Step]:
        path = request.target.removeprefix("/")
        if path == f"{BAD}.narinfo":
            yield from FAULTS[fault]
        else:
            yield from answer(200, FILES[path]) if path in FILES else answer(404)

    stop = threading.Event()
    with FlakyServer(script) as server:
        failing = HttpBinaryCacheStore(server.url, retries=0, sleep=lambda _seconds: None)
        with BinaryCache([failing, *([MemoryStore({})] if has_other_store else [])]) as cache:
            threads = [threading.Thread(target=attack, args=(cache, stop)) for _ in range(ATTACKERS)]
            for thread in threads:
                thread.start()
            try:
                until(lambda: len(server.requests) >= 2 * FAILURES)
                found = [cache.path_info(hash_part(name)).narinfo.store_path.name for name in NAMES]
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    assert found == NAMES
