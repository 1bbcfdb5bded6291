"""Calls for a mount that hangs fail soon, and calls for other mounts don't wait."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from narmount.daemon.control import control_path
from narmount.daemon.controlserver import ControlServer
from narmount.fuse import syscalls
from narmount.volumes import VolumeRequest, Volumes
from narmount.volumes.errors import CacheDead
from tests.volumes.conftest import volumes_of
from tests.volumes.test_volumes import below, left


@pytest.fixture
def hanging(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The control socket of ``store``, which never answers."""
    monkeypatch.setattr("narmount.volumes.liveness.ANSWER_SECONDS", 0.2)
    path = control_path(place / "run", place / "store")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_an_overlay_of_a_hanging_mount_is_not_mounted(place: Path, volumes: Volumes, hanging: socket.socket) -> None:
    with pytest.raises(CacheDead, match=r"main: .* has not answered within 0.2 seconds"):
        volumes.publish("a", place / "t", VolumeRequest("main"))
    assert below(place) == left(place) == []
    assert not (place / "t").exists()
    volumes.publish("b", place / "u", VolumeRequest("other"))
    volumes.publish("c", place / "v", VolumeRequest("main", "ro"))
    volumes.unpublish("c", place / "v")


def test_a_volume_that_is_mounted_already_needs_no_answer(
    place: Path, volumes: Volumes, hanging: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = ControlServer(hanging.dup(), status=dict, prefetch=lambda _: None)
    control.start()
    monkeypatch.setattr("narmount.volumes.liveness.ANSWER_SECONDS", 20)
    volumes.publish("a", place / "t", VolumeRequest("main"))
    control.close()
    monkeypatch.setattr("narmount.volumes.liveness.ANSWER_SECONDS", 0.01)
    volumes.publish("a", place / "t", VolumeRequest("main"))
    volumes.unpublish("a", place / "t")
    assert below(place) == []


def test_few_threads_wait_in_the_kernel_for_one_mount(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are left for calls for other mounts."""
    monkeypatch.setattr("narmount.volumes.liveness.AT_ONCE", 2)
    monkeypatch.setattr("narmount.volumes.liveness.ANSWER_SECONDS", 0.1)
    volumes = volumes_of(place)
    waiting, end = threading.Semaphore(0), threading.Event()
    mount_overlay = syscalls.mount_overlay

    def hang(target: Path, **layers: Any) -> None:
        if layers["lower"] == place / "store":
            waiting.release()
            assert end.wait(20)
        mount_overlay(target, **layers)

    monkeypatch.setattr(syscalls, "mount_overlay", hang)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(volumes.publish, name, place / name, VolumeRequest("main")) for name in ("a", "b")]
        for _ in calls:
            assert waiting.acquire(timeout=20)
        with pytest.raises(CacheDead, match="does not answer, and 2 calls are waiting for it already"):
            volumes.publish("c", place / "c", VolumeRequest("main"))
        volumes.publish("d", place / "d", VolumeRequest("other"))
        end.set()
        for call in calls:
            call.result(20)
    assert {*below(place)} == {place / name for name in ("a", "b", "d")}


def test_many_callers_wait_no_longer_than_one(place: Path, volumes: Volumes, hanging: socket.socket) -> None:
    barrier = threading.Barrier(16)

    def publish(number: int) -> None:
        barrier.wait(10)
        with pytest.raises(CacheDead, match="not answer"):
            volumes.publish(f"v{number}", place / f"t{number}", VolumeRequest("main"))

    asked = 0
    start = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(publish, range(16)))
    took = time.monotonic() - start
    hanging.setblocking(False)
    while True:
        try:
            connection, _ = hanging.accept()
        except BlockingIOError:
            break
        asked += bool(connection.recv(100))
        connection.close()
    assert asked <= 1 + took, "one caller asks for all, at most once a second"
    assert below(place) == left(place) == []
