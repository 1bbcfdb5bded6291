"""A process that is killed between any two steps: the next one goes on, and in the end nothing is left."""

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

STEPS = (
    "mkdir",
    "rmdir",
    "rename",
    "replace",
    "unlink",
    "fsync",
    "chown",
    "chmod",
)  # of os; pathlib takes them from there


class Killed(BaseException):
    """No handler for errors sees it, as none sees a SIGKILL; files that are closed on the way would be closed then, too."""


class Mortal:
    """Makes what is called with it die before its nth step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: int | None = None
        for module, names in ((os, STEPS), (syscalls, ("_mount", "_unmount"))):
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
        """``action`` killed before its first step, before its second one, and so on, until it comes to its end."""
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
                assert steps > 5, "these are not the steps that are taken"
                return
        pytest.fail("it does not end")


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    return Mortal(monkeypatch)


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
def test_killed_while_publishing(place: Path, mortal: Mortal, mode: Mode, recovers: bool) -> None:
    def nothing() -> None:
        volumes_of(place).unpublish("a", place / "t")

    for _ in mortal.deaths(nothing, lambda: publish(volumes_of(place), place, mode)):
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
def test_killed_while_publishing_and_never_asked_again(place: Path, mortal: Mortal, mode: Mode, recovers: bool) -> None:
    for _ in mortal.deaths(lambda: None, lambda: publish(volumes_of(place), place, mode)):
        volumes = volumes_of(place)
        if recovers:
            volumes.recover()
        volumes.unpublish("a", place / "t")
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_unpublishing(place: Path, mortal: Mortal, mode: Mode) -> None:
    def published() -> None:
        publish(volumes_of(place), place, mode)
        if mode == "overlay":
            (place / "t/some/thing").mkdir(parents=True)

    for _ in mortal.deaths(published, lambda: volumes_of(place).unpublish("a", place / "t")):
        volumes = volumes_of(place)
        volumes.unpublish("a", place / "t")
        volumes.recover()  # what was written may be removed as late as here
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_a_reboot_at_any_step(place: Path, mortal: Mortal, mode: Mode) -> None:
    """Mounts are gone then, and files are not."""
    for _ in mortal.deaths(lambda: None, lambda: publish(volumes_of(place), place, mode)):
        for _ in mounts_at(place / "t"):
            syscalls.unmount(place / "t")
        volumes_of(place, "boot-2").recover()
        assert below(place) == []
        assert left(place) == []
        if (place / "t").exists():  # it was made, and its state was not read again: nobody but kubelet knows of it
            volumes_of(place, "boot-2").unpublish("a", place / "t")
        check_gone(place)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_reboot_without_recovery(place: Path, mode: Mode) -> None:
    publish(volumes_of(place), place, mode)
    if mode == "overlay":
        (place / "t/old").touch()
    syscalls.unmount(place / "t")
    publish(volumes_of(place, "boot-2"), place, mode)
    check_published(place, mode)
    assert not (place / "t/old").exists(), "a volatile layer is of no use after a crash"
    volumes_of(place, "boot-2").unpublish("a", place / "t")
    check_gone(place)


def test_a_kept_one_is_not_lost_at_any_step(place: Path, mortal: Mortal) -> None:
    def put(volumes: Volumes) -> None:
        volumes.publish("a", place / "t", VolumeRequest("main"), keep=True)

    put(volumes_of(place))
    (place / "t/new").write_text("kept")

    def cycle() -> None:
        volumes = volumes_of(place)
        volumes.unpublish("a", place / "t", keep=True)
        put(volumes)

    for step in mortal.deaths(lambda: None, cycle):
        volumes = volumes_of(place)
        volumes.recover()
        put(volumes)
        assert (place / "t/new").read_text() == "kept", step


def test_a_target_that_went_with_its_pod(place: Path) -> None:
    """Nobody calls for a pod that was removed by force, whose volume was never mounted."""
    volumes = volumes_of(place)
    volumes.publish("a", place / "pod/t", VolumeRequest("main"))
    volumes.publish("b", place / "t", VolumeRequest("main"))
    for target in (place / "pod/t", place / "t"):
        syscalls.unmount(target)
        target.rmdir()
    (place / "pod").rmdir()
    volumes.recover()
    assert [volume.id for volume in volumes.list()] == ["b"], "this one may still be asked for"


def test_a_state_that_can_not_be_read(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be one to keep, so it is not removed; and the others go on."""
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
