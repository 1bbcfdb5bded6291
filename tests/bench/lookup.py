"""A lookup in the listing of a cached NAR of many files, by a new process: the benchmark, and the process that it measures."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from narcore.cache.layout import NarKey
from narcore.cache.narcache import NarCache
from narcore.formats import nixbase32
from narcore.formats.nar.writer import write_nar
from narcore.formats.resolve import Found, resolve
from narcore.formats.storepath import StorePath
from tests.bench.material import small_files
from tests.bench.memory import status_of
from tests.bench.report import MIB, Row, at_most
from tests.bench.setup import Setup

FILES = 100_000
NAME = "directory-000500/file-0050.py"
SECONDS = 0.005
MEMORY = 1.0  # MiB


def lookup(setup: Setup) -> Iterator[Row]:
    """Time and memory of the first lookup in the listing of a cached NAR of 100,000 files.

    The kernel maps more pages of a file than the process reads. These are pages of the page cache, which all processes share.
    """
    nar = b"".join(write_nar(small_files(FILES)))
    key = NarKey(nixbase32.encode(hashlib.sha256(nar).digest()), len(nar))
    directory = setup.directory / "nars"
    cache = open_cache(directory)
    fill = cache.fill(key, lambda: iter([nar]))
    fill.wait()
    fill.leave()
    cache.close()
    found = [_in_new_process(directory, key) for _ in range(setup.runs)]
    seconds, own, shared = (median(column) for column in zip(*found, strict=True))
    yield at_most(f"lookup in a NAR of {FILES:,} files, new process", seconds * 1000, "ms", SECONDS * 1000)
    yield at_most(f"lookup in a NAR of {FILES:,} files, own memory", own / MIB, "MiB", MEMORY)
    yield at_most(f"lookup in a NAR of {FILES:,} files, mapped page cache", shared / MIB, "MiB")


def open_cache(directory: Path) -> NarCache:
    return NarCache(directory, size=lambda _: 1 << 40, max_fills=1)


def _in_new_process(directory: Path, key: NarKey) -> list[float]:
    """Return the seconds, and the bytes of own memory and of mapped page cache, that a lookup takes in a new process."""
    command = [sys.executable, "-m", "tests.bench.lookup", str(directory), key.digits, str(key.size)]
    found: list[float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def _measure(directory: str, digits: str, size: str) -> list[float]:
    cache = open_cache(Path(directory))
    store_path = StorePath.parse(f"/nix/store/{'0' * 32}-x")
    before, begin = _memory(), perf_counter()
    listing = cache.listing(NarKey(digits, int(size)))
    assert listing is not None
    outcome = resolve(listing, store_path, NAME)
    seconds = perf_counter() - begin
    assert isinstance(outcome, Found)
    after = _memory()
    cache.close()
    return [seconds, *(now - then for now, then in zip(after, before, strict=True))]


def _memory() -> tuple[int, int]:
    return status_of("self", "RssAnon"), status_of("self", "RssFile")


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
