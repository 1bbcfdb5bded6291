"""Trusted proxies: X-Forwarded headers, first in unit tests, then with a real nginx."""

import re
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.proxies import TrustedProxies, parse_address
from narcore.errors import SettingsError
from narcore.settings import Settings
from tests import ROOT
from tests.server.conftest import BIG_DATA, BIG_FILE, HELLO_HASH, HELLO_PATH, README, Start
from tests.server.nginxfront import free_port, nginx
from tests.server.serving import Reply, Serving, eventually, fetch

TRUSTED = [ip_network(text) for text in ("10.0.0.0/8", "127.0.0.1", "2001:db8::/32")]
UNCHANGED = {"REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http", "HTTP_HOST": "us", "SCRIPT_NAME": ""}


def seen(peer: str, **headers: str) -> dict[str, Any]:
    """Return what the application sees of the client."""
    environ: WSGIEnvironment = dict(UNCHANGED) | {"REMOTE_ADDR": peer}
    environ |= {f"HTTP_X_FORWARDED_{name}": value for name, value in headers.items()}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return []

    TrustedProxies(app, TRUSTED)(environ, lambda *_: lambda _: None)
    return {name: environ[name] for name in UNCHANGED}


@pytest.mark.parametrize("peer", ["192.0.2.1", "11.0.0.0", "::1", "2001:db9::1", "", "unix:", "10.0.0.1.example"])
def test_headers_from_other_addresses_are_ignored(peer: str) -> None:
    assert seen(peer, FOR="192.0.2.7", PROTO="https", HOST="evil", PREFIX="/evil") == UNCHANGED | {"REMOTE_ADDR": peer}


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.255.0.1", "::ffff:10.0.0.1", "2001:db8::7"])
def test_headers_from_a_trusted_proxy_are_used(peer: str) -> None:
    assert seen(peer, FOR="192.0.2.7", PROTO="https", HOST="nar.example:444", PREFIX="/prod/") == {
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.url_scheme": "https",
        "HTTP_HOST": "nar.example:444",
        "SCRIPT_NAME": "/prod",
    }


@pytest.mark.parametrize(
    ("forwarded", "client", "hops"),
    [
        ("192.0.2.7", "192.0.2.7", 1),
        ("192.0.2.7, 10.0.0.2", "192.0.2.7", 2),
        ("192.0.2.7,10.0.0.2 , 10.0.0.3", "192.0.2.7", 3),
        ("10.9.9.9, 192.0.2.7, 10.0.0.2", "192.0.2.7", 2),  # entries to the left of the client are spoofed
        ("10.0.0.2, 192.0.2.7", "192.0.2.7", 1),
        ("192.0.2.7:4711, [2001:db8::2]:80", "192.0.2.7", 2),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2", 3),  # the client itself is on the internal network
        ("", "10.0.0.1", 1),
        ("unknown", "10.0.0.1", 1),
        ("192.0.2.7, _hidden, 10.0.0.2", "10.0.0.2", 2),
        ("192.0.2.7, , 10.0.0.2", "10.0.0.2", 2),
    ],
)
def test_the_client_is_the_last_untrusted_address(forwarded: str, client: str, hops: int) -> None:
    hosts = ["made.up", "third", "second", "first"]
    found = seen("10.0.0.1", FOR=forwarded, HOST=", ".join(hosts), PROTO="https")
    assert found["REMOTE_ADDR"] == client
    assert found["HTTP_HOST"] == hosts[-hops]
    assert found["wsgi.url_scheme"] == "https"  # a single value, since each proxy replaces it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROTO", "ftp"),
        ("PROTO", "https "),
        ("PROTO", "javascript"),
        ("HOST", "a b"),
        ("HOST", "a/b"),
        ("HOST", "user@host"),
        ("HOST", "a:b"),
        ("HOST", "a\r\nX-Evil: 1"),
        ("HOST", ""),
        ("PREFIX", "prod"),
        ("PREFIX", "//evil.example"),
        ("PREFIX", "/a//b"),
        ("PREFIX", "/a?b"),
        ("PREFIX", "/a\\b"),
        ("PREFIX", "https://evil"),
        ("PREFIX", "/"),
        ("PREFIX", "/%2fevil.example"),
        ("PREFIX", "%2f/evil.example"),
        ("PREFIX", "/%5cevil.example"),
        ("PREFIX", "/a%2f%2fb"),
        ("PREFIX", "/a%0d%0aX-Evil:1"),
        ("PREFIX", "/a//"),
    ],
)
def test_malformed_headers_are_ignored(name: str, value: str) -> None:
    expected = UNCHANGED | ({"wsgi.url_scheme": "https"} if value == "https " else {})
    assert seen("127.0.0.1", **{name: value}) == expected


