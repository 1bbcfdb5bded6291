"""Writing to a directory and to a bucket: complete files only, claims, and the list of files."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from narcore.errors import SettingsError, WriteError
from narcore.stores import open_store, open_writer, read_file
from narcore.stores.buckets.upload import BucketWriter
from narcore.stores.buckets.url import BucketUrl
from narcore.stores.localwriter import LocalWriter
from narcore.stores.writer import CLAIM_SECONDS, StoredObject, StoreWriter
from tests.e2e import s3
from tests.e2e.s3 import BUCKET, S3

Open = Callable[[float], StoreWriter]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3.running(tmp_path_factory.mktemp("s3") / "log") as running:
        yield running


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    running: S3 = request.getfixturevalue("server")
    for name, value in running.settings.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name}?endpoint={running.url}"


def at(url: str, seconds: float) -> StoreWriter:
    """Return a writer whose clock is ``seconds`` ahead."""
    if url.startswith("file:"):
        return LocalWriter(Path(url.removeprefix("file://")), lambda: time.time() + seconds)
    from narcore.stores.buckets.s3 import S3BinaryCacheStore

    now = datetime.fromtimestamp(time.time() + seconds, UTC)
    return BucketWriter(BucketUrl.parse(url), S3BinaryCacheStore(url).open_client, lambda: now)


def test_a_file_is_written_and_listed(url: str) -> None:
    writer, data = open_writer(url), bytes(range(256)) * 50_000
    assert not writer.has("nar/x")
    writer.put("nar/x", (data[start : start + 100_000] for start in range(0, len(data), 100_000)), {})
    writer.put("y", [b"old"], {"Content-Type": "text/plain"})
    writer.put("y", [b"new"], {"Content-Type": "text/plain"})
    assert writer.has("nar/x")
    assert read_file(open_store(url), "nar/x", len(data)) == data
    assert read_file(open_store(url), "y", 10) == b"new"
    assert sorted(writer.objects()) == [StoredObject("nar/x", len(data)), StoredObject("y", 3)]
    writer.close()


def test_an_interrupted_write_stores_nothing(url: str) -> None:
    writer = open_writer(url)
    writer.put("x", [b"old"], {})

    def broken() -> Iterator[bytes]:
        yield bytes(100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writer.put("x", broken(), {})
    assert list(writer.objects()) == [StoredObject("x", 3)]


def test_one_of_many_gets_the_claim(url: str) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(open_writer(url).claim("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    open_writer(url).release("x")
    assert open_writer(url).claim("x")


def test_a_claim_expires(url: str) -> None:
    assert at(url, 0).claim("x")
    assert not at(url, CLAIM_SECONDS - 5).claim("x")
    assert at(url, CLAIM_SECONDS + 5).claim("x")
    assert not at(url, CLAIM_SECONDS + 5).claim("x")


def test_a_store_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = open_writer((tmp_path / "file").as_uri())
    for call in (lambda: writer.put("x", [b""], {}), lambda: writer.claim("x")):
        with pytest.raises(WriteError, match="file"):
            call()


@pytest.mark.parametrize("url", ["http://x", "https://x/y"])
def test_an_http_store_can_not_be_written_to(url: str) -> None:
    with pytest.raises(SettingsError, match="can't be written to"):
        open_writer(url)
