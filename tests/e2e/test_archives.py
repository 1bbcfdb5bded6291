"""Archives of whole trees from a real server, unpacked with common programs and compared with the source."""

import hashlib
import http.client
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from narcore.formats import nixbase32
from narcore.formats.nar import Data, Directory, DirectoryEnd, NarEvent, Regular, write_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from tests import needs
from tests.bench.memory import status_of
from tests.builders import store_path
from tests.e2e import trees
from tests.e2e.client import Client, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import NixCaches, read_narinfo
from tests.e2e.upstream import Upstream

FORMATS = ("tar", "tar.zst", "zip", "nar")
MIB = 1 << 20


def unchanged(name: bytes) -> bytes:
    return name


def percent_encoded(name: bytes) -> bytes:
    """Return the name as in a zip, whose names are UTF-8: other bytes are percent-encoded."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text).encode()


def composed(name: bytes) -> bytes:
    """Return the name in Unicode normalization form C, to which libarchive converts all names."""
    text = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))
    return text.encode("utf-8", "surrogateescape")


class Tool(NamedTuple):
    """A program that unpacks archives.

    ``command`` unpacks the archive of ``format`` whose name is appended. ``unpacked_name`` maps a name to the name after unpacking.
    """

    format: str
    command: tuple[str, ...]
    unpacked_name: Callable[[bytes], bytes] = unchanged


TOOLS = {
    "tar by tar": Tool("tar", ("tar", "--warning=no-timestamp", "-xpf")),
    "tar by bsdtar": Tool("tar", ("bsdtar", "-xpf"), composed),
    "tar.zst by tar": Tool("tar.zst", ("tar", "--zstd", "--warning=no-timestamp", "-xpf")),
    "tar.zst by bsdtar": Tool("tar.zst", ("bsdtar", "-xpf"), composed),
    # -^: leave control characters in names; -V: a semicolon at the end does not begin a VMS version.
    "zip by unzip": Tool("zip", ("unzip", "-q", "-^", "-V"), percent_encoded),
    "zip by bsdtar": Tool("zip", ("bsdtar", "-xpf"), lambda name: composed(percent_encoded(name))),
}
REQUIRED_TOOLS = ("tar", "bsdtar", "unzip", "zstd")


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    needs.programs(REQUIRED_TOOLS)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A directory to unpack into. Makes its contents writable before it is removed."""
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", tmp_path], check=True)
    shutil.rmtree(tmp_path)


def properties(
    root: Path, unpacked_name: Callable[[bytes], bytes] = unchanged
) -> dict[bytes, tuple[str, bool, bytes, bytes]]:
    """Return everything that a NAR records of a tree, by path. If two paths are unpacked to the same name, the later one counts."""
    return {
        unpacked_name(entry.path): (
            entry.kind,
            entry.executable,
            entry.target,
            hashlib.sha256(entry.source.read_bytes()).digest() if entry.kind == "regular" else b"",
        )
        for entry in trees.walk(root)
    }


@pytest.mark.parametrize("name", trees.SPECS)
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_an_unpacked_archive_equals_the_source(
    client: Client, caches: NixCaches, workspace: Path, name: str, tool: Tool
) -> None:
    archive = workspace / "archive"
    got = client.get(f"{url_path(caches.store_paths[name])}?format={tool.format}")
    assert got.status == 200
    archive.write_bytes(got.body)
    done = subprocess.run(
        [*tool.command, archive],
        cwd=workspace,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},  # tells unzip that names are UTF-8
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unpacked = workspace / caches.store_paths[name].rpartition("/")[2]
    assert properties(unpacked) == properties(caches.tree(name), tool.unpacked_name)
    assert set(workspace.iterdir()) == {archive, unpacked}
    assert {entry.source.lstat().st_mtime for entry in trees.walk(unpacked) if entry.kind != "symlink"} <= {1.0}


def test_the_nar_of_a_store_path_has_the_nar_hash_of_its_narinfo(client: Client, caches: NixCaches) -> None:
    for name in trees.SPECS:
        body = client.get(f"{url_path(caches.store_paths[name])}?format=nar").body
        narinfo = read_narinfo(caches.cache("zstd") / f"{caches.hash_part(name)}.narinfo")
        assert f"sha256:{nixbase32.encode(hashlib.sha256(body).digest())}" == narinfo["NarHash"]


