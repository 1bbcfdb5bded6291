"""Users left behind by a dockerd that is gone are removed, unless a container still sees the volume."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from narmount.docker import driver as driver_module
from narmount.docker import users
from narmount.docker.driver import Driver
from narmount.docker.records import Records
from narmount.fuse import syscalls
from narmount.volumes.errors import VolumeConflict
from tests import needs
from tests.docker.fakevolumes import FakeVolumes
from tests.mount.mounting import unmount_all

CONNECT = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
)


class Client:
    """Another process, connected to the socket."""

    def __init__(self, listener: socket.socket) -> None:
        path = listener.getsockname()
        command = [sys.executable, "-c", CONNECT, path]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        connection, _ = listener.accept()
        with closing(connection):
            self.identity = users.caller(connection)

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "x.sock"))
        listener.listen()
        client = Client(listener)
        yield client
        client.end()


def test_a_process_is_recognized_until_it_ends(client: Client) -> None:
    assert client.identity.startswith(f"{client.process.pid}:")
    assert not users.is_gone(client.identity)
    client.end()
    assert users.is_gone(client.identity)
    assert users.is_gone(f"{client.process.pid}:1")


def test_an_unknown_process_is_not_gone() -> None:
    assert not users.is_gone(users.UNKNOWN)


def test_mounts_are_seen_in_other_namespaces(tmp_path: Path) -> None:
    needs.fuse()
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there, tmp_path / "lower", tmp_path / "upper", tmp_path / "work"):
        directory.mkdir()
    name = f"nar-serve:{tmp_path.name}"
    syscalls.mount_overlay(here, name=name, lower=tmp_path / "lower", upper=tmp_path / "upper", work=tmp_path / "work")
    try:
        assert not users.is_mounted_elsewhere(name, here)
        script = f"mount --bind {here} {there}; echo; read line"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
            assert container.stdout is not None
            container.stdout.readline()
            assert users.is_mounted_elsewhere(name, here)
            assert not users.is_mounted_elsewhere(f"{name}-2", here)
            container.communicate(b"\n")
        assert not users.is_mounted_elsewhere(name, here)
        script = f"mount -t tmpfs {name} {tmp_path}/there; mkdir there/$'a\\rb'; mount -t tmpfs {name} there/*; echo; read line"
        command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", f"cd {tmp_path}; {script}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hostile:
            assert hostile.stdout is not None
            assert hostile.stdout.readline()
            assert not users.is_mounted_elsewhere(name, here)
            hostile.communicate(b"\n")
    finally:
        unmount_all(here)


def test_a_user_of_a_killed_dockerd_is_removed(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = FakeVolumes()
    driver = Driver(volumes, Records(tmp_path / "records"), tmp_path / "mounts", ("main",))
    driver.create("v", None)
    driver.mount("v", "a", client.identity)
    client.end()
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "is_mounted_elsewhere", lambda source, target: source == "nar-serve:v")
        with pytest.raises(VolumeConflict, match="in use"):
            driver.remove("v")
    driver.mount("v", "b")
    assert driver.describe("v")["Status"] == {"cache": "main", "mode": "overlay", "users": 2}
    driver.unmount("v", "b")
    assert not volumes.mounted
    driver.mount("v", "c", client.identity)
    driver.remove("v")
    assert not volumes.mounted
    assert driver.all() == []
