"""A real Nix for the formats: what it wrote must be what we read, and what we write must be what it accepts."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NIX_CONF = "experimental-features = nix-command ca-derivations\nbuild-users-group =\nsubstituters =\n"
# A text with references (b to a and c) needs no builder.
TEXTS = 'let a = builtins.toFile "a" "1"; c = builtins.toFile "c" "3"; in builtins.toFile "b" "${c} ${a} ${c}"'


@dataclass(frozen=True)
class RealNix:
    """Nix with a store, a key and a binary cache of its own, all below ``root``."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        home = {
            name: str(self.root / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
        }
        env = {"PATH": os.environ["PATH"], "NIX_CONF_DIR": str(self.root), "NIX_REMOTE": self.store, **home}
        return subprocess.run(command, env=env, check=check, capture_output=True, text=True, timeout=60)

    @property
    def store(self) -> str:
        return f"local?root={self.root}/store"


@pytest.fixture(scope="session")
def real_nix(tmp_path_factory: pytest.TempPathFactory) -> RealNix:
    """A cache with a tree of odd names and with texts that refer to each other, signed by ``key.sk``."""
    if shutil.which("nix") is None and not os.environ.get("CI"):
        pytest.skip("Nix is not installed")
    nix = RealNix(tmp_path_factory.mktemp("nix"))
    (nix.root / "nix.conf").write_text(NIX_CONF)
    nix.run("nix-store", "--generate-binary-cache-key", "test-1", nix.root / "key.sk", nix.root / "key.pk")
    nix.run("nix-instantiate", "--eval", "--read-write-mode", "--expr", TEXTS)
    nix.run("nix", "store", "add-path", "--name", "tree", _tree(nix.root / "tree"))
    nix.run("nix", "store", "sign", "-k", nix.root / "key.sk", "--all")
    to = f"file://{nix.cache}?compression=xz&write-nar-listing=1"
    nix.run("nix", "copy", "--all", "--from", nix.store, "--to", to)
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
