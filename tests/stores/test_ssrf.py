"""Server-side request forgery: no answer of a cache makes us connect to a host that only this machine can reach.

Two untrusted inputs contain URLs: the ``URL`` of a narinfo, which no signature covers, and the ``Location`` of a redirect.
The tests try the following attacks. A canary listens on another port of this machine and on another loopback address, and must
not see a connection.

- absolute URLs with another host, port, scheme or user, and URLs without a scheme; the scheme in capitals, or followed by no
  slash, one slash or three slashes
- user and password that look like a host, or a host that looks like user and password; ``#`` and ``?`` before an ``@``
- backslashes, plain, encoded once and encoded twice; tabs, line ends and control characters, plain and encoded (a narinfo must
  not be able to add a header or a second request)
- leaving the store through ``..``: encoded once, twice, three times or partly, with a ``;``, after a directory, with an encoded
  slash
- other notations of 127.0.0.1: decimal, octal, hexadecimal, short, with a trailing dot, percent-encoded, in full-width or
  circled digits, with ideographic full stops
- IPv6: loopback, unspecified, IPv4-mapped, NAT64, 6to4, link-local, unique local (a cloud's metadata service), site-local
- private, shared (100.64/10), link-local (169.254.169.254), multicast, broadcast and unspecified addresses
- names that resolve to loopback, also as one of several addresses, or only after the check (DNS rebinding)
- the schemes file, ftp, gopher, unix, javascript, data; invalid ports
- redirects from a public cache, and from an S3 bucket, whose session token must not be sent along
- several hops, of which only the last leads to a loopback address; a redirect as the answer to a resumed request

The tests send nothing to addresses other than loopback: ``responses`` simulates the public cache, and a fixture makes any other
connection fail.
"""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import responses

from narcore.errors import FileNotInStore, StoreForbidden, StoreUnavailable
from narcore.stores import BinaryCacheStore, HttpBinaryCacheStore, LocalBinaryCacheStore, MemoryStore, read_file
from narcore.stores.buckets.googleazure import ObjectBinaryCacheStore
from narcore.stores.buckets.s3 import S3BinaryCacheStore
from narcore.stores.http import guard
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import FlakyFile, Request, Step, answer, redirect

PUBLIC_ADDRESS = "93.184.216.34"


