"""Errors: status, body and Cache-Control. test_upstream_faults.py tests faults of the upstream."""

import json

import pytest

from tests.builders import hash_part
from tests.e2e import links, trees
from tests.e2e.client import Client, ClientResponse, url_path
from tests.e2e.nixcaches import NixCaches
from tests.e2e.test_http_files import FOREVER
from tests.e2e.upstream import Upstream

UNKNOWN = f"/nix/store/{hash_part('unknown')}-unknown"


@pytest.fixture
def hello(caches: NixCaches) -> str:
    """The URL path of a store path."""
    return url_path(caches.store_paths[links.HELLO])


@pytest.mark.parametrize(
    "path",
    [
        "/nix/store/hello", "/nix/store/x/bin/hello", "/nix/store/" + "a" * 31, "/nix/store/" + "a" * 33,
        "/nix/store/" + "e" * 32 + "-x", "/nix/store/" + "A" * 32 + "-x", "/nix/store/.links/x", "/nix/store/" + "a" * 32 + "_x",
        "/nix/store/%2e%2e/etc/passwd", "/nix/store/" + "x" * 3000, "/unpack/nix/store/hello",
    ],
)  # fmt: skip
def test_a_malformed_store_path_returns_400(client: Client, path: str) -> None:
    got = client.get(path)
    assert got.status == 400
    assert "store path" in got.text.lower()


def test_the_404_of_an_unknown_store_path_is_cached_for_a_minute(client: Client) -> None:
    for path in (UNKNOWN, f"{UNKNOWN}/", f"{UNKNOWN}/bin/x", UNKNOWN[:43], f"{UNKNOWN}/?format=json"):
        got = client.get(path)
        assert got.status == 404, path
        assert got.directives() == {"public": "", "max-age": "60"}
        assert "store path" in got.text  # the message names what is missing


def test_a_403_or_410_for_a_narinfo_returns_404(upstream: Upstream, client: Client) -> None:
    """S3 returns 403 for missing objects."""
    for status in (403, 410):
        path = f"/nix/store/{hash_part(str(status))}-x"
        with upstream.fault(f"*{hash_part(str(status))}.narinfo", status=status):
            got = client.get(path)
        assert (got.status, got.directives()["max-age"]) == (404, "60")


def test_a_path_missing_from_the_nar_returns_an_immutable_404(client: Client, hello: str) -> None:
    client.get(f"{hello}/bin/hello")  # caches and verifies the NAR
    for rest, part in [
        ("/none", "none"), ("/bin/none", "none"), ("/none/x/y", "none"), ("/bin/hello/x", "hello"), ("/BIN/hello", "BIN"),
        ("/none/", "none"), ("/bin/hello/x/", "hello"), ("/none?format=json", "none"), ("/none?download", "none"),
    ]:  # fmt: skip
        got = client.get(hello + rest)
        assert got.status == 404, rest
        assert got.directives() == FOREVER
        assert part in got.text


def test_the_404_of_a_link_tells_where_it_leads(client: Client, caches: NixCaches) -> None:
    root = url_path(caches.store_paths[links.LINKS_NAME])
    client.get(f"{root}/?format=nar")  # caches and verifies the NAR
    messages = {name: client.get(f"{root}/{name}") for name in ("dangling", "loop-1", "etc", "behind-file")}
    assert {got.status for got in messages.values()} == {404}
    assert all(got.directives() == FOREVER for got in messages.values())
    assert len({got.text.replace(name, "") for name, got in messages.items()}) == 4
    assert "loop" in messages["loop-1"].text.replace("loop-1", "").replace("loop-2", "").lower()
    assert "/etc/passwd" in messages["etc"].text
    assert "root:" not in messages["etc"].text


def test_an_error_is_json_html_or_text(client: Client, hello: str) -> None:
    for path, status in ((f"{hello}/none", 404), (UNKNOWN, 404), ("/nix/store/x", 400), (f"{hello}/?format=exe", 400)):
        got = client.get(path, {"Accept": "application/json"})
        assert (got.status, got.header("Content-Type")) == (status, "application/json")
        assert set(json.loads(got.body)) == {"error", "detail"}
        assert all(isinstance(value, str) and value for value in json.loads(got.body).values())
        got = client.get(path, {"Accept": "text/html,*/*;q=0.8"})
        assert (got.status, got.header("Content-Type").partition(";")[0]) == (status, "text/html")
        assert "<h1" in got.text
        for headers in ({}, {"Accept": "*/*"}, {"Accept": "image/png"}):
            got = client.get(path, headers)
            assert (got.status, got.header("Content-Type").replace(" ", "")) == (status, "text/plain;charset=utf-8")
            assert got.body.rstrip(b"\n").count(b"\n") == 0
            assert got.body.endswith(b"\n")
        assert "accept" in got.header("Vary").lower()


def test_a_name_in_an_error_is_escaped(client: Client, hello: str) -> None:
    got = client.get(f"{hello}/%3Cscript%3Ealert(1)%3C%2Fscript%3E", {"Accept": "text/html"})
    assert got.status == 404
    assert b"<script>alert" not in got.body
    line = client.get(f"{hello}/two%0Alines")
    assert line.body.rstrip(b"\n").count(b"\n") == 0
    raw = client.get(f"{hello}/%FF%FE", {"Accept": "application/json"})
    assert raw.status == 404
    json.loads(raw.body.decode("utf-8"))


def test_head_of_an_error_has_the_status_of_get(client: Client, hello: str) -> None:
    for path in (f"{hello}/none", UNKNOWN, "/nix/store/x"):
        head, got = client.head(path), client.get(path)
        assert head.status == got.status
        assert head.header("Cache-Control") == got.header("Cache-Control")


def test_other_urls_return_errors(client: Client) -> None:
    for path in (
        "/none",
        "/nix",
        "/nix/",
        "/nix/stor/x",
        "/healthz/x",
        "/.git/config",
        "/api/index.py",
        "//evil.example/",
    ):
        got = client.get(path)
        assert got.status in (400, 404), path
        assert "evil.example" not in got.headers.get("Location", "")


def test_a_redirect_never_leaves_the_host(client: Client, hello: str) -> None:
    """A Location that starts with ``//`` would name another host."""
    for path in (f"/{hello}", f"//evil.example{hello}", f"/{hello}/bin/hi", f"{hello}//"):
        got = client.get(path)
        assert not got.headers.get("Location", "").startswith("//")


@pytest.mark.parametrize("headers", [{"Accept": "\xff\xfe"}, {"Accept": ";,;q=x"}, {"If-None-Match": '"'}, {"If-Range": "\xff"},
                                     {"If-Modified-Since": "\xff"}, {"Range": "\xff"}, {"Accept": "*/" + "x" * 4000}])  # fmt: skip
def test_malformed_headers_are_ignored(client: Client, hello: str, headers: dict[str, str]) -> None:
    assert client.get(f"{hello}/bin/hello", headers).body == trees.SCRIPT
    assert client.get(f"{hello}/", headers).status == 200


def check_no_secrets(got: ClientResponse, *secrets: str) -> None:
    """Fail if a response contains a secret or implementation details: tracebacks, paths of files, errors of the system."""
    text = got.text + str(got.headers.items())
    for word in ("Traceback", "/root/", "/tmp/", "site-packages", "Errno", *secrets):
        assert word not in text


def test_errors_contain_no_implementation_details(client: Client, hello: str) -> None:
    for path in (f"{hello}/none", UNKNOWN, "/nix/store/x", f"{hello}/?format=exe", "/none"):
        for accept in ("application/json", "text/html", "*/*"):
            check_no_secrets(client.get(path, {"Accept": accept}))
