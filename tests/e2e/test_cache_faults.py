"""The upstream, the disk or an entry goes wrong: the status or the cut that clients get, and that nothing wrong is kept."""

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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import builders, needs
from tests.e2e.cache_support import (
    NARS,
    Got,
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

IMPATIENT = Shape(threads=16, app="tests.e2e.cache_app:app")
STRICT = {"NAR_VERIFY": "strict"}
FIRST, MIDDLE, LAST = (f"file-{number}" for number in range(3))

RunOn = Callable[..., AbstractContextManager[Front]]


@dataclass(frozen=True)
class Sample:
    """A store path upstream that nobody has asked for yet."""

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

    def get(self, front: Front) -> dict[str, Got]:
        """All files, at once."""
        return dict(zip(self.files, get_all([(front, self.url(file)) for file in self.files]), strict=True))

    def all_right(self, front: Front) -> bool:
        return all((got.status, got.body) == (200, self.files[file]) for file, got in self.get(front).items())

    def some_fail(self, front: Front, *statuses: int) -> bool:
        """Some answers have one of the statuses or were cut; the others are right."""
        answers = self.get(front)
        for file, got in answers.items():
            assert got.status in (200, *statuses)
            assert got.status != 200 or not got.whole or got.body == self.files[file]
        return not all(got.status == 200 and got.whole for got in answers.values())

    def kept(self, nars: Path) -> list[Path]:
        """The entry in that cache directory, if there is one."""
        digits = self.narinfo.partition("NarHash: sha256:")[2].split()[0]
        return list(nars.glob(f"{digits}.nar"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache upstream."""
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
    """One for all tests that need no other."""
    settings = {"NAR_CACHE_SIZE": "1G"}
    directory = tmp_path_factory.mktemp("nars")
    with run_front(url, directory, settings, shape=IMPATIENT, expect_trouble=True) as front:
        yield front


@pytest.fixture(scope="module")
def nars(front: Front) -> Path:
    """Its cache directory."""
    environment = Path(f"/proc/{front.process.pid}/environ").read_bytes().split(b"\0")
    return Path(next(each for each in environment if each.startswith(b"NAR_CACHE_DIR=")).decode().partition("=")[2])


@pytest.fixture
def run_on(upstream: Upstream, run_front: RunFront, url: str) -> RunOn:
    """Runs a front of the test's own, with that cache directory."""

    @contextmanager
    def run(nars: Path, settings: dict[str, str] | None = None) -> Iterator[Front]:
        with run_front(url, nars, settings, shape=IMPATIENT, expect_trouble=True) as front:
            yield front

    return run


class TestUpstream:
    def test_cut_once(self, front: Front, upstream: Upstream, sample: Sample, nars: Path) -> None:
        with upstream.fault(NARS, cut_after=2_000_000, times=1):
            assert sample.all_right(front)
        assert sample.kept(nars)

    def test_cut_for_ever(self, front: Front, upstream: Upstream, sample: Sample, nars: Path) -> None:
        """The file that has begun is cut, as the status is out; who has got nothing yet is told."""
        with upstream.fault(NARS, drop=True), upstream.fault(NARS, cut_after=1_000_000, times=1):
            got = sample.get(front)
        assert (got[FIRST].status, got[FIRST].whole) == (200, False)
        assert 0 < len(got[FIRST].body) < len(sample.files[FIRST])
        assert {got[MIDDLE].status, got[LAST].status} == {502}
        assert not sample.kept(nars)
        asked = upstream.count(NARS)
        assert {got.status for got in get_all([(front, sample.url(LAST))] * 8)} == {502}
        assert upstream.count(NARS) == asked  # remembered for seconds: no new try
        until(lambda: sample.all_right(front))

    def test_stall(self, front: Front, upstream: Upstream, sample: Sample, nars: Path) -> None:
        with upstream.fault(NARS, stall_after=0), upstream.fault(NARS, stall_after=1_000_000, times=1):
            since = time.monotonic()
            got = sample.get(front)
            assert time.monotonic() - since < 8
        assert (got[FIRST].status, got[FIRST].whole) == (200, False)
        assert {got[MIDDLE].status, got[LAST].status} == {504}
        assert not sample.kept(nars)

    def test_slow(self, front: Front, upstream: Upstream, sample: Sample) -> None:
        """Never silent for longer than the patience, but much longer in all. The first byte comes early."""
        with upstream.fault(NARS, rate=4_000_000):
            connection = front.connect()
            since = time.monotonic()
            connection.request("GET", sample.url(FIRST))
            response = connection.getresponse()
            assert response.read(1) == sample.files[FIRST][:1]
            first = time.monotonic() - since
            assert get(front, sample.url(LAST)).body == sample.files[LAST]
            whole = time.monotonic() - since
            assert response.read() == sample.files[FIRST][1:]
            connection.close()
        assert whole > 1.4
        assert first < whole / 2

    @pytest.mark.parametrize("seed", range(8))
    def test_wrong_bytes(self, front: Front, upstream: Upstream, sample: Sample, nars: Path, seed: int) -> None:
        generator = random.Random(seed)
        patch = (generator.randrange(sample.packed_size), generator.randbytes(4))
        with upstream.fault(NARS, patch=patch):
            assert sample.some_fail(front, 502)
        assert not sample.kept(nars)

    @pytest.mark.parametrize("wrong", [-8, 8, -1_000_000, 1_000_000_000])
    def test_wrong_nar_size(self, front: Front, upstream: Upstream, sample: Sample, nars: Path, wrong: int) -> None:
        size = sample.nar_size
        narinfo = sample.narinfo.replace(f"NarSize: {size}", f"NarSize: {size + wrong}").encode()
        with upstream.fault("*.narinfo", body=narinfo):
            assert {got.status for got in sample.get(front).values()} == {502}
        assert not sample.kept(nars)

    def test_a_lying_listing(self, front: Front, upstream: Upstream, sample: Sample) -> None:
        """Cut or refused, until the NAR itself has told what is in it."""
        listing: dict[str, Any] = builders.listing(sample.files)
        for name, size in zip(sample.files, (1_000_000, 2_000_000, 3_000_000), strict=True):
            listing["root"]["entries"][name] = {"type": "regular", "size": size}
        with upstream.fault("*.ls", body=json.dumps(listing).encode()):
            for file, got in sample.get(front).items():
                assert got.status in (200, 502)
                assert got.status == 502 or not got.whole or got.body == sample.files[file]
            until(lambda: sample.all_right(front))

    def test_no_turn(self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path) -> None:
        """One download may run, and another one is asked for: 503, when it has waited for its turn."""
        other = upstream.mount("other", write_cache(tmp_path / "other", {"other": random_files(2, 10_000)}))
        urls = f"{upstream.url}/faults {other}"
        settings = {"NAR_MAX_FILLS": "1", "PATIENCE": "0.3", "NAR_CACHE_URL": urls, "NAR_CACHE_SIZE": "1G"}
        with run_on(tmp_path / "nars", settings) as front, upstream.fault("/faults/nar/*", rate=4_000_000):
            slow = threading.Thread(target=get, args=(front, sample.url(FIRST)))
            slow.start()
            until(lambda: upstream.count("/faults/nar/*") > 0)
            got = get(front, url_of("other", FIRST))
            assert (got.status, got.retry_after) == (503, "10")
            slow.join()
            assert get(front, url_of("other", FIRST)).status == 200


@pytest.fixture(scope="module")
def strict_nars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strict")


@pytest.fixture(scope="module")
def strict(run_front: RunFront, url: str, strict_nars: Path) -> Iterator[Front]:
    """A front that serves what is verified, and no more."""
    with run_front(url, strict_nars, STRICT | {"NAR_CACHE_SIZE": "1G"}, shape=IMPATIENT, expect_trouble=True) as front:
        yield front


class TestStrict:
    def test_nothing_comes_before_all_is_verified(
        self, strict: Front, upstream: Upstream, sample: Sample, strict_nars: Path
    ) -> None:
        with upstream.fault(NARS, rate=6_000_000):
            connection = strict.connect()
            connection.request("GET", sample.url(FIRST))
            response = connection.getresponse()
            assert leftovers(strict_nars) == set()
            assert sample.kept(strict_nars)
            assert response.read() == sample.files[FIRST]
            connection.close()

    def test_a_lie_is_told_before_a_byte_of_it(self, strict: Front, upstream: Upstream, sample: Sample) -> None:
        with upstream.fault(NARS, patch=(sample.packed_size // 2, b"lies")):
            assert {(got.status, got.whole) for got in sample.get(strict).values()} == {(502, True)}
        until(lambda: sample.all_right(strict))

    def test_no_disk_no_service(self, run_on: RunOn, sample: Sample, small_disk: Path) -> None:
        with run_on(small_disk, STRICT | {"NAR_CACHE_SIZE": "1G"}) as front:
            assert {(got.status, got.retry_after) for got in sample.get(front).values()} == {(503, "5")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, less than the NAR has."""
    with mounted(tmp_path / "disk", "size=4m,mode=700") as path:
        yield path


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A file system in memory. Skips the test where none can be mounted."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False, capture_output=True)
    if done.returncode:
        needs.missing("mounts", needs.ROOT_HINT)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def warnings(front: Front) -> int:
    """How often the log says that nothing can be cached."""
    return front.log_text().count("caching is off")


class TestDisk:
    def test_too_small(self, run_on: RunOn, sample: Sample, small_disk: Path) -> None:
        """All is served, and it is said once."""
        with run_on(small_disk, {"NAR_CACHE_SIZE": "1G"}) as front:
            for _ in range(3):
                assert sample.all_right(front)
            assert warnings(front) == 1
            assert leftovers(small_disk) == set()

    def test_full_while_it_is_written(self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path) -> None:
        with mounted(tmp_path / "disk", "size=8m,mode=700") as disk, run_on(disk, {"NAR_CACHE_SIZE": "1G"}) as front:
            with upstream.fault(NARS, rate=6_000_000, times=1):
                right: list[bool] = []
                reader = threading.Thread(target=lambda: right.append(sample.all_right(front)))
                reader.start()
                until(lambda: any(path.stat().st_size > 500_000 for path in disk.glob("*.part")))
                (disk / "somebody-else").write_bytes(bytes(6_000_000))
                reader.join()
            assert right == [True]
            assert warnings(front) == 1
            assert leftovers(disk) == {"somebody-else"}
            (disk / "somebody-else").unlink()
            assert sample.all_right(front)
            until(lambda: bool(sample.kept(disk)))

    def test_read_only(self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path) -> None:
        """What is there is served from there, what is not is not kept."""
        other = upstream.mount("other", write_cache(tmp_path / "other", {"other": random_files(2, 2_000_000)}))
        settings = {"NAR_CACHE_URL": f"{upstream.url}/faults {other}", "NAR_CACHE_SIZE": "1G"}
        with mounted(tmp_path / "disk", "size=20m,mode=700") as disk, run_on(disk, settings) as front:
            assert sample.all_right(front)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            upstream.clear()
            assert sample.all_right(front)
            assert upstream.count(NARS) == 0
            for number in range(4):
                assert get(front, url_of("other", f"file-{number}")).status == 200
            assert warnings(front) == 1

    def test_taken_away(self, run_on: RunOn, upstream: Upstream, sample: Sample, tmp_path: Path) -> None:
        nars = tmp_path / "nars"
        with run_on(nars) as front:
            for times in (1, 2):
                assert sample.all_right(front)
                assert upstream.count(NARS) == times
                until(lambda: leftovers(nars) == set())
                shutil.rmtree(nars)

    @pytest.mark.parametrize("fault", ["everybody's", "another's", "a file", "below a file"])
    def test_unusable(self, url: str, run_front: RunFront, sample: Sample, tmp_path: Path, fault: str) -> None:
        nars = tmp_path / "nars"
        if fault in ("a file", "below a file"):
            nars.touch()
        else:
            nars.mkdir()
            nars.chmod(0o777 if fault == "everybody's" else 0o700)
            os.chown(nars, 65534 if fault == "another's" else -1, -1)
        used = nars / "below" if fault == "below a file" else nars
        with run_front(url, used) as front:
            assert sample.all_right(front)
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
    """A file that is larger than all buffers on its way."""
    files, place = random_files(3, 24_000_000, count=1), tmp_path_factory.mktemp("big")
    url = upstream.mount("big", write_cache(place / "upstream", {"big": files}))
    settings = {"GUNICORN_CMD_ARGS": "--no-sendfile"}
    with run_front(url, place / "nars", settings, shape=IMPATIENT, expect_trouble=True) as front:
        yield front, files[FIRST], place / "nars"


class TestEntries:
    @pytest.mark.parametrize("what", ["deleted", "truncated", "corrupted", "touched", "no listing", "a wrong listing"])
    def test_between_two_requests(
        self, front: Front, sample: Sample, upstream: Upstream, nars: Path, what: str
    ) -> None:
        assert sample.all_right(front)
        until(lambda: bool(sample.kept(nars)))
        (entry,) = sample.kept(nars)
        spoil(entry, what)
        upstream.clear()
        assert sample.all_right(front)
        assert upstream.count(NARS) == (what in ("deleted", "truncated", "corrupted"))
        until(lambda: bool(sample.kept(nars)) and not leftovers(nars) - errors(nars))
        assert wrong_entries(nars) == []

    @pytest.mark.parametrize("what", ["deleted", "truncated", "corrupted"])
    def test_while_it_is_read(self, big: tuple[Front, bytes, Path], what: str) -> None:
        """By a server that reads it for us. (Of what the kernel sends, only the end is seen: tests of sendfile.)"""
        front, contents, nars = big
        assert get(front, url_of("big", FIRST)).body == contents
        until(lambda: len(list(nars.glob("*.nar"))) == 1)
        with socket.create_connection((front.host, front.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(f"GET {url_of('big', FIRST)} HTTP/1.0\r\n\r\n".encode())
            received = bytearray(connection.recv(1000))
            spoil(next(nars.glob("*.nar")), what)
            while chunk := connection.recv(1 << 20):
                received += chunk
        body = bytes(received).split(b"\r\n\r\n", 1)[1]
        assert body == contents if what == "deleted" else len(body) < len(contents)
        assert get(front, url_of("big", FIRST)).body == contents


def errors(nars: Path) -> set[str]:
    """The notes of failures, which other tests may have left."""
    return {path.name for path in nars.glob("*.error")}


def spoil(entry: Path, what: str) -> None:
    listing = entry.with_suffix(".ls")
    if what == "deleted":
        entry.unlink()
    elif what == "truncated":
        os.truncate(entry, 1000)
    elif what == "corrupted":
        with entry.open("r+b") as file:
            file.seek(entry.stat().st_size * 9 // 10)
            file.write(b"wrong")
    elif what == "touched":
        os.utime(entry)
    elif what == "no listing":
        listing.unlink()
    else:
        listing.chmod(0o600)
        listing.write_text('{"type":"regular","size":1}')
