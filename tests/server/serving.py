"""Runs the real ``nar-serve serve``, in its own process group, on a free port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeVar

from tests import ROOT
from tests.e2e.fronts import environment

START_SECONDS = 30
STOP_SECONDS = 15

_GREETING = re.compile(r"serving http://\S+:([0-9]+)/ with")

T = TypeVar("T")


class Serving:
    """A running server. The file ``out`` has its access log, the file ``err`` all other output."""

    def __init__(self, process: "subprocess.Popen[bytes]", directory: Path) -> None:
        self.process = process
        self.out = directory / "out"
        self.err = directory / "err"
        self.port = int(eventually(self._port, START_SECONDS))

    def _port(self) -> str:
        assert self.process.poll() is None, self.err.read_text()
        found = _GREETING.search(self.err.read_text())
        return found[1] if found else ""

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> "Reply":
        return fetch(self.port, path, headers)

    def workers(self) -> list[int]:
        """Wait until there are at least two worker processes. Returns their process IDs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return eventually(lambda: pids if len(pids := [int(pid) for pid in children.read_text().split()]) >= 2 else [])

    def access_log(self) -> list[str]:
        return self.out.read_text().splitlines()

    def kill(self) -> None:
        """Kill all processes of the server."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)


class Reply:
    """A complete response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()


def fetch(port: int, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Send a GET request on a new connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


@contextlib.contextmanager
def serving(
    directory: Path, cache_url: str, *options: str, settings: Mapping[str, str] | None = None, program: Path = ROOT
) -> Iterator[Serving]:
    """Run ``nar-serve serve`` with these options and environment variables, with its disk cache and its logs in ``directory``.

    ``program`` is the directory of the packages, by default this checkout.
    """
    directory.mkdir(exist_ok=True)
    environ = environment({"HTTP_ADDR": "127.0.0.1:0", "NAR_CACHE_DIR": str(directory / "nars")} | dict(settings or {}))
    command = [sys.executable, "-m", "narserve", "serve", "--store", cache_url, *options]
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        process = subprocess.Popen(
            command, cwd=program, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    try:
        yield Serving(process, directory)
        process.terminate()
        process.wait(STOP_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(condition: Callable[[], T], seconds: float = 10) -> T:
    """Wait until ``condition`` returns a true value. Returns the value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)
    return value
