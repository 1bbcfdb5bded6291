"""Helpers for tests of the disk cache: sources whose bytes arrive under the control of the test, and readers."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from narcore.cache.fill import Fill, FillBytes
from narcore.cache.layout import DURABLE, NarKey
from narcore.cache.narcache import NarCache
from narcore.errors import HashMismatch
from narcore.formats import nixbase32
from tests import builders

PATIENCE = 10.0


def nar_of(size: int, seed: int = 0) -> bytes:
    """Return the NAR of one file of about ``size`` bytes, which differs for each seed."""
    return builders.nar({"data": hashlib.shake_128(seed.to_bytes(4, "big")).digest(max(0, size))})


def key_of(nar: bytes) -> NarKey:
    return NarKey(nixbase32.encode(hashlib.sha256(nar).digest()), len(nar))


@dataclass
class Source:
    """Fetches a NAR chunk by chunk, and verifies it at the end, as the real source does.

    If ``gated``, it waits for `allow` before each chunk. If ``fault`` is set, it raises it after half of the NAR. If ``sent`` is
    set, it yields these bytes instead of the NAR.
    """

    nar: bytes
    chunk: int = 1 << 16
    gated: bool = False
    sent: bytes | None = None
    fault: Exception | None = None
    fetched: int = 0  # how many times the NAR was requested
    closed: int = 0
    _allowed: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def key(self) -> NarKey:
        return key_of(self.nar)

    def allow(self, stop: int | None = None) -> None:
        """Let the bytes before ``stop`` (default: all) arrive."""
        with self._changed:
            self._allowed = len(self.nar) + 1 if stop is None else stop
            self._changed.notify_all()

    def __call__(self) -> Iterator[bytes]:
        self.fetched += 1
        return self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        data = self.nar if self.sent is None else self.sent
        try:
            for start in range(0, len(data), self.chunk):
                self._wait(min(start + self.chunk, len(data)))
                if start + self.chunk >= len(data):
                    self._check(data)
                yield data[start : start + self.chunk]
        finally:
            self.closed += 1

    def _wait(self, position: int) -> None:
        if self.gated:
            with self._changed:
                assert self._changed.wait_for(lambda: self._allowed >= position, 20)
        if self.fault is not None and position > len(self.nar) // 2:
            raise self.fault

    def _check(self, data: bytes) -> None:
        if data != self.nar:
            raise HashMismatch("not the expected NAR")


def no_check(listing: object) -> None:
    """Accept any listing."""


def read_all(fill: Fill, start: int = 0, stop: int | None = None) -> bytes:
    """Read bytes of a fill that the caller has joined, and leave it."""
    reader = fill.read(start, fill.part.key.size if stop is None else stop, no_check)
    try:
        return b"".join(reader)
    finally:
        reader.close()


def reader_of(fill: Fill) -> FillBytes:
    return fill.read(0, fill.part.key.size, no_check)


def read_until_error(chunks: Iterable[bytes]) -> tuple[bytes, BaseException | None]:
    """Return the bytes that arrive, and the error that ends them, if any."""
    got = b""
    try:
        for chunk in chunks:
            got += chunk
    except Exception as error:  # noqa: BLE001  the test examines the error
        return got, error
    return got, None


def add_to_cache(cache: NarCache, nar: bytes) -> NarKey:
    """Add a NAR to the cache, and wait until its files are marked as durable, so that the test can change them."""
    source = Source(nar)
    assert read_all(cache.fill(source.key, source)) == nar
    files = cache.layout.nar(source.key.digits), cache.layout.listing(source.key.digits)
    until(lambda: all(file.stat().st_mtime == DURABLE for file in files if file.exists()))
    return source.key


def cached_bytes(cache: NarCache, key: NarKey) -> bytes | None:
    """Return the bytes of a cached NAR, or None if the NAR is not cached."""
    nar = cache.open(key)
    if nar is None:
        return None
    reader = nar.read(0, key.size)
    try:
        return b"".join(reader)
    finally:
        reader.close()


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until a condition is met by another thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.002)


def names(directory: Path) -> set[str]:
    """Return the names of the files in the directory, except those that are always there."""
    return {
        path.name
        for path in directory.iterdir()
        if not path.name.startswith((".lock", ".slot-", ".spare", ".counters"))
    }
