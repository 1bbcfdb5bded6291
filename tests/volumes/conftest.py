"""Volumes of a tmpfs instead of a mount: the kernel is called in the same way, and no store is needed."""

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
    """A directory with two mounts, ``store`` and ``other``. Everything mounted below it is unmounted at the end."""
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
