"""What containers have written is removed with their volumes, and no call waits for it."""

import threading
from pathlib import Path
from typing import Any

import pytest

from narmount.fuse import syscalls
from narmount.volumes import VolumeRequest, Volumes
from narmount.volumes.removals import Removals
from narmount.volumes.trees import remove_tree
from tests.mount.mounting import until
from tests.volumes.conftest import volumes_of
from tests.volumes.test_volumes import below, left


@pytest.fixture
def resume(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No call removes files itself, and the background waits for this event."""
    resume = threading.Event()

    def remove(top: Path, *seconds: Any) -> None:
        if not seconds:
            resume.wait(20)
        remove_tree(top, *seconds)

    monkeypatch.setattr("narmount.volumes.removals.AT_ONCE_SECONDS", 0)
    monkeypatch.setattr("narmount.volumes.removals.remove_tree", remove)
    return resume


def publish(volumes: Volumes, place: Path, *names: str) -> None:
    for name in names:
        volumes.publish(name, place / name, VolumeRequest("main"))
        (place / name / "written").write_text("x")


def test_publish_does_not_wait_for_removals(place: Path, volumes: Volumes, resume: threading.Event) -> None:
    publish(volumes, place, "a", "b")
    for name in ("a", "b"):
        volumes.unpublish(name, place / name)
    assert below(place) == []
    assert len(left(place)) == 2
    publish(volumes, place, "a")
    assert len(left(place)) == 3
    resume.set()
    until(lambda: left(place) == [place / "state/a"], "the removal of the others")


def test_recover_does_not_wait_for_removals(place: Path, volumes: Volumes, resume: threading.Event) -> None:
    """Unfinished removals and the files of volumes from before a reboot are removed in the background."""
    publish(volumes, place, "a", "b")
    volumes.unpublish("a", place / "a")
    for mounted in below(place):
        syscalls.unmount(mounted)
    again = volumes_of(place, "boot-2")
    again.recover()
    assert again.list() == []
    assert len(left(place)) == 2
    resume.set()
    until(lambda: left(place) == [], "the removal of everything")


def test_a_failed_removal_is_logged_and_the_rest_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resume: threading.Event
) -> None:
    removals = Removals()
    for name in ("gone", "other"):
        (tmp_path / name / "written").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    removals.remove(tmp_path / name for name in ("gone", "link", "other"))
    assert f"{tmp_path / 'link'} can't be removed: " in caplog.text
    (tmp_path / "gone").rename(tmp_path / "moved")
    (tmp_path / "gone").write_text("a file")
    resume.set()
    until(lambda: f"{tmp_path / 'gone'} can't be removed: " in caplog.text, "the log line")
    until(lambda: not (tmp_path / "other").exists(), "the removal of the rest")
