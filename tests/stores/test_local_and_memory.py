"""Files from a directory and from memory: whole, in parts, missing, shrinking; and ``open_store``."""

import os
import random
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import FileNotInStore, RangeNotSupported, SettingsError, StoreError, StoreTimeout, StoreUnavailable
from narcore.sizes import CHUNK_SIZE
from narcore.stores import (
    BinaryCacheStore,
    HttpBinaryCacheStore,
    LocalBinaryCacheStore,
    MemoryStore,
    StoreFile,
    base,
    open_store,
    read_file,
)
from narcore.stores.buckets.googleazure import ObjectBinaryCacheStore
from narcore.stores.buckets.s3 import S3BinaryCacheStore

CONTENT = random.Random(2).randbytes(2 * CHUNK_SIZE + 17)
FILES = {"nar/x": CONTENT, "empty": b""}


@pytest.fixture(scope="module", params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BinaryCacheStore:
    if request.param == "memory":
        return MemoryStore(FILES)
    root = tmp_path_factory.mktemp("a cache")
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return open_store(root.as_uri())


@given(start=st.integers(0, len(CONTENT) + 2), length=st.none() | st.integers(1, len(CONTENT) + 2))
def test_any_range_is_exact_or_rejected(store: BinaryCacheStore, start: int, length: int | None) -> None:
    stop = None if length is None else start + length
    if (stop or 0) > len(CONTENT) or start >= len(CONTENT):
        with pytest.raises(RangeNotSupported):
            store.get_file("nar/x", start, stop)
        return
    with store.get_file("nar/x", start, stop) as file:
        chunks = list(file)
    assert file.size == len(CONTENT)
    assert b"".join(chunks) == CONTENT[start:stop]
    assert all(0 < len(chunk) <= CHUNK_SIZE for chunk in chunks)


def test_whole_and_empty_files_are_read_and_missing_files_reported(store: BinaryCacheStore) -> None:
    assert read_file(store, "nar/x", len(CONTENT)) == CONTENT
    assert read_file(store, "empty", 0) == b""
    with pytest.raises(FileNotInStore, match="nar/y"):
        store.get_file("nar/y")
    with pytest.raises(StoreError, match="allowed"):
        read_file(store, "nar/x", len(CONTENT) - 1)
    with pytest.raises(ValueError, match="part"):
        store.get_file("nar/x", 5, 5)
    store.close()


def test_read_file_times_out_on_a_slow_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowStore(MemoryStore):
        closed = False

        def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
            return StoreFile(self._slow_chunks(), size=None)

        def _slow_chunks(self) -> Generator[bytes, None, None]:
            try:
                while True:
                    time.sleep(0.01)
                    yield b"."
            finally:
                self.closed = True

    monkeypatch.setattr(base, "SMALL_FILE_SECONDS", 0.1)
    store = SlowStore({})
    with pytest.raises(StoreTimeout, match="within"):
        read_file(store, "x.narinfo", 10_000)
    assert store.closed


def test_memory_store_has_encodings_and_serves_files_added_later() -> None:
    files = {"x": b"1"}
    store = MemoryStore(files, content_encodings={"x": "br"})
    files["y"] = b"2"
    with store.get_file("x") as file:
        assert file.content_encoding == "br"
    assert read_file(store, "y", 1) == b"2"


def test_missing_directory_is_unavailable_until_it_exists(tmp_path: Path) -> None:
    store = LocalBinaryCacheStore(str(tmp_path / "later"))
    with pytest.raises(StoreUnavailable, match="no such directory"):
        store.get_file("x")
    (tmp_path / "later").mkdir()
    with pytest.raises(FileNotInStore):
        store.get_file("x")


def test_directory_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    assert read_file(LocalBinaryCacheStore(str(tmp_path / "link")), "x", 1) == b"1"


def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    with LocalBinaryCacheStore(str(tmp_path)).get_file("x") as file:
        chunks = iter(file)
        next(chunks)
        os.truncate(tmp_path / "x", CHUNK_SIZE)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="shrank"):
                next(chunks)


def test_file_that_grows_keeps_its_original_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with LocalBinaryCacheStore(str(tmp_path)).get_file("x") as file:
        with (tmp_path / "x").open("ab") as more:
            more.write(b"2")
        assert b"".join(file) == b"1"


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("https://cache.nixos.org", HttpBinaryCacheStore, "https://cache.nixos.org"),
        ("HTTP://Cache.example:80/x/?priority=3", HttpBinaryCacheStore, "http://cache.example:80/x"),
        ("http://[::1]:8080/", HttpBinaryCacheStore, "http://[::1]:8080"),
        ("file:///var/a%20cache?trusted=1", LocalBinaryCacheStore, "file:///var/a%20cache"),
        ("file://localhost/var/cache/", LocalBinaryCacheStore, "file:///var/cache"),
        ("/var/a cache?priority=3", LocalBinaryCacheStore, "file:///var/a%20cache"),
        ("s3://bucket/a%20b/?region=eu-west-1&priority=3", S3BinaryCacheStore, "s3://bucket/a%20b"),
        ("GS://bucket", ObjectBinaryCacheStore, "gs://bucket"),
        ("az://container/x?account=joe", ObjectBinaryCacheStore, "az://container/x"),
    ],
)
def test_open_store_chooses_the_class_by_the_url(url: str, kind: type, shown: str) -> None:
    store = open_store(url)
    assert type(store) is kind
    assert store.url == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "var/cache",
        "file:var/cache",
        "file://host/var",
        "file:///x%00y",
        "file://[",
        "daemon",
        "ssh://h",
        "cache.nixos.org",
        "s3:bucket",
        "gs://",
    ],
)
def test_open_store_rejects_invalid_urls(url: str) -> None:
    with pytest.raises(SettingsError):
        open_store(url)


def test_check_accepts_a_store_without_cache_info_but_not_a_missing_directory(
    store: BinaryCacheStore, tmp_path: Path
) -> None:
    store.check()  # passes without a nix-cache-info
    with pytest.raises(StoreUnavailable, match="no such directory"):
        LocalBinaryCacheStore(str(tmp_path / "nowhere")).check()
