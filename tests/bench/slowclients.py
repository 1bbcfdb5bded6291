"""A server with many slow clients: response times of other requests, and memory."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.material import CacheDirectory, write_file, write_tree
from tests.bench.memory import status_of
from tests.bench.report import MB, Row, at_most
from tests.bench.setup import Setup
from tests.e2e.fronts import Shape, running
from tests.server.serving import serving

CLIENTS = 40
READ_SECONDS = 0.1  # a client reads READ_SIZE bytes at this interval: 160 KB/s
READ_SIZE = 16 * 1024
START_TIMEOUT = 5.0  # seconds
PROBES = 150
LIMIT_MS = 100.0
LIMIT_MB = 150.0


def slowclients(setup: Setup) -> Iterator[Row]:
    """40 downloads at 160 KB/s: duration of /healthz and memory, of nar-serve serve and of plain gunicorn."""
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.size)
    upstream = CacheDirectory(setup.directory / "upstream")
    path = upstream.add("site", write_tree(tree, setup.directory / "site.nar"), "zstd").store_path
    with serving(setup.directory / "ours", upstream.url, settings={"NAR_METRICS": "on"}) as ours:
        yield from _measure(
            "nar-serve serve", ours.port, [ours.process.pid, *ours.workers()], f"{path}/large.bin", goal=True
        )
    settings = {"NAR_CACHE_URL": upstream.url, "NAR_CACHE_DIR": str(setup.directory / "ours" / "nars")}
    with running(settings, setup.directory / "gunicorn.log", shape=Shape(2, 32), expect_trouble=True) as front:
        processes = [front.process.pid, *front.workers()]
        yield from _measure("gunicorn, 2 x 32", front.port, processes, f"{path}/large.bin", goal=False)


def _measure(what: str, port: int, processes: list[int], path: str, *, goal: bool) -> Iterator[Row]:
    with _slow_clients(port, path) as unanswered:
        probes = sorted(probe(port) for _ in range(PROBES))
        rss = sum(status_of(pid, "VmRSS") for pid in processes)
    yield at_most(
        f"{what}: of {CLIENTS} slow clients, without a response after {START_TIMEOUT:g} s",
        unanswered,
        "",
        0 if goal else None,
    )
    limit = LIMIT_MS if goal else None
    yield at_most(
        f"{what}: /healthz during {CLIENTS} slow downloads, slowest of {PROBES}", probes[-1] * 1000, "ms", limit
    )
    yield at_most(f"{what}: /healthz during {CLIENTS} slow downloads, median", median(probes) * 1000, "ms")
    yield at_most(f"{what}: total RSS", rss / MB, "MB", LIMIT_MB if goal else None)
    # PSS counts shared pages once in total, RSS counts them for each process.
    yield at_most(f"{what}: total PSS", sum(map(_pss, processes)) / MB, "MB")


def probe(port: int) -> float:
    """Return the seconds for a request on a new connection, which times out after 1 second."""
    started = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            response = connection.recv(4096)
            assert response.startswith(b"HTTP/1.1 200 "), response[:100]
    except TimeoutError:
        pass
    return time.perf_counter() - started


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def _slow_clients(port: int, path: str) -> Iterator[int]:
    """Start the downloads and read them slowly; yields the number of clients that got no response, because a worker is full."""
    connections, unanswered = _answered([_begin(port, path) for _ in range(CLIENTS)])
    stop = threading.Event()
    reader = threading.Thread(target=_read_slowly, args=(connections, stop))
    reader.start()
    try:
        yield len(unanswered)
    finally:
        stop.set()
        reader.join()
        for connection in connections + unanswered:
            connection.close()


def _answered(connections: list[socket.socket]) -> tuple[list[socket.socket], list[socket.socket]]:
    """Wait START_TIMEOUT; returns the connections on which a response has started, and the others."""
    deadline = time.monotonic() + START_TIMEOUT
    answered: list[socket.socket] = []
    while len(answered) < len(connections) and time.monotonic() < deadline:
        ready, _, _ = select.select([each for each in connections if each not in answered], [], [], 0.1)
        answered += ready
    return answered, [each for each in connections if each not in answered]


def _begin(port: int, path: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # otherwise, the kernel buffers megabytes
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def _read_slowly(connections: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(READ_SECONDS):
        for connection in connections:
            connection.recv(READ_SIZE)