@given(st.text("/\\%aF25cf0d.", max_size=12))
def test_a_prefix_never_leads_to_another_host(prefix: str) -> None:
    assert not re.match(r"[/\\]{2}", f"{seen('127.0.0.1', PREFIX=prefix)['SCRIPT_NAME']}/x")


def test_a_prefix_is_decoded_once() -> None:
    assert seen("127.0.0.1", PREFIX="/%25a%2f")["SCRIPT_NAME"] == "/%a"


@given(st.dictionaries(st.sampled_from(["FOR", "PROTO", "HOST", "PREFIX"]), st.text(st.characters(codec="latin-1"))))
def test_the_result_is_always_a_valid_address_host_and_path(headers: dict[str, str]) -> None:
    found = seen("127.0.0.1", **headers)
    assert parse_address(found["REMOTE_ADDR"]) is not None
    assert found["wsgi.url_scheme"] in ("http", "https")
    assert found["HTTP_HOST"].isascii()
    assert not set(found["HTTP_HOST"]) & set(" /\\@\r\n,")
    assert not found["SCRIPT_NAME"].startswith("//")
    assert found["SCRIPT_NAME"] == "" or found["SCRIPT_NAME"].startswith("/")


def test_the_setting_is_a_list_of_networks() -> None:
    networks = Settings.from_environ({"NAR_TRUSTED_PROXIES": " 127.0.0.1,::1\n10.0.0.0/8 "}).trusted_proxies
    assert list(map(str, networks)) == ["127.0.0.1/32", "::1/128", "10.0.0.0/8"]
    assert Settings.from_environ({}).trusted_proxies == ()
    for wrong in ("1", "*", "10.0.0.1/8", "localhost", "10.0.0.0/33"):
        with pytest.raises(SettingsError, match="NAR_TRUSTED_PROXIES"):
            Settings.from_environ({"NAR_TRUSTED_PROXIES": wrong})


# --- with a real nginx

# nginx connects from its own address (proxy_bind), so that the test can also connect from another address.
FORWARDING = """
server {{
    listen 127.0.0.1:{port};
    location /prod/ {{
        proxy_pass http://127.0.0.1:{upstream}/;
        proxy_bind {address};
        proxy_set_header Host us;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Prefix /prod;
    }}
}}
"""
SPOOFED = {
    "X-Forwarded-For": "198.51.100.1",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
}


