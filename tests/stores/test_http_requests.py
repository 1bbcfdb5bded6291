"""HTTP requests: headers, exact URLs, credentials, reuse of connections, retries."""

import base64
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from narcore.errors import FileNotInStore, StoreForbidden, StoreTimeout, StoreUnavailable
from narcore.stores import read_file
from narcore.version import __version__
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import Act, FlakyFile, Request, Step, answer, head


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_importing_the_stores_does_not_import_requests() -> None:
    program = "import sys, narcore.stores; sys.exit('requests' in sys.modules or 'urllib3' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_request_has_the_exact_url_and_only_the_expected_headers(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(lambda _: answer(200, b"x"))
    store = open_http(f"{server.url}/a%7Eb?priority=10&trusted=true")
    assert read_file(store, "nar/%41%7e+x.nar?hash=%2Fa&b", 9) == b"x"
    request = server.requests[0]
    assert (request.method, request.target) == ("GET", "/a%7Eb/nar/%41%7E+x.nar?hash=%2Fa&b")
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"nar-serve/{__version__}",
        "accept-encoding": "identity",
        "accept": "*/*",
    }


@pytest.mark.parametrize(
    ("userinfo", "netrc", "expected"),
    [
        ("us%40er:p%3Ass@", "", basic("us@er", "p:ss")),
        ("tokén:@", "", basic("tokén", "")),
        ("", "machine 127.0.0.1 login joe password secret", basic("joe", "secret")),
        ("a:b@", "machine 127.0.0.1 login joe password secret", basic("a", "b")),
        ("", "machine example.org login joe password secret", None),
    ],
)
def test_credentials_come_from_the_url_or_netrc(
    serve: Serve,
    open_http: OpenHttp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    userinfo: str,
    netrc: str,
    expected: str | None,
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(lambda _: answer(200, b"x"))
    store = open_http(server.url.replace("//", f"//{userinfo}"))
    assert read_file(store, "x", 9) == b"x"
    assert server.requests[0].headers.get("authorization") == expected
    assert store.url == server.url


def test_cookies_are_ignored(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(lambda _: answer(200, b"x", "Set-Cookie: a=b"))
    store = open_http(server.url)
    assert [read_file(store, "x", 9) for _ in range(2)] == [b"x", b"x"]
    assert "cookie" not in server.requests[1].headers


def test_sequential_requests_reuse_one_connection(serve: Serve, open_http: OpenHttp) -> None:
    def script(request: Request) -> list[Step]:
        if "missing-chunked" in request.target:
            return [head(404, "Transfer-Encoding: chunked") + b"2\r\nno\r\n0\r\n\r\n"]
        if "missing" in request.target:
            return answer(404, b"there is no such file")
        if "chunked" in request.target:
            return [head(200, "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n"]
        return list(FlakyFile(b"0123456789")(request))

    server = serve(script)
    store = open_http(server.url)
    for _ in range(2):
        assert read_file(store, "x", 99) == b"0123456789"
        assert read_file(store, "chunked", 99) == b"x"
        for path in ("missing", "missing-chunked"):
            with pytest.raises(FileNotInStore):
                store.get_file(path)
        with store.get_file("x", 2, 4) as file:
            assert b"".join(file) == b"23"
    assert (len(server.requests), server.connections) == (10, 1)


def test_threads_can_share_a_store(serve: Serve, open_http: OpenHttp) -> None:
    files = {f"/{number}": bytes([number]) * (50_000 + number) for number in range(100)}
    server = serve(lambda request: answer(200, files[request.target]))
    store = open_http(server.url)
    gate = threading.Barrier(16)

    def fetch(worker: int) -> bool:
        gate.wait(5)
        return all(read_file(store, path[1:], 10**6) == files[path] for path in list(files)[worker::16] * 3)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(fetch, range(16)))
    assert server.connections <= 16


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_errors_are_retried(serve: Serve, open_http: OpenHttp, slept: list[float], status: int) -> None:
    replies = [*[answer(status, b"busy")] * 3, answer(200, b"x")]
    server = serve(lambda _: replies.pop(0))
    assert read_file(open_http(server.url), "x", 9) == b"x"
    assert (len(server.requests), server.connections) == (4, 1)
    for pause, full in zip(slept, (0.2, 0.4, 0.8), strict=True):
        assert full / 2 <= pause <= full


@pytest.mark.parametrize("status", [400, 401, 404, 501, 505])
def test_permanent_errors_are_not_retried(serve: Serve, open_http: OpenHttp, status: int) -> None:
    server = serve(lambda _: answer(status, b"no"))
    with pytest.raises((StoreUnavailable, StoreForbidden, FileNotInStore)):
        open_http(server.url).get_file("x")
    assert len(server.requests) == 1


def test_retries_are_limited(serve: Serve, open_http: OpenHttp, slept: list[float]) -> None:
    server = serve(lambda _: answer(503))
    with pytest.raises(StoreUnavailable, match="503 Service Unavailable"):
        open_http(server.url, retries=2).get_file("x")
    assert (len(server.requests), len(slept)) == (3, 2)
    with pytest.raises(StoreUnavailable):
        open_http(server.url, retries=50).get_file("x")
    assert sum(slept[2:]) <= 5


@pytest.mark.parametrize("act", [Act.CUT, Act.CLOSE])
def test_connection_that_breaks_before_the_response_is_retried(
    serve: Serve, open_http: OpenHttp, slept: list[float], act: Act
) -> None:
    replies: list[list[Step]] = [[act], [act], answer(200, b"x")]
    server = serve(lambda _: replies.pop(0))
    assert read_file(open_http(server.url), "x", 9) == b"x"
    assert (len(server.requests), len(slept)) == (3, 2)


def test_refused_connection_is_retried_and_reported(serve: Serve, open_http: OpenHttp, slept: list[float]) -> None:
    server = serve(lambda _: answer(200))
    server.close()
    with pytest.raises(StoreUnavailable, match="Connection refused") as caught:
        open_http(server.url).get_file("x")
    assert len(slept) == 3
    assert caught.value.is_unreachable


def test_read_timeout_is_not_retried(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(lambda _: [b"HTTP/1.1 200 OK\r\n", Act.STALL])
    with pytest.raises(StoreTimeout, match=r"no data for 0\.2 s") as caught:
        open_http(server.url, read_timeout=0.2).get_file("x")
    assert not caught.value.is_unreachable
    assert len(server.requests) == 1


@pytest.mark.parametrize("junk", [b"not http at all\r\n\r\n", head(200, "Content-Length: 4", "Content-Length: 5")])
def test_invalid_http_response_is_unavailable(serve: Serve, open_http: OpenHttp, junk: bytes) -> None:
    server = serve(lambda _: [junk, Act.CLOSE])
    with pytest.raises(StoreUnavailable):
        open_http(server.url, retries=0).get_file("x")


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("3", 3, 3),
        ("0", 0.1, 0.2),
        (6, 4, 6),
        (-100, 0.1, 0.2),
        ("soon", 0.1, 0.2),
        ("-5", 0.1, 0.2),
    ],
)
def test_short_retry_after_is_respected(
    serve: Serve, open_http: OpenHttp, slept: list[float], value: str | int, least: float, most: float
) -> None:
    """An int ``value`` stands for a date that many seconds from now."""
    text = in_seconds(value) if isinstance(value, int) else value
    replies = [answer(429, b"", f"Retry-After: {text}"), answer(200, b"x")]
    server = serve(lambda _: replies.pop(0))
    assert read_file(open_http(server.url), "x", 9) == b"x"
    assert len(slept) == 1
    assert least <= slept[0] <= most


@pytest.mark.parametrize("value", ["11", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_long_retry_after_is_not_waited_for(serve: Serve, open_http: OpenHttp, slept: list[float], value: str) -> None:
    server = serve(lambda _: answer(503, b"", f"Retry-After: {value}"))
    with pytest.raises(StoreUnavailable, match="503"):
        open_http(server.url).get_file("x")
    assert (len(server.requests), slept) == (1, [])
