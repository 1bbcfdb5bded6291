"""A cache written by a real Nix, for the tests of the formats."""

import os
from pathlib import Path

import pytest

from tests.realnix import RealNix

# Texts with references (b refers to a and c), which need no builder.
TEXTS = 'let a = builtins.toFile "a" "1"; c = builtins.toFile "c" "3"; in builtins.toFile "b" "${c} ${a} ${c}"'


@pytest.fixture(scope="session")
def real_nix(tmp_path_factory: pytest.TempPathFactory) -> RealNix:
    """A cache with a tree of unusual names and with texts that refer to each other, signed by ``key.sk``."""
    nix = RealNix.start(tmp_path_factory.mktemp("nix"))
    nix.run("nix-instantiate", "--eval", "--read-write-mode", "--expr", TEXTS)
    nix.run("nix", "store", "add-path", "--name", "tree", _tree(nix.root / "tree"))
    nix.sign_all()
    nix.copy_all()
    return nix


def _tree(root: Path) -> Path:
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "dir" / "x").write_bytes(b"contents")
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "nothing").touch()
    for name in (b"\xff\xfe", b'a"b\\c\n\t d', b"\x01", "\u00e9\U0001f600".encode(), b"dir.d", b"dir-old"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    (root / "link").symlink_to("dir/x")
    (root / "odd").symlink_to(os.fsdecode(b"/nowhere/\xff"))
    return root
