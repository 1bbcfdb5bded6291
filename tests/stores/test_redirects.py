"""Redirects: our own code follows them hop by hop, and never to hosts that only this machine can reach."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from narcore.errors import StoreForbidden, StoreUnavailable
from narcore.stores import read_file
from narcore.stores.http.guard import AddressKind, kind_of
from narcore.stores.http.urls import redirect_target
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import Act, FlakyFile, Request, Step, answer, head, redirect

PUBLIC_ADDRESS = "93.184.216.34"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b/%41?c=%2F", "%41?c=%2F", "{url}/b/%41?c=%2F", "../b/%41?c=%2F"])
def test_redirect_within_the_store_keeps_range_and_credentials(
    serve: Serve, open_http: OpenHttp, status: int, location: str
) -> None:
    def script(request: Request) -> Iterable[Step]:
        is_target = request.target == "/b/%41?c=%2F"
        return FlakyFile(b"0123")(request) if is_target else redirect(location.format(url=server.url), status)

    server = serve(script)
    store = open_http(server.url.replace("//", "//user:pass@"))
    with store.get_file("b/x", 1, 3) as file:
        assert b"".join(file) == b"12"
    assert server.connections == 1
    assert {request.headers["range"] for request in server.requests} == {"bytes=1-2"}
    assert all("authorization" in request.headers for request in server.requests)


def test_redirect_to_another_server_drops_credentials(
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


def test_cut_body_is_resumed_at_the_original_url(serve: Serve, open_http: OpenHttp) -> None:
    """The signed URL may have expired; the store redirects to a new one."""
    content = bytes(range(256)) * 100
    other = serve(FlakyFile(content, [1000]))
    signatures = iter("abc")
    server = serve(lambda _: redirect(f"{other.url}/y?signature={next(signatures)}"))
    assert read_file(open_http(server.url), "x", 10**6) == content
    assert [request.target for request in other.requests] == ["/y?signature=a", "/y?signature=b"]


def test_at_most_five_redirects_are_followed(serve: Serve, open_http: OpenHttp) -> None:
    def script(request: Request) -> list[Step]:
        hop = int(request.target[1:])
        return redirect(f"/{hop + 1}") if hop < 6 else answer(200, b"x")

    server = serve(script)
    assert read_file(open_http(server.url), "1", 9) == b"x"
    with pytest.raises(StoreUnavailable, match="more than 5 redirects"):
        open_http(server.url).get_file("0")
    assert len(server.requests) == 12


def test_body_of_a_redirect_is_not_waited_for(serve: Serve, open_http: OpenHttp) -> None:
    def script(request: Request) -> Iterable[Step]:
        if request.target == "/y":
            return answer(200, b"x")
        return [head(302, "Location: /y", length=1 << 40), b"x" * 1000, Act.STALL]

    assert read_file(open_http(serve(script).url, read_timeout=60), "x", 9) == b"x"


def test_redirect_without_a_location_is_an_error(serve: Serve, open_http: OpenHttp) -> None:
    with pytest.raises(StoreUnavailable, match="without a Location"):
        open_http(serve(lambda _: answer(302)).url).get_file("x")


@pytest.mark.parametrize("location", ["http://169.254.169.254/", "http://10.0.0.1/", "http://0.0.0.0:{port}/"])
def test_loopback_store_redirects_only_to_its_own_kind_of_address(
    serve: Serve, open_http: OpenHttp, location: str
) -> None:
    server = serve(lambda _: redirect(location.format(port=1)))
    with pytest.raises(StoreForbidden, match="address"):
        open_http(server.url).get_file("x")


def test_only_numeric_hosts_are_checked_behind_a_proxy(
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
        (PUBLIC_ADDRESS, AddressKind.PUBLIC),
        ("2606:2800:220:1::1", AddressKind.PUBLIC),
        ("64:ff9b::5db8:d822", AddressKind.PUBLIC),
        ("::ffff:10.0.0.1", AddressKind.PRIVATE),
        ("100.64.0.1", AddressKind.PRIVATE),
        ("fd00::1", AddressKind.PRIVATE),
        ("fec0::1", AddressKind.PRIVATE),
        ("127.9.9.9", AddressKind.LOOPBACK),
        ("::1", AddressKind.LOOPBACK),
        ("fe80::1%eth0", AddressKind.LINK_LOCAL),
        ("169.254.0.1", AddressKind.LINK_LOCAL),
        ("0.0.0.0", AddressKind.RESERVED),
        ("::", AddressKind.RESERVED),
        ("ff02::1", AddressKind.RESERVED),
        ("240.0.0.1", AddressKind.RESERVED),
        ("::127.0.0.1", AddressKind.RESERVED),
    ],
)
def test_every_address_has_its_kind(address: str, kind: AddressKind) -> None:
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
def test_location_is_resolved_or_rejected(current: str, location: str, target: str | None) -> None:
    if target is None:
        with pytest.raises(StoreForbidden):
            redirect_target(current, location)
    else:
        assert redirect_target(current, location) == target
