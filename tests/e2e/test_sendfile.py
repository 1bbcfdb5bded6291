"""A large file of the disk cache that the kernel sends (sendfile): a client gets the whole file or detects the cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path

import pytest

from tests.builders import store_path
from tests.e2e.cache_support import write_cache
from tests.e2e.fronts import Front, running

CONTENTS = os.urandom(24 << 20)  # more than the buffers of a connection hold
PATH = f"{store_path('large')}/large.bin"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def front(tmp_path: Path, cache_dir: Path) -> Iterator[Front]:
    upstream = write_cache(tmp_path / "upstream", {"large": {"large.bin": CONTENTS}}, "none")
    settings = {"NAR_CACHE_URL": upstream.as_uri(), "NAR_CACHE_DIR": str(cache_dir)}
    with running(settings, tmp_path / "log", expect_trouble=True) as front:
        for _ in range(2):  # an uncompressed NAR is cached at its second fetch
            with get(front) as response:
                response.read()
        yield front


@contextmanager
def get(front: Front) -> Iterator[HTTPResponse]:
    connection: HTTPConnection = front.connect(timeout=10)
    try:
        connection.request("GET", PATH)
        response = connection.getresponse()
        assert response.status == 200
        yield response
    finally:
        connection.close()


def test_the_kernel_sends_the_exact_file(front: Front, cache_dir: Path) -> None:
    assert list(cache_dir.glob("*.nar"))
    connection = front.connect()
    for _ in range(2):  # on one connection: a missing or additional byte would break the second response
        connection.request("GET", PATH)
        assert connection.getresponse().read() == CONTENTS
    connection.close()
    assert "Traceback" not in front.log_text()


@pytest.mark.parametrize("left", [1 << 20, 20 << 20])
def test_an_entry_that_is_truncated_while_it_is_sent_cuts_the_connection(
    front: Front, cache_dir: Path, left: int
) -> None:
    with get(front) as response:
        assert response.read(1000) == CONTENTS[:1000]
        (entry,) = cache_dir.glob("*.nar")
        entry.chmod(0o600)
        os.truncate(entry, left)
        with pytest.raises((IncompleteRead, ConnectionResetError)):
            response.read()
    assert not entry.exists(), "the truncation is detected immediately, not when the connection times out"
    with get(front) as response:
        assert response.read() == CONTENTS
