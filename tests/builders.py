"""Test data: trees as Python literals, their NARs, listings and narinfos, and whole binary caches in memory.

::

    tree = {"bin": {"hello": exe(b"#!/bin/sh\\n")}, "lib": link("../x"), "README": b"text"}
    nar(tree)                               # NAR bytes
    listing(tree)                           # its .ls file, as a dict
    binary_cache({"hello-2.12": tree})      # {"nix-cache-info": b"...", ...}, the files of a MemoryStore

A tree is ``bytes`` (a regular file), ``exe(bytes)``, ``link(target)``, or a dict from names (``str`` or ``bytes``) to
trees.
"""

import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import brotli
import lz4.frame
import zstandard

from narcore.formats import nixbase32
from narcore.formats.nar import Data, Directory, DirectoryEnd, NarEvent, Regular, Symlink, write_nar
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import SecretKey
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath


@dataclass(frozen=True, slots=True)
class Exe:
    """An executable regular file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: bytes


Tree = bytes | Exe | Link | Mapping[str, "Tree"] | Mapping[bytes, "Tree"]


def exe(data: bytes) -> Exe:
    """Return an executable file with these contents."""
    return Exe(data)


def link(target: str | bytes) -> Link:
    """Return a symbolic link to ``target``."""
    return Link(as_bytes(target))


def as_bytes(name: str | bytes) -> bytes:
    """Return a name or target as in a NAR."""
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def as_text(name: str | bytes) -> str:
    """Return a name or target as in a listing."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def entries(tree: Tree) -> list[tuple[bytes, Tree]]:
    """Return the entries of a directory in byte order, the order of NARs."""
    assert isinstance(tree, Mapping)
    return sorted((as_bytes(name), child) for name, child in tree.items())


def events(tree: Tree, name: bytes = b"") -> Iterator[NarEvent]:
    """Yield the events of ``tree``, without End."""
    match tree:
        case Link(target):
            yield Symlink(name, target)
        case bytes() | Exe():
            data = tree.data if isinstance(tree, Exe) else tree
            yield Regular(name, isinstance(tree, Exe), len(data))
            if data:
                yield Data(data)
        case _:
            yield Directory(name)
            for child_name, child in entries(tree):
                yield from events(child, child_name)
            yield DirectoryEnd()


def nar(tree: Tree) -> bytes:
    """Return the NAR of ``tree``."""
    return b"".join(write_nar(events(tree)))


def listing(tree: Tree, *, offsets: bool = True) -> dict[str, Any]:
    """Return the ``.ls`` file of ``tree``; without ``offsets`` it has no narOffset, like those of harmonia.

    The offsets are computed from the grammar of NARs without narcore, so that tests can compare narcore's offsets with them.
    """
    return {"version": 1, "root": _Offsets(offsets).node(tree)}


class _Offsets:
    """Walks a tree and counts the bytes of its NAR."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._offset = _string_size(b"nix-archive-1")

    def node(self, tree: Tree) -> dict[str, Any]:
        self._add(b"(", b"type")
        match tree:
            case Link(target):
                self._add(b"symlink", b"target", target, b")")
                return {"type": "symlink", "target": as_text(target)}
            case bytes() | Exe():
                return self._regular(tree)
            case _:
                return self._directory(tree)

    def _regular(self, tree: bytes | Exe) -> dict[str, Any]:
        data = tree.data if isinstance(tree, Exe) else tree
        self._add(b"regular", *((b"executable", b"") if isinstance(tree, Exe) else ()), b"contents")
        found: dict[str, Any] = {"type": "regular", "size": len(data)}
        if isinstance(tree, Exe):
            found["executable"] = True
        if self._shown:
            found["narOffset"] = self._offset + 8
        self._add(data, b")")
        return found

    def _directory(self, tree: Tree) -> dict[str, Any]:
        self._add(b"directory")
        children = {}
        for name, child in entries(tree):
            self._add(b"entry", b"(", b"name", name, b"node")
            children[as_text(name)] = self.node(child)
            self._add(b")")
        self._add(b")")
        return {"type": "directory", "entries": children}

    def _add(self, *strings: bytes) -> None:
        self._offset += sum(map(_string_size, strings))


def _string_size(string: bytes) -> int:
    return 8 + (len(string) + 7) // 8 * 8


def listing_json(tree: Tree, *, offsets: bool = True) -> bytes:
    """Return `listing` as JSON. Names that are not UTF-8 are raw bytes in it, as Nix 2.8 writes them."""
    text = json.dumps(listing(tree, offsets=offsets), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogateescape")


def hash_part(name: str) -> str:
    """Return the hash part that `binary_cache` gives to the store path with that name; it is always the same."""
    return nixbase32.encode(hashlib.sha256(name.encode()).digest()[:20])


def store_path(name: str, store_dir: str = DEFAULT_STORE_DIR) -> StorePath:
    """Return the store path that `binary_cache` gives to ``name``, for example as the target of a link."""
    return StorePath(store_dir, hash_part(name), name)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda raw: raw,
    "xz": lambda raw: lzma.compress(raw, preset=1),
    "lzma": lambda raw: lzma.compress(raw, format=lzma.FORMAT_ALONE, preset=1),
    "bzip2": lambda raw: bz2.compress(raw, 1),
    "gzip": lambda raw: gzip.compress(raw, 1, mtime=0),
    "zstd": lambda raw: zstandard.ZstdCompressor(level=1).compress(raw),
    "br": lambda raw: bytes(brotli.compress(raw, quality=1)),
    "lz4": lambda raw: bytes(lz4.frame.compress(raw)),
}
"""The compressions of a cache in memory, by their names in narinfos."""


def nar_info(
    path: StorePath,
    archive: bytes,
    *,
    compression: str = "zstd",
    references: tuple[str, ...] = (),
    secret_key: SecretKey | None = None,
    url: str | None = None,
) -> NarInfo:
    """Return the narinfo of a NAR, with correct hashes and sizes, signed if there is a key."""
    packed = COMPRESS[compression](archive)
    file_hash = NixHash("sha256", hashlib.sha256(packed).digest())
    info = NarInfo(
        store_path=path,
        url=url or f"nar/{file_hash.nix32}.nar.{compression}",
        compression=compression,
        nar_hash=NixHash("sha256", hashlib.sha256(archive).digest()),
        nar_size=len(archive),
        file_hash=file_hash,
        file_size=len(packed),
        references=references,
    )
    if secret_key is None:
        return info
    return replace(info, signatures=(secret_key.sign(info.fingerprint()),))


def binary_cache(
    trees: Mapping[str, Tree],
    *,
    compression: str = "zstd",
    listings: bool = True,
    offsets: bool = True,
    secret_key: SecretKey | None = None,
    store_dir: str = DEFAULT_STORE_DIR,
) -> dict[str, bytes]:
    """Return the files of a binary cache with ``trees``, by their names relative to its URL.

    A key of ``trees`` is the name of a store path (``hello-2.12``); its hash part is `hash_part` of that name. The result is an
    ordinary dict, which a test may change.
    """
    files = {"nix-cache-info": f"StoreDir: {store_dir}\nWantMassQuery: 1\nPriority: 40\n".encode()}
    for name, tree in trees.items():
        archive = nar(tree)
        info = nar_info(store_path(name, store_dir), archive, compression=compression, secret_key=secret_key)
        files[info.url] = COMPRESS[compression](archive)
        files[f"{info.store_path.hash_part}.narinfo"] = info.to_text().encode()
        if listings:
            files[f"{info.store_path.hash_part}.ls"] = listing_json(tree, offsets=offsets)
    return files
