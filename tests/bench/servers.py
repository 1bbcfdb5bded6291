"""The servers that the benchmarks compare, the load on them, and the measurement of their CPU time and memory."""

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
from tests.e2e.fronts import Shape, gunicorn
from tests.server.serving import serving

# The number of worker processes of gunicorn and of nginx.
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
    keepalive_requests 1000000;  # the client in Python does not reconnect after the default of 1000
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
    """A running server: its port, and its main process."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def _processes(self) -> list[int]:
        """Return the IDs of the main process and its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def rss(self) -> int:
        """Return the sum of the RSS of all processes in bytes."""
        return sum(status_of(pid, "VmRSS") for pid in self._processes())

    def cpu_seconds(self) -> float:
        return sum(_cpu_seconds(pid) for pid in self._processes())

    def run_client(
        self, mode: str, paths: list[str], *, seconds: float = 0, connections: int = 1
    ) -> "subprocess.Popen[bytes]":
        """Start `tests.bench.client` in a new process."""
        command = [sys.executable, "-m", "tests.bench.client", mode, str(self.port), str(seconds), str(connections)]
        return subprocess.Popen([*command, *paths], stdout=subprocess.PIPE)

    def load(self, mode: str, paths: list[str], *, seconds: float = 0, connections: int = 1) -> tuple[float, float]:
        """Run the client; returns its seconds and the total of what it counts: bytes, or requests for the mode ``rate``."""
        client = self.run_client(mode, paths, seconds=seconds, connections=connections)
        output = client.communicate()[0]
        assert client.returncode == 0, "the client failed"
        found = json.loads(output)
        return found["seconds"], found["sum"]

    def requests_a_second(self, path: str, *, seconds: int = 2, connections: int = 16) -> float:
        """Measure the request rate with wrk if it is installed, because it uses less CPU than the client in Python."""
        if shutil.which("wrk") is None:
            duration, count = self.load("rate", [path], seconds=seconds, connections=connections)
            return count / duration
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
    """Run ``nar-serve serve``, with its cache in ``directory``."""
    settings = {"NAR_CACHE_DIR": str(cache_dir or directory / "cache"), "NAR_CACHE_SIZE": "20G"}
    settings |= {"NAR_WORKERS": str(PROCESSES), "NAR_THREADS": str(threads)}
    with serving(directory / "serve", url, settings=settings) as running:
        running.workers()
        yield Server(running.port, running.process.pid)


@contextmanager
def bare_wsgi(size: int, *, threads: int = 16) -> Iterator[Server]:
    """Run gunicorn with an app that always returns ``size`` bytes, to measure the overhead of gunicorn."""
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
    """Run nginx, which serves the files below ``root``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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
    raise RuntimeError(f"no server accepts connections on port {port}")
