"""A fake node: mount namespaces that share mounts like those of kubelet and containers, without Kubernetes.

The namespace of the host has a directory whose mounts are shared. The containers ``mount`` and ``csi`` of the DaemonSet have
their own namespaces, which are peers of it (mountPropagation: Bidirectional). The namespace of a pod is a slave of it or private,
as runc creates them. A namespace and its mounts end with its last process, so nothing is mounted in the namespace of the tests.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from narcore.errors import MountError
from narmount.csi.registration import registration_path
from narmount.daemon.control import control_path, read_status
from narmount.fuse.mountinfo import Mount
from tests import ROOT
from tests.csi.calling import Client, client
from tests.csi.conftest import NAME
from tests.mount import mounting
from tests.mount.mounting import until

PROGRAM = (sys.executable, "-m", "narserve")
STOP_SECONDS = 15
SETTINGS = {"NAR_MOUNT_DEADLINE": "10", "NAR_CACHE_SIZE": "2G"}


class FakeNode:
    """A node. All its files are below ``place``, whose path is short; ``kubelet`` is the directory of kubelet."""

    def __init__(self, url: str, key: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="node-"))
        self.kubelet = self.place / "kubelet"
        self.store = self.place / "store"
        for directory in (self.kubelet / "plugins_registry", self.kubelet / "pods", self.store):
            directory.mkdir(parents=True)
        settings = {"NAR_CACHE_URL": url, "NAR_TRUSTED_PUBLIC_KEYS": key, "NAR_CACHE_DIR": str(self.place / "cache")}
        self.environ = mounting.environment(settings | SETTINGS | {"NAR_RUN_DIR": str(self.place / "run")})
        self._processes: list[subprocess.Popen[bytes]] = []
        self._host = self._start_host()
        self.mount: subprocess.Popen[bytes] | None = None
        self.csi: subprocess.Popen[bytes] | None = None

    # --- the host

    def _start_host(self) -> int:
        script = f"mount --bind {self.place} {self.place}; mount --make-shared {self.place}; echo up; exec sleep 600"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process.pid

    def mounts(self) -> list[Mount]:
        """Return the mounts below ``place``, as the host sees them."""
        lines = Path(f"/proc/{self._host}/mountinfo").read_bytes().splitlines()
        return [mount for mount in map(Mount.parse, lines) if self.place in mount.target.parents]

    def mounted(self, target: Path) -> Mount | None:
        return next((mount for mount in reversed(self.mounts()) if mount.target == target), None)

    def _container(self, propagation: str) -> list[str]:
        inside = ["nsenter", f"--mount=/proc/{self._host}/ns/mnt", f"--wd={ROOT}"]
        return [*inside, "unshare", "--mount", "--propagation", propagation]

    def _spawn(self, name: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [*self._container("unchanged"), *PROGRAM, *map(str, arguments)]
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text(errors="replace")

    # --- the containers of the DaemonSet

    def start_mount(self) -> None:
        self.mount = self._spawn("mount", "mount", self.store, "--foreground", "--allow-other")
        until(self._mount_is_up, "the mount", 30)

    def status(self) -> dict[str, Any]:
        return read_status(control_path(self.place / "run", self.store), 20)

    def _mount_is_up(self) -> bool:
        assert self.mount is not None
        assert self.mount.poll() is None, self.log("mount")
        with contextlib.suppress(MountError):
            return bool(read_status(control_path(self.place / "run", self.store), 5))
        return False

    def arguments(self) -> list[str]:
        return [
            *("csi", "--cache", f"main={self.store}", "--kubelet-dir", str(self.kubelet)),
            *("--state-dir", str(self.place / "state")),
        ]

    def start_csi(self, *options: str) -> None:
        before = self._starts()
        self.csi = csi = self._spawn("csi", *self.arguments(), "--node-id", "node-1", *options)

        def is_up() -> bool:
            assert csi.poll() is None, self.log("csi")
            return self._starts() > before

        until(is_up, "the plugin", 30)

    def _starts(self) -> int:
        log = self.place / "csi.log"
        return log.read_text().count("for node node-1 at") if log.exists() else 0

    @property
    def registry(self) -> Path:
        return registration_path(self.kubelet, NAME)

    @property
    def endpoint(self) -> Path:
        return self.kubelet / "plugins" / NAME / "csi.sock"

    def run_csi(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``nar-serve csi`` with more options, in a container like that of the plugin."""
        command = [*self._container("unchanged"), *PROGRAM, *self.arguments(), *options]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=30, check=False)

    def csi_status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run_csi("--status", "--json").stdout)
        return status

    def kill_csi(self) -> None:
        assert self.csi is not None
        self.csi.kill()
        self.csi.wait()

    def stop_csi(self) -> int:
        assert self.csi is not None
        self.csi.terminate()
        return self.csi.wait(STOP_SECONDS)

    # --- kubelet

    @contextlib.contextmanager
    def registered(self) -> Iterator[Client]:
        """Yield a client of the plugin, at the endpoint that it registered."""
        with client(self.registry) as call:
            endpoint = Path(call.registered().endpoint)
        with client(endpoint) as call:
            yield call

    def target(self, pod: str) -> Path:
        target = self.kubelet / "pods" / pod / "volumes/kubernetes.io~csi/store/mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    # --- pods

    def pod_command(self, pod: str, command: Sequence[str], propagation: str = "slave") -> list[str]:
        """Return a command that runs a program in a root directory that has only the volume."""
        root = self.place / "pods" / pod
        (root / "nix/store").mkdir(parents=True, exist_ok=True)
        script = f'mount --bind {self.target(pod)} {root}/nix/store; exec chroot {root} "$@"'
        return [*self._container(propagation), "sh", "-euc", script, "sh", *command]

    def run_pod(self, pod: str, *command: str) -> str:
        """Run a program in a pod, and return its output. Fails if the program fails."""
        return output_of(self.pod_command(pod, command))

    def start_pod(self, pod: str, *command: str, propagation: str = "slave") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.pod_command(pod, command, propagation), stdout=subprocess.PIPE, start_new_session=True
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.place)


def output_of(command: Sequence[str]) -> str:
    outcome = mounting.ask(*command)
    assert outcome.status == 0, outcome.errors
    return outcome.output.decode()
