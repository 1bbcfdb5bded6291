"""Parsing mountinfo, and the mounts of this machine."""

import os
from pathlib import Path

import pytest

from narmount.fuse import syscalls
from narmount.fuse.mountinfo import Mount, mount_of, mounts, mounts_at
from tests import needs


def test_a_line_is_parsed() -> None:
    line = rb"36 35 98:0 /mnt1 /mnt/a\040b\011c\012d\134e ro,noatime master:1 shared:7 - fuse.nar-serve nar-serve ro,user_id=0"
    assert Mount.parse(line) == Mount(
        id=36,
        parent=35,
        device="98:0",
        root="/mnt1",
        target=Path("/mnt/a b\tc\nd\\e"),
        options=("ro", "noatime"),
        fs_type="fuse.nar-serve",
        source="nar-serve",
        super_options=("ro", "user_id=0"),
    )


def test_optional_fields_may_be_missing_and_names_may_be_any_bytes() -> None:
    mount = Mount.parse(b"1 1 0:1 / /\xff\\304 rw - tmpfs  rw")  # no optional fields, and no source
    assert mount.source == ""
    assert os.fsencode(mount.target) == b"/\xff\xc4"


@pytest.mark.parametrize("line", [b"", b"1 2 0:1 / / rw", b"1 2 - tmpfs x rw", b"x 1 0:1 / / rw - tmpfs x rw"])
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  several messages
        Mount.parse(line)


def test_mounts_of_this_machine_are_found_by_target_and_by_path() -> None:
    assert [mount.target for mount in mounts_at(Path("/proc/x/.."))] == [Path("/proc")]
    assert mounts_at(Path("/proc"))[0] in mounts()
    assert mounts_at(Path("/proc/self")) == []
    assert mount_of(Path("/proc/self/status")).fs_type == "proc"


def test_a_path_is_in_the_deepest_mount_above_it() -> None:
    proc, root = mounts_at(Path("/proc"))[0], Mount.parse(b"1 1 0:1 / / rw - tmpfs x rw")
    assert mount_of(Path("/proc/self"), [root, proc]) == proc
    assert mount_of(Path("/procedure"), [root, proc]) == root


def test_a_path_of_a_chroot_is_in_no_mount() -> None:
    """The mount that contains the root of a chroot is not listed there."""
    with pytest.raises(LookupError, match="no mount contains /procedure"):
        mount_of(Path("/procedure"), mounts_at(Path("/proc")))


def test_the_topmost_mount_comes_last(tmp_path: Path) -> None:
    needs.fuse()
    strange = tmp_path / "a \\ b\n\tc\r\x0b\x0c\x1c"
    strange.mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/inside").mkdir()
    syscalls.bind_read_only(tmp_path / "one", strange)
    try:
        syscalls.bind_read_only(tmp_path / "one/inside", strange)
        try:
            found = mounts_at(strange)
            assert [mount.root.rpartition("/")[2] for mount in found] == ["one", "inside"]
            assert mount_of(strange / "x") == found[-1]
        finally:
            syscalls.unmount(strange, lazy=True)
    finally:
        syscalls.unmount(strange, lazy=True)
    assert mounts_at(strange) == []
