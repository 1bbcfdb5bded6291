"""What is mounted, and what is left of it."""

import os
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts, mounts_at
from narmount.volumes import MODES, VolumeRequest, Volumes
from narmount.volumes.errors import CacheDead, NoSuchVolume, VolumeBusy, VolumeConflict, VolumeRefused
from tests.volumes.conftest import volumes_of


def below(place: Path) -> list[Path]:
    """The targets of what is mounted there, but for the mounts that are shown."""
    stores = (place / "store", place / "other")
    return [each.target for each in mounts() if place in each.target.parents and each.target not in stores]


def left(place: Path) -> list[Path]:
    """What the state directory has, but for locks."""
    return sorted(path for path in (place / "state").glob("*") if not path.name.startswith("~lock"))


def test_read_only(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert (place / "t/hello").read_text() == "store"
    (mounted,) = mounts_at(place / "t")
    assert {"ro", "nosuid", "nodev"} <= {*mounted.options}
    with pytest.raises(OSError, match="Read-only"):
        (place / "t/new").write_text("x")
    assert volumes.usage("a") == 0
    assert volumes.published() == {"ro": 1, "overlay": 0}


def test_overlay(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.publish("b", place / "u", VolumeRequest("main"))
    (mounted,) = mounts_at(place / "t")
    assert (mounted.fs_type, mounted.source) == ("overlay", "nar-serve:a")
    assert {"nosuid", "nodev"} <= {*mounted.options}
    assert {"volatile", "fsync=volatile"} & {*mounted.super_options}, "as kernels before and since 6.13 tell"
    (place / "t/hello").write_text("changed")
    assert [(place / name / "hello").read_text() for name in ("t", "u", "store")] == ["changed", "store", "store"]
    assert volumes.published() == {"ro": 0, "overlay": 2}


def test_another_cache(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("other", "ro"))
    assert (place / "t/hello").read_text() == "other"


def test_nothing_is_left_of_it(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        target = place / mode
        volumes.publish(mode, target, VolumeRequest("main", mode))
        if mode == "overlay":
            (target / "written").write_text("x")
        volumes.unpublish(mode, target)
        volumes.unpublish(mode, target)
        assert not target.exists()
    assert below(place) == left(place) == []
    assert volumes.list() == []


def test_it_can_be_published_twice(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        for _ in range(2):
            volumes.publish(mode, place / mode, VolumeRequest("main", mode))
        assert len(mounts_at(place / mode)) == 1


def test_not_otherwise(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    with pytest.raises(VolumeConflict, match="with other options"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    with pytest.raises(VolumeConflict, match="with other options"):
        volumes.publish("a", place / "t", VolumeRequest("other"))
    with pytest.raises(VolumeConflict, match="something else is mounted"):
        volumes.publish("b", place / "t", VolumeRequest("main"))
    with pytest.raises(VolumeConflict, match=r"is mounted at .*/t; unpublish it there first"):
        volumes.publish("a", place / "u", VolumeRequest("main"))
    assert (place / "t/hello").read_text() == "store"
    assert below(place) == [place / "t"]


def test_what_is_of_others_stays(place: Path, volumes: Volumes) -> None:
    (place / "t").mkdir()
    (place / "t/file").write_text("x")
    with pytest.raises(VolumeConflict, match="not empty"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    with pytest.raises(VolumeConflict, match="files of somebody else"):
        volumes.unpublish("a", place / "t")
    for below_file in (place / "t/file", place / "t/file/x"):
        with pytest.raises(VolumeConflict, match="a file, or below one"):
            volumes.publish("a", below_file, VolumeRequest("main"))
        with pytest.raises(VolumeConflict, match="a file, or below one"):
            volumes.unpublish("a", below_file)
    (place / "u").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "u"], check=True)
    for what in ("a", "b"):
        with pytest.raises(VolumeConflict, match="by hand"):
            volumes.unpublish(what, place / "u")
    volumes.publish("b", place / "v", VolumeRequest("main", "ro"))
    volumes.publish("c", place / "w", VolumeRequest("main"))
    for what, target in (("a", "v"), ("b", "w"), ("c", "v")):
        with pytest.raises(VolumeConflict, match="by hand"):
            volumes.unpublish(what, place / target)
    assert {*below(place)} == {place / "u", place / "v", place / "w"}
    assert left(place) == [place / "state/b", place / "state/c"]


def test_the_wrong_target_changes_nothing_but_that(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.unpublish("a", place / "u")
    assert volumes.find("a", place / "t").mode == "overlay"


def test_its_state_is_not_needed_to_end_it(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
    subprocess.run(["rm", "-rf", place / "state"], check=True)
    for mode in MODES:
        volumes.unpublish(mode, place / mode)
    assert below(place) == left(place) == []
    assert not (place / "ro").exists()


def test_in_use(place: Path, volumes: Volumes) -> None:
    """A container that has not ended yet does not keep the next from being told that it is gone."""
    volumes.publish("a", place / "t", VolumeRequest("main"))
    with (place / "t/hello").open() as file:
        volumes.unpublish("a", place / "t")
        assert file.read() == "store"
    assert below(place) == left(place) == []


def test_who_may_write(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", group=1234))
    volumes.publish("b", place / "u", VolumeRequest("main"))
    status = (place / "t").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 1234, 0o2775)
    place.chmod(0o755)
    place.parent.chmod(0o755)
    as_member = "setpriv --reuid=4321 --regid=4321 --groups=1234"
    inside = ["unshare", "--mount", "sh", "-ec", f"mount --bind {place}/t /mnt; {as_member} touch /mnt/new"]
    subprocess.run(inside, check=True)
    assert (place / "t/new").stat().st_gid == 1234
    assert stat.S_IMODE((place / "u").stat().st_mode) == 0o755


def test_usage(place: Path, volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    (place / "t/deep/er").mkdir(parents=True)
    (place / "t/deep/er/file").write_bytes(bytes(1 << 20))
    os.link(place / "t/deep/er/file", place / "t/again")
    used = volumes.usage("a")
    assert 1 << 20 <= used < (1 << 20) + (64 << 10)
    (place / "t/more").write_bytes(bytes(1 << 20))
    assert volumes.usage("a") == used, "it is counted once a minute"
    monkeypatch.setattr("narmount.volumes.volumes.USAGE_SECONDS", 0)
    assert volumes.usage("a") > used + (1 << 19)
    monkeypatch.setattr("narmount.volumes.volumes.COUNT_SECONDS", -1)
    assert volumes.usage("a") > used, "what was counted before, if there was no time"

    with volumes._counting:
        assert volumes.usage("a") > used, "or no turn"
        with pytest.raises(VolumeBusy, match="ask for b again in a moment"):
            volumes.usage("b")


def test_find(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert volumes.find("a", place / "t").cache == "main"
    for volume_id, target in (("a", "u"), ("b", "t")):
        with pytest.raises(NoSuchVolume):
            volumes.find(volume_id, place / target)
    syscalls.unmount(place / "t")
    with pytest.raises(NoSuchVolume):
        volumes.find("a", place / "t")


def test_a_cache_that_is_not_there(place: Path, volumes: Volumes, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(VolumeRefused, match=r"no cache 'x'; there are: main, other"):
        volumes.publish("a", place / "t", VolumeRequest("x", "ro"))
    syscalls.unmount(place / "store")
    with pytest.raises(CacheDead, match="is not mounted; run nar-serve mount"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert not (place / "t").exists()
    assert left(place) == []
    volumes.warn_of_dead_caches()
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache main is not mounted; run nar-serve mount {place / 'store'}; until then it has no volumes"
    ]


def test_one_that_came_back(place: Path, volumes: Volumes) -> None:
    """What shows a mount that has died is replaced when it is asked for again."""
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
    syscalls.unmount(place / "store", lazy=True)
    subprocess.run(["mount", "-t", "tmpfs", syscalls.SOURCE, place / "store"], check=True)
    (place / "store/hello").write_text("new")
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
        assert len(mounts_at(place / mode)) == 1
        assert (place / mode / "hello").read_text() == "new"


def test_kept(place: Path) -> None:
    """As Docker wants it: what is written stays until the volume is removed, also over a reboot."""
    volumes = volumes_of(place)
    volumes.publish("a", place / "t", VolumeRequest("main"), keep=True)
    assert not {"volatile", "fsync=volatile"} & {*mounts_at(place / "t")[0].super_options}
    (place / "t/new").write_text("kept")
    volumes.unpublish("a", place / "t", keep=True)
    assert not (place / "t").exists()
    assert [volume.target for volume in volumes.list()] == [None]

    volumes.publish("a", place / "t", VolumeRequest("main"), keep=True)
    assert (place / "t/new").read_text() == "kept"
    syscalls.unmount(place / "t")

    volumes = volumes_of(place, "boot-2")
    volumes.recover()
    assert [volume.target for volume in volumes.list()] == [None]
    volumes.publish("a", place / "t", VolumeRequest("main"), keep=True)
    assert (place / "t/new").read_text() == "kept"
    volumes.unpublish("a", place / "t", keep=True)
    volumes.unpublish("a", place / "t")
    assert left(place) == below(place) == []


def test_many_at_once(place: Path, volumes: Volumes) -> None:
    def publish(number: int) -> None:
        volumes.publish(f"v{number}", place / f"t{number}", VolumeRequest("main"))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(publish, range(50)))
        assert len(below(place)) == 50
        list(threads.map(lambda number: volumes.unpublish(f"v{number}", place / f"t{number}"), range(50)))
    assert below(place) == left(place) == []


def test_one_many_times_at_once(place: Path) -> None:
    """Also by two processes, which an upgrade has for a while: their locks are those of the kernel."""
    both = [volumes_of(place), volumes_of(place)]
    barrier = threading.Barrier(16)

    def publish(number: int) -> None:
        if number < 16:
            barrier.wait(10)
        both[number % 2].publish("a", place / "t", VolumeRequest("main"))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(publish, range(50)))
        assert len(mounts_at(place / "t")) == 1
        list(threads.map(lambda number: both[number % 2].unpublish("a", place / "t"), range(50)))
    assert below(place) == left(place) == []


def test_names_that_appear_late(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.publish("b", place / "u", VolumeRequest("other"))
    volumes.publish("c", place / "v", VolumeRequest("main", "ro"))
    assert volumes.flush("main") == 1
    assert volumes.flush("other") == 1
    syscalls.unmount(place / "t")
    assert volumes.flush("main") == 0


@pytest.mark.parametrize(
    "volume_id", ["", ".", "..", "a/b", "../a", "a b", "a:b", "a,b", "~locks", "x" * 201, "ä", "a\n", "a\0", "\\"]
)
def test_hostile_ids(place: Path, volumes: Volumes, volume_id: str) -> None:
    for call in (volumes.unpublish, volumes.find):
        with pytest.raises(VolumeRefused, match="can't be the id of a volume"):
            call(volume_id, place / "t")
    with pytest.raises(VolumeRefused, match="can't be the id of a volume"):
        volumes.publish(volume_id, place / "t", VolumeRequest("main", "ro"))


@pytest.mark.parametrize(
    "target", ["t", "", "/", "{}/../t", "{}/./t", "{}//t", "/{}/t", "{}/t/", "{}/t\0", "{}/" + 5000 * "x"]
)
def test_hostile_targets(place: Path, volumes: Volumes, target: str) -> None:
    hostile = target.format(place)
    with pytest.raises(VolumeRefused, match="can't be a target"):
        volumes.unpublish("a", hostile)  # type: ignore[arg-type]
    with pytest.raises(VolumeRefused, match="can't be a target"):
        volumes.publish("a", hostile, VolumeRequest("main", "ro"))  # type: ignore[arg-type]


def test_targets_that_would_hide_something(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    (place / "link").symlink_to(place / "u")
    for target in (place, place / "store", place / "store/x", place / "state", place / "state/a/upper", place / "t/x",
                   place / "link"):  # fmt: skip
        with pytest.raises(VolumeRefused, match="can't be a target"):
            volumes.publish("b", target, VolumeRequest("main", "ro"))
    assert below(place) == [place / "t"]


def test_behind_a_link(place: Path, volumes: Volumes) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    volumes.publish("a", place / "link/t", VolumeRequest("main", "ro"))
    volumes.publish("a", place / "link/t", VolumeRequest("main", "ro"))
    assert below(place) == [place / "real/t"]
    volumes.unpublish("a", place / "link/t")
    assert below(place) == []


def test_other_bad_options(place: Path, volumes: Volumes) -> None:
    with pytest.raises(VolumeRefused, match="unknown mode 'rw'; use overlay"):
        volumes.publish("a", place / "t", VolumeRequest("main", "rw"))  # type: ignore[arg-type]
    for group in (-1, 2**32 - 1):
        with pytest.raises(VolumeRefused, match="is not a group id"):
            volumes.publish("a", place / "t", VolumeRequest("main", group=group))
    with pytest.raises(MountError):
        volumes.publish("a", place / "hello\0", VolumeRequest("main", "ro"))
    assert not (place / "state").exists() or left(place) == []
