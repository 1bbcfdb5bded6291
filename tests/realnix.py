"""A real Nix for tests, with its own store, key and settings; without a daemon or network access, and with nothing in /nix."""

import os
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from narcore.formats.storepath import DEFAULT_STORE_DIR
from tests import needs

NIX_CONF = "experimental-features = nix-command ca-derivations\nbuild-users-group =\nsubstituters =\n"
KEY_NAME = "test-1"


@dataclass(frozen=True)
class RealNix:
    """A Nix installation with its files below ``root``: ``key.sk`` and ``key.pk``, a store, and a binary cache."""

    root: Path

    @classmethod
    def start(cls, root: Path) -> "RealNix":
        """Create an installation below ``root``. Skips the test if Nix is not installed."""
        needs.program("nix")
        nix = cls(root)
        (root / "nix.conf").write_text(NIX_CONF)
        nix.run("nix-store", "--generate-binary-cache-key", KEY_NAME, root / "key.sk", root / "key.pk")
        return nix

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def store(self) -> str:
        return f"local?root={self.root}/store"

    def run(
        self, *command: str | Path, check: bool = True, data: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        home = {
            name: str(self.root / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
        }
        env = {"PATH": os.environ["PATH"], "NIX_CONF_DIR": str(self.root), "NIX_REMOTE": self.store, **home}
        done = subprocess.run(command, env=env, check=check, capture_output=True, input=data, timeout=60)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def import_path(self, base_name: str, nar: bytes, references: Iterable[str]) -> None:
        """Add a NAR with a chosen store path and references, in the format of ``nix-store --export``."""
        own, *others = (f"{DEFAULT_STORE_DIR}/{name}".encode() for name in (base_name, *sorted(set(references))))
        exported = [_u64(1), nar, _u64(0x4558494E), _string(own), _u64(len(others)), *map(_string, others)]
        exported += [_string(b""), _u64(0), _u64(0)]  # no deriver, no signature, no other path
        self.run("nix-store", "--import", data=b"".join(exported))

    def sign_all(self) -> None:
        self.run("nix", "store", "sign", "-k", self.root / "key.sk", "--all")

    def copy_all(self, parameters: str = "compression=xz&write-nar-listing=1") -> None:
        """Copy all store paths into the binary cache."""
        self.run("nix", "copy", "--all", "--from", self.store, "--to", f"file://{self.cache}?{parameters}")


def _u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def _string(raw: bytes) -> bytes:
    return _u64(len(raw)) + raw + bytes(-len(raw) % 8)