@pytest.mark.parametrize(("address", "trusted"), [("127.0.0.2", True), ("127.0.0.3", False)])
def test_a_real_nginx_is_trusted_by_its_address(start: Start, tmp_path: Path, address: str, trusted: bool) -> None:
    port = free_port()
    # NAR_MAX_RESPONSE makes the server refuse the large file with a message that contains an absolute URL.
    settings = {"NAR_TRUSTED_PROXIES": "127.0.0.2", "DOMAIN": "nar.test", "NAR_MAX_RESPONSE": "10000"}
    with start("--workers", "1", **settings) as server:
        config = FORWARDING.format(port=port, upstream=server.port, address=address)
        with nginx(tmp_path / "nginx", config, port):
            front = f"nar.test:{port}"
            redirect = fetch(port, f"/prod{HELLO_PATH}/bin", SPOOFED | {"Host": front})
            assert redirect.headers["Location"] == f"{'/prod' if trusted else ''}{HELLO_PATH}/bin/"
            refusal = fetch(port, f"/prod{BIG_FILE}", SPOOFED | {"Host": front}).text
            assert (f"'https://{front}/prod{BIG_FILE}'" if trusted else f"'http://us{BIG_FILE}'") in refusal
            own_host = fetch(port, "/prod/README", SPOOFED | {"Host": f"{HELLO_HASH}.{front}"})
            assert (own_host.status, own_host.body == README) == ((200, True) if trusted else (404, False))
        direct = server.get(f"{HELLO_PATH}/bin", SPOOFED)
        assert direct.headers["Location"] == f"{HELLO_PATH}/bin/"
        clients = eventually(lambda: _clients(server, 4))
        assert sorted(clients) == sorted(["127.0.0.1" if trusted else address] * 3 + ["127.0.0.1"])


def _clients(server: Serving, count: int) -> list[str]:
    lines = server.access_log()
    return [line.split()[0] for line in lines] if len(lines) == count else []


def test_the_nginx_conf_caches_as_cache_control_allows(start: Start, tmp_path: Path) -> None:
    """Tests deploy/nginx.conf itself, with other ports and another directory."""
    port = free_port()
    config = (ROOT / "deploy" / "nginx.conf").read_text()
    with start("--workers", "1", NAR_METRICS="on", NAR_TRUSTED_PROXIES="127.0.0.1") as server:
        for old, new in (
            ("listen 80;", f"listen 127.0.0.1:{port};"),
            ("127.0.0.1:8383", f"127.0.0.1:{server.port}"),
            ("/var/cache/nginx/nar-serve", f"{tmp_path}/nginx/cache"),
        ):
            assert old in config
            config = config.replace(old, new)
        with nginx(tmp_path / "nginx", config, port):
            _check_caching(server, port)


def _check_caching(server: Serving, port: int) -> None:
    def twice(path: str, accept: str = "*/*") -> tuple[Reply, list[str]]:
        """Request the path twice. Returns the second response, and the status of nginx's cache for both."""
        replies = [fetch(port, path, {"Accept": accept}) for _ in range(2)]
        assert (replies[0].status, replies[0].body) == (replies[1].status, replies[1].body)
        return replies[1], [reply.headers["X-Cache-Status"] for reply in replies]

    cached = ["MISS", "HIT"]
    for accept, media_type in (("text/html", "text/html; charset=utf-8"), ("application/json", "application/json")):
        listing, statuses = twice(f"{HELLO_PATH}/", accept)
        assert (listing.headers["Content-Type"], listing.headers["Vary"], statuses) == (media_type, "Accept", cached)
    for path, status in ((f"{HELLO_PATH}/lib", 302), (f"{HELLO_PATH}/none", 404)):
        reply, statuses = twice(path)
        assert (reply.status, statuses) == (status, cached)
    assert "X-Cache-Status" not in fetch(port, "/healthz").headers
    whole, statuses = twice(BIG_FILE)
    assert (whole.body == BIG_DATA, statuses) == (True, cached)
    part = fetch(port, BIG_FILE, {"Range": "bytes=1000-1999"})
    assert (part.status, part.body, part.headers["X-Cache-Status"]) == (206, BIG_DATA[1000:2000], "HIT")
    unchanged = fetch(port, BIG_FILE, {"If-None-Match": whole.headers["ETag"]})
    assert (unchanged.status, unchanged.headers["X-Cache-Status"]) == (304, "HIT")
    assert fetch(port, "/metrics").status == 404
    assert server.get("/metrics").status == 200
    assert len([line for line in server.access_log() if BIG_FILE in line]) == 1
