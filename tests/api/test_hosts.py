"""Store paths with their own host names, over a real socket."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from tests.api.wire import Wire, serving
from tests.builders import Tree, binary_cache, exe, hash_part, link, store_path

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

DOMAIN = "nar.example.org"
DOCS: dict[str, Tree] = {"a b%.txt": b"text", "-": {"static": {"x": b"ours"}}}
SITE: dict[str, Tree] = {
    "index.html": b"<!doctype html><p>home",
    "bin": {"hello": exe(b"#!/bin/sh\n"), "hi": link("hello")},
    "docs": DOCS,
    "other": link(f"{store_path('other')}/share"),
    "other-root": link(str(store_path("other"))),
    "itself": link(f"{store_path('site')}/docs"),
    "etc": link("/etc/passwd"),
    "healthz": b"not ours",
    "-": {"static": {"style.css": b"of the NAR"}},
    "nix": {"store": {"x": b"deep"}},
}
SITE_HOST, OTHER_HOST = f"{hash_part('site')}.{DOMAIN}", f"{hash_part('other')}.{DOMAIN}"


@pytest.fixture(scope="module")
def app() -> "Iterator[WSGIApplication]":
    cache = BinaryCache(
        [MemoryStore(binary_cache({"site": SITE, "other": {"share": {"x": b"other"}}, "file": b"one"}))]
    )
    yield create_app(Settings(domain=DOMAIN), cache)
    cache.close()


@pytest.fixture(scope="module")
def wire(app: "WSGIApplication") -> Iterator[Wire]:
    with serving(app) as wire:
        yield wire


def test_a_host_serves_the_files_of_its_store_path(wire: Wire) -> None:
    hello = wire.get("/bin/hello", SITE_HOST)
    assert (hello.status, hello.body, hello.headers["NAR-Executable"]) == (200, b"#!/bin/sh\n", "1")
    assert wire.get("/docs/a%20b%25.txt", SITE_HOST).body == b"text"
    assert wire.get("/healthz", SITE_HOST).body == b"not ours"
    assert wire.get("/nix/store/x", SITE_HOST).body == b"deep"
    assert wire.get("/-/static/style.css", SITE_HOST).body == b"of the NAR"
    assert wire.get("/-/static/script.js", SITE_HOST).status == 404
    assert wire.get("/", SITE_HOST).body == b"<!doctype html><p>home"
    assert wire.get("/", f"{hash_part('file')}.{DOMAIN}").body == b"one"
    assert wire.get("/bin/hello", SITE_HOST, Range="bytes=2-4").body == b"/bi"
    assert wire.get("/bin/hello", SITE_HOST, "HEAD").headers["Content-Length"] == "10"
    assert wire.get("/bin/hello", SITE_HOST, "POST").status == 405
    assert wire.get("/bin/none", SITE_HOST).status == 404


def test_only_the_shared_host_has_a_sandbox(wire: Wire) -> None:
    for path in ("/", "/bin/hello", "/docs/a%20b%25.txt"):
        own = wire.get(path, SITE_HOST)
        assert "sandbox" not in own.headers.get("Content-Security-Policy", "")
        assert own.headers["X-Content-Type-Options"] == "nosniff"
        shared = wire.get(f"{store_path('site')}{path}", DOMAIN)
        assert shared.body == own.body
        assert "sandbox" in shared.headers["Content-Security-Policy"]


def test_links_redirect_to_the_host_of_their_target(wire: Wire) -> None:
    for path, location in {
        "/bin": "/bin/",
        "/bin?a=1": "/bin/?a=1",
        "/bin/hi": "/bin/hello",
        "/bin/hello/": "/bin/hello",
        "/itself": "/docs/",
        "/other": f"//{OTHER_HOST}/share",
        "/other/x?download": f"//{OTHER_HOST}/share/x?download",
        "/other-root": f"//{OTHER_HOST}/",
        "/other-root/share/x": f"//{OTHER_HOST}/share/x",
    }.items():
        assert wire.get(path, SITE_HOST).location == location
    assert wire.get("//bin//hi", SITE_HOST).location == "/bin/hello"
    etc = wire.get("/etc", SITE_HOST)
    assert etc.status == 404
    assert "/etc/passwd" in etc.text


def test_redirects_and_links_keep_the_port(wire: Wire) -> None:
    assert wire.get("/other/x", f"{SITE_HOST}:8383").location == f"//{OTHER_HOST}:8383/share/x"
    page = wire.get("/?list", f"{SITE_HOST}:8383").text
    assert f'"//{DOMAIN}:8383{store_path("other")}/share"' in page


@pytest.mark.parametrize(
    "host", [SITE_HOST.upper(), f"{SITE_HOST}.", f" {SITE_HOST} ", f"{SITE_HOST.title()}.:80", f"{SITE_HOST}:"]
)
def test_other_spellings_of_a_host_are_accepted(wire: Wire, host: str) -> None:
    assert wire.get("/bin/hello", host).body == b"#!/bin/sh\n"
    port = ":80" if host.endswith(":80") else ""
    assert wire.get("/other", host).location == f"//{OTHER_HOST}{port}/share"


def test_the_links_of_a_page_work(wire: Wire) -> None:
    page = wire.get("/?list", SITE_HOST)
    assert page.status == 200
    assert "sandbox" not in page.headers["Content-Security-Policy"]
    hrefs = set(re.findall(r'(?:href|src)="([^"]+)"', page.text))
    assert {"./bin/", "./index.html", f"//{DOMAIN}{store_path('other')}/share"} <= hrefs
    statics = {href for href in hrefs if "/-/static/" in href}
    assert len(statics) == 3, "style sheet, script and icon"
    for href in statics:
        assert wire.get(href.removeprefix(f"//{DOMAIN}"), DOMAIN).status == 200
    policy = page.headers["Content-Security-Policy"]
    for kind in ("style", "script", "img"):
        assert f"{kind}-src 'self' {DOMAIN};" in policy
    for href in hrefs - statics:
        url = urljoin(f"http://{SITE_HOST}/", href)
        host, _, path = url.removeprefix("http://").partition("/")
        assert wire.get(f"/{path}", host).status in (200, 302) or href in ("./etc", "./etc?view")


@pytest.mark.parametrize(
    "label",
    [
        "www",
        "e" * 32,
        "0" * 31,
        "0" * 33,
        f"{hash_part('site')}-site",
        f"x.{hash_part('site')}",
        "",
        "-",
        "\u00e9".encode().decode("latin-1"),
        "foo_bar",
        "%00",
        "a b",
        f"user@{hash_part('site')}",
        f"{hash_part('site')}_",
    ],
)
def test_a_host_that_is_not_a_hash_is_not_found(wire: Wire, label: str) -> None:
    got = wire.get("/bin/hello", f"{label}.{DOMAIN}", Accept="text/html")
    assert got.status == 404
    assert "#!/bin/sh" not in got.text
    statics = re.findall(rf'"//{DOMAIN}(/-/static/[^"]+)"', got.text)
    assert len(statics) == 3
    for href in statics:
        assert wire.get(href, DOMAIN).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/robots.txt", "/openapi.json", "/-/static/style.css", str(store_path("site"))]
)
def test_every_url_answers_options_with_nosniff(wire: Wire, path: str) -> None:
    got = wire.get(path, DOMAIN, "OPTIONS")
    assert (got.status, got.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    assert got.headers["X-Content-Type-Options"] == "nosniff"


def test_the_host_of_a_missing_store_path_is_not_found(wire: Wire) -> None:
    got = wire.get("/bin/hello", f"{'0' * 32}.{DOMAIN}", Accept="application/json")
    assert (got.status, '"error": "No such store path"' in got.text) == (404, True)


@pytest.mark.parametrize(
    "host",
    [
        DOMAIN,
        DOMAIN.upper(),
        f"{DOMAIN}:8383",
        "localhost",
        "127.0.0.1:8383",
        "[::1]",
        "[::1]:8383",
        f"[{hash_part('site')}.{DOMAIN}]",
        f"{SITE_HOST}.evil.example",
        f"{hash_part('site')}x{DOMAIN}",
        f"{hash_part('site')}.nar.example.orgs",
        f"{SITE_HOST}:80:80",
        f"{SITE_HOST}:x",
        f"{SITE_HOST}/x",
        f"{SITE_HOST}@evil",
        f"{SITE_HOST}..",
        "..",
        ":",
        "",
        None,
        "a" * 3000,
    ],
)
def test_every_other_host_is_the_shared_host(wire: Wire, host: str | None) -> None:
    """No response repeats the Host header, and every store path has its sandbox."""
    health = wire.get("/healthz", host)
    if health.status == 400:  # Werkzeug rejects an invalid host name
        assert host in ("..", f"{SITE_HOST}..", "a" * 3000)
        return
    assert health.body == b"OK\n"
    assert wire.get("/bin/hello", host).status == 404
    got = wire.get(f"{store_path('site')}/bin/hello", host)
    assert got.body == b"#!/bin/sh\n"
    assert "sandbox" in got.headers["Content-Security-Policy"]
    assert wire.get(f"{store_path('site')}/other", host).location == f"{store_path('other')}/share"
    page = wire.get(f"{store_path('site')}/docs/", host, Accept="text/html")
    assert "evil" not in page.text


def test_links_to_all_hosts_have_script_name(app: "WSGIApplication") -> None:
    """A proxy in front removes the same prefix for all hosts, so links to all hosts need it."""

    def mounted(environ: "WSGIEnvironment", start_response: "StartResponse") -> object:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/prod", environ["PATH_INFO"].removeprefix("/prod")
        return app(environ, start_response)

    with serving(mounted) as wire:  # type: ignore[arg-type]  # mounted returns object instead of Iterable[bytes]
        assert wire.get("/prod/bin/hello", SITE_HOST).body == b"#!/bin/sh\n"
        assert wire.get("/prod/bin/hi", SITE_HOST).location == "/prod/bin/hello"
        assert wire.get("/prod/other/x", SITE_HOST).location == f"//{OTHER_HOST}/prod/share/x"
        page = wire.get("/prod/?list", SITE_HOST).text
        assert f'"//{DOMAIN}/prod{store_path("other")}/share"' in page
        (style,) = re.findall(rf'"//{DOMAIN}(/prod/-/static/style.css[^"]*)"', page)
        assert wire.get(style, DOMAIN).status == 200
        for host in (
            "evil.example",
            SITE_HOST,
        ):  # the prefix alone must not get Werkzeug's 308, which trusts the Host header
            bare = wire.get("/prod?list", host)
            assert (bare.status, bare.location) == (302, "/prod/?list")
            assert bare.headers["X-Content-Type-Options"] == "nosniff"


def test_without_a_domain_all_hosts_are_the_shared_host() -> None:
    cache = BinaryCache([MemoryStore(binary_cache({"site": SITE}))])
    with serving(create_app(Settings(), cache)) as wire:
        for host in (SITE_HOST, f"www.{DOMAIN}", "localhost"):
            assert wire.get("/bin/hello", host).status == 404
            assert wire.get(f"{store_path('site')}/bin/hello", host).status == 200
    cache.close()
