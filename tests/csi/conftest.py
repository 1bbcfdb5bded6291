"""A plugin in the test process, with a tmpfs instead of each mount. Its paths are short, since those of sockets have a limit."""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.csi.node import CsiPlugin
from narmount.csi.registration import registration_path, registration_server
from narmount.csi.server import CsiCalls, CsiServer, csi_server
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
    """A running plugin. In ``place``, ``main`` and ``other`` are mounts, and ``kubelet`` is the directory of kubelet."""

    place: Path
    volumes: Volumes
    call: Client
    registry: Path
    calls: CsiCalls
    servers: tuple[CsiServer, ...]
    controls: dict[str, ControlServer]
    prefetched: list[str]

    def target(self, pod: str = "pod-1") -> Path:
        """Return the target of the volume of a pod. Kubelet creates its parent, but not the target itself."""
        target = self.place / f"kubelet/pods/{pod}/volumes/kubernetes.io~csi/store/mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def below(self) -> list[Path]:
        """Return the targets of the mounted volumes."""
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
    prefetched: list[str] = []
    caches = {name: short / name for name in ("main", "other")}
    with contextlib.ExitStack() as stack:
        controls = {name: _mount(short, directory, prefetched, stack) for name, directory in caches.items()}
        volumes = Volumes(short / "state", caches, short / "run", within=short / "kubelet")
        calls = CsiCalls()
        path = short / "kubelet/plugins" / NAME / "csi.sock"
        registry = registration_path(short / "kubelet", NAME)
        servers = (
            csi_server(path, CsiPlugin(NAME, "node-1", short / "kubelet", caches), volumes, calls),
            registration_server(registry, NAME, path, calls),
        )
        for server in servers:
            server.start()
            stack.callback(server.stop)
        call = stack.enter_context(client(path))
        yield Running(short, volumes, call, registry, calls, servers, controls, prefetched)


def _mount(place: Path, directory: Path, prefetched: list[str], stack: contextlib.ExitStack) -> ControlServer:
    """Mount a tmpfs instead of nar-serve, with a control socket that answers."""
    directory.mkdir()
    syscalls.mount(syscalls.SOURCE, directory, "tmpfs", 0, None)
    (directory / "hello").write_text(directory.name)
    path = control_path(place / "run", directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    control = ControlServer(listener, status=lambda: {"target": str(directory)}, prefetch=prefetched.extend)
    control.start()
    stack.callback(control.close)
    return control
