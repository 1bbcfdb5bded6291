"""The environment for the commands of the documents: a binary cache that Nix wrote, and a server of it."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import fronts
from tests.realnix import RealNix

PACKAGE = "hello-2.12"


@dataclass(frozen=True, slots=True)
class Published:
    """A binary cache with one signed store path, and the port of its server."""

    cache: Path
    store_path: str
    public_key: str
    port: int

    @property
    def hash_part(self) -> str:
        return self.store_path.rpartition("/")[2][:32]

    def settings(self) -> dict[str, str]:
        """Return the settings of a program that reads this binary cache."""
        return {"NAR_CACHE_URL": self.cache.as_uri(), "NAR_TRUSTED_PUBLIC_KEYS": self.public_key}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """Publishes a package with Nix, and serves it. Skips the test if Nix is not installed, except in CI."""
    directory = tmp_path_factory.mktemp("published")
    nix = RealNix.start(directory)
    store_path = nix.run("nix-store", "--add", make_package(directory)).stdout.strip()
    nix.sign_all()
    nix.copy_all()
    public_key = (directory / "key.pk").read_text().strip()
    found = Published(nix.cache, store_path, public_key, 0)
    settings = found.settings() | {"NAR_CACHE_DIR": str(directory / "nars"), "NAR_METRICS": "on"}
    with fronts.running(settings, directory / "log") as front:
        yield Published(nix.cache, store_path, public_key, front.port)


def make_package(directory: Path) -> Path:
    """Make a tree similar to that of GNU hello. Returns its path."""
    tree = directory / PACKAGE
    files = {
        "bin/hello": b"#!/bin/sh\necho 'Hello, world!'\n",
        "share/doc/README": b"Hello.\n" * 100,
        "share/man/man1/hello.1.gz": gzip.compress(b".TH HELLO 1\n", mtime=0),
        "share/image.bin": bytes(range(256)) * 256,
    }
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "bin/hello").chmod(0o755)
    return tree
