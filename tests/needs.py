"""Skips tests that need missing programs, rights or devices, and prints a table of the reasons at the end of a run.

In CI, such a test fails instead of being skipped. With ``fast`` (the option ``--fast``), every test that calls a function of
this module is skipped, even if the program, right or device is available.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

# The Debian package of each program whose name differs from it.
PACKAGES = {
    "bsdtar": "libarchive-tools",
    "busybox": "busybox-static",
    "chroot": "coreutils",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "fusermount3": "fuse3",
    "gcc": "gcc libc6-dev",
    "nginx": "nginx-light",
    "nix": "nix-bin",
    "nix-env": "nix-bin",
    "nix-hash": "nix-bin",
    "nix-instantiate": "nix-bin",
    "nix-store": "nix-bin",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
    "xz": "xz-utils",
}

fast = False

ROOT_HINT = "run the tests as root"

# Debian has these in directories that are not on an ordinary user's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_REASON = re.compile(r"needs (?P<what>.+?): (?P<hint>.+)")


def program(name: str) -> str:
    """Return the path of the program ``name``. Skips the test if it is not installed."""
    found = None if fast else shutil.which(name, path=_PATH)
    return found or missing(name, f"apt-get install {PACKAGES.get(name, name)}")


def programs(names: Iterable[str]) -> None:
    """Skip the test unless all of these programs are installed."""
    for name in names:
        program(name)


def root() -> None:
    """Skip the test unless it runs as root."""
    if fast or os.geteuid() != 0:
        missing("root", ROOT_HINT)


def fuse() -> None:
    """Skip the test unless it may mount: as root, with /dev/fuse."""
    root()
    device("/dev/fuse")


def device(path: str) -> None:
    """Skip the test unless the device exists."""
    if fast or not Path(path).exists():
        missing(path, "use a machine or container that has it")


def missing(what: str, hint: str) -> NoReturn:
    """Skip the test because ``what`` is missing; ``hint`` says how to get it. Fails in CI."""
    reason = f"needs {what}: {'run without --fast' if fast else hint}"
    if not fast and os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def table(reasons: Iterable[str]) -> list[str]:
    """Return the lines of the table that ends a run: how many tests needed what, and how to get it."""
    counts = Counter(reasons)
    rows = [
        (match["what"], str(count), match["hint"])
        for reason, count in counts.items()
        if (match := _REASON.search(reason))
    ]
    rows.sort(key=lambda row: -int(row[1]))
    if not rows:
        return []
    heads = [("needs", "tests", "how to get it"), *rows]
    widths = [max(len(row[column]) for row in heads) for column in range(2)]
    return [f"{what:{widths[0]}}  {count:>{widths[1]}}  {hint}" for what, count, hint in heads]
