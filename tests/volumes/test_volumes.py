"""Volumes are mounted as requested, and nothing is left of them afterwards."""

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
    """Return the targets of the volumes that are mounted below a directory."""
    stores = (place / "store", place / "other")
    return [each.target for each in mounts() if place in each.target.parents and each.target not in stores]


def left(place: Path) -> list[Path]:
    """Return what the state directory contains, except for locks."""
    return sorted(path for path in (place / "state").glob("*") if not path.name.startswith("~lock"))


def test_a_read_only_volume_can_not_be_written(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert (place / "t/hello").read_text() == "store"
    (mounted,) = mounts_at(place / "t")
    assert {"ro", "nosuid", "nodev"} <= {*mounted.options}
    with pytest.raises(OSError, match="Read-only"):
        (place / "t/new").write_text("x")
    assert volumes.usage("a") == 0
    assert volumes.published() == {"ro": 1, "overlay": 0}


def test_overlays_of_one_mount_are_independent(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.publish("b", place / "u", VolumeRequest("main"))
    (mounted,) = mounts_at(place / "t")
    assert (mounted.fs_type, mounted.source) == ("overlay", "nar-serve:a")
    assert {"nosuid", "nodev"} <= {*mounted.options}
    assert {"volatile", "fsync=volatile"} & {*mounted.super_options}, "the names before and since Linux 6.13"
    (place / "t/hello").write_text("changed")
    assert [(place / name / "hello").read_text() for name in ("t", "u", "store")] == ["changed", "store", "store"]
    assert volumes.published() == {"ro": 0, "overlay": 2}


def test_a_volume_shows_the_cache_that_it_names(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("other", "ro"))
    assert (place / "t/hello").read_text() == "other"


def test_unpublish_leaves_nothing_and_can_be_repeated(place: Path, volumes: Volumes) -> None:
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


def test_publish_can_be_repeated(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        for _ in range(2):
            volumes.publish(mode, place / mode, VolumeRequest("main", mode))
        assert len(mounts_at(place / mode)) == 1


def test_a_volume_can_not_be_published_again_with_other_options(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    with pytest.raises(VolumeConflict, match="mounted with other options"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    with pytest.raises(VolumeConflict, match="mounted with other options"):
        volumes.publish("a", place / "t", VolumeRequest("other"))
    with pytest.raises(VolumeConflict, match="something else is mounted"):
        volumes.publish("b", place / "t", VolumeRequest("main"))
    with pytest.raises(VolumeConflict, match=r"is mounted at .*/t; unpublish it there first"):
        volumes.publish("a", place / "u", VolumeRequest("main"))
    assert (place / "t/hello").read_text() == "store"
    assert below(place) == [place / "t"]


def test_foreign_files_and_mounts_stay(place: Path, volumes: Volumes) -> None:
    (place / "t").mkdir()
    (place / "t/file").write_text("x")
    with pytest.raises(VolumeConflict, match="is not empty, and the volume would hide its files"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    with pytest.raises(VolumeConflict, match="contains files that do not belong to the volume"):
        volumes.unpublish("a", place / "t")
    for below_file in (place / "t/file", place / "t/file/x"):
        with pytest.raises(VolumeConflict, match="is a file or below a file"):
            volumes.publish("a", below_file, VolumeRequest("main"))
        with pytest.raises(VolumeConflict, match="is a file or below a file"):
            volumes.unpublish("a", below_file)
    (place / "u").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "u"], check=True)
    for volume_id in ("a", "b"):
        with pytest.raises(VolumeConflict, match="unmount it manually"):
            volumes.unpublish(volume_id, place / "u")
    volumes.publish("b", place / "v", VolumeRequest("main", "ro"))
    volumes.publish("c", place / "w", VolumeRequest("main"))
    for volume_id, target in (("a", "v"), ("b", "w"), ("c", "v")):
        with pytest.raises(VolumeConflict, match="unmount it manually"):
            volumes.unpublish(volume_id, place / target)
    assert {*below(place)} == {place / "u", place / "v", place / "w"}
    assert left(place) == [place / "state/b", place / "state/c"]


def test_unpublish_at_another_target_keeps_the_volume(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.unpublish("a", place / "u")
    assert volumes.find("a", place / "t").mode == "overlay"


def test_a_volume_whose_state_is_lost_can_be_unpublished(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
    subprocess.run(["rm", "-rf", place / "state"], check=True)
    for mode in MODES:
        volumes.unpublish(mode, place / mode)
    assert below(place) == left(place) == []
    assert not (place / "ro").exists()


def test_a_volume_in_use_can_be_unpublished(place: Path, volumes: Volumes) -> None:
    """Its container may still be ending."""
    volumes.publish("a", place / "t", VolumeRequest("main"))
    with (place / "t/hello").open() as file:
        volumes.unpublish("a", place / "t")
        assert file.read() == "store"
    assert below(place) == left(place) == []


def test_a_group_may_write_to_an_overlay(place: Path, volumes: Volumes) -> None:
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


def test_usage_is_measured_once_a_minute(place: Path, volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    (place / "t/deep/er").mkdir(parents=True)
    (place / "t/deep/er/file").write_bytes(bytes(1 << 20))
    os.link(place / "t/deep/er/file", place / "t/again")
    used = volumes.usage("a")
    assert 1 << 20 <= used < (1 << 20) + (64 << 10)
    (place / "t/more").write_bytes(bytes(1 << 20))
    assert volumes.usage("a") == used, "the first result is still valid"
    monkeypatch.setattr("narmount.volumes.volumes.USAGE_SECONDS", 0)
    assert volumes.usage("a") > used + (1 << 19)
    monkeypatch.setattr("narmount.volumes.volumes.COUNT_SECONDS", -1)
    assert volumes.usage("a") > used, "if the time is too short, the last result is returned"

    measuring, resume = threading.Event(), threading.Event()

    def measure(*_: object) -> tuple[int, bool]:
        measuring.set()
        assert resume.wait(20)
        return 0, True

    monkeypatch.setattr("narmount.volumes.volumes.used_bytes", measure)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(volumes.usage, "c")
        try:
            assert measuring.wait(20)
            assert volumes.usage("a") > used, "also while another volume is measured"
            with pytest.raises(VolumeBusy, match="ask for b again in a moment"):
                volumes.usage("b")
        finally:
            resume.set()
        assert other.result() == 0


def test_find_returns_only_mounted_volumes(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert volumes.find("a", place / "t").cache == "main"
    for volume_id, target in (("a", "u"), ("b", "t")):
        with pytest.raises(NoSuchVolume):
            volumes.find(volume_id, place / target)
    syscalls.unmount(place / "t")
    with pytest.raises(NoSuchVolume):
        volumes.find("a", place / "t")


def test_an_unknown_or_unmounted_cache_is_an_error(
    place: Path, volumes: Volumes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VolumeRefused, match=r"unknown cache 'x'; the caches here are main, other"):
        volumes.publish("a", place / "t", VolumeRequest("x", "ro"))
    syscalls.unmount(place / "store")
    with pytest.raises(CacheDead, match="is not mounted; run nar-serve mount"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert not (place / "t").exists()
    assert left(place) == []
    volumes.warn_of_dead_caches()
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache main is not mounted; run nar-serve mount {place / 'store'}; until then its volumes can't be mounted"
    ]


def test_a_volume_of_a_dead_mount_is_replaced_when_it_is_published_again(place: Path, volumes: Volumes) -> None:
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
    syscalls.unmount(place / "store", lazy=True)
    subprocess.run(["mount", "-t", "tmpfs", syscalls.SOURCE, place / "store"], check=True)
    (place / "store/hello").write_text("new")
    for mode in MODES:
        volumes.publish(mode, place / mode, VolumeRequest("main", mode))
        assert len(mounts_at(place / mode)) == 1
        assert (place / mode / "hello").read_text() == "new"


def test_a_kept_volume_outlives_unmounting_and_a_reboot(place: Path) -> None:
    """Docker keeps what is written until the volume is removed."""
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


def test_many_volumes_are_published_at_the_same_time(place: Path, volumes: Volumes) -> None:
    def publish(number: int) -> None:
        volumes.publish(f"v{number}", place / f"t{number}", VolumeRequest("main"))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(publish, range(50)))
        assert len(below(place)) == 50
        list(threads.map(lambda number: volumes.unpublish(f"v{number}", place / f"t{number}"), range(50)))
    assert below(place) == left(place) == []


def test_concurrent_calls_for_one_volume_mount_it_once(place: Path) -> None:
    """Two objects stand for two processes, which run side by side during an upgrade. Their locks are flock(2)."""
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


def test_flush_counts_the_mounted_overlays_of_a_cache(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.publish("b", place / "u", VolumeRequest("other"))
    volumes.publish("c", place / "v", VolumeRequest("main", "ro"))
    assert volumes.flush("main") == 1
    assert volumes.flush("other") == 1
    syscalls.unmount(place / "t")
    assert volumes.flush("main") == 0


@pytest.mark.parametrize(
    "volume_id",
    ["", ".", "..", ".a", "-a", "-", "a/b", "../a", "a b", "a:b", "a,b", "~locks", "x" * 201, "ä", "a\n", "a\0", "\\"],
)
def test_invalid_ids_are_refused(place: Path, volumes: Volumes, volume_id: str) -> None:
    for call in (volumes.unpublish, volumes.find):
        with pytest.raises(VolumeRefused, match="can't be the id of a volume"):
            call(volume_id, place / "t")
    with pytest.raises(VolumeRefused, match="can't be the id of a volume"):
        volumes.publish(volume_id, place / "t", VolumeRequest("main", "ro"))


@pytest.mark.parametrize(
    "target", ["t", "", "/", "{}/../t", "{}/./t", "{}//t", "/{}/t", "{}/t/", "{}/t\0", "{}/" + 5000 * "x"]
)
def test_invalid_targets_are_refused(place: Path, volumes: Volumes, target: str) -> None:
    path = target.format(place)
    with pytest.raises(VolumeRefused, match="can't be a target"):
        volumes.unpublish("a", path)  # type: ignore[arg-type]
    with pytest.raises(VolumeRefused, match="can't be a target"):
        volumes.publish("a", path, VolumeRequest("main", "ro"))  # type: ignore[arg-type]


def test_targets_that_would_hide_state_or_mounts_are_refused(place: Path, volumes: Volumes) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main"))
    (place / "link").symlink_to(place / "u")
    for target in (place, place / "store", place / "store/x", place / "state", place / "state/a/upper", place / "t/x",
                   place / "link"):  # fmt: skip
        with pytest.raises(VolumeRefused, match="can't be a target"):
            volumes.publish("b", target, VolumeRequest("main", "ro"))
    assert below(place) == [place / "t"]


def test_links_above_the_target_are_resolved(place: Path, volumes: Volumes) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    volumes.publish("a", place / "link/t", VolumeRequest("main", "ro"))
    volumes.publish("a", place / "link/t", VolumeRequest("main", "ro"))
    assert below(place) == [place / "real/t"]
    volumes.unpublish("a", place / "link/t")
    assert below(place) == []


def test_invalid_requests_are_refused(place: Path, volumes: Volumes) -> None:
    with pytest.raises(VolumeRefused, match="unknown mode 'rw'; use overlay"):
        volumes.publish("a", place / "t", VolumeRequest("main", "rw"))  # type: ignore[arg-type]
    for group in (-1, 2**32 - 1):
        with pytest.raises(VolumeRefused, match="is not a group id"):
            volumes.publish("a", place / "t", VolumeRequest("main", group=group))
    with pytest.raises(MountError):
        volumes.publish("a", place / "hello\0", VolumeRequest("main", "ro"))
    assert not (place / "state").exists() or left(place) == []
