"""Store paths that are published late. tests/csi tests them with a real mount and waiting programs."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from narmount.daemon.control import control_path
from narmount.daemon.controlserver import ControlServer
from narmount.fuse import syscalls
from tests import needs
from tests.docker.daemons import Plugin, running_plugin
from tests.mount import mounting
from tests.mount.mounting import until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs instead of a mount."""
    needs.fuse()
    store = tmp_path / "store"
    store.mkdir()
    syscalls.mount(syscalls.SOURCE, store, "tmpfs", 0, None)
    yield store
    mounting.unmount_all(store)


@pytest.fixture
def control(store: Path, tmp_path: Path) -> Iterator[ControlServer]:
    path = control_path(tmp_path / "run", store)
    path.parent.mkdir(mode=0o700, parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    server = ControlServer(listener, status=lambda: {"mode": "plain", "stores": []}, prefetch=lambda _: None)
    server.start()
    yield server
    server.close()


@pytest.fixture
def plugin(store: Path, control: ControlServer, tmp_path: Path) -> Iterator[Plugin]:
    with running_plugin(Plugin(tmp_path, {"main": store}, tmp_path / "run", mounting.environment({}))) as plugin:
        yield plugin


def test_a_late_name_appears_in_a_mounted_volume(store: Path, control: ControlServer, plugin: Plugin) -> None:
    assert plugin.call("Create", Name="v")["Err"] == ""
    late = Path(plugin.call("Mount", Name="v", ID="one")["Mountpoint"]) / "late"
    assert not late.exists()
    (store / "late").write_text("at last")
    assert not late.exists(), "the overlay has cached that the name is missing"
    control.announce(["late"])
    until(late.exists, "the late path")
    assert late.read_text() == "at last"
    assert plugin.call("Unmount", Name="v", ID="one")["Err"] == ""
