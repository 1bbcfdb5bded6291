"""Stopping the server: gracefully on the first signal, immediately on the second."""

import os
import signal
import socket
import time
from contextlib import closing

import pytest

from tests.server.conftest import BIG_DATA, BIG_FILE, Start
from tests.server.serving import Serving, eventually


def begin_download(server: Serving) -> socket.socket:
    """Begin a response, and do not read the rest. Returns the connection."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(f"GET {BIG_FILE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def read_rest(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        while chunk := connection.recv(1 << 20):
            received += chunk
    except ConnectionResetError:
        pass
    return bytes(received)


def is_refused(server: Serving) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: the socket is closed at that moment
        return True
    return False


@pytest.mark.parametrize(
    ("by", "source"), [(signal.SIGTERM, "fill"), (signal.SIGINT, "disk")], ids=["SIGTERM-fill", "Ctrl-C-disk"]
)
def test_a_download_completes_before_the_server_stops(start: Start, by: signal.Signals, source: str) -> None:
    with start() as server:
        if source == "disk":
            eventually(lambda: is_on_disk(server))
        with closing(begin_download(server)) as connection:
            if by is signal.SIGINT:
                os.killpg(server.process.pid, by)  # as a terminal does on Ctrl-C
            else:
                server.process.send_signal(by)
            eventually(lambda: is_refused(server))
            assert server.process.poll() is None
            assert read_rest(connection).partition(b"\r\n\r\n")[2] == BIG_DATA
        assert server.wait() == 0
        line = server.access_log()[-1]
        assert f'"GET {BIG_FILE}" 200 {len(BIG_DATA)} B' in line
        assert f"ms {source} " in line
        assert " cut " not in line
        assert "stopping after the responses in progress" in server.err.read_text()
        assert "Traceback" not in server.err.read_text()


def is_on_disk(server: Serving) -> bool:
    assert server.get(BIG_FILE).body == BIG_DATA
    eventually(server.access_log)
    return " disk " in server.access_log()[-1]


def test_a_second_signal_stops_immediately(start: Start) -> None:
    with start() as server, closing(begin_download(server)) as connection:
        server.process.terminate()
        time.sleep(0.5)  # two signals within 0.3 s count as one: see SAME_SIGNAL_SECONDS
        assert server.process.poll() is None
        signaled = time.monotonic()
        server.process.terminate()
        assert server.wait() == 0
        assert time.monotonic() - signaled < 10
        assert len(read_rest(connection)) < len(BIG_DATA)


def test_connections_are_cut_after_nar_stop_seconds(start: Start) -> None:
    with start(NAR_STOP_SECONDS="1") as server, closing(begin_download(server)) as connection:
        signaled = time.monotonic()
        server.process.terminate()
        assert server.wait() == 0
        assert 0.9 < time.monotonic() - signaled < 10
        assert len(read_rest(connection)) < len(BIG_DATA)
        assert "cutting 1 connections, since NAR_STOP_SECONDS have passed" in server.err.read_text()


def test_sighup_replaces_the_workers_and_cuts_no_connection(start: Start) -> None:
    with start() as server, closing(begin_download(server)) as connection:
        before = set(server.workers())
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(set(server.workers()) - before) == 2)
        assert server.get("/healthz").status == 200
        assert read_rest(connection).partition(b"\r\n\r\n")[2] == BIG_DATA
