"""Readers of one file share its descriptor."""

import os
import threading
from pathlib import Path

import pytest

from narcore.cache.narcache import NarCache
from narcore.cache.openfiles import OpenFiles
from tests.cache.support import add_to_cache, cached_bytes, key_of, nar_of

NAR = nar_of(600_000)
KEY = key_of(NAR)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_readers_of_a_nar_need_one_descriptor(cache: NarCache) -> None:
    add_to_cache(cache, NAR)
    before = open_descriptors()
    readers = []
    for number in range(1000):
        nar = cache.open(KEY)
        assert nar is not None
        readers.append(nar.read(number, number + 5))
    assert open_descriptors() == before + 1
    for number, reader in enumerate(readers):
        assert b"".join(reader) == NAR[number : number + 5]
        reader.close()
        reader.close()
    assert open_descriptors() == before


def test_a_nar_that_was_evicted_gets_no_new_readers(cache: NarCache) -> None:
    """Otherwise its space on the disk would not become free as long as there are readers."""
    add_to_cache(cache, NAR)
    before = open_descriptors()
    old = cache.open(KEY)
    assert old is not None
    cache.clear()
    assert cache.open(KEY) is None
    add_to_cache(cache, NAR)
    new = cache.open(KEY)
    assert new is not None
    assert os.fstat(new.fd).st_ino != os.fstat(old.fd).st_ino
    old.close()
    assert cached_bytes(cache, KEY) == NAR
    new.close()
    assert open_descriptors() == before


def test_a_file_that_is_not_shared_yet_has_a_descriptor_of_its_own(tmp_path: Path) -> None:
    path, files = tmp_path / "file", OpenFiles()
    path.write_bytes(b"x")
    first, second = files.open(path), files.open(path)
    assert first.fd != second.fd
    files.share(second)
    third = files.open(path)
    assert third is second
    for each in (second, first, third):
        files.close(each)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second.fd)
    files.close(files.open(path))


def test_threads_share_and_close_a_file(tmp_path: Path) -> None:
    path, files = tmp_path / "file", OpenFiles()
    path.write_bytes(b"x" * 100)
    before = open_descriptors()
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(300):
                file = files.open(path)
                files.share(file)
                assert os.pread(file.fd, 100, 0) == b"x" * 100
                files.close(file)
        except BaseException as error:  # noqa: BLE001  checked below
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert open_descriptors() == before
