"""Faults of the upstream, the disk and cache entries: what clients get, and that nothing wrong is cached."""

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import builders, needs
from tests.e2e.cache_support import (
    NARS,
    Fetched,
    get,
    get_all,
    leftovers,
    random_files,
    until,
    url_of,
    write_cache,
    wrong_entries,
)
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front, Shape
from tests.e2e.upstream import Upstream

SHORT_TIMEOUTS = Shape(threads=16, app="tests.e2e.cache_app:app")
STRICT = {"NAR_VERIFY": "strict"}
FIRST, MIDDLE, LAST = (f"file-{number}" for number in range(3))

RunOn = Callable[..., AbstractContextManager[Front]]


@dataclass(frozen=True)
class Sample:
    """A store path of the upstream that was not requested yet."""

    name: str
    files: dict[str, bytes]
    directory: Path

    @property
    def nar_size(self) -> int:
        return len(builders.nar(self.files))

    @property
    def narinfo(self) -> str:
        return (self.directory / f"{builders.hash_part(self.name)}.narinfo").read_text()

    @property
    def packed_size(self) -> int:
        return int(self.narinfo.partition("FileSize: ")[2].split()[0])

    def url(self, file: str) -> str:
        return url_of(self.name, file)

    def get(self, front: Front) -> dict[str, Fetched]:
        """Fetch all files concurrently."""
        return dict(zip(self.files, get_all([(front, self.url(file)) for file in self.files]), strict=True))

    def is_served(self, front: Front) -> bool:
        """Fetch all files, and return whether all responses are right."""
        return all((got.status, got.body) == (200, self.files[file]) for file, got in self.get(front).items())

    def some_fail(self, front: Front, *statuses: int) -> bool:
        """Fetch all files, and return whether some responses have one of ``statuses`` or are cut; fails if another one is wrong."""
        responses = self.get(front)
        for file, got in responses.items():
            assert got.status in (200, *statuses)
            assert got.status != 200 or not got.complete or got.body == self.files[file]
        return not all(got.status == 200 and got.complete for got in responses.values())

    def cached(self, nars: Path) -> list[Path]:
        """Return the entry in the cache directory ``nars``: at most one."""
        digits = self.narinfo.partition("NarHash: sha256:")[2].split()[0]
        return list(nars.glob(f"{digits}.nar"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the binary cache of the upstream."""
    return tmp_path_factory.mktemp("upstream")


@pytest.fixture(scope="module")
def url(upstream: Upstream, directory: Path) -> str:
    return upstream.mount("faults", directory)


_NUMBERS = itertools.count()


@pytest.fixture
def sample(directory: Path, upstream: Upstream) -> Sample:
    name = f"sample-{next(_NUMBERS)}"
    files = random_files(int(name[7:]), 6_000_000, count=3)
    write_cache(directory, {name: files})
    upstream.clear()
    return Sample(name, files, directory)


@pytest.fixture(scope="module")
def front(run_front: RunFront, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The front of all tests that need no front of their own."""
    settings = {"NAR_CACHE_SIZE": "1G"}
    directory = tmp_path_factory.mktemp("nars")
    with run_front(url, directory, settings, shape=SHORT_TIMEOUTS, expect_trouble=True) as front:
        yield front


@pytest.fixture(scope="module")
def nars(front: Front) -> Path:
    """The cache directory of `front`."""
    environment = Path(f"/proc/{front.process.pid}/environ").read_bytes().split(b"\0")
    return Path(next(each for each in environment if each.startswith(b"NAR_CACHE_DIR=")).decode().partition("=")[2])


@pytest.fixture
def run_on(upstream: Upstream, run_front: RunFront, url: str) -> RunOn:
    """Runs a front with a given cache directory."""

    @contextmanager
    def run(nars: Path, settings: dict[str, str] | None = None) -> Iterator[Front]:
        with run_front(url, nars, settings, shape=SHORT_TIMEOUTS, expect_trouble=True) as front:
            yield front

    return run


class TestUpstream:
    def test_a_download_that_is_cut_once_is_resumed(
        self, front: Front, upstream: Upstream, sample: Sample, nars: Path
    ) -> None:
        with upstream.fault(NARS, cut_after=2_000_000, times=1):
            assert sample.is_served(front)
        assert sample.cached(nars)

    def test_a_download_that_is_always_cut_fails(
        self, front: Front, upstream: Upstream, sample: Sample, nars: Path
    ) -> None:
        """The response that has started is cut, because its status is sent already; the other responses are a 502."""
        with upstream.fault(NARS, drop=True), upstream.fault(NARS, cut_after=1_000_000, times=1):
            got = sample.get(front)
        assert (got[FIRST].status, got[FIRST].complete) == (200, False)
        assert 0 < len(got[FIRST].body) < len(sample.files[FIRST])
        assert {got[MIDDLE].status, got[LAST].status} == {502}
        assert not sample.cached(nars)
        asked = upstream.count(NARS)
        assert {got.status for got in get_all([(front, sample.url(LAST))] * 8)} == {502}
        assert upstream.count(NARS) == asked  # the failure is remembered for seconds: no new attempt
        until(lambda: sample.is_served(front))

    def test_a_download_that_stalls_times_out(
        self, front: Front, upstream: Upstream, sample: Sample, nars: Path
    ) -> None:
        with upstream.fault(NARS, stall_after=0), upstream.fault(NARS, stall_after=1_000_000, times=1):
            started = time.monotonic()
            got = sample.get(front)
            assert time.monotonic() - started < 8
        assert (got[FIRST].status, got[FIRST].complete) == (200, False)
        assert {got[MIDDLE].status, got[LAST].status} == {504}
        assert not sample.cached(nars)

    def test_a_slow_download_is_served_while_it_runs(self, front: Front, upstream: Upstream, sample: Sample) -> None:
        """The read timeout limits a pause, not the whole download; and the first byte is served early."""
        with upstream.fault(NARS, rate=4_000_000):
            connection = front.connect()
            started = time.monotonic()
            connection.request("GET", sample.url(FIRST))
            response = connection.getresponse()
            assert response.read(1) == sample.files[FIRST][:1]
            first = time.monotonic() - started
            assert get(front, sample.url(LAST)).body == sample.files[LAST]
            whole = time.monotonic() - started
            assert response.read() == sample.files[FIRST][1:]
            connection.close()
        assert whole > 1.4
        assert first < whole / 2

    @pytest.mark.parametrize("seed", range(8))
    def test_wrong_bytes_are_not_cached(
        self, front: Front, upstream: Upstream, sample: Sample, nars: Path, seed: int
    ) -> None:
        generator = random.Random(seed)
        patch = (generator.randrange(sample.packed_size), generator.randbytes(4))
        with upstream.fault(NARS, patch=patch):
            assert sample.some_fail(front, 502)
        assert not sample.cached(nars)

    @pytest.mark.parametrize("difference", [-8, 8, -1_000_000, 1_000_000_000])
    def test_a_wrong_nar_size_returns_502(
        self, front: Front, upstream: Upstream, sample: Sample, nars: Path, difference: int
    ) -> None:
        size = sample.nar_size
        narinfo = sample.narinfo.replace(f"NarSize: {size}", f"NarSize: {size + difference}").encode()
        with upstream.fault("*.narinfo", body=narinfo):
            assert {got.status for got in sample.get(front).values()} == {502}
        assert not sample.cached(nars)

    def test_a_wrong_listing_is_replaced_when_the_nar_is_cached(
        self, front: Front, upstream: Upstream, sample: Sample
    ) -> None:
        """Responses are cut or a 502 until the NAR has been fetched and its own listing is used."""
        listing: dict[str, Any] = builders.listing(sample.files)
        for name, size in zip(sample.files, (1_000_000, 2_000_000, 3_000_000), strict=True):
            listing["root"]["entries"][name] = {"type": "regular", "size": size}
        with upstream.fault("*.ls", body=json.dumps(listing).encode()):
            for file, got in sample.get(front).items():
                assert got.status in (200, 502)
                assert got.status == 502 or not got.complete or got.body == sample.files[file]
            until(lambda: sample.is_served(front))

    def test_a_request_that_gets_no_download_slot_returns_503(
        self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path
    ) -> None:
        """Only one download may run: a request that needs another one waits for PATIENCE seconds, then fails."""
        other = upstream.mount("other", write_cache(tmp_path / "other", {"other": random_files(2, 10_000)}))
        urls = f"{upstream.url}/faults {other}"
        settings = {"NAR_MAX_FILLS": "1", "PATIENCE": "0.3", "NAR_CACHE_URL": urls, "NAR_CACHE_SIZE": "1G"}
        with run_on(tmp_path / "nars", settings) as front, upstream.fault("/faults/nar/*", rate=4_000_000):
            with ThreadPoolExecutor(1) as pool:
                slow = pool.submit(get, front, sample.url(FIRST))
                until(lambda: upstream.count("/faults/nar/*") > 0)
                got = get(front, url_of("other", FIRST))
                assert (got.status, got.retry_after) == (503, "10")
                assert slow.result().body == sample.files[FIRST]
            assert get(front, url_of("other", FIRST)).status == 200


@pytest.fixture(scope="module")
def strict_nars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strict")


@pytest.fixture(scope="module")
def strict(run_front: RunFront, url: str, strict_nars: Path) -> Iterator[Front]:
    """A front that serves only verified NARs."""
    with run_front(
        url, strict_nars, STRICT | {"NAR_CACHE_SIZE": "1G"}, shape=SHORT_TIMEOUTS, expect_trouble=True
    ) as front:
        yield front


class TestStrict:
    def test_a_response_starts_when_the_nar_is_verified(
        self, strict: Front, upstream: Upstream, sample: Sample, strict_nars: Path
    ) -> None:
        with upstream.fault(NARS, rate=6_000_000):
            connection = strict.connect()
            connection.request("GET", sample.url(FIRST))
            response = connection.getresponse()
            assert leftovers(strict_nars) == set()
            assert sample.cached(strict_nars)
            assert response.read() == sample.files[FIRST]
            connection.close()

    def test_a_wrong_nar_returns_502_instead_of_a_cut(self, strict: Front, upstream: Upstream, sample: Sample) -> None:
        with upstream.fault(NARS, patch=(sample.packed_size // 2, b"wrong")):
            assert {(got.status, got.complete) for got in sample.get(strict).values()} == {(502, True)}
        until(lambda: sample.is_served(strict))

    def test_a_full_disk_returns_503(self, run_on: RunOn, sample: Sample, small_disk: Path) -> None:
        with run_on(small_disk, STRICT | {"NAR_CACHE_SIZE": "1G"}) as front:
            assert {(got.status, got.retry_after) for got in sample.get(front).values()} == {(503, "5")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, which is smaller than the NAR."""
    with mounted(tmp_path / "disk", "size=4m,mode=700") as path:
        yield path


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory at ``path``. Skips the test if that is not possible."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False, capture_output=True)
    if done.returncode:
        needs.missing("mounts", needs.ROOT_HINT)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def warnings(front: Front) -> int:
    """Return how often the log says that NARs are not cached."""
    text = front.log_text()
    return text.count("caching is off") + text.count("NARs are not cached until this is fixed")


class TestDisk:
    def test_a_disk_that_is_too_small_is_logged_once(self, run_on: RunOn, sample: Sample, small_disk: Path) -> None:
        """All files are served without caching."""
        with run_on(small_disk, {"NAR_CACHE_SIZE": "1G"}) as front:
            for _ in range(3):
                assert sample.is_served(front)
            assert warnings(front) == 1
            assert leftovers(small_disk) == set()

    def test_readers_continue_when_the_disk_becomes_full(
        self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path
    ) -> None:
        with mounted(tmp_path / "disk", "size=8m,mode=700") as disk, run_on(disk, {"NAR_CACHE_SIZE": "1G"}) as front:
            with upstream.fault(NARS, rate=6_000_000, times=1):
                served: list[bool] = []
                reader = threading.Thread(target=lambda: served.append(sample.is_served(front)))
                reader.start()
                until(lambda: any(path.stat().st_size > 500_000 for path in disk.glob("*.part")))
                (disk / "foreign-file").write_bytes(bytes(6_000_000))
                reader.join()
            assert served == [True]
            assert warnings(front) == 1
            assert leftovers(disk) == {"foreign-file"}
            (disk / "foreign-file").unlink()
            assert sample.is_served(front)
            until(lambda: bool(sample.cached(disk)))

    def test_a_read_only_disk_serves_cached_nars(
        self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path
    ) -> None:
        """Other NARs are served without caching."""
        other = upstream.mount("other", write_cache(tmp_path / "other", {"other": random_files(2, 2_000_000)}))
        settings = {"NAR_CACHE_URL": f"{upstream.url}/faults {other}", "NAR_CACHE_SIZE": "1G"}
        with mounted(tmp_path / "disk", "size=20m,mode=700") as disk, run_on(disk, settings) as front:
            assert sample.is_served(front)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            upstream.clear()
            assert sample.is_served(front)
            assert upstream.count(NARS) == 0
            for number in range(4):
                assert get(front, url_of("other", f"file-{number}")).status == 200
            assert warnings(front) == 1

    def test_a_removed_cache_directory_is_created_again(
        self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path
    ) -> None:
        nars = tmp_path / "nars"
        with run_on(nars) as front:
            for times in (1, 2):
                assert sample.is_served(front)
                assert upstream.count(NARS) == times
                until(lambda: leftovers(nars) == set())
                shutil.rmtree(nars)

    @pytest.mark.parametrize("fault", ["writable by all", "of another user", "a file", "below a file"])
    def test_an_unusable_cache_directory_turns_caching_off(
        self, url: str, run_front: RunFront, sample: Sample, tmp_path: Path, fault: str
    ) -> None:
        nars = tmp_path / "nars"
        if fault in ("a file", "below a file"):
            nars.touch()
        else:
            nars.mkdir()
            nars.chmod(0o777 if fault == "writable by all" else 0o700)
            os.chown(nars, 65534 if fault == "of another user" else -1, -1)
        used = nars / "below" if fault == "below a file" else nars
        with run_front(url, used) as front:
            assert sample.is_served(front)
            assert warnings(front) == 1
        assert nars.is_file() or list(nars.iterdir()) == []
        with (
            pytest.raises(RuntimeError, match="NAR_VERIFY=strict needs a cache directory"),
            run_front(url, used, STRICT),
        ):
            pass


@pytest.fixture(scope="module")
def big(
    upstream: Upstream, run_front: RunFront, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Front, bytes, Path]]:
    """A front, the contents of a file that is larger than all buffers between front and client, and the cache directory."""
    files, place = random_files(3, 24_000_000, count=1), tmp_path_factory.mktemp("big")
    url = upstream.mount("big", write_cache(place / "upstream", {"big": files}))
    settings = {"GUNICORN_CMD_ARGS": "--no-sendfile"}
    with run_front(url, place / "nars", settings, shape=SHORT_TIMEOUTS, expect_trouble=True) as front:
        yield front, files[FIRST], place / "nars"


class TestEntries:
    @pytest.mark.parametrize(
        "damage", ["deleted", "truncated", "corrupted", "touched", "no listing", "a wrong listing"]
    )
    def test_an_entry_that_changes_between_requests_is_repaired(
        self, front: Front, sample: Sample, upstream: Upstream, nars: Path, damage: str
    ) -> None:
        assert sample.is_served(front)
        until(lambda: bool(sample.cached(nars)))
        (entry,) = sample.cached(nars)
        spoil(entry, damage)
        upstream.clear()
        assert sample.is_served(front)
        assert upstream.count(NARS) == (damage in ("deleted", "truncated", "corrupted"))
        until(lambda: bool(sample.cached(nars)) and not leftovers(nars) - errors(nars))
        assert wrong_entries(nars) == []

    @pytest.mark.parametrize("damage", ["deleted", "truncated", "corrupted"])
    def test_an_entry_that_is_damaged_while_it_is_read_cuts_the_response(
        self, big: tuple[Front, bytes, Path], damage: str
    ) -> None:
        """A deleted entry is still read to its end.

        sendfile is off, so that the server reads the entry; test_sendfile.py tests what the kernel sends.
        """
        front, contents, nars = big
        assert get(front, url_of("big", FIRST)).body == contents
        until(lambda: len(list(nars.glob("*.nar"))) == 1)
        with socket.create_connection((front.host, front.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(f"GET {url_of('big', FIRST)} HTTP/1.0\r\n\r\n".encode())
            received = bytearray(connection.recv(1000))
            spoil(next(nars.glob("*.nar")), damage)
            while chunk := connection.recv(1 << 20):
                received += chunk
        body = bytes(received).split(b"\r\n\r\n", 1)[1]
        assert body == contents if damage == "deleted" else len(body) < len(contents)
        assert get(front, url_of("big", FIRST)).body == contents


def errors(nars: Path) -> set[str]:
    """Return the names of the files that record failures, which other tests may have left."""
    return {path.name for path in nars.glob("*.error")}


def spoil(entry: Path, damage: str) -> None:
    """Damage a cache entry."""
    listing = entry.with_suffix(".listing")
    if damage == "deleted":
        entry.unlink()
    elif damage == "truncated":
        os.truncate(entry, 1000)
    elif damage == "corrupted":
        with entry.open("r+b") as file:
            file.seek(entry.stat().st_size * 9 // 10)
            file.write(b"wrong")
    elif damage == "touched":
        os.utime(entry)
    elif damage == "no listing":
        listing.unlink()
    else:
        listing.chmod(0o600)
        listing.write_text('{"type":"regular","size":1}')
