"""Sample trees, their store paths, and the keys that sign them."""

import random
from collections.abc import Iterator, Mapping

from narcore.formats.signature import SecretKey
from tests import builders
from tests.builders import Exe, Link, Tree

KEY = SecretKey("mount-tests-1", bytes(range(32)))
OTHER_KEY = SecretKey("mount-tests-2", bytes(range(1, 33)))

NARS = "*/nar/*"
"""A pattern that matches requests for NARs at the upstream."""


def base(name: str) -> str:
    """Return the base name of the store path that `builders.binary_cache` gives to ``name``."""
    return builders.store_path(name).base_name


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sample(seed: int, size: int = 300_000) -> dict[str, Tree]:
    """Return a tree with all kinds of nodes. ``size`` is the size of the largest file."""
    return {
        "a-first": b"first of %d\n" % seed,
        "bin": {"tool": Exe(b"#!/bin/sh\necho %d\n" % seed), "link": Link(b"tool")},
        "empty": b"",
        "large": random_bytes(seed, size),
        "z-last": b"last of %d\n" % seed,
    }


def small_files(count: int, *, size: int = 4096, in_directory: int = 100) -> dict[str, Tree]:
    """Return different files in several directories: ``d000/f00``."""
    return {
        f"d{directory:03}": {
            f"f{number:02}": b"%04d %02d" % (directory, number) + random_bytes(directory, size - 7)
            for number in range(in_directory)
        }
        for directory in range(count // in_directory)
    }


def files_of(tree: Tree, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Return path and contents of the regular files of a tree."""
    if isinstance(tree, Mapping):
        for name, child in tree.items():
            yield from files_of(child, f"{path}/{builders.as_text(name)}".lstrip("/"))
    elif isinstance(tree, Exe):
        yield path, tree.data
    elif isinstance(tree, bytes):
        yield path, tree
