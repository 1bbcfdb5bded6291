"""What containers have written goes with their volumes, and nobody waits for it."""

import threading
from pathlib import Path
from typing import Any

import pytest

from narmount.volumes import VolumeRequest, Volumes
from narmount.volumes.removals import Removals
from narmount.volumes.trees import remove_tree
from tests.mount.mounting import until
from tests.volumes.conftest import volumes_of
from tests.volumes.test_volumes import below, left


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is removed at once, and in the background not before this is set."""
    held = threading.Event()

    def remove(top: Path, *seconds: Any) -> None:
        if not seconds:
            held.wait(20)
        remove_tree(top, *seconds)

    monkeypatch.setattr("narmount.volumes.removals.AT_ONCE_SECONDS", 0)
    monkeypatch.setattr("narmount.volumes.removals.remove_tree", remove)
    return held


def publish(volumes: Volumes, place: Path, *names: str) -> None:
    for name in names:
        volumes.publish(name, place / name, VolumeRequest("main"))
        (place / name / "written").write_text("x")


def test_the_next_one_does_not_wait(place: Path, volumes: Volumes, held: threading.Event) -> None:
    publish(volumes, place, "a", "b")
    for name in ("a", "b"):
        volumes.unpublish(name, place / name)
    assert below(place) == []
    assert len(left(place)) == 2
    publish(volumes, place, "a")
    assert len(left(place)) == 3
    held.set()
    until(lambda: left(place) == [place / "state/a"], "the others are removed")


def test_nor_does_a_start(place: Path, volumes: Volumes, held: threading.Event) -> None:
    """Neither for what was not removed when it ended, nor for what a reboot has left."""
    publish(volumes, place, "a", "b")
    volumes.unpublish("a", place / "a")
    for mounted in below(place):
        volumes_of(place)._unmount("b", mounted, volumes.list()[0])
    again = volumes_of(place, "boot-2")
    again.recover()
    assert again.list() == []
    assert len(left(place)) == 2
    held.set()
    until(lambda: left(place) == [], "all is removed")


def test_what_can_not_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture, held: threading.Event) -> None:
    """It does not keep the rest. The background says so, as does the call that tries at once."""
    removals = Removals()
    for name in ("gone", "other"):
        (tmp_path / name / "written").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    removals.remove(tmp_path / name for name in ("gone", "link", "other"))
    assert f"{tmp_path / 'link'} can't be removed: " in caplog.text
    (tmp_path / "gone").rename(tmp_path / "moved")
    (tmp_path / "gone").write_text("a file")
    held.set()
    until(lambda: f"{tmp_path / 'gone'} can't be removed: " in caplog.text, "it is said")
    until(lambda: not (tmp_path / "other").exists(), "the rest is removed")
