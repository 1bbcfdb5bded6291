"""Fixtures: caches that are closed at the end of a test, and a check that nothing was left open."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narcore.cache.narcache import NarCache
from narcore.trace import Trace, silent
from tests.cache.support import until

MakeCache = Callable[..., NarCache]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of the cache."""
    return tmp_path / "nars"


@pytest.fixture
def make_cache(directory: Path) -> Iterator[MakeCache]:
    """Makes a cache. Several caches of one directory simulate several processes, since each has its own descriptors."""
    made = []

    def make(limit: int = 1 << 30, *, max_fills: int = 4, patience: float = 2.0, trace: Trace = silent) -> NarCache:
        made.append(NarCache(directory, size=lambda _: limit, max_fills=max_fills, patience=patience, trace=trace))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make_cache: MakeCache) -> NarCache:
    """A cache with enough room for all NARs of a test."""
    return make_cache()


def descriptors(directory: Path) -> list[str]:
    """Return the files below the directory that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = str(Path(f"/proc/self/fd/{name}").readlink())
        except FileNotFoundError:
            continue
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


@pytest.fixture(autouse=True)
def nothing_left_open(tmp_path: Path) -> Iterator[None]:
    """Check that no test leaves a thread or a descriptor of the cache behind."""
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)
    assert descriptors(tmp_path) == []
