"""A binary cache in a directory, and a way to start servers of it."""

import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from tests.builders import Tree, binary_cache, exe, hash_part, link, store_path
from tests.server.serving import Serving, serving

HELLO = "hello-2.12"
BIG = "big-1"
HELLO_PATH = str(store_path(HELLO))
HELLO_HASH = hash_part(HELLO)
BIG_FILE = f"{store_path(BIG)}/big.bin"
README = b"Hello, all of you.\n" * 100

# More than the socket buffers of both sides hold, so that a client that does not read blocks the server.
BIG_DATA = random.Random(5).randbytes(24 << 20)


class Start(Protocol):
    def __call__(self, *options: str, **settings: str) -> AbstractContextManager[Serving]:
        """Start ``nar-serve serve`` on the binary cache, with these options and environment variables."""


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trees: dict[str, Tree] = {
        HELLO: {"README": README, "bin": {"hello": exe(b"#!/bin/sh\n")}, "lib": link("bin")},
        BIG: {"big.bin": BIG_DATA},
    }
    directory = tmp_path_factory.mktemp("cache")
    for name, content in binary_cache(trees).items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return directory


@pytest.fixture
def start(cache_directory: Path, tmp_path: Path) -> Start:
    def start_server(*options: str, **settings: str) -> AbstractContextManager[Serving]:
        return serving(tmp_path / "server", str(cache_directory), *options, settings=settings)

    return start_server
