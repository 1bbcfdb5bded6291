"""Directories: redirects to the slash, index.html, listings in HTML and JSON."""

import os
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin

import pytest

from tests.e2e import links, trees
from tests.e2e.client import Client, ClientResponse, location, query_of, url_path
from tests.e2e.nixcaches import NixCaches, parse_listing
from tests.e2e.test_http_files import FOREVER, PAGE

JSON = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


class _Page(HTMLParser):
    """The parsed page at ``url``: its links, its text, and everything in it that could run a script.

    ``rows`` has the first link of each table row.
    """

    def __init__(self, text: str, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self._url = url
        self._in_row = False
        self.hrefs: list[str] = []
        self.rows: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._in_row = self._in_row or tag == "tr"
        if tag == "a" and (href := attributes.get("href")) is not None:
            self.hrefs.append(urljoin(self._url, href))
            if self._in_row:
                self.rows.append(self.hrefs[-1])
            self._in_row = False
        if tag == "script" and "src" not in attributes:
            self.scripts.append(tag)
        self.scripts += [name for name in attributes if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_at(client: Client, path: str) -> _Page:
    """Fetch the HTML page at ``path`` like a browser, and parse it."""
    got = client.get(path, BROWSER)
    assert got.status == 200
    return page_of(got, path)


def page_of(got: ClientResponse, path: str) -> _Page:
    """Parse the HTML page in a response."""
    assert got.header("Content-Type").replace(" ", "").lower() == "text/html;charset=utf-8"
    return _Page(got.text, path)


@pytest.fixture
def roots(caches: NixCaches) -> dict[str, str]:
    """The URL path of each tree, with a trailing slash."""
    return {name: url_path(path) + "/" for name, path in caches.store_paths.items()}


def test_a_directory_without_a_slash_is_redirected_to_it(client: Client, roots: dict[str, str]) -> None:
    for path in (roots[links.HELLO], roots[links.HELLO] + "share/doc/", roots[trees.WEBSITE_NAME] + "img/"):
        client.get(path + "?format=nar")  # caches and verifies the NAR
        got = client.get(path.rstrip("/"))
        assert location(got, path) == path
        assert got.directives() == FOREVER
        with_query = client.get(path.rstrip("/") + "?list&q=a%20b%2Bc")
        target = location(with_query, path)
        assert target.partition("?")[0] == path
        assert query_of(target) == {"list": [""], "q": ["a b+c"]}


def test_index_html_is_served_unless_a_listing_is_requested(
    client: Client, roots: dict[str, str], caches: NixCaches
) -> None:
    root = roots[trees.WEBSITE_NAME]
    index = (caches.tree(trees.WEBSITE_NAME) / "index.html").read_bytes()
    got = client.get(root)
    assert (got.status, got.body) == (200, index)
    assert got.header("Content-Type").startswith("text/html")
    assert "sandbox" in got.header("Content-Security-Policy")
    assert "accept" in got.header("Vary").lower()
    assert root + "docs/" in page_at(client, root + "?list").hrefs
    assert parse_listing(client.get(root, JSON).body)["root"]["entries"].keys() >= {"index.html", "docs"}
    assert parse_listing(client.get(root + "?format=json").body)["root"]["entries"].keys() >= {"index.html", "docs"}


def test_relative_links_of_a_page_work(client: Client, roots: dict[str, str]) -> None:
    assert client.get(urljoin(roots[trees.WEBSITE_NAME], "img/logo.png")).body == trees.png()
    docs = urljoin(roots[trees.WEBSITE_NAME], "docs/")
    assert b"href='../'" in client.get(docs).body


def test_an_index_html_that_is_not_a_file_is_listed(client: Client, roots: dict[str, str], caches: NixCaches) -> None:
    root = roots[trees.WEBSITE_NAME]
    directory, dangling = root + "index-is-directory/", root + "index-dangles/"
    assert directory + "index.html/" in page_at(client, directory).hrefs
    assert dangling + "index.html" in page_at(client, dangling).hrefs
    linked = client.get(root + "index-is-link/")
    if linked.status == 302:
        assert location(linked, root + "index-is-link/") == root + "index.html"
    else:
        assert linked.body == (caches.tree(trees.WEBSITE_NAME) / "index.html").read_bytes()


@pytest.mark.parametrize(
    "name", [links.HELLO, trees.NAMES_NAME, trees.SIBLINGS_NAME, trees.EMPTIES_NAME, trees.DEEP_NAME]
)
def test_links_of_listings_lead_to_every_file(
    client: Client, caches: NixCaches, roots: dict[str, str], name: str
) -> None:
    root = roots[name]
    bodies, seen, queue = [], set(), [root]
    while queue:
        path = queue.pop()
        for target in page_at(client, path + "?list").hrefs:
            if not target.startswith(root) or "?" in target or target in seen:
                continue
            seen.add(target)
            if target.endswith("/"):
                queue.append(target)
            elif (got := client.get(target)).status == 200:
                bodies.append(got.body)
    entries = list(caches.entries(name))
    assert sorted(bodies) == sorted(entry.source.read_bytes() for entry in entries if entry.kind == "regular")


def test_a_listing_shows_names_sizes_and_link_targets(client: Client, roots: dict[str, str]) -> None:
    directory = roots[links.HELLO] + "bin/"
    page = page_at(client, directory)
    text = "".join(page.texts)
    assert {directory + "hello", directory + "hi"} <= set(page.hrefs)
    assert "hello" in text
    assert str(len(trees.SCRIPT)) in text  # the size
    root = roots[links.LINKS_NAME]
    page = page_at(client, root)
    assert {root + "sub/", root + "file.txt", root + "relative"} <= set(page.hrefs)
    assert "/etc/passwd" in "".join(page.texts)  # the target of a link that leads nowhere
    assert roots[links.HELLO] + "bin/hello" in page.hrefs  # the target of a link to another store path


def test_directories_are_marked_and_sorted_by_bytes(client: Client, roots: dict[str, str], caches: NixCaches) -> None:
    for name in (trees.SIBLINGS_NAME, trees.NAMES_NAME, links.LINKS_NAME):
        expected = [
            roots[name].encode()
            + os.fsencode(child.name)
            + (b"/" if child.is_dir() and not child.is_symlink() else b"")
            for child in sorted(caches.tree(name).iterdir(), key=lambda child: os.fsencode(child.name))
        ]
        assert [unquote_to_bytes(href) for href in page_at(client, roots[name]).rows] == expected


def test_names_are_escaped_in_html(client: Client, roots: dict[str, str]) -> None:
    got = client.get(roots[trees.NAMES_NAME], BROWSER)
    page = page_of(got, roots[trees.NAMES_NAME])
    assert not page.scripts
    assert b"<script>alert" not in got.body
    assert b"<b>bold" not in got.body
    text = "".join(page.texts)
    for name in ("<script>alert(1)<", "<b>bold", "&amp;", "&lt;b", "%41", "quote\"d'"):
        assert name in text


def test_directories_with_a_common_prefix_are_not_mixed_up(client: Client, roots: dict[str, str]) -> None:
    root = roots[trees.SIBLINGS_NAME]
    for name in trees.SIBLINGS:
        path = root + url_path("", name)[1:] + "/"
        entries = parse_listing(client.get(path, JSON).body)["root"]["entries"]
        assert sorted(entries, key=os.fsencode) == [os.fsdecode(b"only-" + name), "same.txt", "sub"]
        assert client.get(path + "same.txt").body == b"in " + name
    assert client.get(root + "lib/only-lib64").status == 404
    assert client.get(root + "l").status == 404


def without_entries(listing: Any) -> Any:
    """Return a listing of the root directory only, without the entries of its directories."""
    root = listing["root"]
    entries = {
        name: {"type": "directory"} if child["type"] == "directory" else child
        for name, child in root["entries"].items()
    }
    return {"version": 1, "root": {"type": "directory", "entries": entries}}


@pytest.mark.parametrize(
    "name", [links.HELLO, links.LINKS_NAME, trees.NAMES_NAME, "empty-directory", trees.STDLIB_NAME]
)
def test_the_json_of_a_directory_is_its_listing(
    client: Client, caches: NixCaches, roots: dict[str, str], name: str
) -> None:
    whole = caches.listing(name)
    for headers, query in ((JSON, ""), ({}, "?format=json"), (BROWSER, "?format=json")):
        got = client.get(roots[name] + query, headers)
        assert got.header("Content-Type") == "application/json"
        assert parse_listing(got.body) == without_entries(whole)
        everything = client.get(roots[name] + (query + "&recursive" if query else "?recursive"), headers)
        assert parse_listing(everything.body) == whole


def test_the_json_of_a_subdirectory_is_its_part_of_the_listing(
    client: Client, caches: NixCaches, roots: dict[str, str]
) -> None:
    share = caches.listing(links.HELLO)["root"]["entries"]["share"]
    got = client.get(roots[links.HELLO] + "share/?format=json&recursive")
    assert parse_listing(got.body) == {"version": 1, "root": share}
    got = client.get(roots[links.HELLO] + "share/?format=json")
    assert parse_listing(got.body) == without_entries({"version": 1, "root": share})


def test_files_and_links_have_a_json_listing(client: Client, caches: NixCaches, roots: dict[str, str]) -> None:
    entries = caches.listing(links.HELLO)["root"]["entries"]["bin"]["entries"]
    for name in ("hello", "hi"):
        got = client.get(f"{roots[links.HELLO]}bin/{name}?format=json")
        assert parse_listing(got.body) == {"version": 1, "root": entries[name]}
    dangling = client.get(roots[links.LINKS_NAME] + "dangling?format=json")
    assert parse_listing(dangling.body)["root"] == {"type": "symlink", "target": "nowhere"}


def test_accept_selects_the_format_and_vary_names_it(client: Client, roots: dict[str, str]) -> None:
    root = roots[links.HELLO]
    json, html = "application/json", "text/html"
    for accept, expected in [
        ("application/json", json), ("text/html", html), ("*/*", html), ("application/json;q=0.5, text/html", html),
        ("text/html;q=0.5, application/json", json), ("image/png", html), ("application/json;q=0", html), ("broken;;", html),
    ]:  # fmt: skip
        got = client.get(root, {"Accept": accept})
        assert got.header("Content-Type").partition(";")[0] == expected, accept
        assert "accept" in got.header("Vary").lower()
    assert client.get(root).header("Content-Type").startswith(html)


def test_the_error_for_an_unknown_format_names_the_formats(client: Client, roots: dict[str, str]) -> None:
    for path in (roots[links.HELLO], roots[links.HELLO] + "bin/hello", roots[links.HELLO] + "bin/hi"):
        got = client.get(path + "?format=exe")
        assert got.status == 400
        assert "json" in got.text


def test_listings_can_be_cached(client: Client, roots: dict[str, str]) -> None:
    etags = set()
    client.get(roots[links.HELLO] + "?format=nar")  # caches and verifies the NAR
    for query, headers, lifetime in (("", BROWSER, PAGE), ("", JSON, FOREVER), ("?recursive", JSON, FOREVER)):
        got = client.get(roots[links.HELLO] + query, headers)
        assert got.directives() == lifetime
        etag = got.header("ETag")
        assert client.get(roots[links.HELLO] + query, headers | {"If-None-Match": etag}).status == 304
        etags.add(etag)
    other = client.get(roots[links.HELLO] + "share/", JSON)
    assert len(etags | {other.header("ETag")}) == 4


def test_head_of_a_listing_has_the_headers_of_get(client: Client, roots: dict[str, str]) -> None:
    for headers in (BROWSER, JSON):
        head, got = client.head(roots[links.HELLO], headers), client.get(roots[links.HELLO], headers)
        assert head.status == 200
        for name in ("Content-Type", "ETag", "Cache-Control", "Vary"):
            assert head.header(name) == got.header(name)


def test_pages_of_nar_serve_allow_no_inline_scripts(client: Client, roots: dict[str, str]) -> None:
    for path in ("/", roots[links.HELLO], roots[links.HELLO] + "none"):
        got = client.get(path, BROWSER)
        assert not page_of(got, path).scripts
        policy = got.header("Content-Security-Policy")
        assert "default-src 'none'" in policy or "default-src 'self'" in policy
        assert "unsafe-inline" not in policy
        assert "unsafe-eval" not in policy


def test_an_empty_directory_has_a_listing(client: Client, caches: NixCaches, roots: dict[str, str]) -> None:
    assert client.get(roots["empty-directory"], BROWSER).status == 200
    assert parse_listing(client.get(roots["empty-directory"], JSON).body) == caches.listing("empty-directory")
