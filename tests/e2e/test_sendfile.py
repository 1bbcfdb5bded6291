"""A large file out of the disk cache, which the kernel sends: all of it, and never less without the client seeing it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path

import pytest

from tests.builders import binary_cache, store_path
from tests.e2e.fronts import Front, running

CONTENTS = os.urandom(24 << 20)  # more than the buffers of a connection hold
PATH = f"{store_path('large')}/large.bin"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def front(tmp_path: Path, cache_dir: Path) -> Iterator[Front]:
    upstream = tmp_path / "upstream"
    for name, content in binary_cache({"large": {"large.bin": CONTENTS}}, compression="none").items():
        (upstream / name).parent.mkdir(parents=True, exist_ok=True)
        (upstream / name).write_bytes(content)
    settings = {"NAR_CACHE_URL": upstream.as_uri(), "NAR_CACHE_DIR": str(cache_dir)}
    with running(settings, tmp_path / "log", expect_trouble=True) as front:
        for _ in range(2):  # the second fetch of a NAR that is not compressed is worth keeping it
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


def test_the_kernel_sends_all_of_it_and_no_more(front: Front, cache_dir: Path) -> None:
    assert list(cache_dir.glob("*.nar"))
    connection = front.connect()
    for _ in range(2):  # on one connection: a byte too many or too few would spoil the second answer
        connection.request("GET", PATH)
        assert connection.getresponse().read() == CONTENTS
    connection.close()
    assert "Traceback" not in front.log_text()


@pytest.mark.parametrize("left", [1 << 20, 20 << 20])
def test_an_entry_that_is_cut_while_it_is_sent_cuts_the_connection(front: Front, cache_dir: Path, left: int) -> None:
    with get(front) as response:
        assert response.read(1000) == CONTENTS[:1000]
        (entry,) = cache_dir.glob("*.nar")
        entry.chmod(0o600)
        os.truncate(entry, left)
        with pytest.raises(IncompleteRead):
            response.read()
    assert not entry.exists(), "seen at once, and not only when the connection has been idle for too long"
    with get(front) as response:
        assert response.read() == CONTENTS
