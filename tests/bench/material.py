"""Test data: files that compress like those of a store, their NARs, and binary caches with these."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path

from narcore.export import dump, source_path
from narcore.formats.listing import NarListing
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, NarEvent, Regular
from narcore.formats.nar.parser import parse_nar
from narcore.formats.nar.writer import write_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.storepath import StorePath

CHUNK = 1 << 20

# The levels are those of Nix, except for xz, whose level 6 takes a minute for 100 MB. The level hardly affects unpacking.
PACK: Mapping[str, tuple[str, ...]] = {
    "none": ("cat",),
    "xz": ("xz", "-T1", "-2", "-c"),
    "zstd": ("zstd", "-3", "-q", "-c"),
    "bzip2": ("bzip2", "-9", "-c"),
    "gzip": ("gzip", "-6", "-c"),
}
UNPACK: Mapping[str, tuple[str, ...]] = {
    "xz": ("xz", "-dc"),
    "zstd": ("zstd", "-dc"),
    "bzip2": ("bzip2", "-dc"),
    "gzip": ("gzip", "-dc"),
}


@cache
def _sources() -> tuple[Path, ...]:
    """Return the files to take data from: sources, byte code and libraries of this Python, without site-packages."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in stdlib.rglob("*")
        if path.suffix in (".py", ".pyc", ".so") and "site-packages" not in path.parts and path.is_file()
    ]
    return (Path(sys.executable).resolve(), *sorted(found))


def realistic(size: int, *, seed: int = 0) -> Iterator[bytes]:
    """Yield ``size`` bytes that compress to a third, like programs and their sources. Repetitions are far apart.

    Different values of ``seed`` start at different files.
    """
    for path in islice(cycle(_sources()), seed * 37 % len(_sources()), None):
        data = path.read_bytes()[:size]
        size -= len(data)
        if data:
            yield data
        if not size:
            return


def write_file(path: Path, size: int, *, seed: int = 0) -> None:
    """Write a file of ``size`` realistic bytes; its contents depend on ``seed``."""
    salt = str(seed).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(salt)
        file.writelines(realistic(size - len(salt), seed=seed))


def small_files(count: int, *, size: int = 200, in_directory: int = 100) -> Iterator[NarEvent]:
    """Yield the events of a tree of ``count`` files of ``size`` bytes, with ``in_directory`` files in each directory."""
    contents = b"".join(islice(realistic(size), 1))[:size].ljust(size)
    yield Directory(b"")
    for directory in range(count // in_directory):
        yield Directory(b"directory-%06d" % directory)
        for number in range(in_directory):
            yield Regular(b"file-%04d.py" % number, False, size, 0)
            yield Data(contents)
        yield DirectoryEnd()
    yield DirectoryEnd()


@dataclass(frozen=True, slots=True)
class Nar:
    """An uncompressed NAR on disk."""

    file: Path
    listing: NarListing
    nar_hash: NixHash


def write_tree(tree: Path, file: Path) -> Nar:
    """Write the NAR of ``tree`` to ``file``."""
    sha256 = hashlib.sha256()

    def written() -> Iterator[bytes]:
        with file.open("wb") as sink:
            for chunk in write_nar(dump(tree)):
                sha256.update(chunk)
                sink.write(chunk)
                yield chunk

    listing = NarListing.from_events(parse_nar(written(), contents=False))
    return Nar(file, listing, NixHash("sha256", sha256.digest()))


@dataclass(frozen=True, slots=True)
class Packed:
    """A NAR in a binary cache."""

    store_path: StorePath
    file: Path
    nar: Nar
    compression: str


class CacheDirectory:
    """A binary cache in a directory, compressed with the usual command-line tools."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "nar").mkdir(parents=True, exist_ok=True)
        (directory / "nix-cache-info").write_text("StoreDir: /nix/store\n")

    @property
    def url(self) -> str:
        return self.directory.as_uri()

    def add(self, name: str, nar: Nar, compression: str, *, with_listing: bool = True) -> Packed:
        """Compress a NAR and add it under a store path with this name."""
        store_path = source_path(name, nar.nar_hash)
        file = self.directory / "nar" / f"{store_path.base_name}.{compression}"
        with nar.file.open("rb") as source, file.open("wb") as sink:
            subprocess.run(PACK[compression], stdin=source, stdout=sink, check=True)
        narinfo = NarInfo(
            store_path=store_path,
            url=f"nar/{file.name}",
            compression=compression,
            file_hash=None,
            file_size=file.stat().st_size,
            nar_hash=nar.nar_hash,
            nar_size=nar.listing.nar_size,
            references=(),
        )
        (self.directory / f"{store_path.hash_part}.narinfo").write_text(narinfo.to_text())
        if with_listing:
            with (self.directory / f"{store_path.hash_part}.ls").open("wb") as listing:
                listing.writelines(nar.listing.json_chunks())
        return Packed(store_path, file, nar, compression)


def settle_disk() -> None:
    """Write pending data to the disk, so that this does not happen during a measurement."""
    os.sync()
