"""A process that is killed between any two steps: the next process continues, and nothing is left in the end."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts_at
from narmount.volumes import MODES, Mode, VolumeRequest, Volumes
from tests.volumes.conftest import volumes_of
from tests.volumes.test_volumes import below, left

# Functions of os, which pathlib calls as well.
STEPS = (
    "mkdir",
    "rmdir",
    "rename",
    "replace",
    "unlink",
    "fsync",
    "chown",
    "chmod",
)


class Killed(BaseException):
    """Stands for SIGKILL: as a BaseException, no error handler catches it. Context managers close files, as the kernel would."""


class Killer:
    """Kills an action before its nth step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: int | None = None
        for module, names in ((os, STEPS), (syscalls, ("mount", "unmount"))):
            for name in names:
                monkeypatch.setattr(module, name, self._step(getattr(module, name)))

    def _step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise Killed
            return function(*args, **kwargs)

        return step

    def deaths(self, prepare: Callable[[], None], action: Callable[[], None]) -> Iterator[int]:
        """Kill ``action`` before its first step, its second step, and so on, until it completes. Yields the steps done."""
        for steps in range(100):
            prepare()
            self._left = steps
            try:
                action()
            except Killed:
                self._left = None
                yield steps
            else:
                self._left = None
                assert steps > 5, "the patched functions are not those that the code calls"
                return
        pytest.fail("the action never completes")


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


def publish(volumes: Volumes, place: Path, mode: Mode) -> None:
    volumes.publish("a", place / "t", VolumeRequest("main", mode))


def check_published(place: Path, mode: Mode) -> None:
    (mounted,) = mounts_at(place / "t")
    assert {"nosuid", "nodev"} <= {*mounted.options}
    assert mode == "overlay" or "ro" in mounted.options
    assert (place / "t/hello").read_text() == "store"


def check_gone(place: Path) -> None:
    assert below(place) == []
    assert left(place) == []
    assert not (place / "t").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recovers", [True, False])
def test_an_interrupted_publish_is_completed_by_the_next(
    place: Path, killer: Killer, mode: Mode, recovers: bool
) -> None:
    def unpublish() -> None:
        volumes_of(place).unpublish("a", place / "t")

    for _ in killer.deaths(unpublish, lambda: publish(volumes_of(place), place, mode)):
        volumes = volumes_of(place)
        if recovers:
            volumes.recover()
        publish(volumes, place, mode)
        check_published(place, mode)
        volumes.unpublish("a", place / "t")
        check_gone(place)
    check_published(place, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recovers", [True, False])
def test_unpublish_removes_what_an_interrupted_publish_left(
    place: Path, killer: Killer, mode: Mode, recovers: bool
) -> None:
    for _ in killer.deaths(lambda: None, lambda: publish(volumes_of(place), place, mode)):
        volumes = volumes_of(place)
        if recovers:
            volumes.recover()
        volumes.unpublish("a", place / "t")
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_unpublish_is_completed_by_the_next(place: Path, killer: Killer, mode: Mode) -> None:
    def published() -> None:
        publish(volumes_of(place), place, mode)
        if mode == "overlay":
            (place / "t/some/thing").mkdir(parents=True)

    for _ in killer.deaths(published, lambda: volumes_of(place).unpublish("a", place / "t")):
        volumes = volumes_of(place)
        volumes.unpublish("a", place / "t")
        volumes.recover()  # may remove the written files only here
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_reboot_at_any_step_nothing_is_left(place: Path, killer: Killer, mode: Mode) -> None:
    """A reboot ends mounts, and keeps files."""
    for _ in killer.deaths(lambda: None, lambda: publish(volumes_of(place), place, mode)):
        for _ in mounts_at(place / "t"):
            syscalls.unmount(place / "t")
        volumes_of(place, "boot-2").recover()
        assert below(place) == []
        assert left(place) == []
        if (place / "t").exists():  # created, but without a state: only kubelet knows of it
            volumes_of(place, "boot-2").unpublish("a", place / "t")
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_reboot_a_volume_is_published_without_its_old_files(place: Path, mode: Mode) -> None:
    publish(volumes_of(place), place, mode)
    if mode == "overlay":
        (place / "t/old").touch()
    syscalls.unmount(place / "t")
    publish(volumes_of(place, "boot-2"), place, mode)
    check_published(place, mode)
    assert not (place / "t/old").exists(), "a volatile layer may be damaged by a crash"
    volumes_of(place, "boot-2").unpublish("a", place / "t")
    check_gone(place)


def test_a_kept_volume_survives_a_kill_at_any_step(place: Path, killer: Killer) -> None:
    def publish_kept(volumes: Volumes) -> None:
        volumes.publish("a", place / "t", VolumeRequest("main"), keep=True)

    publish_kept(volumes_of(place))
    (place / "t/new").write_text("kept")

    def cycle() -> None:
        volumes = volumes_of(place)
        volumes.unpublish("a", place / "t", keep=True)
        publish_kept(volumes)

    for step in killer.deaths(lambda: None, cycle):
        volumes = volumes_of(place)
        volumes.recover()
        publish_kept(volumes)
        assert (place / "t/new").read_text() == "kept", step


def test_recover_removes_a_volume_whose_target_directory_is_gone(place: Path) -> None:
    """Kubelet never unpublishes the volume of a pod that was removed by force before the volume was mounted."""
    volumes = volumes_of(place)
    volumes.publish("a", place / "pod/t", VolumeRequest("main"))
    volumes.publish("b", place / "t", VolumeRequest("main"))
    for target in (place / "pod/t", place / "t"):
        syscalls.unmount(target)
        target.rmdir()
    (place / "pod").rmdir()
    volumes.recover()
    assert [volume.id for volume in volumes.list()] == ["b"], "b may still be unpublished"


def test_an_unreadable_state_is_logged_and_kept(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The volume may be one to keep. The other volumes are not affected."""
    volumes = volumes_of(place)
    for volume_id in ("a", "b", "c", "d"):
        volumes.publish(volume_id, place / volume_id, VolumeRequest("main"))
        syscalls.unmount(place / volume_id)
    (place / "state/a/state.json").write_text('{"id": "a"')
    (place / "state/b/state.json").write_text("[" * 100_000)
    (place / "state/c/state.json").write_text((place / "state/d/state.json").read_text())
    volumes = volumes_of(place, "boot-2")
    volumes.recover()
    assert left(place) == [place / "state" / name for name in ("a", "b", "c")]
    assert [message.split(" can't")[0].rsplit("/", 2)[1] for message in caplog.messages] == ["a", "b", "c"]
    assert volumes.list() == []
