"""Volumes on a file system of memory in the place of a mount: the same calls of the kernel, and a mount that needs no store."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts
from narmount.volumes import Volumes
from tests import needs


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """With two mounts, ``store`` and ``other``. Nothing stays mounted below it."""
    needs.fuse()
    for name in ("store", "other"):
        (tmp_path / name).mkdir()
        command = ["mount", "-t", "tmpfs", syscalls.SOURCE, str(tmp_path / name)]
        subprocess.run(command, check=True)
        (tmp_path / name / "hello").write_text(name)
    yield tmp_path
    for mounted in reversed(mounts()):
        if tmp_path in mounted.target.parents:
            with contextlib.suppress(MountError):
                syscalls.unmount(mounted.target, lazy=True)


def volumes_of(place: Path, boot_id: str = "boot-1") -> Volumes:
    stores = {"main": place / "store", "other": place / "other"}
    return Volumes(place / "state", stores, place / "run", boot_id=boot_id)


@pytest.fixture
def volumes(place: Path) -> Volumes:
    return volumes_of(place)
