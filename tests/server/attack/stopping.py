"""SIGTERM and SIGHUP while 40 clients connect and download: no connection is reset, and no download is cut."""

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, IncompleteRead

from tests.bench.report import Row
from tests.server.attack.site import HEALTHZ, HEALTHZ_BODY, LARGE_FILE, SMALL_DATA, SMALL_FILE, Site
from tests.server.attack.slowclients import Form
from tests.server.serving import Serving, eventually

FAST_CLIENTS = 20  # request /healthz and the file of 4 KB, in turn, each on a new connection
KEPT_CLIENTS = 10  # send REQUESTS requests on one connection, unless a response has Connection: close
REQUESTS = 20
KEPT_PAUSE_SECONDS = 0.03  # between two of these requests
SLOW_CLIENTS = 10  # download a part of the large file in about 0.7 s
PART = 8_000_000
PAUSE_SECONDS = 0.005  # between two reads of a slow client
READ_SIZE = 64 * 1024
TIMEOUT = 20.0
LOAD_SECONDS = 0.5  # before the first signal, so that downloads are running
ROUNDS = 20
STOP_SECONDS = 10.0  # a server that has not stopped by then counts as a failure


FILES = ((HEALTHZ, HEALTHZ_BODY), (SMALL_FILE, SMALL_DATA))


class Clients:
    """40 clients in threads. ``found`` counts complete responses ("complete") and what went wrong."""

    def __init__(self, port: int, large_data: bytes) -> None:
        self.found: Counter[str] = Counter()
        self._port = port
        self._large_data = large_data
        self._stop = threading.Event()
        self._lock = threading.Lock()
        kinds = [self._fast] * FAST_CLIENTS + [self._kept] * KEPT_CLIENTS + [self._slow] * SLOW_CLIENTS
        self._threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients until the end of the ``with``; each finishes its request."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _repeat(self, ask: Callable[[int], None]) -> None:
        """Send requests until the end of the ``with``, or until the server refuses a connection because it has stopped."""
        number = 0
        while not self._stop.is_set():
            try:
                ask(number)
                kind = "complete"
            except ConnectionRefusedError:
                kind = "refused"
            except ConnectionResetError:
                kind = "reset"
            except _Cut:
                kind = "cut"
            except OSError as error:
                kind = type(error).__name__
            with self._lock:
                self.found[kind] += 1
            if kind == "refused":
                return
            number += 1

    def _fast(self, number: int) -> None:
        path, body = FILES[number % 2]
        self._ask(Form().head("GET", path, "Connection: close"), body, 0)

    def _kept(self, number: int) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            for path, body in FILES * (REQUESTS // 2):
                connection.request("GET", path)
                response = connection.getresponse()
                if response.read() != body:
                    raise _Cut
                if response.will_close:
                    break
                time.sleep(KEPT_PAUSE_SECONDS)
        except IncompleteRead as error:
            raise _Cut from error
        finally:
            connection.close()

    def _slow(self, number: int) -> None:
        request = Form().head("GET", LARGE_FILE, f"Range: bytes=0-{PART - 1}", "Connection: close")
        self._ask(request, self._large_data[:PART], PAUSE_SECONDS)

    def _ask(self, request: str, body: bytes, pause: float) -> None:
        received = bytearray()
        with socket.socket() as connection:
            connection.settimeout(TIMEOUT)
            if pause:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_SIZE)
            connection.connect(("127.0.0.1", self._port))
            connection.sendall(request.encode())
            while chunk := connection.recv(READ_SIZE):
                received += chunk
                time.sleep(pause)
        if received.partition(b"\r\n\r\n")[2] != body:
            raise _Cut


class _Cut(Exception):
    """The response ended early, without a reset."""


def sigterm(site: Site, seconds: float, *, rounds: int = ROUNDS) -> Iterator[Row]:
    """Stop a server under load with SIGTERM, ``rounds`` times."""
    del seconds  # a round ends when the server has stopped
    found: Counter[str] = Counter()
    for _ in range(rounds):
        with site.server(NAR_STOP_SECONDS=str(round(STOP_SECONDS))) as server:
            clients = Clients(server.port, site.large_data)
            with clients.running():
                time.sleep(LOAD_SECONDS)
                server.process.send_signal(signal.SIGTERM)
                found["stopped"] += server.process.wait(STOP_SECONDS + 5) == 0
        found += clients.found
    yield from _rows("SIGTERM", found, rounds)
    yield Row("SIGTERM: servers that stopped", f"{found['stopped']}", goal=f"{rounds}", met=found["stopped"] == rounds)


def sighup(site: Site, seconds: float, *, rounds: int = ROUNDS) -> Iterator[Row]:
    """Replace the workers of a server under load with SIGHUP, ``rounds`` times."""
    del seconds  # a round ends when the old workers have ended
    with site.server(NAR_STOP_SECONDS=str(round(STOP_SECONDS))) as server:
        clients = Clients(server.port, site.large_data)
        with clients.running():
            time.sleep(LOAD_SECONDS)
            for _ in range(rounds):
                before = set(server.workers())
                server.process.send_signal(signal.SIGHUP)
                eventually(lambda before=before: _are_replaced(server, before), STOP_SECONDS + 5)  # type: ignore[misc]
    yield from _rows("SIGHUP", clients.found, rounds)
    refused = clients.found["refused"]
    yield Row("SIGHUP: refused connections", f"{refused}", goal="0", met=refused == 0)


def _are_replaced(server: Serving, before: set[int]) -> bool:
    now = set(server.workers())
    return len(now) == 2 and not now & before


def _rows(what: str, found: Counter[str], rounds: int) -> Iterator[Row]:
    wrong = {kind: count for kind, count in found.items() if kind not in ("complete", "refused", "stopped")}
    yield Row(
        f"{what}, {rounds} rounds: complete responses", f"{found['complete']:,}", goal="> 0", met=found["complete"] > 0
    )
    yield Row(
        f"{what}, {rounds} rounds: resets and cut downloads",
        ", ".join(f"{count} x {kind}" for kind, count in wrong.items()) or "0",
        goal="0",
        met=not wrong,
    )
