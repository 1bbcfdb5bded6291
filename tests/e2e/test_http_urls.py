"""The URLs of the application, and how it parses a path."""

import re

import pytest

from tests.e2e import links, trees
from tests.e2e.client import Client, location, query_of, raw_exchange, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import FRONTS, Front
from tests.e2e.nixcaches import GNU_STORE_DIR, NixCaches
from tests.e2e.test_http_files import FOREVER
from tests.e2e.upstream import Upstream


@pytest.fixture
def hello(caches: NixCaches) -> str:
    """The URL path of a store path."""
    return url_path(caches.store_paths[links.HELLO])


def test_the_landing_page_names_the_store(client: Client, upstream: Upstream) -> None:
    got = client.get("/", {"Accept": "text/html"})
    assert got.status == 200
    assert got.header("Content-Type").startswith("text/html")
    assert f"{upstream.url}/zstd" in got.text
    assert "<form" in got.text
    assert got.header("X-Content-Type-Options") == "nosniff"


def test_the_form_of_the_landing_page_leads_to_a_store_path(client: Client, hello: str) -> None:
    page = client.get("/").text
    field = re.search(r'<input[^>]*\bname="?([\w-]+)', page)
    action = re.search(r'<form[^>]*\baction="([^"]*)"', page)
    assert field
    got = client.get(f"{action[1] if action else '/'}?{field[1]}={hello.replace('/', '%2F')}")
    assert location(got, "/").rstrip("/") == hello


def test_healthz_does_not_contact_the_upstream(client: Client, upstream: Upstream) -> None:
    upstream.clear()
    got = client.get("/healthz")
    assert (got.status, got.body.strip()) == (200, b"OK")
    assert upstream.count() == 0
    assert client.get("/readyz").status == 200
    assert client.head("/healthz").status == 200


def test_readyz_returns_503_without_an_upstream(run_front: RunFront) -> None:
    with run_front("http://127.0.0.1:9/none", expect_trouble=True) as front, Client(front) as client:
        assert client.get("/healthz").status == 200
        got = client.get("/readyz")
        assert got.status == 503
        assert got.header("Cache-Control") == "no-store"


def test_robots_txt_disallows_store_paths(client: Client) -> None:
    got = client.get("/robots.txt")
    assert got.status == 200
    assert got.header("Content-Type").startswith("text/plain")
    assert re.search(r"(?im)^user-agent: *\*", got.text)
    assert re.search(r"(?im)^disallow: */nix/store", got.text)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_return_405(client: Client, hello: str, method: str) -> None:
    for path in ("/", f"{hello}/bin/hello", f"{hello}/", "/healthz"):
        got = client.request(method, path)
        assert got.status == 405
        assert {"GET", "HEAD"} <= {word.strip() for word in got.header("Allow").split(",")}


def test_options_returns_the_allowed_methods(client: Client, hello: str) -> None:
    for path in ("/", f"{hello}/bin/hello", f"{hello}/none"):
        got = client.request("OPTIONS", path)
        assert got.status in (200, 204)
        assert got.body == b""
        assert {word.strip() for word in got.header("Allow").split(",")} == {"GET", "HEAD", "OPTIONS"}


def test_a_store_path_without_a_name_is_served(client: Client, hello: str) -> None:
    short = hello.removesuffix(f"-{links.HELLO}")
    assert client.get(f"{short}/bin/hello").body == trees.SCRIPT
    assert client.get(f"{short}/", {"Accept": "application/json"}).status == 200


def test_a_wrong_name_is_redirected_to_the_right_one(client: Client, hello: str) -> None:
    for name in ("x", "hello-2.1", "hello-2.12.3", "hello-2.12?".replace("?", "%3F")):
        wrong = f"{hello.removesuffix(links.HELLO)}{name}/bin/hello?download&q=%26"
        got = client.get(wrong)
        target = location(got, wrong)
        assert target.partition("?")[0] == f"{hello}/bin/hello"
        assert query_of(target) == {"download": [""], "q": ["&"]}
        assert got.directives() == FOREVER


def test_unpack_is_a_prefix_of_store_paths(client: Client, hello: str) -> None:
    assert client.get(f"/unpack{hello}/bin/hello").body == trees.SCRIPT
    assert location(client.get(f"/unpack{hello}/bin/hi"), f"/unpack{hello}/bin/hi") == f"/unpack{hello}/bin/hello"
    assert client.get("/unpack/gnu/store/" + hello.rpartition("/")[2]).status in (400, 404)


def test_the_store_dir_of_the_cache_is_used(upstream: Upstream, run_front: RunFront, caches: NixCaches) -> None:
    with run_front(f"{upstream.url}/gnu") as front, Client(front) as client:
        for prefix in ("", "/unpack"):
            path = prefix + url_path(caches.gnu_store_path)
            assert client.get(f"{path}/bin/x").body == trees.SCRIPT
            assert location(client.get(f"{path}/absolute"), path) == f"{path}/share/y"
            assert client.get(f"{path}/other").status == 404  # this cache has another store dir than /nix/store
        assert client.get(url_path(caches.gnu_store_path).replace(GNU_STORE_DIR, "/nix/store")).status in (400, 404)
        assert re.search(r"(?im)^disallow: */gnu/store", client.get("/robots.txt").text)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.replace("/bin/", "//bin///"),
        lambda path: path.replace("/nix/store/", "/nix//store//"),
        lambda path: path.replace("/nix/", "//nix/", 1),
    ],
)
def test_repeated_slashes_count_as_one(client: Client, hello: str, change: object) -> None:
    assert callable(change)
    got = client.get(change(f"{hello}/bin/hello"))
    if got.status == 302:
        got = client.get(location(got, f"{hello}/bin/hello"))
    assert (got.status, got.body) == (200, trees.SCRIPT)


