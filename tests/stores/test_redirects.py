"""Redirects: followed by hand, hop by hop, and never to where only we can reach."""

import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import responses

from narcore.errors import FileNotInStore, StoreForbidden, StoreUnavailable
from narcore.stores import guard, read_file
from narcore.stores.guard import Kind, kind_of
from narcore.stores.urls import redirect_target
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import Act, FlakyFile, FlakyServer, Request, Step, answer, head, redirect

PUBLIC_ADDRESS = "93.184.216.34"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b/%41?c=%2F", "%41?c=%2F", "{url}/b/%41?c=%2F", "../b/%41?c=%2F"])
def test_within_the_store(serve: Serve, open_http: OpenHttp, status: int, location: str) -> None:
    def script(request: Request) -> Iterable[Step]:
        there = request.target == "/b/%41?c=%2F"
        return FlakyFile(b"0123")(request) if there else redirect(location.format(url=server.url), status)

    server = serve(script)
    store = open_http(server.url.replace("//", "//user:pass@"))
    with store.get_file("b/x", 1, 3) as file:
        assert b"".join(file) == b"12"
    assert server.connections == 1
    assert {request.headers["range"] for request in server.requests} == {"bytes=1-2"}
    assert all("authorization" in request.headers for request in server.requests)


def test_to_another_server_without_credentials(
    serve: Serve, open_http: OpenHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login joe password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    other = serve(lambda _: answer(200, b"x"))
    server = serve(lambda _: redirect(f"{other.url}/y?signature=z"))
    assert read_file(open_http(server.url), "x", 9) == b"x"
    assert "authorization" in server.requests[0].headers
    assert "authorization" not in other.requests[0].headers
    assert other.requests[0].target == "/y?signature=z"


def test_a_cut_body_goes_on_from_the_first_url(serve: Serve, open_http: OpenHttp) -> None:
    """A signed URL may have run out; the store gives a new one."""
    content = bytes(range(256)) * 100
    other = serve(FlakyFile(content, [1000]))
    signatures = iter("abc")
    server = serve(lambda _: redirect(f"{other.url}/y?signature={next(signatures)}"))
    assert read_file(open_http(server.url), "x", 10**6) == content
    assert [request.target for request in other.requests] == ["/y?signature=a", "/y?signature=b"]


def test_at_most_five_hops(serve: Serve, open_http: OpenHttp) -> None:
    def script(request: Request) -> list[Step]:
        hop = int(request.target[1:])
        return redirect(f"/{hop + 1}") if hop < 6 else answer(200, b"x")

    server = serve(script)
    assert read_file(open_http(server.url), "1", 9) == b"x"
    with pytest.raises(StoreUnavailable, match="more than 5 redirects"):
        open_http(server.url).get_file("0")
    assert len(server.requests) == 12


def test_the_body_of_a_redirect_is_not_waited_for(serve: Serve, open_http: OpenHttp) -> None:
    def script(request: Request) -> Iterable[Step]:
        if request.target == "/y":
            return answer(200, b"x")
        return [head(302, "Location: /y", length=1 << 40), b"x" * 1000, Act.STALL]

    assert read_file(open_http(serve(script).url, read_timeout=60), "x", 9) == b"x"


def test_a_redirect_to_nowhere(serve: Serve, open_http: OpenHttp) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"):
        open_http(serve(lambda _: answer(302)).url).get_file("x")


class Canary(FlakyServer):
    """A server that nobody should ever connect to."""


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary(lambda _: answer(200, b"secret")) as server:
        yield server
        # A connection would wait in the backlog until it is accepted: connect as well, and be the only one.
        with socket.create_connection(("127.0.0.1", server.port)) as last:
            last.sendall(b"GET /last HTTP/1.0\r\n\r\n")
            last.recv(1)
    assert [request.target for request in server.requests] == ["/last"]
    assert server.connections == 1


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A name service: names that are not in it are real ones (``localhost``, addresses)."""
    table = {"cache.example.org": [PUBLIC_ADDRESS]}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: Any, *args: Any, **options: Any) -> Any:
        if host.endswith(".example.org") and options.get("flags") != socket.AI_NUMERICHOST:
            found = table.get(host)
            if found is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


INWARD = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://127.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://2130706433:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://loop.example.org:{port}/",
    "http://mixed.example.org:{port}/",
    "http://cache.example.org@127.0.0.1:{port}/",
    "http://cache.example.org:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@cache.example.org/",
    "http://127.0.0.1:{port}\\@cache.example.org/",
    "http://cache.example.org\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\t/",
    "\x01http://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "https://127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fec0::1]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.100.100.200/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock",
    "javascript:alert(1)",
    "http://[::1",
    "http://127.0.0.1:{port}0000/",
    "http://127.0.0.1:x/",
    "http://127.0.0.1:-1/",
    "http://:{port}/",
]
# Paths of the cache itself, for whoever reads URLs by RFC 3986.
HARMLESS = [
    "http://cache.example.org#@127.0.0.1:{port}/",
    "///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "cache.example.org@127.0.0.1:{port}/",
]


@responses.activate
@pytest.mark.parametrize("location", INWARD + HARMLESS)
def test_a_public_cache_never_leads_inward(
    open_http: OpenHttp, canary: Canary, names: dict[str, list[str]], location: str
) -> None:
    names["loop.example.org"] = ["127.0.0.1"]
    names["mixed.example.org"] = [PUBLIC_ADDRESS, "127.0.0.1"]
    responses.add_passthru(re.compile(r"(?!http://cache\.example\.org)"))
    target = location.format(port=canary.port).encode().decode("latin-1")
    responses.add("GET", "http://cache.example.org/x", status=302, headers={"Location": target})
    responses.add("GET", re.compile(r"http://cache\.example\.org(?!/x)"), status=404)
    store = open_http("http://cache.example.org", connect_timeout=0.2, retries=0)
    with pytest.raises(FileNotInStore if location in HARMLESS else StoreForbidden):
        store.get_file("x")


@responses.activate
def test_a_name_that_changes_its_address(
    open_http: OpenHttp, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the connection is made to the address that was checked, not to what the name says next."""
    connected: list[str] = []

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        connected.append(address[0])
        names["rebind.example.org"] = ["127.0.0.1"]
        raise OSError

    monkeypatch.setattr(guard, "create_connection", connect)
    names["rebind.example.org"] = [PUBLIC_ADDRESS]
    responses.add_passthru("http://rebind.example.org")
    responses.add("GET", "http://cache.example.org/x", status=302, headers={"Location": "http://rebind.example.org/"})
    store = open_http("http://cache.example.org", retries=0)
    with pytest.raises(StoreUnavailable):
        store.get_file("x")
    with pytest.raises(StoreForbidden, match="loopback"):
        store.get_file("x")
    assert connected == [PUBLIC_ADDRESS]


@pytest.mark.parametrize("location", ["http://169.254.169.254/", "http://10.0.0.1/", "http://0.0.0.0:{port}/"])
def test_a_local_cache_leads_to_its_own_kind_only(serve: Serve, open_http: OpenHttp, location: str) -> None:
    server = serve(lambda _: redirect(location.format(port=1)))
    with pytest.raises(StoreForbidden, match="address"):
        open_http(server.url).get_file("x")


def test_through_a_proxy_numbers_are_checked(
    serve: Serve, open_http: OpenHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = [redirect("http://10.0.0.1/"), redirect("http://other.example.org/"), answer(200, b"x")]
    proxy = serve(lambda _: replies.pop(0))
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//joe:secret@"))
    store = open_http("http://cache.example.org")
    with pytest.raises(StoreForbidden, match="private"):
        store.get_file("x")
    assert read_file(store, "x", 9) == b"x"
    assert [request.target for request in proxy.requests] == [
        "http://cache.example.org/x",
        "http://cache.example.org/x",
        "http://other.example.org/",
    ]
    assert all("proxy-authorization" in request.headers for request in proxy.requests)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        (PUBLIC_ADDRESS, Kind.PUBLIC),
        ("2606:2800:220:1::1", Kind.PUBLIC),
        ("64:ff9b::5db8:d822", Kind.PUBLIC),
        ("::ffff:10.0.0.1", Kind.PRIVATE),
        ("100.64.0.1", Kind.PRIVATE),
        ("fd00::1", Kind.PRIVATE),
        ("fec0::1", Kind.PRIVATE),
        ("127.9.9.9", Kind.LOOPBACK),
        ("::1", Kind.LOOPBACK),
        ("fe80::1%eth0", Kind.LINK_LOCAL),
        ("169.254.0.1", Kind.LINK_LOCAL),
        ("0.0.0.0", Kind.RESERVED),
        ("::", Kind.RESERVED),
        ("ff02::1", Kind.RESERVED),
        ("240.0.0.1", Kind.RESERVED),
        ("::127.0.0.1", Kind.RESERVED),
    ],
)
def test_kinds_of_addresses(address: str, kind: Kind) -> None:
    assert kind_of(address) is kind


@pytest.mark.parametrize(
    ("current", "location", "target"),
    [
        ("https://a.example/x/y", "https://b.example/z?q=1#f", "https://b.example/z?q=1"),
        ("http://a.example/x/y", "https://a.example/z", "https://a.example/z"),
        ("http://a.example/x/y", "//b.example/z", "http://b.example/z"),
        ("https://a.example/x/y", "z z/\xc3\xa9", "https://a.example/x/z%20z/%C3%A9"),
        ("https://a.example/x/y", "http://a.example/z", None),
        ("https://a.example/x/y", "http://b.example/z", None),
        ("https://a.example/x/y", "https://u:p@b.example/z", None),
        ("https://a.example/x/y", "https://b.example/z\x00", None),
        ("https://a.example/x/y", "data:,x", None),
    ],
)
def test_where_a_location_leads(current: str, location: str, target: str | None) -> None:
    if target is None:
        with pytest.raises(StoreForbidden):
            redirect_target(current, location)
    else:
        assert redirect_target(current, location) == target
