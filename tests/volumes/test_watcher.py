"""Overlays follow what a mount says; the mount here is its control socket alone."""

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from narmount.daemon.control import control_path
from narmount.daemon.controlserver import ControlServer
from narmount.volumes import VolumeRequest, Volumes, Watcher
from narmount.volumes.errors import CacheDead
from tests.mount.mounting import until

NAMES = (f"{32 * '0'}-x", f"{32 * '1'}-y")


class Mount:
    """The control socket of ``store``, or another one, and what was asked of it."""

    def __init__(self, place: Path, name: str = "store") -> None:
        self._path = control_path(place / "run", place / name)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.wanted: list[str] = []
        self._listener: socket.socket | None = None
        self._server: ControlServer | None = None

    def listen(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()

    def start_worker(self) -> ControlServer:
        assert self._listener is not None
        self._server = ControlServer(self._listener.dup(), status=dict, prefetch=self.wanted.extend)
        self._server.start()
        return self._server

    def stop_worker(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()


@pytest.fixture
def mount(place: Path) -> Iterator[Mount]:
    mount = Mount(place)
    yield mount
    mount.close()


@pytest.fixture
def flushes(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The caches that were flushed."""
    done: list[str] = []
    flush = volumes.flush

    def noted(cache: str) -> int:
        done.append(cache)
        return flush(cache)

    monkeypatch.setattr(volumes, "flush", noted)
    monkeypatch.setattr("narmount.volumes.watcher.FLUSH_PAUSE", 0.01)
    monkeypatch.setattr("narmount.volumes.watcher.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("narmount.volumes.watcher.SETTLE_SECONDS", 0.2)
    return done


def test_news_and_restarts(place: Path, mount: Mount, volumes: Volumes, flushes: list[str]) -> None:
    watcher = Watcher(volumes, "main")
    watcher.start()  # there is no socket yet
    time.sleep(0.3)
    mount.listen()
    server = mount.start_worker()
    volumes.publish("a", place / "t", VolumeRequest("main"))
    until(lambda: len(flushes) == 2, "what was missed is made up for, and once more")
    (place / "store/late").write_text("now")
    server.announce(["late"])
    until(lambda: len(flushes) == 4, "news, and once more")
    assert (place / "t/late").read_text() == "now"

    mount.stop_worker()
    time.sleep(0.5)
    assert len(flushes) == 4
    mount.start_worker().announce(["x"])
    until(lambda: len(flushes) >= 6, "another worker")

    watcher.close()
    done = len(flushes)
    mount.stop_worker()
    time.sleep(0.3)
    assert len(flushes) == done


def test_a_burst_of_news(mount: Mount, volumes: Volumes, flushes: list[str]) -> None:
    """Each name that appears is told on its own, and a flush remounts every overlay."""
    mount.listen()
    server = mount.start_worker()
    watcher = Watcher(volumes, "main")
    watcher.start()
    until(lambda: len(flushes) == 2, "the first")
    for number in range(500):
        server.announce([str(number)])
    time.sleep(0.5)
    assert 1 <= len(flushes) - 2 < 100
    watcher.close()


def test_a_late_name_takes_a_flush(place: Path, volumes: Volumes) -> None:
    """What the watcher is for: an overlay does not ask again for a name that was not there."""
    volumes.publish("a", place / "t", VolumeRequest("main"))
    assert not (place / "t/late").exists()
    (place / "store/late").write_text("now")
    assert not (place / "t/late").exists()
    volumes.flush("main")
    assert (place / "t/late").read_text() == "now"
    subprocess.run(["touch", place / "t/written"], check=True)


def test_what_is_to_be_fetched_ahead(place: Path, mount: Mount, volumes: Volumes) -> None:
    mount.listen()
    start = time.monotonic()
    for _ in range(2):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=NAMES))
    assert time.monotonic() - start < 1, "nobody waits for the worker"
    mount.start_worker()
    until(lambda: mount.wanted == [*NAMES, *NAMES], "both were told")


def test_what_another_mount_is_to_fetch_does_not_wait(place: Path, mount: Mount, volumes: Volumes) -> None:
    mount.listen()
    other = Mount(place, "other")
    other.listen()
    other.start_worker()
    volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=NAMES))
    volumes.publish("b", place / "u", VolumeRequest("other", "ro", prefetch=NAMES))
    until(lambda: other.wanted == [*NAMES], "the other one is told")
    other.close()


def test_a_mount_that_does_not_answer(
    place: Path, mount: Mount, volumes: Volumes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("narmount.volumes.prefetch.ANSWER_SECONDS", 0.1)
    mount.listen()
    volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=("x",)))
    until(lambda: "volume a: nothing is fetched ahead" in caplog.text, "it is said")

    monkeypatch.setattr("narmount.volumes.prefetch.WISHES_MAX", 0)
    volumes.publish("b", place / "u", VolumeRequest("main", "ro", prefetch=("x",)))
    assert "volume b: nothing is fetched ahead, since the mount does not answer" in caplog.text


def test_a_mount_that_has_died(place: Path, mount: Mount, volumes: Volumes) -> None:
    mount.listen()
    mount.close()
    with pytest.raises(CacheDead, match="has died; run nar-serve mount"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert not (place / "t").exists()


def test_a_flush_that_fails_is_said(
    place: Path, volumes: Volumes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("no")

    volumes.publish("a", place / "t", VolumeRequest("main"))
    monkeypatch.setattr("narmount.fuse.syscalls._mount", fail)
    with caplog.at_level(logging.WARNING):
        assert volumes.flush("main") == 0
    assert "volume a does not see what was published late" in caplog.text
