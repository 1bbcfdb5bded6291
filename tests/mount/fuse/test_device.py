"""The real /dev/fuse: as root, as a user, and files that the kernel reads itself."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.fuse import device, protocol, syscalls
from narmount.fuse.mountinfo import mount_of
from tests import ROOT, needs
from tests.mount import mounting

NOBODY = 65534


@pytest.fixture(autouse=True)
def _root() -> None:
    needs.fuse()


@contextmanager
def connection(target: Path) -> Iterator[int]:
    """A mounted device that has agreed on passthrough."""
    target.mkdir()
    fd = device.open_device()
    try:
        syscalls.mount_fuse(fd, target, allow_other=False)
        agreed, answer = protocol.agree(os.read(fd, protocol.BUFFER_SIZE), passthrough=True)
        os.write(fd, answer)
        if not agreed.passthrough:
            needs.missing("FUSE passthrough", "use Linux 6.9 or newer")
        yield fd
    finally:
        os.close(fd)
        with suppress(MountError):
            syscalls.unmount(target, lazy=True)


def disk(tmp_path: Path) -> Path:
    mounting.need_passthrough(tmp_path)
    return tmp_path


def memory(tmp_path: Path) -> Path:
    shared = Path("/dev/shm")
    if not shared.is_dir() or mount_of(shared).fs_type != "tmpfs":
        needs.missing("a tmpfs at /dev/shm", "mount one")
    return shared


@pytest.mark.parametrize("where", [disk, memory])
def test_the_kernel_reads_files_of_disk_and_tmpfs(where: object, tmp_path: Path) -> None:
    assert callable(where)
    directory = where(tmp_path)
    assert device.may_pass_through(directory) == ""
    with connection(tmp_path / "target") as fd:
        file = os.open(directory, os.O_RDWR | os.O_TMPFILE, 0o600)
        first, second = device.open_backing(fd, file), device.open_backing(fd, file)
        os.close(file)
        assert first != second
        assert min(first, second) > 0
        device.close_backing(fd, first)
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            device.close_backing(fd, first)
        device.close_backing(fd, second)


def test_files_of_an_overlay_are_refused(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "overlay"):
        (tmp_path / name).mkdir()
    syscalls.mount_overlay(
        tmp_path / "overlay", name="x", lower=tmp_path / "lower", upper=tmp_path / "upper", work=tmp_path / "work"
    )
    try:
        assert "is on overlay" in device.may_pass_through(tmp_path / "overlay/not/yet/there")
        with (
            connection(tmp_path / "target") as fd,
            (tmp_path / "overlay/file").open("w+b") as file,
            pytest.raises(OSError, match=os.strerror(errno.ELOOP)),
        ):
            device.open_backing(fd, file.fileno())
    finally:
        syscalls.unmount(tmp_path / "overlay", lazy=True)


def test_a_link_to_the_cache_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    mounting.need_passthrough(tmp_path)
    assert mount_of(Path(os.path.realpath(tmp_path / "link"))).fs_type == "proc"
    # procfs is not a stacked file system. Another check finds that it can't hold a cache.
    assert device.may_pass_through(tmp_path / "link") == ""


def test_a_missing_device_is_an_error_with_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="modprobe fuse"):
        device.open_device()
    os.mknod(tmp_path / "fuse", stat.S_IFCHR | 0o600, os.makedev(10, 0))  # a number without a driver
    with pytest.raises(MountError, match="can't open"):
        device.open_device()


def test_child_processes_do_not_inherit_the_device() -> None:
    fd = device.open_device()
    assert not os.get_inheritable(fd)
    os.close(fd)


# --- as a user

AS_NOBODY = """
import os, sys
from pathlib import Path
from narcore.errors import MountError
from narmount.fuse import device
from narmount.fuse.mountinfo import mounts_at
os.setgroups([]); os.setgid(65534); os.setuid(65534)
assert not device.may_mount()
target = Path(sys.argv[1])
try:
    fd = device.mount_as_user(target, allow_other=sys.argv[2] == "all")
    assert not os.get_inheritable(fd)
    (mount,) = mounts_at(target)
    assert {"ro", "nosuid", "nodev"} <= {*mount.options}
    print(mount.fs_type, mount.source, "user_id=65534" in mount.super_options)
    assert len(os.read(fd, 70000)) >= 56, "the kernel sends INIT"
    device.unmount_as_user(target)
    assert mounts_at(target) == []
    fd = device.mount_as_user(target, allow_other=False)
    device.unmount_as_user(target, lazy=True)
    device.unmount_as_user(target)
except MountError as error:
    print(error)
"""


def as_nobody(target: Path, who: str = "me", *, mode: int = 0o666, before: str = ":") -> list[str]:
    """Return what AS_NOBODY prints if /dev/fuse has this mode. A mount namespace hides the change from other processes."""
    needs.programs(("unshare", "fusermount3"))
    script = f"""set -e
        mount -t tmpfs -o mode=755 tmpfs /mnt
        mknod -m {mode:o} /mnt/fuse c 10 229
        mount --bind /mnt/fuse /dev/fuse
        {before}
        exec "$0" "$@"
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, "-c", AS_NOBODY, target, who],
        cwd="/",
        env=environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def target() -> Iterator[Path]:
    """A directory that every user can reach."""
    path = Path(f"/var/tmp/nar-serve-test-{os.getpid()}")
    path.mkdir()
    yield path
    path.rmdir()


def test_a_user_mounts_with_fusermount3(target: Path) -> None:
    os.chown(target, NOBODY, NOBODY)
    mounted, refusal = as_nobody(target)
    assert mounted == "fuse.nar-serve nar-serve True"
    assert refusal.startswith(f"can't unmount {target}: fusermount3: entry for {target} not found")


def test_refusals_to_a_user_name_a_next_step(target: Path) -> None:
    (line,) = as_nobody(target)
    assert "no write access to mountpoint" in line
    assert line.endswith("use a directory that belongs to you")
    os.chown(target, NOBODY, NOBODY)
    (line,) = as_nobody(target, mode=0o600)
    assert line.endswith("chmod 666 /dev/fuse")
    no_permission = "printf '#user_allow_other\\n' > /mnt/conf; mount --bind /mnt/conf /etc/fuse.conf"
    (line,) = as_nobody(target, "all", before=no_permission)
    assert line.endswith("or leave out --allow-other")


def test_other_users_see_the_mount_if_fuse_conf_allows_it(target: Path) -> None:
    os.chown(target, NOBODY, NOBODY)
    permission = "echo user_allow_other > /mnt/conf; mount --bind /mnt/conf /etc/fuse.conf"
    mounted, _ = as_nobody(target, "all", before=permission)
    assert mounted == "fuse.nar-serve nar-serve True"


def test_a_missing_fusermount3_is_an_error_with_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountError, match="install the package fuse3"):
        device.mount_as_user(tmp_path, allow_other=False)


def test_a_fusermount3_that_hangs_or_prints_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(device, "FUSERMOUNT_SECONDS", 0.3)
    program = tmp_path / "fusermount3"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    with pytest.raises(MountError, match="did not end within"):
        device.mount_as_user(tmp_path, allow_other=False)
    program.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(MountError, match="fusermount3 ended with 7"):
        device.mount_as_user(tmp_path, allow_other=False)
