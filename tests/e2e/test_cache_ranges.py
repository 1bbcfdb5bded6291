"""The upstream traffic for a small file of a very large NAR, if the remote file can be read in parts."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pyzstd

from narcore.formats.listing import ListingBuilder
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, NarEvent, Regular
from narcore.formats.nar.writer import write_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from tests.builders import store_path
from tests.e2e.cache_support import get, url_of, wrong_entries
from tests.e2e.conftest import RunFront
from tests.e2e.upstream import Upstream

SMALL = os.urandom(4096)
ZEROS = bytes(1 << 21)


def events(size: int) -> Iterator[NarEvent]:
    """Yield the events of a NAR with a small file in the middle of ``size`` zero bytes."""
    yield Directory(b"")
    for name in (b"a", b"m", b"z"):
        length = len(SMALL) if name == b"m" else size // 2
        yield Regular(name, False, length)
        if name == b"m":
            yield Data(SMALL)
        else:
            for start in range(0, length, len(ZEROS)):
                yield Data(ZEROS[: length - start])
    yield DirectoryEnd()


def write(directory: Path, name: str, size: int) -> None:
    """Write a binary cache with one uncompressed NAR, a sparse file with holes for the zeros."""
    digest, builder, path, position = hashlib.sha256(), ListingBuilder(), directory / "x.nar", 0
    directory.mkdir()
    with path.open("wb") as file:
        for chunk in write_nar(events(size)):
            digest.update(chunk)
            if chunk != ZEROS:
                file.seek(position)
                file.write(chunk)
            position += len(chunk)
    builder.add_all(events(size))
    (directory / f"{store_path(name).hash_part}.ls").write_bytes(b"".join(builder.finish().json_chunks()))
    nar_hash = NixHash("sha256", digest.digest())
    info = NarInfo(
        store_path=store_path(name), url="x.nar", compression="none", nar_hash=nar_hash, nar_size=position,
        file_hash=nar_hash, file_size=position,
    )  # fmt: skip
    (directory / f"{store_path(name).hash_part}.narinfo").write_text(info.to_text())


def write_blocks(directory: Path, name: str, size: int, compression: str) -> int:
    """Write the same cache compressed: by xz in blocks like those of Nix, or by pyzstd in frames with a seek table.

    Returns the size of the compressed file.
    """
    write(directory, name, size)
    path = directory / f"{store_path(name).hash_part}.narinfo"
    info = NarInfo.parse(path.read_bytes())
    nar, packed = directory / "x.nar", directory / f"x.nar.{compression}"
    if compression == "xz":
        subprocess.run(["xz", "-0", "-T2", "--block-size=24MiB", "--keep", nar], check=True)
    else:
        with nar.open("rb") as source, pyzstd.SeekableZstdFile(packed, "w", max_frame_content_size=24 << 20) as file:
            shutil.copyfileobj(source, file)
    file_size = packed.stat().st_size
    info = replace(info, url=packed.name, compression=compression, file_hash=None, file_size=file_size)
    path.write_text(info.to_text())
    return file_size


@pytest.mark.parametrize("cached", [True, False])
def test_an_uncompressed_nar_of_half_a_gigabyte_is_read_in_parts(
    upstream: Upstream, run_front: RunFront, tmp_path: Path, large: Path, cached: bool
) -> None:
    url = upstream.mount("large", large)
    with run_front(url, tmp_path / "nars" if cached else "off") as front:
        upstream.clear()
        got = get(front, url_of("large", "m"))
        assert (got.status, got.body) == (200, SMALL)
        assert upstream.count() <= 3
        assert upstream.sent() <= 256 * 1024
        upstream.clear()
        deep = get(front, url_of("large", "z"), {"Range": "bytes=200000000-200004095"})
        assert (deep.status, deep.body) == (206, bytes(4096))
        assert upstream.count() <= 3
        assert upstream.sent() <= 256 * 1024


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / "cache"
    write(directory, "large", 500_000_000)
    return directory


@pytest.mark.parametrize("compression", ["xz", "zstd"])
def test_one_block_is_fetched(upstream: Upstream, run_front: RunFront, tmp_path: Path, compression: str) -> None:
    directory = tmp_path / "blocks"
    packed = write_blocks(directory, "blocks", 120_000_000, compression)
    url = upstream.mount("blocks", directory)
    with run_front(url, tmp_path / "nars") as front:
        upstream.clear()
        got = get(front, url_of("blocks", "m"))
        assert (got.status, got.body) == (200, SMALL)
        asked = upstream.seen(f"*.{compression}")
        assert len(asked) == 2  # the index at the end, and one block
        assert asked[0].sent <= 4096
        assert asked[1].sent < packed / 5 + 8192  # one of five blocks, and the one with incompressible bytes


def test_without_ranges_the_nar_is_downloaded_once_and_cached(
    upstream: Upstream, run_front: RunFront, tmp_path: Path
) -> None:
    """The failed range request is not logged."""
    directory = tmp_path / "plain"
    write(directory, "plain", 6_000_000)
    url = upstream.mount("plain", directory)
    with run_front(url, tmp_path / "nars") as front, upstream.fault("*.nar", ranges=False):
        upstream.clear()
        for name, body in (("m", SMALL), ("a", bytes(3_000_000)), ("m", SMALL)):
            got = get(front, url_of("plain", name))
            assert (got.status, got.body) == (200, body)
        assert [request.range for request in upstream.seen("*.nar")][1:] == [None]
        assert "range" not in front.log_text().lower()
    assert len(list(tmp_path.glob("nars/*.nar"))) == 1
    assert wrong_entries(tmp_path / "nars") == []
