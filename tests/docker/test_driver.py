"""The users of volumes are recorded correctly, whatever is repeated, interrupted or fails."""

import logging
import os
import threading
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.docker import driver as driver_module
from narmount.docker.driver import Driver
from narmount.docker.records import Records
from narmount.volumes.errors import NoSuchVolume, VolumeBusy, VolumeConflict, VolumeRefused
from narmount.volumes.request import VolumeRequest
from tests.docker.fakevolumes import FakeVolumes, Killed

CACHES = ("main", "other")


class Plugin:
    """A driver, and what stays when it is killed: the records on the disk, and the mounts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.volumes = FakeVolumes()
        self.driver = self.started()

    def started(self, boot_id: str = "boot-1", caches: tuple[str, ...] = CACHES) -> Driver:
        """Start the driver, for the first time or again."""
        records = Records(self.directory / "records", boot_id)
        self.driver = Driver(self.volumes, records, self.directory / "mounts", caches)
        self.driver.recover()
        return self.driver

    def target(self, name: str) -> Path:
        return self.directory / "mounts" / name

    def users(self, name: str) -> object:
        (status,) = [volume for volume in self.driver.status() if volume["name"] == name]
        return status["users"]


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


def test_a_volume_is_mounted_for_the_first_user_and_unmounted_after_the_last(plugin: Plugin) -> None:
    driver = plugin.driver
    driver.create("v", {"mode": "ro", "cache": "other"})
    assert driver.mountpoint("v") == ""
    assert driver.mount("v", "a") == driver.mount("v", "b") == plugin.target("v")
    assert driver.mountpoint("v") == str(plugin.target("v"))
    driver.unmount("v", "a")
    assert plugin.volumes.mounted == {plugin.target("v"): "v"}
    driver.unmount("v", "b")
    assert plugin.volumes.mounted == {}
    assert driver.mountpoint("v") == ""
    assert plugin.volumes.requests == [VolumeRequest("other", "ro")] * 2


def test_every_call_can_be_repeated(plugin: Plugin) -> None:
    driver = plugin.driver
    for _ in range(2):
        driver.create("v", None)
    for _ in range(3):
        driver.mount("v", "a")
    assert plugin.users("v") == 1
    for _ in range(2):
        driver.unmount("v", "a")
        assert plugin.volumes.mounted == {}
    for _ in range(2):
        driver.remove("v")
    assert driver.all() == []


def test_written_files_are_removed_only_with_their_volume(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = plugin.driver
    driver.create("v", {})
    driver.mount("v", "a")
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "is_mounted_elsewhere", lambda source, target: source == "nar-serve:v")
        with pytest.raises(
            VolumeConflict, match=r"volume v is in use; find its containers: docker ps -a --filter volume=v"
        ):
            driver.remove("v")
    driver.unmount("v", "a")
    assert plugin.volumes.written == {"v"}
    driver.remove("v")
    assert plugin.volumes.written == set()
    with pytest.raises(NoSuchVolume, match="no such volume: 'v'; list the volumes: docker volume ls"):
        driver.mount("v", "a")


def test_a_mount_without_a_response_does_not_keep_a_volume(plugin: Plugin) -> None:
    """The plugin was killed before it responded, so dockerd never unmounts."""
    plugin.driver.create("v", {})
    plugin.driver.mount("v", "a")
    plugin.driver.remove("v")
    assert (plugin.volumes.mounted, plugin.driver.all()) == ({}, [])


def test_the_first_cache_is_the_default(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    assert plugin.driver.describe("v")["Status"] == {"cache": "main", "mode": "overlay", "users": 0}


def test_a_volume_is_not_created_again_with_other_options(plugin: Plugin) -> None:
    plugin.driver.create("v", {"mode": "ro"})
    with pytest.raises(VolumeConflict, match="the volume v exists with other options"):
        plugin.driver.create("v", {"mode": "overlay"})


def test_a_restart_forgets_nothing(plugin: Plugin) -> None:
    first = plugin.driver
    first.create("v", {"group": "100", "prefetch": f"/nix/store/{'a' * 32}-x /nix/store/{'b' * 32}-y"})
    first.create("idle", {"mode": "ro"})
    first.mount("v", "a")
    first.mount("v", "b")
    before = first.status()
    again = plugin.started()
    assert again.status() == before
    assert again.describe("v") == first.describe("v")
    assert plugin.volumes.mounted == {plugin.target("v"): "v"}
    again.unmount("v", "a")
    assert plugin.volumes.mounted
    again.unmount("v", "b")
    assert not plugin.volumes.mounted


def test_after_a_reboot_volumes_have_no_users(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    plugin.driver.mount("v", "a")
    plugin.volumes.mounted.clear()
    plugin.started(boot_id="boot-2")
    assert plugin.users("v") == 0
    assert plugin.volumes.written == {"v"}
    plugin.driver.remove("v")


def test_a_kill_between_mounting_and_recording_the_user_leaves_no_mount(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.driver.create("v", None)

    def killed(self: Records, record: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Records, "save", killed)
        with pytest.raises(Killed):
            plugin.driver.mount("v", "a")
    assert plugin.volumes.mounted
    plugin.started()
    assert not plugin.volumes.mounted
    plugin.driver.mount("v", "a")
    plugin.driver.unmount("v", "a")
    plugin.driver.remove("v")


def test_a_kill_between_deleting_the_user_and_unmounting_leaves_no_mount(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    plugin.driver.mount("v", "a")
    plugin.volumes.fails = Killed()
    with pytest.raises(Killed):
        plugin.driver.unmount("v", "a")
    plugin.started()
    assert not plugin.volumes.mounted
    plugin.driver.unmount("v", "a")
    plugin.driver.remove("v")


def test_a_kill_before_deleting_the_record_is_completed_by_the_next_remove(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.driver.create("v", None)

    def killed(self: Records, name: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Records, "delete", killed)
        with pytest.raises(Killed):
            plugin.driver.remove("v")
    plugin.started()
    plugin.driver.remove("v")
    assert plugin.driver.all() == []


def test_a_full_disk_leaves_nothing_mounted(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.driver.create("v", None)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            plugin.driver.mount("v", "a")
    assert not plugin.volumes.mounted
    assert plugin.users("v") == 0
    plugin.started()
    plugin.driver.mount("v", "a")


def test_a_failed_mount_has_no_user(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    plugin.volumes.fails = MountError("the mount has died; start it again")
    with pytest.raises(MountError):
        plugin.driver.mount("v", "a")
    assert plugin.users("v") == 0
    plugin.driver.remove("v")


def test_a_failed_unmount_can_be_repeated(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    plugin.driver.mount("v", "a")
    plugin.volumes.fails = MountError("the mount is busy; find its users")
    with pytest.raises(MountError):
        plugin.driver.unmount("v", "a")
    plugin.driver.unmount("v", "a")
    assert not plugin.volumes.mounted


def test_an_unreadable_record_is_logged_and_the_others_work(plugin: Plugin, caplog: pytest.LogCaptureFixture) -> None:
    plugin.driver.create("v", None)
    plugin.driver.create("w", None)
    (plugin.directory / "records" / "v.json").write_text("{")
    (plugin.directory / "records" / "w.part").write_text("half")
    with caplog.at_level(logging.ERROR):
        plugin.started()
    assert [volume["name"] for volume in plugin.driver.status()] == ["w"]
    assert "v.json can't be read" in caplog.text
    assert not (plugin.directory / "records" / "w.part").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" * 100_000,
        '{"name": "w"}',
        '{"name": "v", "options": {"cache": 1, "mode": "ro", "group": null, "prefetch": []}, "created": "", "boot_id": ""}',
        '{"name": "v", "options": {"cache": "m", "mode": "ro", "group": null, "prefetch": ["../x"]}, "created": "", "boot_id": ""}',
    ],
)
def test_invalid_records_are_not_volumes(plugin: Plugin, text: str) -> None:
    (plugin.directory / "records" / "v.json").write_text(text)
    assert plugin.started().all() == []


def test_a_volume_of_a_missing_cache_can_only_be_removed(plugin: Plugin) -> None:
    plugin.driver.create("v", {"cache": "other"})
    plugin.started(caches=("main",))
    with pytest.raises(VolumeRefused, match=r"start nar-serve docker-volume with --cache other=DIR"):
        plugin.driver.mount("v", "a")
    plugin.driver.remove("v")


def test_concurrent_users_are_all_recorded(plugin: Plugin) -> None:
    plugin.driver.create("v", None)
    users = [f"user-{number}" for number in range(20)]
    threads = [threading.Thread(target=plugin.driver.mount, args=("v", user)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plugin.users("v") == 20
    plugin.started()
    assert plugin.users("v") == 20


def test_a_hanging_volume_does_not_delay_others(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stuck", "free"):
        plugin.driver.create(name, None)
    begun, end = threading.Event(), threading.Event()
    publish = FakeVolumes.publish

    def hang(self: FakeVolumes, volume_id: str, target: Path, request: VolumeRequest, *, keep: bool) -> None:
        if volume_id == "stuck":
            begun.set()
            assert end.wait(30)
        publish(self, volume_id, target, request, keep=keep)

    monkeypatch.setattr(FakeVolumes, "publish", hang)
    monkeypatch.setattr(driver_module, "LOCK_SECONDS", 0.05)
    thread = threading.Thread(target=plugin.driver.mount, args=("stuck", "a"))
    thread.start()
    assert begun.wait(30)
    try:
        assert plugin.driver.mount("free", "a") == plugin.target("free")
        assert len(plugin.driver.all()) == 2
        assert plugin.driver.mountpoint("stuck") == ""
        with pytest.raises(VolumeBusy, match="another call for the volume stuck has been running"):
            plugin.driver.remove("stuck")
    finally:
        end.set()
        thread.join()
    plugin.driver.unmount("stuck", "a")
    plugin.driver.remove("stuck")


def test_volumes_and_users_are_limited(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "VOLUMES_MAX", 1)
    monkeypatch.setattr(driver_module, "MOUNTS_MAX", 1)
    plugin.driver.create("v", None)
    with pytest.raises(VolumeRefused, match="which is the limit; remove some: docker volume prune"):
        plugin.driver.create("w", None)
    plugin.driver.mount("v", "a")
    with pytest.raises(VolumeRefused, match="which is the limit; create another volume"):
        plugin.driver.mount("v", "b")
    plugin.driver.mount("v", "a")
    assert plugin.driver.published() == {"overlay": 1, "ro": 0}
