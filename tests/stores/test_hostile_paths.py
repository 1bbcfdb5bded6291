"""Paths that lead out of the store. A narinfo may contain them: its signature does not cover the URL."""

import os
import socket
from pathlib import Path

import pytest

from narcore.errors import FileNotInStore, SettingsError, StoreForbidden
from narcore.stores import LocalBinaryCacheStore, MemoryStore, read_file
from narcore.stores.http.urls import StoreUrl
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import answer

BASE = "https://cache.example.org:8443/a/b"

CLIMBING = [
    "",
    "..",
    "../x",
    "../../x",
    "nar/../../x",
    "./../x",
    "/../x",
    "%2e%2e/x",
    "%2E%2e/x",
    ".%2e/x",
    "nar/%2e%2e/%2e%2e/x",
    "%252e%252e/x",
    "..%2fx",
    "nar%2f..%2f..%2fx",
    "..%5cx",
    "..\\x",
    "nar\\x",
    "nar%5Cx",
    "..;/x",
    "nar/..;a=b/x",
    "..?x",
    "nar/x\0",
    "nar/x%00",
    "nar/x\r\nHost: evil",
    "nar/x%0d%0ay",
    "nar/x\ty",
    "nar/x\x7f",
    "nar/x#y",
    "nar/\ud800",
]
ELSEWHERE = [
    "//evil.example/x",
    "///evil.example/x",
    "/\\evil.example/x",
    "https://evil.example/x",
    "https://evil.example:8443/a/b/x",
    "https://cache.example.org/a/b/x",
    "https://cache.example.org:8444/a/b/x",
    "http://cache.example.org:8443/a/b/x",
    "https://cache.example.org.evil.example:8443/x",
    "https://cache.example.org:8443@evil.example/x",
    "https://user:pass@cache.example.org:8443/a/b/x",
    "https://cache.example.org:8443:80/x",
    "https:x",
    "https:/x",
    "https:///x",
    "https://[::1/x",
    "https://cache.example.org:8443/../../x",
    "https://cache.example.org:8443/%2e%2e/x",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "s3://bucket/x",
    "data:,x",
    "x:y",
]


@pytest.mark.parametrize("path", CLIMBING + ELSEWHERE)
def test_http_store_rejects_paths_out_of_the_store(path: str) -> None:
    with pytest.raises(StoreForbidden):
        StoreUrl.parse(BASE).join(path)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("nar/x.nar.xz", f"{BASE}/nar/x.nar.xz"),
        ("nar/x.nar?hash=y&z=../..", f"{BASE}/nar/x.nar?hash=y&z=../.."),
        ("debuginfo/../nar/./x", f"{BASE}/nar/x"),
        ("log/a%3Fb%20c+d%2Fe", f"{BASE}/log/a%3Fb%20c+d%2Fe"),
        ("nar/a b\u00e9\udcff", f"{BASE}/nar/a%20b%C3%A9%FF"),
        ("nar//x...y/..z", f"{BASE}/nar//x...y/..z"),
        ("nar/x:y@z", f"{BASE}/nar/x:y@z"),
        ("/other/x", "https://cache.example.org:8443/other/x"),
        ("https://cache.example.org:8443/c/x?y", "https://cache.example.org:8443/c/x?y"),
        ("HTTPS://CACHE.example.org:8443/c", "https://cache.example.org:8443/c"),
    ],
)
@pytest.mark.parametrize("base", [BASE, BASE + "/", BASE + "?priority=3", BASE.replace("//", "//u:p@")])
def test_http_store_resolves_paths(base: str, path: str, url: str) -> None:
    assert StoreUrl.parse(base).join(path) == url


def test_default_ports_are_one_origin_and_http_may_change_to_https() -> None:
    plain, safe = StoreUrl.parse("http://h.example"), StoreUrl.parse("https://h.example:443/x")
    assert plain.join("http://h.example:80/y") == "http://h.example:80/y"
    assert plain.join("https://h.example/y") == "https://h.example/y"
    assert safe.join("https://h.example/y") == "https://h.example/y"
    assert safe.join("https://h.example./y") == "https://h.example./y"
    for store, url in [
        (safe, "http://h.example/y"),
        (plain, "https://h.example:8443/y"),
        (plain, "http://h.example../y"),
    ]:
        with pytest.raises(StoreForbidden):
            store.join(url)


