"""Fronts: the application behind a real server, in separate processes.

`FRONTS` has one function for each kind of server. It takes the socket to listen on (opened here, so that no other program
can take the port) and returns the command line; everything else is the same for all kinds.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests import ROOT, tools

START_SECONDS = 30
STOP_SECONDS = 15
NOISE = ("Traceback (most recent call last)", "ResourceWarning", "Exception ignored")
"""Texts that must not appear in the log, unless the test sets ``expect_trouble``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The number of worker processes, the number of threads in each, and the WSGI application."""

    workers: int = 1
    threads: int = 16
    app: str = "api.index:app"


ONE_PROCESS = Shape()


def gunicorn(listener: socket.socket, shape: Shape) -> list[str]:
    """Gunicorn with threads, as in the documentation."""
    options = ["--worker-class", "gthread", "--workers", str(shape.workers), "--threads", str(shape.threads)]
    options += ["--bind", f"fd://{listener.fileno()}", "--no-control-socket", "--graceful-timeout", "5"]
    if os.access("/dev/shm", os.W_OK):
        options += ["--worker-tmp-dir", "/dev/shm"]
    return [sys.executable, "-m", "gunicorn", *options, shape.app]


def vercel(listener: socket.socket, shape: Shape) -> list[str]:
    """The Python runtime of Vercel."""
    python = str(tools.vercel_python())
    return [sys.executable, "-m", "tests.e2e.vercel", "--fd", str(listener.fileno()), "--python", python]


def on_lambda(kind: str, listener: socket.socket, shape: Shape) -> list[str]:
    """A runtime client of Lambda (``kind``: see `tests.e2e.gateway`) behind an emulation of API Gateway."""
    options = ["--fd", str(listener.fileno()), "--instances", str(shape.workers + 1)]
    return [sys.executable, "-m", "tests.e2e.gateway", *options, kind]


FRONTS: dict[str, Callable[[socket.socket, Shape], list[str]]] = {
    "gunicorn": gunicorn,
    "vercel": vercel,
    "lambda": partial(on_lambda, "handler"),
    "stream": partial(on_lambda, "stream"),
}
"""The kinds of fronts, by name."""


class Front:
    """A running server. Its standard output and standard error go to the file ``log``."""

    def __init__(self, process: subprocess.Popen[bytes], kind: str, address: tuple[str, int], log: Path) -> None:
        self.process = process
        self.kind = kind
        self.host, self.port = address
        self.log = log

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``"""
        return f"http://{self.host}:{self.port}"

    def connect(self, timeout: float = 30) -> HTTPConnection:
        """Return a connection that sends paths unchanged."""
        return HTTPConnection(self.host, self.port, timeout=timeout)

    def log_text(self) -> str:
        """Return the log up to now."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until /healthz returns 200. Raises RuntimeError, with the log, if the process ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._is_healthy():
                return
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start; its log:\n{self.log_text()[-8000:]}")

    def _is_healthy(self) -> bool:
        connection = self.connect(timeout=START_SECONDS)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """Return the process IDs of the worker processes."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], stdout=subprocess.PIPE, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def stop(self) -> None:
        """Send SIGTERM, wait up to STOP_SECONDS, then kill the whole process group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a front: that of the tests with all other settings removed, and with strict warnings."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_", "VERCEL", "AWS_"))
    }
    for name in ("PORT", "HTTP_ADDR", "DOMAIN", "GUNICORN_CMD_ARGS", "PYTHONDEVMODE"):
        environ.pop(name, None)
    # When gunicorn takes over a socket, it leaves one to the garbage collector.
    warnings = "default::ResourceWarning,ignore::ResourceWarning:gunicorn.arbiter"
    return environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": warnings} | dict(settings)


@contextlib.contextmanager
def running(
    settings: Mapping[str, str],
    log: Path,
    *,
    kind: str = "gunicorn",
    shape: Shape = ONE_PROCESS,
    expect_trouble: bool = False,
) -> Iterator[Front]:
    """Run a front with these settings (environment variables) until the end of the ``with``.

    Fails if the log then contains a traceback or a ResourceWarning, unless ``expect_trouble`` is set.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, log.open("wb") as output:
        front = Front(
            subprocess.Popen(
                FRONTS[kind](listener, shape),
                cwd=ROOT,
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            ),
            kind,
            listener.getsockname()[:2],
            log,
        )
    try:
        front.wait_ready()
        yield front
    finally:
        front.stop()
    if not expect_trouble:
        check_log(front)


def check_log(front: Front) -> None:
    """Fail if the log contains one of `NOISE`."""
    text = front.log_text()
    found = [word for word in NOISE if word in text]
    assert not found, f"{found} in the log:\n{text[-8000:]}"
