"""A plugin in this process, whose mounts are those of tests/volumes. Paths are short: those of sockets have a limit."""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.csi.node import Plugin
from narmount.csi.registration import registration_path, registration_server
from narmount.csi.server import Calls, Server, csi_server
from narmount.daemon.control import control_path
from narmount.daemon.controlserver import ControlServer
from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts
from narmount.volumes import Volumes
from tests import needs
from tests.csi.calling import Client, client
from tests.mount import programs
from tests.mount.programs import Programs

NAME = "store.nar-serve.dev"


@dataclass(frozen=True, slots=True)
class Running:
    """``place`` holds it all: ``main`` and ``other`` are mounts, ``kubelet`` is kubelet's directory."""

    place: Path
    volumes: Volumes
    call: Client
    registry: Path
    calls: Calls
    servers: tuple[Server, ...]
    controls: dict[str, ControlServer]
    wanted: list[str]

    def target(self, pod: str = "pod-1") -> Path:
        """Where kubelet wants a volume of that pod; it makes all but the last directory."""
        target = self.place / f"kubelet/pods/{pod}/volumes/kubernetes.io~csi/store/mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def below(self) -> list[Path]:
        """The targets of volumes that are mounted."""
        return [each.target for each in mounts() if self.place / "kubelet" in each.target.parents]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    needs.fuse()
    needs.programs((*programs.TOOLS, "unshare", "nsenter", "chroot"))
    return programs.build(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def short() -> Iterator[Path]:
    needs.fuse()
    place = Path(tempfile.mkdtemp(prefix="csi-"))
    yield place
    for mounted in reversed(mounts()):
        if place in mounted.target.parents:
            with contextlib.suppress(MountError):
                syscalls.unmount(mounted.target, lazy=True)
    shutil.rmtree(place)


@pytest.fixture
def running(short: Path) -> Iterator[Running]:
    wanted: list[str] = []
    caches = {name: short / name for name in ("main", "other")}
    with contextlib.ExitStack() as stack:
        controls = {name: _mount(short, directory, wanted, stack) for name, directory in caches.items()}
        volumes = Volumes(short / "state", caches, short / "run", within=short / "kubelet")
        calls = Calls()
        path = short / "kubelet/plugins" / NAME / "csi.sock"
        registry = registration_path(short / "kubelet", NAME)
        servers = (
            csi_server(path, Plugin(NAME, "node-1", short / "kubelet", caches), volumes, calls),
            registration_server(registry, NAME, path, calls),
        )
        for server in servers:
            server.start()
            stack.callback(server.stop)
        call = stack.enter_context(client(path))
        yield Running(short, volumes, call, registry, calls, servers, controls, wanted)


def _mount(place: Path, directory: Path, wanted: list[str], stack: contextlib.ExitStack) -> ControlServer:
    """In the place of a mount, with a control socket that answers."""
    directory.mkdir()
    syscalls._mount(syscalls.SOURCE, directory, "tmpfs", 0, None)
    (directory / "hello").write_text(directory.name)
    path = control_path(place / "run", directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    control = ControlServer(listener, status=lambda: {"target": str(directory)}, prefetch=wanted.extend)
    control.start()
    stack.callback(control.close)
    return control
