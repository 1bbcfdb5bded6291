"""A store that emits the trace event ``fetch`` for each file."""

import time
from collections.abc import Callable, Iterator
from typing import Literal

from narcore.errors import FileNotInStore, StoreError
from narcore.stores.base import BinaryCacheStore, StoreFile
from narcore.trace import Trace

Outcome = Literal["whole", "left", "missing", "error"]

_WHAT = ((".narinfo", "narinfo"), (".ls", "listing"), ("nix-cache-info", "info"))


class TracedStore:
    """A wrapper around ``store`` that emits an event for each file when the reading of the file ends."""

    def __init__(
        self, store: BinaryCacheStore, trace: Trace, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._store = store
        self._trace = trace
        self._clock = clock

    @property
    def url(self) -> str:
        return self._store.url

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        fetch = _Fetch(self._trace, self._store.url, path, self._clock)
        try:
            file = self._store.get_file(path, start, stop)
        except StoreError as error:
            fetch.failed(error)
            raise
        return StoreFile(_TracedBody(file, fetch), size=file.size, content_encoding=file.content_encoding)

    def check(self) -> None:
        self._store.check()

    def close(self) -> None:
        self._store.close()


class _Fetch:
    """The fetch of one file. Emits the event once, when the fetch ends."""

    def __init__(self, trace: Trace, store: str, path: str, clock: Callable[[], float]) -> None:
        self.bytes = 0
        self._trace = trace
        self._store = store
        self._path = path
        self._clock = clock
        self._started = clock()
        self._reported = False

    def failed(self, error: StoreError) -> None:
        self.ended("missing" if isinstance(error, FileNotInStore) else "error", type(error).__name__)

    def ended(self, outcome: Outcome, error: str = "") -> None:
        if self._reported:
            return
        self._reported = True
        self._trace(
            "fetch",
            {
                "store": self._store,
                "what": _what(self._path),
                "outcome": outcome,
                "bytes": self.bytes,
                "seconds": self._clock() - self._started,
                "error": error if outcome == "error" else "",
            },
        )


class _TracedBody:
    def __init__(self, file: StoreFile, fetch: _Fetch) -> None:
        self._file = file
        self._chunks = iter(file)
        self._fetch = fetch

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._fetch.ended("whole")
            raise
        except StoreError as error:
            self._fetch.failed(error)
            raise
        self._fetch.bytes += len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()
        self._fetch.ended("left")


def _what(path: str) -> str:
    name = path.partition("?")[0]
    return next((what for ending, what in _WHAT if name.endswith(ending)), "nar")
