"""Pages that show a file, and the additional parts of directory pages."""

import re
from html import unescape

import pytest

from tests.e2e import links, trees
from tests.e2e.client import Client, location, url_path
from tests.e2e.nixcaches import NixCaches
from tests.e2e.test_http_directories import BROWSER, page_of
from tests.e2e.test_http_files import FOREVER, PAGE


@pytest.fixture
def hello(caches: NixCaches) -> str:
    return url_path(caches.store_paths[links.HELLO])


def test_view_shows_a_file_as_a_page(client: Client, hello: str) -> None:
    path = f"{hello}/bin/hello"
    got = client.get(f"{path}?view", BROWSER)
    page = page_of(got, path)
    assert got.directives() == PAGE
    assert "script-src 'self'" in got.header("Content-Security-Policy")
    lines = re.findall(r'<div class="line"[^>]*><a [^>]*>\d+</a><code>(.*)\n</code>', got.text)
    assert [unescape(re.sub("<[^>]*>", "", line)) for line in lines] == trees.SCRIPT.decode().splitlines()
    assert {path, f"{path}?download", f"{hello}/", f"{hello}/bin/"} <= set(page.hrefs)
    assert client.get(f"{path}?view", BROWSER | {"If-None-Match": got.header("ETag")}).status == 304
    assert client.get(path, BROWSER).body == trees.SCRIPT, "without ?view it is the file"


def test_static_files_of_pages_exist(client: Client, hello: str) -> None:
    text = client.get(f"{hello}/bin/hello?view", BROWSER).text + client.get(f"{hello}/", BROWSER).text
    urls = set(re.findall(r'"([^"]*/-/static/[^"]+)"', text))
    assert {re.sub(r".*/|\?.*", "", url) for url in urls} == {"style.css", "script.js", "icon.svg"}
    for url in urls:
        assert client.get(url).directives() == FOREVER


def test_view_is_kept_when_a_link_is_followed(client: Client, hello: str) -> None:
    for path, page in ((f"{hello}/bin/hi", f"{hello}/bin/hello"), (f"{hello}/bin", f"{hello}/bin/")):
        target = location(client.get(f"{path}?view"), path)
        assert target.removesuffix("=") == f"{page}?view", "API Gateway writes view="


def test_the_page_of_the_root_describes_the_store_path(client: Client, caches: NixCaches, hello: str) -> None:
    text = client.get(f"{hello}/", BROWSER).text
    assert f"nix-store -r {caches.store_paths[links.HELLO]}" in text
    assert "About this store path" in text
    assert "About this store path" not in client.get(f"{hello}/bin/", BROWSER).text


def test_view_hex_shows_bytes(client: Client, caches: NixCaches) -> None:
    root = url_path(caches.store_paths[trees.TYPES_NAME])
    text = client.get(f"{root}/image.png?view=hex", BROWSER).text
    assert "89 50 4e 47 0d 0a 1a 0a" in text


def test_pasted_text_leads_to_its_store_path(client: Client, hello: str) -> None:
    base = hello.rpartition("/")[2]
    for text in (f"https%3A%2F%2Fcache.nixos.org%2F{base[:32]}.narinfo", f"nix-store+-r+%2Fnix%2Fstore%2F{base}"):
        assert base[:32] in location(client.get(f"/?path={text}"), "/")
    assert client.get("/?path=nothing", BROWSER).status == 400
