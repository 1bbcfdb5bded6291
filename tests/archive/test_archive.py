"""Subtrees as tar, zip and NAR, unpacked by common tools."""

import hashlib
import os
import random
import stat
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from narcore.archive import nar, tar, zip_archive
from narcore.archive.tar import tar_size
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError
from narcore.export import write_binary_cache
from narcore.formats import nixbase32
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.nar.events import Directory, DirectoryEnd, NarEvent, Regular
from narcore.nars.accessor import NarAccessor, NarBytes
from narcore.stores.local import LocalBinaryCacheStore
from narcore.stores.memory import MemoryStore
from tests import needs
from tests.builders import Tree, binary_cache, exe, link, store_path
from tests.builders import nar as nar_of

LARGE = random.Random(1).randbytes(700_001)
TREE: dict[str, Tree] = {
    "a": {"empty": b"", "large": LARGE, "nothing": {}},
    "bin": {"run": exe(b"#!/bin/sh\n")},
    "link": link("a/large"),
    "dangling": link("/nix/store/nowhere"),
    "l" * 255: {"m" * 255: b"long"},
    "name with spaces 'quotes' %41 ?#": b"odd",
    "new\nline": b"x",
    "ünïcode": b"y",
}
BYTES_TREE: dict[bytes, Tree] = {b"\xff\xfe": b"no text", b"target": link(b"\xff\xfe")}


def opened(tree: Tree) -> tuple[NarAccessor, str]:
    """Return an accessor of the tree, and its NarHash in nix32."""
    files = binary_cache({"x-1.0": tree})
    cache = BinaryCache([MemoryStore(files)])
    (hash_part,) = (name.removesuffix(".narinfo") for name in files if name.endswith(".narinfo"))
    info = cache.path_info(hash_part)
    return cache.open(info), info.narinfo.nar_hash.nix32


def found(accessor: NarAccessor, *path: str) -> Node:
    node = accessor.listing.root
    for name in path:
        child = accessor.listing.child(node, name)
        assert child is not None
        node = child
    return node


def as_tree(path: Path) -> object:
    """Return the tree in the file system with modes, for comparisons."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):  # unzip does not set the times of links
        return ("link", os.fsencode(path.readlink()))
    assert status.st_mtime == 1, path
    if stat.S_ISDIR(status.st_mode):
        assert stat.S_IMODE(status.st_mode) == 0o555
        return {os.fsencode(child.name): as_tree(child) for child in path.iterdir()}
    return (oct(stat.S_IMODE(status.st_mode)), path.read_bytes())


def as_expected(listing: NarListing, node: Node, read: Callable[[Node], bytes]) -> object:
    if node.kind is Kind.SYMLINK:
        return ("link", os.fsencode(node.target))
    if node.kind is Kind.DIRECTORY:
        return {os.fsencode(child.name): as_expected(listing, child, read) for child in listing.children(node)}
    return ("0o555" if node.executable else "0o444", read(node))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A directory for unpacking, which can be removed although its contents are read-only."""
    yield tmp_path
    for directory, _names, _files in os.walk(tmp_path):
        Path(directory).chmod(0o755)


TAR = ["tar", "--warning=no-timestamp", "-xpf"]
UNPACKERS = {
    "tar by tar": (tar, TAR),
    "tar by bsdtar": (tar, ["bsdtar", "-xpf"]),
    "zip by unzip": (zip_archive, ["unzip", "-q"]),
    "zip by bsdtar": (zip_archive, ["bsdtar", "-xpf"]),
}


