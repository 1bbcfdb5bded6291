"""Tests of the upstream server: if it did not inject a fault, the tests of that fault would prove nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.upstream import Upstream

DATA = bytes(range(256)) * 4096


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    (tmp_path / "nar").mkdir()
    (tmp_path / "nar/x.nar").write_bytes(DATA)
    (tmp_path / "x.ls").write_bytes(b"{}")
    with Upstream() as server:
        server.mount("cache", tmp_path)
        yield server


@pytest.fixture
def url(upstream: Upstream) -> str:
    return f"{upstream.url}/cache/nar/x.nar"


def test_the_upstream_serves_files_and_counts_requests(upstream: Upstream, url: str) -> None:
    with requests.Session() as session:
        whole = session.get(url)
        head = session.head(url)
        part = session.get(url, headers={"Range": "bytes=1-3"})
        tail = session.get(url, headers={"Range": "bytes=-2", "If-Range": whole.headers["ETag"]})
        stale = session.get(url, headers={"Range": "bytes=-2", "If-Range": '"other"'})
        beyond = session.get(url, headers={"Range": f"bytes={len(DATA)}-"})
        unchanged = session.get(url, headers={"If-None-Match": whole.headers["ETag"]})
        missing = session.get(f"{upstream.url}/cache/../secret")
    assert (whole.status_code, whole.content) == (200, DATA)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    assert (part.status_code, part.content) == (206, DATA[1:4])
    assert part.headers["Content-Range"] == f"bytes 1-3/{len(DATA)}"
    assert (tail.status_code, tail.content) == (206, DATA[-2:])
    assert (stale.status_code, stale.content) == (200, DATA)
    assert (beyond.status_code, unchanged.status_code, missing.status_code) == (416, 304, 404)
    assert upstream.count("*.nar") == 7
    assert upstream.count("*.nar", method="HEAD") == 1
    assert [request.range for request in upstream.seen("*.nar")][2] == "bytes=1-3"
    upstream.clear()
    assert upstream.count() == 0


@pytest.mark.parametrize("cut_after", [0, 1, 100_000])
def test_a_response_is_cut_once(upstream: Upstream, url: str, cut_after: int) -> None:
    with upstream.fault("*.nar", cut_after=cut_after, times=1), requests.Session() as session:
        got = session.get(url, stream=True)
        with pytest.raises(requests.RequestException):
            b"".join(got.iter_content(1000))
        assert upstream.sent() == cut_after
        assert session.get(url).content == DATA


def test_faults_change_responses(upstream: Upstream, url: str) -> None:
    with requests.Session() as session:
        with upstream.fault("*.nar", status=503, headers={"Retry-After": "1"}):
            refused = session.get(url)
        with upstream.fault("*.nar", patch=(5, b"XY")):
            wrong = session.get(url, headers={"Range": "bytes=4-9"})
        with upstream.fault("*.nar", ranges=False):
            whole = session.get(url, headers={"Range": "bytes=4-9"})
        with upstream.fault("*.nar", length=10):
            short = session.get(url)
        with upstream.fault("*.nar", headers={"Content-Range": "bytes 0-1/2"}):
            forged = session.get(url, headers={"Range": "bytes=4-9"})
        with upstream.fault("*.nar", drop=True), pytest.raises(requests.ConnectionError):
            session.get(url)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert wrong.content == DATA[4:5] + b"XY" + DATA[7:10]
    assert (whole.status_code, whole.content) == (200, DATA)
    assert (short.status_code, short.content) == (200, DATA[:10])
    assert forged.headers["Content-Range"] == "bytes 0-1/2"


def test_a_stall_lasts_until_the_fault_is_removed(upstream: Upstream, url: str) -> None:
    received = bytearray()

    def read() -> None:
        with requests.get(url, stream=True) as got:
            for chunk in got.iter_content(1000):
                received.extend(chunk)

    with upstream.fault("*.nar", stall_after=1000):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert len(received) == 1000
    thread.join(5)
    assert received == DATA


def test_a_rate_slows_a_response_down(upstream: Upstream, url: str) -> None:
    with upstream.fault("*.nar", rate=2_000_000):
        started = time.monotonic()
        assert requests.get(url).content == DATA
    assert time.monotonic() - started > 0.4


def test_a_mount_hides_files_and_adds_headers(upstream: Upstream, tmp_path: Path) -> None:
    without = upstream.mount("without", tmp_path, hidden=("*.ls",))
    encoded = upstream.mount("encoded", tmp_path, headers={"*.ls": {"Content-Encoding": "identity"}})
    assert requests.get(f"{without}/x.ls").status_code == 404
    assert requests.get(f"{encoded}/x.ls").headers["Content-Encoding"] == "identity"
    assert "Content-Encoding" not in requests.get(f"{encoded}/nar/x.nar", stream=True).headers


def test_leaving_closes_idle_connections(tmp_path: Path) -> None:
    with Upstream() as server, socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 404"
