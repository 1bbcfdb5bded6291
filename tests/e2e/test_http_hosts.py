"""Host names for store paths, which DOMAIN enables."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import pytest

from tests.e2e import links, trees
from tests.e2e.client import Client, ClientResponse, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream

DOMAIN = "nar.example"


@pytest.fixture(scope="module")
def client(upstream: Upstream, run_front: RunFront) -> Iterator[Client]:
    """A client of a front with a domain."""
    with run_front(f"{upstream.url}/zstd", "off", {"DOMAIN": DOMAIN}) as front, Client(front) as client:
        yield client


def get(client: Client, url: str) -> ClientResponse:
    """Send a GET request for an absolute URL to the front, with the host of the URL in the Host header."""
    parts = urlsplit(url)
    return client.get(parts.path + (f"?{parts.query}" if parts.query else ""), {"Host": parts.netloc})


def follow(client: Client, url: str) -> tuple[str, ClientResponse]:
    """Follow redirects; returns the last URL and its response."""
    for _ in range(5):
        got = get(client, url)
        if got.status != 302:
            return url, got
        url = urljoin(url, got.header("Location"))
    raise AssertionError(f"too many redirects, to {url}")


@pytest.fixture
def host(caches: NixCaches) -> str:
    """The origin of a store path."""
    return f"http://{caches.hash_part(links.HELLO)}.{DOMAIN}"


def test_a_host_serves_files_and_directories(client: Client, caches: NixCaches, host: str) -> None:
    for entry in caches.entries(links.HELLO):
        if entry.kind == "regular":
            assert get(client, f"{host}/{entry.path.decode()}").body == entry.source.read_bytes()
    assert follow(client, f"{host}/share")[0] == f"{host}/share/"
    assert get(client, f"{host}/bin/hi").header("Location").endswith("/bin/hello")
    assert follow(client, f"{host}/bin/hi")[0] == f"{host}/bin/hello"
    page = get(client, f"{host}/")
    assert page.header("Content-Type").startswith("text/html")
    hrefs = [urljoin(f"{host}/", href) for href in re.findall(r'href="([^"]+)"', page.text)]
    assert f"{host}/bin/" in hrefs
    assert get(client, f"{host}/none").status == 404


def test_only_the_shared_host_sandboxes_files(client: Client, caches: NixCaches, host: str) -> None:
    assert "sandbox" not in get(client, f"{host}/bin/hello").headers.get("Content-Security-Policy", "")
    shared = get(client, f"http://{DOMAIN}{url_path(caches.store_paths[links.HELLO])}/bin/hello")
    assert (shared.status, shared.body) == (200, trees.SCRIPT)
    assert "sandbox" in shared.header("Content-Security-Policy")
    assert get(client, f"{host}/bin/hello").header("X-Content-Type-Options") == "nosniff"


def test_links_to_other_store_paths_can_be_followed(client: Client, caches: NixCaches) -> None:
    links_host = f"http://{caches.hash_part(links.LINKS_NAME)}.{DOMAIN}"
    for path, outcome in links.LINKS.items():
        got = get(client, links_host + url_path("", path))
        if isinstance(outcome, links.Nowhere):
            assert got.status == 404, path
            continue
        target = urljoin(links_host, got.header("Location"))
        if isinstance(outcome, links.Inside):
            assert target == f"{links_host}/{outcome.path.decode()}", path
        elif "nothing" not in outcome.path:
            followed = follow(client, target)[1]
            direct = follow(client, f"http://{DOMAIN}{outcome.path}")[1]
            assert (followed.status, direct.status) == (200, 200), path
            if not followed.header("Content-Type").startswith("text/html"):
                assert followed.body == direct.body


def test_other_hosts_serve_no_store_path(client: Client, caches: NixCaches, host: str) -> None:
    assert get(client, f"http://{DOMAIN}/healthz").status == 200
    assert get(client, f"http://{'e' * 32}.{DOMAIN}/").status == 404
    assert get(client, f"http://www.{DOMAIN}/").status == 404
    assert get(client, f"http://x.{host.removeprefix('http://')}/bin/hello").status == 404
    upper = host.upper().replace("HTTP", "http") + ":8080"
    assert get(client, f"{upper}/bin/hello").body == trees.SCRIPT
    evil = get(client, f"http://{caches.hash_part(links.HELLO)}.{DOMAIN}.evil.example/bin/hello")
    assert evil.status == 404
