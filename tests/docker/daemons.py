"""A separate dockerd without a network, and the real program of the plugin."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from narmount.fuse import syscalls
from narmount.fuse.mountinfo import mounts
from tests import ROOT, needs
from tests.mount.mounting import until

TOOLS = ("dockerd", "docker", "containerd", "runc", "busybox")
PLUGINS = Path("/run/docker/plugins")  # the directory of dockerd for plugins, which no option changes
IMAGE, IMAGE_WITH_STORE = "box", "box-with-store"
APPLETS = ("sh", "cat", "ls", "rm")  # commands of busybox that have a link in the images
SECONDS = 40


def need_docker() -> None:
    needs.fuse()
    needs.programs(TOOLS)
    if any(segment.header.p_type == "PT_INTERP" for segment in ELFFile(io.BytesIO(busybox())).iter_segments()):
        needs.missing("a static busybox", "apt-get install busybox-static")


def busybox() -> bytes:
    return Path(needs.program("busybox")).read_bytes()


class Dockerd:
    """A dockerd that writes only to ``directory``, whose path must be short because of its socket."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "d.sock"
        self._log = (directory / "dockerd.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start dockerd. Raises RuntimeError with its log if it does not start."""
        options = {
            "data-root": self._directory / "data",
            "exec-root": self._directory / "exec",
            "pidfile": self._directory / "pid",
            "host": f"unix://{self._socket}",
            "bridge": "none",
            "iptables": "false",
            "storage-driver": "vfs",  # works on every file system, and the images are small
        }
        self._process = subprocess.Popen(
            ["dockerd", *(f"--{name}={value}" for name, value in options.items())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + SECONDS
        while self.docker("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not start; its log:\n{self.log()[-6000:]}")
            time.sleep(0.1)

    def log(self) -> str:
        return (self._directory / "dockerd.log").read_text(errors="replace")

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill dockerd and its containerd, and remove their PID files, as an init would. Containers continue."""
        assert self._process
        self._process.kill()
        self._process.wait()
        pid_file = self._directory / "exec/containerd/containerd.pid"
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        pid_file.unlink(missing_ok=True)
        (self._directory / "pid").unlink(missing_ok=True)

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            containers = self.docker("ps", "--all", "--quiet").stdout.split()
            if containers:
                self.docker("rm", "--force", *containers)
        self.stop()
        self._log.close()
        for mount in reversed(mounts()):
            if self._directory in mount.target.parents:
                syscalls.unmount(mount.target, lazy=True)

    def docker(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run the docker client, whatever its exit code is."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "DOCKER_HOST": f"unix://{self._socket}"}
        done = subprocess.run(
            ["docker", *arguments], input=stdin, env=environ, capture_output=True, timeout=SECONDS, check=False
        )
        texts = (done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def do(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run the docker client, which must succeed, and return its output."""
        done = self.docker(*arguments, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """Run the docker client, which must fail, and return its messages."""
        done = self.docker(*arguments)
        assert done.returncode, done.stdout
        return done.stderr

    def inspect(self, volume: str) -> dict[str, Any]:
        (found,) = json.loads(self.do("volume", "inspect", volume))
        assert isinstance(found, dict)
        return found

    def import_images(self) -> None:
        """Import an image with only a shell, and one that also has a store path."""
        self.do("import", "-", IMAGE, stdin=_tar({}))
        self.do("import", "-", IMAGE_WITH_STORE, stdin=_tar({"nix/store/of-the-image": b"of the image\n"}))


class Plugin:
    """``nar-serve docker-volume`` with a unique name, and its state below ``directory``."""

    def __init__(self, directory: Path, caches: Mapping[str, Path], run_dir: Path, environ: Mapping[str, str]) -> None:
        self.name = f"nar-serve-test-{os.getpid()}"
        self.state_dir = directory / "state"
        self.socket = PLUGINS / f"{self.name}.sock"
        self._options = [f"--cache={name}={where}" for name, where in caches.items()]
        self._options += [f"--state-dir={self.state_dir}", f"--socket={self.socket}", f"--run-dir={run_dir}"]
        self._environ = environ
        self._log = (directory / "plugin.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        self._process = subprocess.Popen(
            self._command(*self._options, *options),
            cwd=ROOT,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        until(lambda: not self.run("--status", f"--socket={self.socket}").returncode, f"the plugin; {self.log()}", 30)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = self._command(*options)
        return subprocess.run(
            command, cwd=ROOT, env=self._environ, capture_output=True, text=True, timeout=30, check=False
        )

    def status(self) -> dict[str, Any]:
        done = self.run("--status", "--json", f"--socket={self.socket}")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def call(self, name: str, **body: str) -> dict[str, Any]:
        """Make a call as dockerd does."""
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        connection.request("POST", f"/VolumeDriver.{name}", json.dumps(body))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def reboot(self) -> None:
        """Simulate a reboot: unmount everything, and give all state files another boot id."""
        self.kill()
        for target in self.mounted():
            syscalls.unmount(target, lazy=True)
        now = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for path in self.state_dir.rglob("*.json"):
            path.write_text(path.read_text().replace(now, "an earlier boot"))
        self.start()

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        assert self._process
        self._process.terminate()
        return self._process.wait(20)

    def mounted(self) -> list[Path]:
        """Return the targets of the mounted volumes."""
        return [mount.target for mount in mounts() if self.state_dir in mount.target.parents]

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self.kill()
        self._log.close()
        self.socket.unlink(missing_ok=True)
        for target in self.mounted():
            syscalls.unmount(target, lazy=True)

    @staticmethod
    def _command(*options: str) -> Sequence[str]:
        return [sys.executable, "-m", "narserve", "docker-volume", *options]


@contextlib.contextmanager
def running_plugin(plugin: Plugin) -> Iterator[Plugin]:
    """Start a plugin, and close it at the end. Fails if its log has a traceback."""
    try:
        plugin.start()
        yield plugin
        assert "Traceback" not in plugin.log()
    finally:
        plugin.close()


def _tar(files: Mapping[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, data in {"bin/busybox": busybox(), **files}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return output.getvalue()
