"""The fields of the event ``fetch`` for each way in which reading a file can end."""

from collections.abc import Iterator
from itertools import count, islice

import pytest

from narcore.binarycache import BinaryCache
from narcore.errors import FileNotInStore, StoreError, StoreTimeout
from narcore.settings import Settings
from narcore.stores.base import StoreFile
from narcore.stores.memory import MemoryStore
from narcore.stores.traced import TracedStore

Event = tuple[str, dict[str, object]]


class FailingStore(MemoryStore):
    """Returns one chunk, and then fails."""

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        return StoreFile(_Broken(super().get_file(path, start, stop)), size=None)


class _Broken:
    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._chunks = iter(file)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks, b"")
        if chunk:
            return chunk
        raise StoreTimeout("too slow")

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize(
    ("path", "kind", "chunks", "expected"),
    [
        ("x.narinfo", MemoryStore, None, ("narinfo", "whole", 5, "")),
        ("nix-cache-info?a.ls", MemoryStore, None, ("info", "whole", 5, "")),
        ("x.ls", MemoryStore, 1, ("listing", "left", 5, "")),
        ("nar/x.nar.xz", MemoryStore, 0, ("nar", "left", 0, "")),
        ("nar/none.nar", MemoryStore, None, ("nar", "missing", 0, "")),
        ("nar/x.nar.xz", FailingStore, None, ("nar", "error", 5, "StoreTimeout")),
    ],
)
def test_each_file_emits_one_event(
    path: str, kind: type[MemoryStore], chunks: int | None, expected: tuple[str, str, int, str]
) -> None:
    store = kind({} if expected[1] == "missing" else {path.partition("?")[0]: b"12345", path: b"12345"})
    events: list[Event] = []
    ticks = count()
    traced = TracedStore(store, lambda event, fields: events.append((event, fields)), clock=lambda: float(next(ticks)))
    if expected[1] in ("missing", "error"):
        with pytest.raises(FileNotInStore if expected[1] == "missing" else StoreError):
            _read(traced, path, chunks)
    else:
        _read(traced, path, chunks)
    ((event, fields),) = events
    assert event == "fetch"
    assert fields.pop("seconds") == 1.0
    assert fields.pop("store") == store.url
    assert tuple(fields[name] for name in ("what", "outcome", "bytes", "error")) == expected


def _read(store: TracedStore, path: str, chunks: int | None) -> None:
    with store.get_file(path) as file:
        assert set(islice(file, chunks)) <= {b"12345"}


def test_configured_stores_are_traced_only_if_there_is_a_listener(tmp_path: object) -> None:
    settings = Settings.from_environ({"NAR_CACHE_URL": f"file://{tmp_path}", "NAR_CACHE_DIR": "off"})
    events: list[str] = []
    for cache in (
        BinaryCache.from_settings(settings),
        BinaryCache.from_settings(settings, trace=lambda event, fields: events.append(event)),
    ):
        with pytest.raises(FileNotInStore):
            cache.path_info("0" * 32)
        cache.close()
    assert events == ["narinfo", "fetch"]
