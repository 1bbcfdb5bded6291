"""What clients may send: heads and bodies of requests, in one piece and in many, valid and not."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import HELLO_PATH, README
from tests.server.rawhttp import RawClient
from tests.server.serving import Serving, serving

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
FILE = f"GET {HELLO_PATH}/README HTTP/1.1\r\nHost: x\r\n\r\n".encode()
POST = b"POST /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(cache_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("server"), str(cache_directory), "--workers", "1", "--threads", "4") as server:
        yield server


@pytest.mark.parametrize(
    ("request_bytes", "status", "is_kept"),
    [
        (HEALTH, 200, True),
        (FILE, 200, True),
        (b"\r\n" + HEALTH, 200, True),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, False),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200, False),
        (b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, True),
        (b"OPTIONS /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 204, True),
        (b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 404, True),
        # invalid heads
        (b"nonsense\r\n\r\n", 400, False),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400, False),  # the beginning of TLS
        (b"GET /healthz HTTP/1.1\nHost: x\n\n", 400, False),
        (b"GET /healthz HTTP/3.0\r\n\r\n", 400, False),
        (b"GET /" + b"x" * 8300, 414, False),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, False),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431, False),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 70_000, 431, False),
        # bodies
        (POST + b"Content-Length: 3\r\n\r\nabc", 405, True),
        (POST + b"Content-Length: 3\r\n\r\n", 405, False),  # the next request is taken for the body
        (POST + b"Content-Length: 100000\r\n\r\n", 405, False),
        (POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n", 405, False),
        (POST + b"Content-Length: -3\r\n\r\n", 400, False),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", 405, True),
        (CHUNKED + b"3\r\nab", 405, False),
        (CHUNKED + b"wrong\r\n", 405, False),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), 400, False),
    ],
)
def test_each_request_has_its_status_and_keeps_or_closes_the_connection(
    server: Serving, request_bytes: bytes, status: int, is_kept: bool
) -> None:
    with RawClient(server.port) as client:
        assert client.ask(request_bytes) == status
        assert client.is_open() is is_kept


@pytest.mark.parametrize("size", [1, 7, 100])
def test_requests_may_arrive_in_any_pieces(server: Serving, size: int) -> None:
    requests = HEALTH + POST + b"Content-Length: 10\r\n\r\n0123456789" + FILE + CHUNKED + b"0\r\n\r\n" + HEALTH
    with RawClient(server.port) as client:
        for start in range(0, len(requests), size):
            client.send(requests[start : start + size])
        # A chunked body that is not there together with its head closes the connection.
        assert [client.status() for _ in range(4)] == [200, 405, 200, 405]


def test_pipelined_requests_are_answered_although_the_client_has_closed_its_side(server: Serving) -> None:
    for _ in range(30):
        with RawClient(server.port) as client:
            client.send(FILE * 3)
            client.socket.shutdown(socket.SHUT_WR)
            assert [client.status() for _ in range(3)] == [200] * 3
            assert client.rest() == b""


def test_pipelined_requests_are_answered_in_their_order(server: Serving) -> None:
    with RawClient(server.port) as client:
        client.send((HEALTH + FILE + POST + b"Content-Length: 2\r\n\r\nxx") * 40)
        assert [client.status() for _ in range(120)] == [200, 200, 405] * 40
        assert client.is_open()


def test_a_file_is_complete_if_the_client_closes_its_side_after_the_request(server: Serving) -> None:
    with RawClient(server.port) as client:
        client.send(FILE.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
        client.socket.shutdown(1)
        assert client.rest().partition(b"\r\n\r\n")[2] == README


def test_a_refused_upload_still_gets_its_response(server: Serving) -> None:
    with RawClient(server.port) as client:
        client.send(POST + b"Content-Length: 500000\r\n\r\n" + b"x" * 500_000)
        assert client.status() == 405
        assert client.rest() == b""  # not a reset
