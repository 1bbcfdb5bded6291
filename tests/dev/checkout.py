"""A small checkout that contains the real development server and a simple application with predictable responses."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests import ROOT

T = TypeVar("T")

INDEX = '''\
"""Stands in for the project's application."""
import time

ANSWER = "answer 0"


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        start_response("200 OK", [("Content-Length", "20")])
        return slowly()
    if path.startswith("/broken"):
        start_response("200 OK", [("Content-Length", "1000")] if path == "/broken/length" else [])
        return broken()
    body = f"{ANSWER} {path}".encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def slowly():
    for _ in range(20):
        yield b"."
        time.sleep(0.04)


def broken():
    yield b"x" * 100
    raise OSError("the disk is gone")
'''

FACTORY = """\
from werkzeug.wrappers import Response


def create_app(settings, cache=None, examples=()):
    return Response(repr((settings.cache_urls, examples)))
"""


def make_checkout(root: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("narcore", "public", "narserve/dev", "narserve/server", "locks"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    (root / "api").mkdir()
    (root / "api" / "__init__.py").touch()
    for name in ("start-dev", "vercel.json", "pyproject.toml", "README.md", "LICENSE", "narserve/__init__.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "api" / "index.py").write_text(INDEX)
    (root / "api" / "factory.py").write_text(FACTORY)
    return root


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of this process without settings of the server, with a free port, and with a store, so no demo."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("NAR_", "NIX_CACHE", "HTTP_"))
    }
    return inherited | {"PORT": "0", "PYTHONDEVMODE": "", "NAR_CACHE_URL": "https://cache.invalid"} | extra


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def get(self, path: str = "/", method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read().decode(),
            )
        finally:
            connection.close()

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]


@contextmanager
def running(root: Path, log: Path, environ: Mapping[str, str], *command: str) -> Iterator[Running]:
    """Start the development server of a checkout, and wait for its URL. At the end, stop it if the test has not."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command or (sys.executable, "-m", "narserve.dev.supervisor"), cwd=root, env=environ, stdout=out, stderr=out
        )
    server = Running(process, log)
    try:
        server.port = wait_for(lambda: port_in(log.read_text()))
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def port_in(text: str) -> int:
    found = re.search(r"start-dev: http://\S+?:(\d+)/", text)
    return int(found[1]) if found else 0


def wait_for(condition: Callable[[], T], seconds: float = 15) -> T:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Return whether the process runs. A zombie, which waits to be reaped by its parent, does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
