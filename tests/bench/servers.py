"""The servers that are compared, and how they are loaded and watched."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.memory import status_of
from tests.e2e.fronts import Shape, gunicorn, running

# As many processes as nginx has, too.
PROCESSES = 2
TICKS = os.sysconf("SC_CLK_TCK")

_NGINX = """
worker_processes {processes};
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    types {{ }}
    default_type application/octet-stream;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


class Server:
    """One that runs: its port, and its processes."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def _workers(self) -> list[int]:
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, listed)]

    def rss(self) -> int:
        return sum(status_of(pid, "VmRSS") for pid in self._workers())

    def cpu_seconds(self) -> float:
        return sum(_cpu_seconds(pid) for pid in self._workers())

    def run_client(
        self, mode: str, paths: list[str], *, seconds: float = 0, connections: int = 1
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.bench.client", mode, str(self.port), str(seconds), str(connections)]
        return subprocess.Popen([*command, *paths], stdout=subprocess.PIPE)

    def load(self, mode: str, paths: list[str], *, seconds: float = 0, connections: int = 1) -> tuple[float, float]:
        """What the client found: seconds, and the sum of what it counts (bytes or requests)."""
        client = self.run_client(mode, paths, seconds=seconds, connections=connections)
        output = client.communicate()[0]
        assert client.returncode == 0, "the client failed"
        found = json.loads(output)
        return found["seconds"], found["sum"]

    def requests_a_second(self, path: str, *, seconds: int = 2, connections: int = 16) -> float:
        """By wrk where it is installed: its client takes less of the machine from the server."""
        if shutil.which("wrk") is None:
            took, count = self.load("rate", [path], seconds=seconds, connections=connections)
            return count / took
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{self.port}{path}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        assert "Non-2xx" not in output, output
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert found is not None, output
        return float(found[1])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime: proc(5)


@contextmanager
def nar_serve(directory: Path, url: str, *, threads: int = 16, cache_dir: Path | None = None) -> Iterator[Server]:
    """The app behind gunicorn, with its cache in ``directory``."""
    settings = {"NAR_CACHE_URL": url, "NAR_CACHE_DIR": str(cache_dir or directory / "cache")}
    settings["NAR_CACHE_SIZE"] = "20G"
    with running(settings, directory / "gunicorn.log", shape=Shape(PROCESSES, threads)) as front:
        yield Server(front.port, front.process.pid)


@contextmanager
def bare_wsgi(size: int, *, threads: int = 16) -> Iterator[Server]:
    """What gunicorn takes for itself: the same server around an app that answers with ``size`` bytes, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        *command, _ = gunicorn(listener, Shape(PROCESSES, threads))
        process = subprocess.Popen(
            [*command, f"tests.bench.bare:of_size({size})"], pass_fds=(listener.fileno(),), stderr=subprocess.DEVNULL
        )
        port = listener.getsockname()[1]
    try:
        _wait_for(port)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx(directory: Path, root: Path) -> Iterator[Server]:
    """nginx over the files below ``root``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(processes=PROCESSES, directory=directory, port=port, root=root))
    process = subprocess.Popen(
        [
            shutil.which("nginx") or "/usr/sbin/nginx",
            "-e",
            f"{directory}/error.log",
            "-c",
            str(config),
            "-p",
            str(directory),
        ]
    )
    try:
        _wait_for(port)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError("nginx did not start")
