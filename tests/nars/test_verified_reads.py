"""Bytes that are said to be verified are cut if the NAR is wrong, whichever source they come from in the end."""

import os
import random
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import IntegrityError
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import COMPRESS, Tree, binary_cache, hash_part, nar

EARLY = random.Random(1).randbytes(4 * CHUNK_SIZE)
# More than VERIFY_REST bytes follow the file.
TREE: dict[str, Tree] = {"early": EARLY, "late": bytes(9 << 20)}


class ChangingStore(MemoryStore):
    """A store that sends a right NAR first, whose last bytes come when ``gate`` is set, and then a wrong NAR."""

    def __init__(self) -> None:
        files = binary_cache({"x": TREE})
        super().__init__(files)
        self.gate = threading.Event()
        self.waits = threading.Event()
        wrong = COMPRESS["zstd"](nar(TREE | {"late": bytes((9 << 20) - 1) + b"1"}))
        self._nars = [next(data for name, data in files.items() if name.startswith("nar/")), wrong]

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        if not path.startswith("nar/"):
            return super().get_file(path, start, stop)
        data = self._nars.pop(0)
        return StoreFile(self._sent(data, wait=bool(self._nars)), size=len(data))

    def _sent(self, data: bytes, *, wait: bool) -> Generator[bytes]:
        yield data[:-50]
        self.waits.set()
        assert not wait or self.gate.wait(30)
        yield data[-50:]


def until_constant(count: Callable[[], int]) -> None:
    """Wait until the fill has written everything that the store has sent."""
    last = -1
    while last != (now := count()):
        last = now
        time.sleep(0.1)


def test_a_file_continued_from_a_stream_is_verified_to_the_end_of_the_nar(tmp_path: Path) -> None:
    store = ChangingStore()
    cache = BinaryCache([store], cache=NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=2))
    try:
        content = cache.open(cache.path_info(hash_part("x"))).read("early")
        assert content.is_verified
        chunks = iter(content)
        got = next(chunks)
        assert store.waits.wait(30)
        until_constant(cache.total_bytes_fetched)
        (part,) = (tmp_path / "nars").glob("*.part")
        os.truncate(part, 0)  # the cache fails, so the rest comes from a stream of the NAR
        rest: list[bytes] = []
        with pytest.raises(IntegrityError):
            rest.extend(chunks)
        assert len(got) + sum(map(len, rest)) < len(EARLY)
        content.close()
    finally:
        store.gate.set()
        cache.close()


@pytest.mark.parametrize(("name", "verified"), [("early", False), ("late", True)])
def test_without_a_disk_cache_only_a_file_near_the_end_is_verified(name: str, verified: bool) -> None:
    files = binary_cache({"x": TREE})
    cache = BinaryCache([MemoryStore(files)])
    content = cache.open(cache.path_info(hash_part("x"))).read(name)
    assert content.is_verified == verified
    assert b"".join(content) == TREE[name]
    content.close()
