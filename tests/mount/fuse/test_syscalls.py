"""The real mount(2) and umount2(2), on directories of the test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.fuse import device, syscalls
from narmount.fuse.mountinfo import mounts, mounts_at
from tests import ROOT, needs


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    """Directories to mount at. The fixture unmounts everything there."""
    needs.fuse()
    for name in ("lower", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/known").write_text("below")
    yield tmp_path
    for mount in reversed(mounts()):
        if tmp_path in mount.target.parents:
            with suppress(MountError):
                syscalls.unmount(mount.target, lazy=True)


def overlay(place: Path, **options: bool) -> Path:
    syscalls.mount_overlay(
        place / "target", name="vol", lower=place / "lower", upper=place / "upper", work=place / "work", **options
    )
    return place / "target"


def test_a_fuse_file_system_is_mounted_read_only_without_devices_and_set_user_id(place: Path) -> None:
    fd = device.open_device()
    try:
        syscalls.mount_fuse(fd, place / "target", allow_other=True)
        (mount,) = mounts_at(place / "target")
        assert {"ro", "nosuid", "nodev"} <= {*mount.options}
        assert (mount.fs_type, mount.source) == ("fuse.nar-serve", "nar-serve")
        assert {"default_permissions", "allow_other", "max_read=1048576"} <= {*mount.super_options}
        syscalls.unmount(place / "target")
        assert mounts_at(place / "target") == []
    finally:
        os.close(fd)


def test_only_the_owner_sees_a_mount_without_allow_other(place: Path) -> None:
    fd = device.open_device()
    try:
        syscalls.mount_fuse(fd, place / "target", allow_other=False)
        assert "allow_other" not in mounts_at(place / "target")[0].super_options
    finally:
        os.close(fd)


def test_a_dead_mount_can_be_unmounted(place: Path) -> None:
    fd = device.open_device()
    syscalls.mount_fuse(fd, place / "target", allow_other=False)
    os.close(fd)
    with pytest.raises(OSError, match="not connected"):
        (place / "target").stat()
    syscalls.unmount(place / "target")
    assert mounts_at(place / "target") == []


def test_a_bind_mount_is_read_only(place: Path) -> None:
    syscalls.bind_read_only(place / "lower", place / "target")
    assert (place / "target/known").read_text() == "below"
    with pytest.raises(OSError, match="Read-only"):
        (place / "target/new").touch()
    (mount,) = mounts_at(place / "target")
    assert {"ro", "nosuid", "nodev"} <= {*mount.options}
    (place / "lower/later").touch()  # the source stays writable
    assert (place / "target/later").exists()


def test_a_bind_mount_that_can_not_be_made_read_only_is_undone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = syscalls.mount

    def mount(source: str | None, target: Path, fs_type: str | None, flags: int, options: str | None) -> None:
        if flags & syscalls.MS_REMOUNT:
            raise PermissionError(1, "Operation not permitted")
        real(source, target, fs_type, flags, options)

    monkeypatch.setattr(syscalls, "mount", mount)
    with pytest.raises(MountError, match="read-only: Operation not permitted; this needs root"):
        syscalls.bind_read_only(place / "lower", place / "target")
    assert mounts_at(place / "target") == []


def test_changes_stay_in_the_upper_layer(place: Path) -> None:
    target = overlay(place)
    (target / "known").write_text("above")
    assert (place / "lower/known").read_text() == "below"
    assert (place / "upper/known").read_text() == "above"
    (mount,) = mounts_at(target)
    assert (mount.fs_type, mount.source) == ("overlay", "vol")
    assert {"nosuid", "nodev"} <= {*mount.options}
    assert {"fsync=volatile", "volatile"} & {*mount.super_options}


def test_an_overlay_that_is_not_volatile_can_be_mounted_again(place: Path) -> None:
    target = overlay(place, volatile=False)
    assert not {"fsync=volatile", "volatile"} & {*mounts_at(target)[0].super_options}
    (target / "mine").write_text("kept")
    syscalls.unmount(target)
    assert (overlay(place, volatile=False) / "mine").read_text() == "kept"


def test_a_flush_shows_new_names_of_the_lower_layer_and_keeps_open_files(place: Path) -> None:
    target = overlay(place)
    before = mounts_at(target)
    assert not (target / "late").exists()
    with (target / "open").open("w") as file:
        (place / "lower/late").write_text("there")
        assert not (target / "late").exists()  # the overlay remembers that the name was missing
        syscalls.flush_overlay(target)
        assert (target / "late").read_text() == "there"
        file.write("goes on")
    assert (place / "upper/open").read_text() == "goes on"
    assert mounts_at(target) == before


def test_a_lazy_unmount_works_while_the_mount_is_in_use(place: Path) -> None:
    target = overlay(place)
    with (target / "known").open() as file:
        with pytest.raises(MountError, match="busy; something is using it") as caught:
            syscalls.unmount(target)
        assert isinstance(caught.value.__cause__, OSError)
        syscalls.unmount(target, lazy=True)
        assert mounts_at(target) == []
        assert file.read() == "below"


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b"])
def test_a_layer_that_overlayfs_would_misread_is_refused(place: Path, name: str) -> None:
    (place / name).mkdir()
    with pytest.raises(MountError, match="not every kernel accepts"):
        syscalls.mount_overlay(
            place / "target", name="x", lower=place / name, upper=place / "upper", work=place / "work"
        )


def mount_without_target(place: Path) -> None:
    syscalls.bind_read_only(place / "lower", place / "nowhere")


def mount_with_a_nul(place: Path) -> None:
    syscalls.bind_read_only(place / "lower", place / "target\0x")


def mount_long_layers(place: Path) -> None:
    long = Path("/", *["x" * 200] * 10)
    syscalls.mount_overlay(place / "target", name="x", lower=long, upper=long, work=long)


def unmount_nothing(place: Path) -> None:
    syscalls.unmount(place / "target")


def unmount_what_is_not_there(place: Path) -> None:
    syscalls.unmount(place / "nowhere")


def flush_nothing(place: Path) -> None:
    syscalls.flush_overlay(place / "target")


def mount_no_device(place: Path) -> None:
    with (place / "file").open("w") as file:
        syscalls.mount_fuse(file.fileno(), place / "target", allow_other=False)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (mount_without_target, "make the directory first"),
        (mount_with_a_nul, "a NUL in a path"),
        (mount_long_layers, "longer than a page"),
        (unmount_nothing, "nothing is mounted there"),
        (unmount_what_is_not_there, "No such file"),
        (flush_nothing, "can't remount"),
        (mount_no_device, "Invalid argument"),
    ],
)
def test_errors_name_the_cause_and_the_path(place: Path, attempt: Callable[[Path], None], said: str) -> None:
    with pytest.raises(MountError, match=said) as caught:
        attempt(place)
    assert str(place) in str(caught.value)
    assert mounts_at(place / "target") == []


IN_A_NAMESPACE = """
import os, sys
from pathlib import Path
from narmount.fuse import device, syscalls
from narmount.fuse.mountinfo import mounts_at
place = Path(sys.argv[1])
assert not syscalls.in_initial_user_namespace()
assert device.may_mount()
assert device.may_pass_through(place) == "user namespaces can't use passthrough"
syscalls.mount_overlay(place / "target", name="x", lower=place / "lower", upper=place / "upper", work=place / "work")
(place / "target/known").unlink()
(place / "target/known").mkdir()
assert "userxattr" in mounts_at(place / "target")[0].super_options
syscalls.unmount(place / "target")
fd = device.open_device()
syscalls.mount_fuse(fd, place / "target", allow_other=True)
assert mounts_at(place / "target")[0].fs_type == "fuse.nar-serve"
"""


def test_mounting_works_in_a_user_namespace(place: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        needs.missing("user namespaces", "allow them in the settings of the kernel")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", IN_A_NAMESPACE, place], cwd=ROOT, check=False, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr.decode()


def test_mounting_without_privileges_is_refused(place: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from narcore.errors import MountError
        from narmount.fuse import device, syscalls
        assert not device.may_mount()
        print(device.may_pass_through(Path("/tmp")))
        try:
            syscalls.bind_read_only(Path("/"), Path(sys.argv[1]))
        except MountError as error:
            print(error)
    """
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", program, "/proc"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    why_plain, refusal = done.stdout.splitlines()
    assert why_plain == "passthrough needs root (CAP_SYS_ADMIN)"
    assert refusal.startswith("can't mount / at /proc: Operation not permitted; this needs root")