def test_archives_do_not_depend_on_the_cache(
    client: Client, upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    """Compare fronts without a disk cache, without listings, with another compression, and with an empty disk cache."""
    paths = [f"{url_path(caches.store_paths[trees.STDLIB_NAME])}/json/?format={name}" for name in FORMATS]
    paths += [f"{url_path(caches.store_paths[trees.NAMES_NAME])}?format={name}" for name in FORMATS]
    expected = [client.get(path).body for path in paths]
    for cache, directory in (("xz.no-ls", "off"), ("none", "off"), ("xz", str(tmp_path / "cold"))):
        with run_front(f"{upstream.url}/{cache}", directory) as front, Client(front) as other:
            assert [other.get(path).body for path in paths] == expected, cache


FAULTS: tuple[dict[str, object], ...] = (
    {"cut_after": 12 * MIB, "ranges": False},
    {"length": 12 * MIB},
    {"patch": (12 * MIB, bytes(64))},
)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_failure_within_an_archive_cuts_the_connection(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, format_name: str
) -> None:
    path = f"{url_path(caches.store_paths[trees.BIG_NAME])}?format={format_name}"
    with run_front(f"{upstream.url}/gzip", expect_trouble=True) as front:
        for fault in FAULTS:
            with upstream.fault("*/nar/*", **fault), closing(front.connect()) as connection:
                connection.request("GET", path)
                response = connection.getresponse()
                assert response.status == 200
                with pytest.raises((http.client.HTTPException, ConnectionError)):
                    response.read()
        with Client(front) as client:
            assert client.get(path).status == 200


# --- two gigabytes

HUGE = 2 << 30


def _huge() -> Iterator[NarEvent]:
    yield Directory(b"")
    yield Regular(b"huge", False, HUGE)
    zeros = bytes(MIB)
    for _ in range(HUGE // MIB):
        yield Data(zeros)
    yield Regular(b"small", False, 5)
    yield Data(b"small")
    yield DirectoryEnd()


@pytest.fixture(scope="module")
def huge_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one NAR of 2 GiB of zeros, which compresses to a small file."""
    directory = tmp_path_factory.mktemp("huge")
    digest, size = hashlib.sha256(), 0
    packing = subprocess.Popen(["zstd", "-q", "-1", "-o", directory / "huge.nar.zst"], stdin=subprocess.PIPE)
    assert packing.stdin is not None
    with packing.stdin as pipe:
        for chunk in write_nar(_huge()):
            digest.update(chunk)
            pipe.write(chunk)
            size += len(chunk)
    assert packing.wait() == 0
    path = store_path("huge")
    narinfo = NarInfo(
        store_path=path,
        url="huge.nar.zst",
        compression="zstd",
        nar_hash=NixHash("sha256", digest.digest()),
        nar_size=size,
    )
    (directory / f"{path.hash_part}.narinfo").write_text(narinfo.to_text())
    listing = f'{{"version":1,"root":{{"type":"directory","entries":{{"huge":{{"type":"regular","size":{HUGE}}},'
    (directory / f"{path.hash_part}.ls").write_text(listing + '"small":{"type":"regular","size":5}}}}')
    return directory


@pytest.mark.parametrize("format_name", ["tar", "zip"])
def test_an_archive_of_two_gigabytes_takes_less_than_40_mib(
    run_front: RunFront, huge_cache: Path, format_name: str
) -> None:
    with run_front(huge_cache.as_uri()) as front:
        root = url_path(str(store_path("huge")))
        with Client(front) as client:
            assert client.get(f"{root}/?format=json").status == 200
        (worker,) = front.workers()
        Path(f"/proc/{worker}/clear_refs").write_text("5")  # resets the peak: proc(5)
        before = status_of(worker, "VmRSS")
        assert _read_to_end(front, f"{root}/?format={format_name}") > HUGE
        assert status_of(worker, "VmHWM") - before < 40 * MIB


def _read_to_end(front: Front, path: str) -> int:
    """Read a response and return the length of its body."""
    connection = front.connect()
    connection.request("GET", path)
    response = connection.getresponse()
    size, buffer = 0, bytearray(MIB)
    while read := response.readinto(buffer):
        size += read
    connection.close()
    return size
