"""Starts the real application behind a real server, in processes of its own.

`FRONTS` has one starter for each way to run it. A starter gets the socket to listen on (opened here, so that no other
program can take the port) and gives the command line; everything else is the same for all.
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
"""What no request may leave in the log, unless the test says that it expects trouble."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many processes, how many threads in each, and what they run."""

    workers: int = 1
    threads: int = 16
    app: str = "api.index:app"


ONE_PROCESS = Shape()


def gunicorn(listener: socket.socket, shape: Shape) -> list[str]:
    """Gunicorn with threads, as the documentation tells people to run it."""
    options = ["--worker-class", "gthread", "--workers", str(shape.workers), "--threads", str(shape.threads)]
    options += ["--bind", f"fd://{listener.fileno()}", "--no-control-socket", "--graceful-timeout", "5"]
    if os.access("/dev/shm", os.W_OK):
        options += ["--worker-tmp-dir", "/dev/shm"]
    return [sys.executable, "-m", "gunicorn", *options, shape.app]


def vercel(listener: socket.socket, shape: Shape) -> list[str]:
    """Vercel's own runtime."""
    python = str(tools.vercel_python())
    return [sys.executable, "-m", "tests.e2e.vercel", "--fd", str(listener.fileno()), "--python", python]


def on_lambda(kind: str, listener: socket.socket, shape: Shape) -> list[str]:
    """A runtime client of Lambda, behind what API Gateway does."""
    options = ["--fd", str(listener.fileno()), "--instances", str(shape.workers + 1)]
    return [sys.executable, "-m", "tests.e2e.gateway", *options, kind]


FRONTS: dict[str, Callable[[socket.socket, Shape], list[str]]] = {
    "gunicorn": gunicorn,
    "vercel": vercel,
    "lambda": partial(on_lambda, "handler"),
    "stream": partial(on_lambda, "stream"),
}
"""The ways to run the application, by name."""


class Front:
    """A server that is running. ``log`` is where its standard error and output go."""

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
        """A connection that sends a path just as it is given."""
        return HTTPConnection(self.host, self.port, timeout=timeout)

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until /healthz answers 200; RuntimeError with the log if the process ends first, or takes too long."""
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
        """The process ids of the children that do the work."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], stdout=subprocess.PIPE, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def stop(self) -> None:
        """End it: politely, then all of its processes by force."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a front: that of the tests, with these settings and no others, and with strict warnings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_", "VERCEL", "AWS_"))
    }
    for name in ("PORT", "HTTP_ADDR", "DOMAIN", "GUNICORN_CMD_ARGS", "PYTHONDEVMODE"):
        kept.pop(name, None)
    # gunicorn's own way to take over a socket leaves one to the garbage collector.
    warnings = "default::ResourceWarning,ignore::ResourceWarning:gunicorn.arbiter"
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": warnings} | dict(settings)


@contextlib.contextmanager
def running(
    settings: Mapping[str, str],
    log: Path,
    *,
    kind: str = "gunicorn",
    shape: Shape = ONE_PROCESS,
    expect_trouble: bool = False,
) -> Iterator[Front]:
    """A front with these settings (environment variables), until the end of the ``with``.

    Fails if the log then has a traceback or a warning of something left open, unless ``expect_trouble``.
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
    """Fail if something is in the log that no request may leave there."""
    text = front.log_text()
    found = [word for word in NOISE if word in text]
    assert not found, f"{found} in the log:\n{text[-8000:]}"