@pytest.mark.parametrize("tree", [TREE, b"one file", exe(b"one program"), {}], ids=["tree", "file", "program", "empty"])
@pytest.mark.parametrize("unpacker", UNPACKERS)
def test_common_tools_unpack_the_whole_tree(tree: Tree, unpacker: str, empty: Path) -> None:
    pack, command = UNPACKERS[unpacker]
    needs.program(command[0])
    accessor, _hash = opened(tree)
    archive = empty / "archive"
    archive.write_bytes(b"".join(pack(accessor, accessor.listing.root, "top")))
    # unzip restores link targets and times at the end, but needs a UTF-8 locale for the names.
    subprocess.run([*command, archive], cwd=empty, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    read = lambda node: b"".join(accessor.read(node))  # noqa: E731
    if unpacker == "zip by unzip" and isinstance(tree, dict):
        _restore_the_newline(empty / "top")
    assert as_tree(empty / "top") == as_expected(accessor.listing, accessor.listing.root, read)


def _restore_the_newline(top: Path) -> None:
    """Rename the file whose name Info-ZIP strips of control characters. bsdtar shows that the archive's name is right."""
    stripped = top / "newline"
    if stripped.exists():
        stripped.rename(top / "new\nline")
        os.utime(top, (1, 1))


def test_names_that_are_not_utf_8_are_preserved_in_a_tar_and_percent_encoded_in_a_zip(empty: Path) -> None:
    needs.program("bsdtar")
    accessor, _hash = opened(BYTES_TREE)
    for pack, name in ((tar, b"\xff\xfe"), (zip_archive, b"%FF%FE")):
        archive = empty / "archive"
        archive.write_bytes(b"".join(pack(accessor, accessor.listing.root, pack.__name__)))
        subprocess.run(["bsdtar", "-xf", archive], cwd=empty, check=True)
        assert set(os.listdir(os.fsencode(empty / pack.__name__))) == {name, b"target"}


def test_the_nar_of_a_whole_path_has_its_nar_hash() -> None:
    for tree in (TREE, BYTES_TREE, b"file", link("x"), {}):
        accessor, nar_hash = opened(tree)
        digest = hashlib.sha256(b"".join(nar(accessor, accessor.listing.root, ""))).digest()
        assert nixbase32.encode(digest) == nar_hash


def test_the_nar_of_a_subtree_contains_only_the_subtree() -> None:
    accessor, _hash = opened(TREE)
    assert b"".join(nar(accessor, found(accessor, "a"), "")) == nar_of(TREE["a"])


@pytest.mark.parametrize("pack", [tar, zip_archive, nar])
def test_the_same_subtree_gives_the_same_bytes(pack: Callable[[NarAccessor, Node, str], Iterator[bytes]]) -> None:
    (first, _), (second, _) = opened(TREE), opened(TREE)
    assert b"".join(pack(first, first.listing.root, "x")) == b"".join(pack(second, second.listing.root, "x"))


def test_the_size_of_a_tar_is_known_in_advance() -> None:
    for tree in (TREE, b"file", {}):
        accessor, _hash = opened(tree)
        size = tar_size(accessor.listing, accessor.listing.root, "x")
        assert size == len(b"".join(tar(accessor, accessor.listing.root, "x")))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_subtree(tmp_path: Path) -> None:
    """Packs half a gigabyte (sparse on disk), of which only a few chunks are held at a time."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "huge").open("wb") as file:
        file.truncate(1 << 29)
    (path,) = write_binary_cache(tmp_path / "cache", {"huge": source})
    cache = BinaryCache([LocalBinaryCacheStore(str(tmp_path / "cache"))])
    accessor = cache.open(cache.path_info(path.hash_part))
    for pack in (tar, zip_archive, nar):
        tracemalloc.start()
        size = sum(len(chunk) for chunk in pack(accessor, accessor.listing.root, "x"))
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size > 1 << 29
        assert peak < 16 << 20


@pytest.mark.parametrize("command", [["unzip", "-q"], ["bsdtar", "-xpf"]], ids=["unzip", "bsdtar"])
def test_a_zip_uses_64_bits_for_large_sizes_and_offsets(
    empty: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit for 32 bits is reduced for this test."""
    monkeypatch.setattr("narcore.archive.zip.MAX_32", 1000)
    needs.program(command[0])
    accessor, _hash = opened({"a": b"a" * 3000, "b": b"b", "c": exe(LARGE), "l": link("a")})
    archive = empty / "archive"
    archive.write_bytes(b"".join(zip_archive(accessor, accessor.listing.root, "top")))
    with zipfile.ZipFile(archive) as found_by_python:
        assert found_by_python.testzip() is None
    subprocess.run([*command, archive], cwd=empty, check=True)
    read = lambda node: b"".join(accessor.read(node))  # noqa: E731
    assert as_tree(empty / "top") == as_expected(accessor.listing, accessor.listing.root, read)


@pytest.mark.slow
def test_a_zip_can_have_more_members_than_16_bits_count(tmp_path: Path) -> None:
    count = 66_000
    accessor = _many(count)
    with (tmp_path / "archive").open("wb") as archive:
        archive.writelines(zip_archive(accessor, accessor.listing.root, "x"))
    with zipfile.ZipFile(tmp_path / "archive") as found:
        assert len(found.namelist()) == count + 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_members() -> None:
    accessor = _many(10_000)
    for pack in (tar, zip_archive, nar):
        tracemalloc.start()
        for _chunk in pack(accessor, accessor.listing.root, "x"):
            pass
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def _many(count: int) -> NarAccessor:
    """Return an accessor of ``count`` empty files, for which nothing is read."""
    files: list[NarEvent] = [Regular(b"file-%06d" % number, False, 0) for number in range(count)]
    listing = NarListing.from_events([Directory(b""), *files, DirectoryEnd()])
    return NarAccessor(store_path("x"), listing, _no_bytes, is_verified=True, is_cached=lambda: True)


def _no_bytes(node: Node, start: int, stop: int) -> NarBytes:
    raise AssertionError(node.name)


@pytest.mark.parametrize("pack", [tar, zip_archive, nar])
def test_a_truncated_nar_is_an_error(pack: Callable[[NarAccessor, Node, str], Iterator[bytes]]) -> None:
    files = dict(binary_cache({"x-1.0": {"a": LARGE, "b": LARGE}}, compression="none"))
    (url,) = (name for name in files if name.startswith("nar/"))
    cache = BinaryCache([MemoryStore(files | {url: files[url][: -len(LARGE)]})])
    (hash_part,) = (name.removesuffix(".narinfo") for name in files if name.endswith(".narinfo"))
    accessor = cache.open(cache.path_info(hash_part))
    with pytest.raises(NarcoreError):
        list(pack(accessor, accessor.listing.root, "x"))


@pytest.mark.parametrize("pack", [tar, zip_archive, nar])
def test_a_wrong_byte_in_an_uncompressed_nar_is_an_error(
    pack: Callable[[NarAccessor, Node, str], Iterator[bytes]],
) -> None:
    """Most of the NAR is read, so it is not read as a range of the remote file, which can't be verified."""
    files = dict(binary_cache({"x-1.0": {"a": LARGE, "b": LARGE}}, compression="none"))
    (url,) = (name for name in files if name.startswith("nar/"))
    damaged = bytearray(files[url])
    damaged[len(damaged) // 3] ^= 1
    cache = BinaryCache([MemoryStore(files | {url: bytes(damaged)})])
    (hash_part,) = (name.removesuffix(".narinfo") for name in files if name.endswith(".narinfo"))
    accessor = cache.open(cache.path_info(hash_part))
    with pytest.raises(NarcoreError):
        list(pack(accessor, accessor.listing.root, "x"))