class Canary:
    """Listens on one port of two loopback addresses, and records connections."""

    def __init__(self) -> None:
        first = socket.create_server(("127.0.0.1", 0))
        self.port: int = first.getsockname()[1]
        self._listeners = [first, socket.create_server(("127.0.0.2", self.port))]
        self.seen: list[str] = []

    def count(self) -> list[str]:
        """Return the addresses that were connected to. A connection is in the backlog as soon as ``connect`` returns."""
        for listener in self._listeners:
            listener.setblocking(False)
            while True:
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    break
                connection.close()
                self.seen.append(listener.getsockname()[0])
        return self.seen

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    with contextlib.closing(Canary()) as canary:
        yield canary
        assert canary.count() == []
        for address in ("127.0.0.1", "127.0.0.2"):  # prove that the canary notices connections
            socket.create_connection((address, canary.port)).close()
        assert canary.count() == ["127.0.0.1", "127.0.0.2"]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A table of simulated names under example.org; other names (``localhost``, addresses) are resolved normally."""
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


# --- the URL of a narinfo

URLS = [
    "http://{canary}/x",
    "https://{canary}/x",
    "HTTP://{canary}/x",
    "http://127.0.0.2:{port}/x",
    "http:/{canary}/x",
    "http:{canary}/x",
    "http:///{canary}/x",
    "//{canary}/x",
    "///{canary}/x",
    "////{canary}/x",
    "/\\{canary}/x",
    "\\\\{canary}\\x",
    "%5c%5c{canary}/x",
    "%2f%2f{canary}/x",
    "/%2f{canary}/x",
    "/%5c{canary}/x",
    "/%255c{canary}/x",
    "http:\\\\{canary}\\x",
    "http://{store}@{canary}/x",
    "http://user:pass@{canary}/x",
    "http://{store}:80@{canary}/x",
    "http://{canary}#@{store}/x",
    "http://{canary}?@{store}/x",
    "http://{canary}\\@{store}/x",
    "http://{canary}%23@{store}/x",
    "http://{store}#@{canary}/x",
    "http://{store}\\@{canary}/x",
    "http://{store}.{canary}/x",
    "@{canary}/x",
    ":@{canary}/x",
    ":{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f.1:{port}/x",
    "http://0177.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://localhost:{port}/x",
    "http://127\u30020\u30020\u30021:{port}/x",
    "http://\u2460\u2461\u2466.0.0.1:{port}/x",
    "nar/x HTTP/1.1\r\nHost: {canary}\r\nX: y",
    "nar/x%20HTTP/1.1%0d%0aHost:%20{canary}%0d%0a",
    "nar/x\nHost: {canary}",
    "nar/x\0{canary}",
    "nar/x\t{canary}",
    "file:///etc/passwd",
    "FILE://{canary}/etc/passwd",
    "gopher://{canary}/_GET%20/",
    "ftp://{canary}/x",
    "s3://{canary}/x",
    "unix:///var/run/docker.sock",
    "data:,x",
    "javascript:alert(1)",
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e/%252e%252e/etc/passwd",
    "%25252e%25252e/etc/passwd",
    "nar/../../secret",
    "nar/..;/..;/secret",
    "/secret",
    "/etc/passwd",
]


def play_public_files(request: Request) -> list[Step]:
    """Serve an empty cache, also as a bucket, with a secret outside of it."""
    path = request.target.partition("?")[0]
    if path in ("/secret", "/bucket/secret", "/a/secret"):
        return answer(200, b"secret", "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT", 'ETag: "x"')
    return answer(404)


def over_http(url: str, directory: Path) -> BinaryCacheStore:
    return HttpBinaryCacheStore(f"{url}/a/b", retries=0)


def over_s3(url: str, directory: Path) -> BinaryCacheStore:
    return S3BinaryCacheStore(f"s3://bucket/b?endpoint={url}", retries=0)


def over_google(url: str, directory: Path) -> BinaryCacheStore:
    return ObjectBinaryCacheStore(f"gs://bucket/b?endpoint={url}", retries=0)


def over_azure(url: str, directory: Path) -> BinaryCacheStore:
    return ObjectBinaryCacheStore(f"az://bucket/b?account=joe&endpoint={url}", retries=0)


def on_disk(url: str, directory: Path) -> BinaryCacheStore:
    (directory / "a/b/nar").mkdir(parents=True)
    for place in (directory, directory / "a"):
        (place / "secret").write_bytes(b"secret")
    return LocalBinaryCacheStore(str(directory / "a/b"))


def in_memory(url: str, directory: Path) -> BinaryCacheStore:
    return MemoryStore({"nar/x": b"x"})


STORES = [over_http, over_s3, over_google, over_azure, on_disk, in_memory]
Open = Callable[[str, Path], BinaryCacheStore]


@pytest.mark.parametrize("open_store", STORES)
def test_narinfo_url_leads_only_into_its_store(
    serve: Serve, closing: ExitStack, canary: Canary, tmp_path: Path, open_store: Open
) -> None:
    server = serve(play_public_files)
    store = open_store(server.url, tmp_path)
    closing.callback(store.close)
    wrong = []
    for pattern in URLS:
        url = pattern.format(
            canary=f"127.0.0.1:{canary.port}", port=canary.port, store=server.url.removeprefix("http://")
        )
        try:
            content = read_file(store, url, 1000)
        except (StoreForbidden, FileNotInStore):
            continue
        # RFC 3986 lets an HTTP store's narinfo name a path of its own host, and nothing more.
        if not (url == "/secret" and open_store is over_http):
            wrong.append((url, content))
    assert not wrong
    hosts = {(request.headers["host"], request.method) for request in server.requests}
    assert hosts <= {(server.url.removeprefix("http://"), "GET")}
    inside = ("/a/b/", "/bucket/b/", "/bucket/b%2F")
    outside = [request.target for request in server.requests if not request.target.startswith(inside)]
    assert [target for target in outside if open_store is not over_http or ".." in target or "@" in target] == []


# --- redirects

FORBIDDEN = [
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
# Paths of the cache itself, if parsed as RFC 3986 says.
HARMLESS = [
    "http://cache.example.org#@127.0.0.1:{port}/",
    "///127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "cache.example.org@127.0.0.1:{port}/",
]


def public_http(open_http: OpenHttp) -> BinaryCacheStore:
    return open_http("http://cache.example.org", connect_timeout=0.2, retries=0)


def public_s3(open_http: OpenHttp) -> BinaryCacheStore:
    return S3BinaryCacheStore("s3://bucket?endpoint=http://cache.example.org", connect_timeout=0.2, retries=0)


@pytest.fixture(params=[public_http, public_s3])
def public(
    request: pytest.FixtureRequest, open_http: OpenHttp, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "aladdin")
    store = request.param(open_http)
    closing.callback(store.close)
    return store


FIRST = re.compile(r"http://cache\.example\.org/(bucket/)?x(\?|$)")


@responses.activate
@pytest.mark.parametrize("location", FORBIDDEN + HARMLESS)
def test_public_cache_never_redirects_to_an_internal_address(
    public: BinaryCacheStore, canary: Canary, names: dict[str, list[str]], location: str
) -> None:
    names["loop.example.org"] = ["127.0.0.1"]
    names["mixed.example.org"] = [PUBLIC_ADDRESS, "127.0.0.1"]
    responses.add_passthru(re.compile(r"(?!http://cache\.example\.org)"))
    target = location.format(port=canary.port).encode().decode("latin-1")
    responses.add("GET", FIRST, status=302, headers={"Location": target})
    responses.add("GET", re.compile(r"http://cache\.example\.org(?!/(bucket/)?x(\?|$))"), status=404)
    with pytest.raises(FileNotInStore if location in HARMLESS else StoreForbidden):
        public.get_file("x")


@responses.activate
def test_last_of_several_redirects_is_checked(
    public: BinaryCacheStore, canary: Canary, names: dict[str, list[str]]
) -> None:
    names["other.example.org"] = [PUBLIC_ADDRESS]
    responses.add_passthru("http://127.0.0.1")
    responses.add("GET", FIRST, status=307, headers={"Location": "http://other.example.org/y"})
    responses.add("GET", "http://other.example.org/y", status=301, headers={"Location": "/z"})
    internal = f"http://127.0.0.1:{canary.port}/"
    responses.add("GET", "http://other.example.org/z", status=308, headers={"Location": internal})
    with pytest.raises(StoreForbidden, match="loopback"):
        public.get_file("x")
    urls = [str(call.request.url) for call in responses.calls]
    assert urls[1:] == ["http://other.example.org/y", "http://other.example.org/z"]
    assert not [call for call in responses.calls[1:] if "aladdin" in f"{call.request.url}{call.request.headers}"]


def test_redirect_of_a_resumed_request_is_checked(serve: Serve, open_http: OpenHttp, canary: Canary) -> None:
    """The first response is fine, and the response to the resumed request is a redirect."""
    content = FlakyFile(b"x" * 1000, [10])

    def script(request: Request) -> Any:
        return content(request) if request.range is None else redirect(f"http://10.0.0.1:{canary.port}/")

    with pytest.raises((StoreForbidden, StoreUnavailable)):
        read_file(open_http(serve(script).url), "x", 10_000)


@responses.activate
def test_connection_uses_the_address_that_was_checked(
    open_http: OpenHttp, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name resolves to another address after the check."""
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