def test_a_trailing_slash_of_a_file_is_redirected(client: Client, hello: str, caches: NixCaches) -> None:
    got = client.get(f"{hello}/bin/hello/?download")
    target = location(got, f"{hello}/bin/hello/")
    assert target.partition("?")[0] == f"{hello}/bin/hello"
    assert query_of(target) == {"download": [""]}
    one = url_path(caches.store_paths[trees.ONE_FILE_NAME])
    assert location(client.get(f"{one}/"), f"{one}/") == one


@pytest.mark.parametrize(
    "rest",
    [
        "/.", "/..", "/./bin/hello", "/bin/../bin/hello", "/bin/./hello", "/../x", "/bin/hello/..", "/%2e%2e/x", "/bin/%2E/hello",
        "/../../../etc/passwd", "/..%2f..%2f..%2fetc/passwd", "/bin/..%2fbin/hello", "/...", "/.hidden/..",
    ],
)  # fmt: skip
def test_dot_segments_return_404(client: Client, hello: str, rest: str) -> None:
    got = client.get(hello + rest)
    assert got.status == 404
    assert b"root:" not in got.body


@pytest.mark.parametrize(
    "rest", ["/bin/hello%00", "/%00", "/bin%00/hello", "/" + "x" * 300, "/" + "a/" * 1000, "/%0d%0aX:%201"]
)
def test_impossible_names_return_404(client: Client, hello: str, rest: str) -> None:
    got = client.get(hello + rest)
    assert got.status == 404
    assert "X" not in got.headers


def test_a_plus_is_not_a_space(client: Client, caches: NixCaches) -> None:
    names = url_path(caches.store_paths[trees.NAMES_NAME])
    assert client.get(f"{names}/pl+us").body == b"contents of pl+us"
    assert client.get(f"{names}/pl%2Bus").body == b"contents of pl+us"
    assert client.get(f"{names}/sp+ace").status == 404
    odd = caches.store_paths[trees.ODD_NAME]
    assert client.get(url_path(odd, b"bin/x")).body == b"found"
    assert client.get(url_path(odd).replace("%2B", "+").replace("%3D", "=") + "/bin/x").body == b"found"
    assert location(client.get(url_path(odd)), "/").partition("?")[0].replace("%2B", "+").replace("%3D", "=") == (
        odd.replace("?", "%3F") + "/"
    )


def test_percent_encoding_is_decoded_once(client: Client, caches: NixCaches) -> None:
    names = url_path(caches.store_paths[trees.NAMES_NAME])
    for path, contents in [("%2541", b"%41"), ("A", b"A"), ("%41", b"A"), ("%25252F", None), ("%252F", b"%2F")]:
        got = client.get(f"{names}/{path}")
        if contents is None:
            assert got.status == 404
        else:
            assert got.body == b"contents of " + contents


def test_unencoded_bytes_name_their_file_or_are_rejected(site: Front, caches: NixCaches) -> None:
    """Such a URL is invalid, but old browsers and scripts send it."""
    path = url_path(caches.store_paths[trees.NAMES_NAME]).encode()
    for name in (b"caf\xc3\xa9", b"\xff\xfe", b"quote\"d'", b"<b>bold"):
        request = b"GET " + path + b"/" + name + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        head, _, body = raw_exchange(site, request).partition(b"\r\n\r\n")
        assert head[:12].endswith((b" 200", b" 400", b" 404"))
        if b" 200" in head[:12]:
            assert body == b"contents of " + name


def test_a_target_with_line_breaks_adds_no_header(client: Client, caches: NixCaches) -> None:
    names = url_path(caches.store_paths[trees.NAMES_NAME])
    for name in ("/to-injected", "/dangling-raw", "/%0D%0AX-Injected:%201/"):
        got = client.get(names + name)
        assert got.status in (302, 404)
        assert "X-Injected" not in got.headers


# Vercel has no prefixes.
@pytest.mark.parametrize("front_kind", [kind for kind in FRONTS if kind != "vercel"], scope="session")
def test_urls_have_the_prefix_of_the_stage(site: Front, caches: NixCaches, hello: str) -> None:
    """API Gateway has stages; gunicorn takes SCRIPT_NAME from a header of a trusted proxy, which includes 127.0.0.1."""
    prefix = {"SCRIPT_NAME": "/prod"}
    with Client(site, prefix="/prod") as client:
        assert client.get(f"{hello}/bin/hello", prefix).body == trees.SCRIPT
        for path, target in [
            (hello, f"{hello}/"),
            (f"{hello}/bin/hi", f"{hello}/bin/hello"),
            (url_path(caches.store_paths["one-link"]), f"{hello}/bin/hello"),
            (hello.replace("2.12", "2.1"), hello),
        ]:
            assert location(client.get(path, prefix), f"/prod{path}").rstrip("/") == f"/prod{target}".rstrip("/")
        page = client.get("/", prefix | {"Accept": "text/html"}).text
        listing = client.get(f"{url_path(caches.store_paths[links.LINKS_NAME])}/", prefix).text
    for text in (page, listing):
        absolute = re.findall(r'(?:href|src|action)="(/[^"]*)"', text)
        assert [url for url in absolute if not url.startswith("/prod")] == []


def test_every_response_is_nosniff(client: Client, hello: str) -> None:
    for path in ("/", "/healthz", "/readyz", "/robots.txt", hello, f"{hello}/", f"{hello}/bin/hello", f"{hello}/bin/hi",
                 f"{hello}/none", "/nix/store/x", f"{hello}/?format=exe", "/none"):  # fmt: skip
        assert client.get(path).header("X-Content-Type-Options") == "nosniff", path
    assert client.request("POST", "/").header("X-Content-Type-Options") == "nosniff"
