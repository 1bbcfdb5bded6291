"""Overlays follow the news of a mount. The mount of these tests is only a control socket."""

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from narmount.daemon.control import control_path
from narmount.daemon.controlserver import ControlServer
from narmount.volumes import OverlayFlusher, VolumeRequest, Volumes
from narmount.volumes.errors import CacheDead
from narmount.volumes.prefetch import ANSWER_SECONDS
from tests.mount.mounting import until

NAMES = (f"{32 * '0'}-x", f"{32 * '1'}-y")


class ControlSocket:
    """The control socket of a mount, and the store paths that it was asked to prefetch."""

    def __init__(self, place: Path, name: str = "store") -> None:
        self._path = control_path(place / "run", place / name)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.prefetched: list[str] = []
        self._listener: socket.socket | None = None
        self._server: ControlServer | None = None

    def listen(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()

    def start_worker(self) -> ControlServer:
        assert self._listener is not None
        self._server = ControlServer(self._listener.dup(), status=dict, prefetch=self.prefetched.extend)
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
def mount(place: Path) -> Iterator[ControlSocket]:
    mount = ControlSocket(place)
    yield mount
    mount.close()


@pytest.fixture
def flushes(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The caches that were flushed, in order."""
    done: list[str] = []
    flush = volumes.flush

    def recorded(cache: str) -> int:
        done.append(cache)
        return flush(cache)

    monkeypatch.setattr(volumes, "flush", recorded)
    monkeypatch.setattr("narmount.volumes.overlayflush.FLUSH_PAUSE", 0.01)
    monkeypatch.setattr("narmount.volumes.overlayflush.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("narmount.volumes.overlayflush.SETTLE_SECONDS", 0.2)
    return done


def test_overlays_are_flushed_for_news_and_after_restarts_of_the_worker(
    place: Path, mount: ControlSocket, volumes: Volumes, flushes: list[str]
) -> None:
    flusher = OverlayFlusher(volumes, "main")
    flusher.start()  # there is no socket yet
    time.sleep(0.3)
    mount.listen()
    server = mount.start_worker()
    volumes.publish("a", place / "t", VolumeRequest("main"))
    until(lambda: len(flushes) == 2, "a flush for missed news, and the second one")
    (place / "store/late").write_text("now")
    server.announce(["late"])
    until(lambda: len(flushes) == 4, "a flush for the news, and the second one")
    assert (place / "t/late").read_text() == "now"

    mount.stop_worker()
    time.sleep(0.5)
    assert len(flushes) == 4
    mount.start_worker().announce(["x"])
    until(lambda: len(flushes) >= 6, "flushes after the restart")

    flusher.close()
    done = len(flushes)
    mount.stop_worker()
    time.sleep(0.3)
    assert len(flushes) == done


def test_a_burst_of_news_causes_few_flushes(mount: ControlSocket, volumes: Volumes, flushes: list[str]) -> None:
    """The mount announces each name on its own, and a flush remounts every overlay."""
    mount.listen()
    server = mount.start_worker()
    flusher = OverlayFlusher(volumes, "main")
    flusher.start()
    until(lambda: len(flushes) == 2, "the first flushes")
    for number in range(500):
        server.announce([str(number)])
    time.sleep(0.5)
    assert 1 <= len(flushes) - 2 < 100
    flusher.close()


def test_an_overlay_shows_a_late_name_only_after_a_flush(place: Path, volumes: Volumes) -> None:
    """An overlay caches that a name is missing. The flusher exists for this reason."""
    volumes.publish("a", place / "t", VolumeRequest("main"))
    assert not (place / "t/late").exists()
    (place / "store/late").write_text("now")
    assert not (place / "t/late").exists()
    volumes.flush("main")
    assert (place / "t/late").read_text() == "now"
    subprocess.run(["touch", place / "t/written"], check=True)


def test_prefetch_requests_reach_the_mount_without_delaying_publish(
    place: Path, mount: ControlSocket, volumes: Volumes
) -> None:
    mount.listen()
    start = time.monotonic()
    for _ in range(2):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=NAMES))
    assert time.monotonic() - start < ANSWER_SECONDS / 2, "publish does not wait for the worker"
    mount.start_worker()
    until(lambda: mount.prefetched == [*NAMES, *NAMES], "both requests")


def test_prefetch_requests_for_one_mount_do_not_wait_for_another(
    place: Path, mount: ControlSocket, volumes: Volumes
) -> None:
    mount.listen()
    other = ControlSocket(place, "other")
    other.listen()
    other.start_worker()
    volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=NAMES))
    volumes.publish("b", place / "u", VolumeRequest("other", "ro", prefetch=NAMES))
    until(lambda: other.prefetched == [*NAMES], "the request at the other mount")
    other.close()


def test_failed_and_skipped_prefetches_are_logged(
    place: Path,
    mount: ControlSocket,
    volumes: Volumes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("narmount.volumes.prefetch.ANSWER_SECONDS", 0.1)
    mount.listen()
    volumes.publish("a", place / "t", VolumeRequest("main", "ro", prefetch=("x",)))
    until(lambda: "volume a: prefetch failed" in caplog.text, "the log line")

    monkeypatch.setattr("narmount.volumes.prefetch.REQUESTS_MAX", 0)
    volumes.publish("b", place / "u", VolumeRequest("main", "ro", prefetch=("x",)))
    assert "volume b: prefetch skipped, since the mount does not answer" in caplog.text


def test_a_volume_of_a_dead_mount_is_refused(place: Path, mount: ControlSocket, volumes: Volumes) -> None:
    mount.listen()
    mount.close()
    with pytest.raises(CacheDead, match="has died; run nar-serve mount"):
        volumes.publish("a", place / "t", VolumeRequest("main", "ro"))
    assert not (place / "t").exists()


def test_a_failed_flush_is_logged(
    place: Path, volumes: Volumes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("no")

    volumes.publish("a", place / "t", VolumeRequest("main"))
    monkeypatch.setattr("narmount.fuse.syscalls.mount", fail)
    with caplog.at_level(logging.WARNING):
        assert volumes.flush("main") == 0
    assert "volume a: can't flush the overlay, so new store paths stay missing" in caplog.text
