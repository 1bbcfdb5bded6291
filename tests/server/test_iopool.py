"""Reads of files outside of the event loop."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from narserve.server import iopool
from narserve.server.iopool import BLOCK_SIZE, IoPool, are_cached


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * BLOCK_SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def can_tell(descriptor: int) -> bool:
    """Return whether the file system of the tests supports RWF_NOWAIT."""
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def read(pool: IoPool, descriptor: int, start: int, stop: int, ended: threading.Event) -> None:
    pool.submit(descriptor, start, stop, ended.set)
    assert ended.wait(10)


def run_now(call: object) -> None:
    assert callable(call)
    call()


def test_a_read_brings_a_block_into_the_page_cache(descriptor: int) -> None:
    if not can_tell(descriptor):
        pytest.skip("this file system does not support RWF_NOWAIT")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    assert not are_cached(descriptor, 4 * BLOCK_SIZE, 5 * BLOCK_SIZE)
    pool = IoPool(run_now)
    read(pool, descriptor, 4 * BLOCK_SIZE, 5 * BLOCK_SIZE, threading.Event())
    assert are_cached(descriptor, 4 * BLOCK_SIZE, 5 * BLOCK_SIZE)
    pool.close()


def test_bytes_beyond_the_end_are_not_cached(descriptor: int) -> None:
    assert not are_cached(descriptor, 15 * BLOCK_SIZE, 17 * BLOCK_SIZE)


@pytest.mark.parametrize("problem", ["beyond the end", "not a file"])
def test_a_read_ends_in_any_case(descriptor: int, problem: str) -> None:
    pool = IoPool(run_now)
    ended = threading.Event()
    if problem == "beyond the end":
        read(pool, descriptor, 15 * BLOCK_SIZE, 17 * BLOCK_SIZE, ended)
    else:
        reading, writing = os.pipe()
        read(pool, reading, 0, 1, ended)
        os.close(reading)
        os.close(writing)
    pool.close()


def test_a_system_that_can_not_tell_reads_every_byte(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on overlayfs, on tmpfs, and on macOS."""
    read_bytes = []
    preadv = os.preadv

    def short(file: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(file, [buffers[0][:100_000]], offset)
        read_bytes.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", short)
    iopool.read_pages(descriptor, 10, 10 + BLOCK_SIZE, bytearray(BLOCK_SIZE))
    assert read_bytes == [(10, 100_000), (100_010, 100_000), (200_010, BLOCK_SIZE - 200_000)]
