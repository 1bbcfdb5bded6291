"""Bytes that are said to be verified are cut if the NAR is wrong, whichever source they come from in the end."""

import random
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import CacheFailure, IntegrityError
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from tests.builders import COMPRESS, Tree, binary_cache, hash_part, nar

EARLY = random.Random(1).randbytes(4 * CHUNK_SIZE)
# More than VERIFY_REST bytes follow the file.
TREE: dict[str, Tree] = {"early": EARLY, "late": bytes(9 << 20)}


class ChangingStore(MemoryStore):
    """A store that begins to send a right NAR, at whose end the cache fails, and then sends a wrong NAR."""

    def __init__(self) -> None:
        files = binary_cache({"x": TREE})
        super().__init__(files)
        self.gate = threading.Event()
        wrong = COMPRESS["zstd"](nar(TREE | {"late": bytes((9 << 20) - 1) + b"1"}))
        self._nars = [next(data for name, data in files.items() if name.startswith("nar/")), wrong]

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        if not path.startswith("nar/"):
            return super().get_file(path, start, stop)
        data = self._nars.pop(0)
        return StoreFile(self._failing(data) if self._nars else (chunk for chunk in [data]), size=len(data))

    def _failing(self, data: bytes) -> Generator[bytes]:
        yield data[:-50]
        assert self.gate.wait(30)
        raise CacheFailure("no space left on device")


def test_a_file_continued_from_a_stream_is_verified_to_the_end_of_the_nar(tmp_path: Path) -> None:
    store = ChangingStore()
    cache = BinaryCache([store], cache=NarCache(tmp_path / "nars", size=lambda _directory: 1 << 30, max_fills=2))
    try:
        content = cache.open(cache.path_info(hash_part("x"))).read("early")
        assert content.is_verified
        chunks = iter(content)
        got = [next(chunks)]
        store.gate.set()
        with pytest.raises(IntegrityError, match="NarHash"):
            got.extend(chunks)
        assert 0 < sum(map(len, got)) < len(EARLY)
        content.close()
    finally:
        cache.close()


@pytest.mark.parametrize(("name", "verified"), [("early", False), ("late", True)])
def test_without_a_disk_cache_only_a_file_near_the_end_is_verified(name: str, verified: bool) -> None:
    files = binary_cache({"x": TREE})
    cache = BinaryCache([MemoryStore(files)])
    content = cache.open(cache.path_info(hash_part("x"))).read(name)
    assert content.is_verified == verified
    assert b"".join(content) == TREE[name]
    content.close()
