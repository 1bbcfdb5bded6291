"""Writes trees of the file system to a binary cache, as ``nix copy --to file://`` does.

The store paths are those that ``nix store add-path`` creates.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import zstandard

from narcore.formats.cacheinfo import CacheInfo
from narcore.formats.contentaddress import ContentAddress
from narcore.formats.listing import NarListing
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, NarEvent, Regular, Symlink
from narcore.formats.nar.parser import parse_nar
from narcore.formats.nar.writer import write_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import SecretKey
from narcore.formats.storepath import StorePath
from narcore.sizes import CHUNK_SIZE

STORE_DIR = "/nix/store"


def dump(path: Path) -> Iterator[NarEvent]:
    """Yield the events of a file system tree in NAR order. Raises OSError, and ValueError for a socket, a device or the like."""
    pending: list[tuple[Path, bytes] | DirectoryEnd] = [(path, b"")]
    while pending:
        step = pending.pop()
        if isinstance(step, DirectoryEnd):
            yield step
            continue
        here, name = step
        mode = here.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield Directory(name)
            pending.append(DirectoryEnd())
            pending.extend(
                (here / child, os.fsencode(child)) for child in sorted(os.listdir(here), key=os.fsencode, reverse=True)
            )
        elif stat.S_ISLNK(mode):
            yield Symlink(name, os.fsencode(os.readlink(here)))  # noqa: PTH115  Path.readlink() drops ./ and //
        elif stat.S_ISREG(mode):
            yield from _file_events(here, name, executable=bool(mode & stat.S_IXUSR))
        else:
            raise ValueError(f"{here} is not a file, a directory or a symbolic link")


def write_binary_cache(
    directory: Path, paths: Mapping[str, Path], *, secret_key: SecretKey | None = None, compression: str = "zstd"
) -> list[StorePath]:
    """Pack trees into the binary cache at ``directory``, which is created if missing. Return their store paths.

    ``paths`` maps the name of each store path to its tree. Writes a NAR, a listing and a narinfo (signed with
    ``secret_key``) for each tree, and one ``nix-cache-info``. ``compression`` is ``none`` or ``zstd``. As in Nix, a tree refers to
    a store path if the path's hash part occurs in the tree's NAR; only paths earlier in ``paths`` are considered.
    """
    (directory / "nar").mkdir(parents=True, exist_ok=True)
    (directory / "nix-cache-info").write_text(
        CacheInfo(store_dir=STORE_DIR, want_mass_query=True, priority=30).to_text()
    )
    written: list[StorePath] = []
    for name, path in paths.items():
        written.append(_write_path(directory, name, path, written, secret_key, compression))
    return written


def _write_path(
    directory: Path, name: str, path: Path, known: list[StorePath], secret_key: SecretKey | None, compression: str
) -> StorePath:
    packed = directory / "nar" / f".{name}.part"
    packing = _Packing(known)
    with packed.open("wb") as file, _compressor(compression, file) as sink:
        listing = NarListing.from_events(parse_nar(packing.through(write_nar(dump(path)), sink), contents=False))
    nar_hash, references = NixHash("sha256", packing.sha256.digest()), sorted(packing.references, key=str)
    with packed.open("rb") as written:
        file_hash = NixHash("sha256", hashlib.file_digest(written, "sha256").digest())
    narinfo = NarInfo(
        store_path=source_path(name, nar_hash, references),
        url=f"nar/{file_hash.nix32}.nar" + (".zst" if compression == "zstd" else ""),
        compression=compression,
        file_hash=file_hash,
        file_size=packed.stat().st_size,
        nar_hash=nar_hash,
        nar_size=listing.nar_size,
        references=tuple(reference.base_name for reference in references),
        ca=str(ContentAddress("nar", nar_hash)),
    )
    if secret_key is not None:
        narinfo = replace(narinfo, signatures=(secret_key.sign(narinfo.fingerprint()),))
    packed.rename(directory / narinfo.url)
    hash_part = narinfo.store_path.hash_part
    with (directory / f"{hash_part}.ls").open("wb") as file:
        file.writelines(listing.json_chunks())
    (directory / f"{hash_part}.narinfo").write_text(narinfo.to_text())
    return narinfo.store_path


class _Packing:
    """Computes the hash of a NAR and its references to the ``known`` paths while its bytes pass through."""

    def __init__(self, known: list[StorePath]) -> None:
        self.known = known
        self.sha256 = hashlib.sha256()
        self.references: set[StorePath] = set()

    def through(self, chunks: Iterable[bytes], sink: BinaryIO) -> Iterator[bytes]:
        tail = b""
        for chunk in chunks:
            self.sha256.update(chunk)
            sink.write(chunk)
            window = tail + chunk
            self.references.update(path for path in self.known if path.hash_part.encode() in window)
            tail = window[-31:]  # one byte less than a hash part, so that a hash part split between two chunks is found
            yield chunk


@contextmanager
def _compressor(compression: str, file: BinaryIO) -> Iterator[BinaryIO]:
    if compression == "none":
        yield file
    elif compression == "zstd":
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as sink:
            yield sink
    else:
        raise ValueError(f"compression {compression!r} is not supported; use none or zstd")


def _file_events(path: Path, name: bytes, *, executable: bool) -> Iterator[NarEvent]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield Regular(name, executable, size, 0)
        while size and (chunk := file.read(min(CHUNK_SIZE, size))):
            yield Data(chunk)
            size -= len(chunk)


def source_path(name: str, nar_hash: NixHash, references: Iterable[StorePath] = ()) -> StorePath:
    """Return the store path of a tree whose NAR has the hash ``nar_hash`` and which refers to ``references``."""
    return ContentAddress("nar", nar_hash).store_path(name, (reference.base_name for reference in references))
