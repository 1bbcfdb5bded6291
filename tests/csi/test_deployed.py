"""The unchanged command lines of deploy/kubernetes, in namespaces that have the directories they use."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests import ROOT
from tests.csi.calling import client
from tests.csi.conftest import NAME
from tests.csi.test_manifests import Object, command_line, containers, objects, probes
from tests.e2e.upstream import Upstream
from tests.mount import mounting
from tests.mount.mounting import until
from tests.mount.programs import GREETING, HELLO_PROGRAM, Programs

# Sets up a node in these directories. The namespace of the tests does not see its mounts.
HOST = """
mount -t tmpfs none /var/lib
mount -t tmpfs none /run
mkdir /var/lib/nar-serve /var/lib/kubelet /run/nar-serve
for name in nar-serve kubelet; do
    mount --bind {place}/$name /var/lib/$name
    mount --make-shared /var/lib/$name
done
echo up
exec sleep 300
"""


class Deployed:
    """A node that runs the containers of deploy/kubernetes."""

    def __init__(self, url: str, key: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="deployed-"))
        for name in ("nar-serve", "kubelet/plugins_registry", "kubelet/pods"):
            (self.place / name).mkdir(parents=True)
        bin_dir = self.place / "bin"
        bin_dir.mkdir()
        (bin_dir / "nar-serve").write_text(f'#!/bin/sh\nexec {sys.executable} -m narserve "$@"\n')
        (bin_dir / "nar-serve").chmod(0o755)
        self._settings = {"NAR_CACHE_URL": url, "NAR_TRUSTED_PUBLIC_KEYS": key, "NODE_NAME": "node-1"}
        self._settings["PATH"] = f"{bin_dir}:{os.environ['PATH']}"
        self._processes: list[subprocess.Popen[bytes]] = []
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", HOST.format(place=self.place)]
        self._host = self._spawn(command, "host", {}, subprocess.PIPE)
        assert self._host.stdout is not None
        assert self._host.stdout.readline() == b"up\n"

    def _spawn(
        self, command: Sequence[str], name: str, environ: Mapping[str, str], stdout: int | None = None
    ) -> "subprocess.Popen[bytes]":
        with (self.place / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=mounting.environment(environ),
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another command in a container with Bidirectional propagation."""
        host = ["nsenter", f"--mount=/proc/{self._host.pid}/ns/mnt", f"--wd={ROOT}"]
        return [*host, "unshare", "--mount", "--propagation", "unchanged", *command]

    def environ(self, container: Object) -> dict[str, str]:
        """Return the environment of the manifest, with the settings of this node and this cache."""
        return {each["name"]: each.get("value", "") for each in container["env"]} | self._settings

    def start(self, container: Object) -> None:
        self._spawn(self.inside(command_line(container)), container["name"], self.environ(container))

    def probe(self, container: Object, name: str) -> bool:
        environ = mounting.environment(self.environ(container))
        command = self.inside(probes(container)[name])
        return subprocess.run(command, env=environ, capture_output=True, timeout=20, check=False).returncode == 0

    def run(self, *command: str) -> str:
        outcome = mounting.ask(*self.inside(command))
        assert outcome.status == 0, outcome.errors
        return outcome.output.decode()

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate() if process is not self._host else process.kill()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.place)


@pytest.fixture
def deployed(made: Programs) -> Iterator[Deployed]:
    with Upstream() as upstream:
        deployed = Deployed(upstream.mount("cache", made.cache), made.public_key)
        try:
            yield deployed
        finally:
            deployed.close()


def test_the_deployed_containers_start_and_the_example_runs(deployed: Deployed) -> None:
    mount, csi = containers()["mount"], containers()["csi"]
    deployed.start(mount)
    until(lambda: deployed.probe(mount, "startupProbe"), "the mount", 30)
    assert deployed.probe(mount, "readinessProbe")
    assert not deployed.probe(csi, "readinessProbe")
    assert not deployed.probe(csi, "livenessProbe")
    deployed.start(csi)
    registry = deployed.place / "kubelet/plugins_registry" / f"{NAME}-reg.sock"
    until(registry.exists, "the plugin", 30)
    assert deployed.probe(csi, "readinessProbe")
    assert deployed.probe(csi, "livenessProbe")

    with client(registry) as kubelet:
        endpoint = Path(kubelet.registered().endpoint)
    assert endpoint == Path(f"/var/lib/kubelet/plugins/{NAME}/csi.sock")
    (job,) = objects("example-job.yaml")
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    attributes = volume["csi"]["volumeAttributes"] | {"prefetch": "/".join(HELLO_PROGRAM.split("/")[:4])}
    target = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/store/mount"
    with client(deployed.place / endpoint.relative_to("/var/lib")) as kubelet:
        kubelet.publish("csi-1", target, volume_context=attributes)
        root = deployed.place / "root"
        (root / "nix/store").mkdir(parents=True)
        pod = f"mount --bind {target} {root}/nix/store; exec chroot {root} {HELLO_PROGRAM}"
        assert deployed.run("sh", "-euc", pod).startswith(GREETING)
        kubelet.unpublish("csi-1", target)
    for name in ("mount", "csi"):
        assert "Traceback" not in deployed.log(name)