def test_hostile_path_causes_no_request(serve: Serve, open_http: OpenHttp) -> None:
    canary, server = serve(lambda _: answer(200, b"x")), serve(lambda _: answer(200, b"x"))
    store = open_http(server.url)
    for path in [f"{canary.url}/x", canary.url.removeprefix("http:"), f"{server.url}@127.0.0.1:{canary.port}/", "../x"]:
        with pytest.raises(StoreForbidden):
            store.get_file(path)
    assert canary.connections == server.connections == 0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory with files, links and special files, next to a file that must not be read."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "nar").mkdir(parents=True)
    (root / "nar" / "x").write_text("x")
    (root / "nar" / "%78y").write_text("literal")
    (root / "nar" / "xy").write_text("decoded")
    (root / "nar" / "q?h=1").write_text("query")
    (root / "link").symlink_to("nar/x")
    (root / "dirlink").symlink_to("nar")
    (root / "out").symlink_to("../secret")
    (root / "out-absolute").symlink_to(tmp_path / "secret")
    (root / "outdir").symlink_to("..")
    (root / "twice").symlink_to("outdir/secret")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    (root / "device").symlink_to("/dev/zero")
    (tmp_path / "root-and-more").mkdir()
    (tmp_path / "root-and-more" / "secret").write_text("secret")
    (root / "sibling").symlink_to("../root-and-more/secret")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(root, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
    return root


HOSTILE_FILES = [
    "", ".", "..", "../secret", "nar/../../secret", "/etc/passwd", "//etc/passwd", "%2e%2e/secret", "..%2fsecret",
    "nar/%2e%2e/%2e%2e/secret", "%2fetc/passwd", "nar/x\0", "nar/x%00", "out", "out-absolute", "outdir/secret", "twice",
    "device", "sibling", "../root-and-more/secret", "..?x",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_FILES)
def test_local_store_rejects_paths_out_of_the_directory(directory: Path, path: str) -> None:
    with pytest.raises(StoreForbidden):
        LocalBinaryCacheStore(str(directory)).get_file(path)


@pytest.mark.parametrize("path", [path for path in HOSTILE_FILES if ".." in path or "\0" in path or path[:1] in "/%"])
def test_memory_store_rejects_paths_out_of_the_store(path: str) -> None:
    with pytest.raises(StoreForbidden):
        MemoryStore({"../secret": b"secret", "": b"secret", "..": b"secret"}).get_file(path)


@pytest.mark.parametrize(
    "path",
    ["fifo", "socket", "nar", "loop", "dangling", "nar/x/y", "y", "n" * 300, "a/" * 3000, "\ud800", "..\\secret"],
)
def test_local_store_reports_other_than_regular_files_as_missing(directory: Path, path: str) -> None:
    store = LocalBinaryCacheStore(directory.as_uri())
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotInStore):
        store.get_file(path)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("nar/x", b"x"),
        ("./nar//x", b"x"),
        ("dirlink/../nar/x", b"x"),
        ("link", b"x"),
        ("dirlink/x", b"x"),
        ("nar/x?hash=1", b"x"),
        ("nar/%78", b"x"),
        ("nar/%78y", b"literal"),
        ("nar/q?h=1", b"query"),
        ("nar/q%3Fh=1?z", b"query"),
    ],
)
def test_literal_file_name_takes_precedence_over_the_decoded_one(directory: Path, path: str, content: bytes) -> None:
    files = {
        "nar/x": b"x",
        "link": b"x",
        "dirlink/x": b"x",
        "nar/q?h=1": b"query",
        "nar/%78y": b"literal",
        "nar/xy": b"decoded",
    }
    store = LocalBinaryCacheStore(str(directory))
    assert read_file(store, path, 9) == content
    if ".." not in path:
        assert read_file(MemoryStore(files), path, 9) == content


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://h:x/",
        "http://h:0/",
        "http://h:99999/",
        "http://[::1/",
        "http://h\\x/",
        "http://h/../x",
        "http://h/%2e%2e/x",
        "http://h/a b",
        "http://h\n/",
        "http://h\u00e9.example/",
        "http://u:p/ss@h/",
        "http://u:1/ss@h/",
        "http://u:1?ss@h/",
        "http://u:1#ss@h/",
    ],
)
def test_invalid_store_urls_are_rejected(url: str) -> None:
    with pytest.raises(SettingsError):
        StoreUrl.parse(url)
