"""A server with many slow clients: does it still answer others, and what does it need?"""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.material import Upstream, write_file, write_tree
from tests.bench.memory import status_of
from tests.bench.report import MB, Row, at_most
from tests.bench.setup import Setup
from tests.e2e.fronts import Shape, running
from tests.server.serving import serving

CLIENTS = 40
READ_SECONDS = 0.1  # so often a client takes READ_SIZE bytes: 160 KB/s
READ_SIZE = 16 * 1024
PATIENCE = 5.0
PROBES = 150
LIMIT_MS = 100.0
LIMIT_MB = 150.0


def slowclients(setup: Setup) -> Iterator[Row]:
    """40 downloads at 160 KB/s: how long /healthz takes meanwhile, and memory, of nar-serve serve and of bare gunicorn."""
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.size)
    upstream = Upstream(setup.directory / "upstream")
    path = upstream.add("site", write_tree(tree, setup.directory / "site.nar"), "zstd").store_path
    with serving(setup.directory / "ours", upstream.url, NAR_METRICS="on") as ours:
        yield from _measure(
            "nar-serve serve", ours.port, [ours.process.pid, *ours.workers()], f"{path}/large.bin", goal=True
        )
    settings = {"NAR_CACHE_URL": upstream.url, "NAR_CACHE_DIR": str(setup.directory / "ours" / "nars")}
    with running(settings, setup.directory / "gunicorn.log", shape=Shape(2, 32), expect_trouble=True) as front:
        processes = [front.process.pid, *front.workers()]
        yield from _measure("gunicorn, 2 x 32", front.port, processes, f"{path}/large.bin", goal=False)


def _measure(what: str, port: int, processes: list[int], path: str, *, goal: bool) -> Iterator[Row]:
    with _slow_clients(port, path) as left_waiting:
        probes = sorted(_probe(port) for _ in range(PROBES))
        rss = sum(status_of(pid, "VmRSS") for pid in processes)
    yield at_most(
        f"{what}: of {CLIENTS} slow clients, without an answer after {PATIENCE:g} s",
        left_waiting,
        "",
        0 if goal else None,
    )
    limit = LIMIT_MS if goal else None
    yield at_most(
        f"{what}: /healthz beside {CLIENTS} slow clients, slowest of {PROBES}", probes[-1] * 1000, "ms", limit
    )
    yield at_most(f"{what}: the same, median", median(probes) * 1000, "ms")
    yield at_most(f"{what}: RSS, added up", rss / MB, "MB", LIMIT_MB if goal else None)
    # What is shared by the processes counts once here; RSS counts it for each.
    yield at_most(f"{what}: memory of its own (PSS)", sum(map(_pss, processes)) / MB, "MB")


def _probe(port: int) -> float:
    """Seconds for one request on a connection of its own; those that take longer than a second count as one."""
    started = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:100]
    except TimeoutError:
        pass
    return time.perf_counter() - started


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextmanager
def _slow_clients(port: int, path: str) -> Iterator[int]:
    """All of them in the middle of their download, but for as many as it gives, which a full worker keeps waiting."""
    waiting = [_begin(port, path) for _ in range(CLIENTS)]
    connections, waiting = _answered(waiting)
    stop = threading.Event()
    reader = threading.Thread(target=_read_slowly, args=(connections, stop))
    reader.start()
    try:
        yield len(waiting)
    finally:
        stop.set()
        reader.join()
        for connection in connections + waiting:
            connection.close()


def _answered(connections: list[socket.socket]) -> tuple[list[socket.socket], list[socket.socket]]:
    """Those on which an answer has begun within PATIENCE, and the others."""
    deadline = time.monotonic() + PATIENCE
    answered: list[socket.socket] = []
    while len(answered) < len(connections) and time.monotonic() < deadline:
        ready, _, _ = select.select([each for each in connections if each not in answered], [], [], 0.1)
        answered += ready
    return answered, [each for each in connections if each not in answered]


def _begin(port: int, path: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # or the kernel takes megabytes for them
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def _read_slowly(connections: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(READ_SECONDS):
        for connection in connections:
            connection.recv(READ_SIZE)
