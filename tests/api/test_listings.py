"""A directory as a page and as JSON."""

import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.responses.listing import Extras, listing_response
from api.view.readme import readme_of
from narcore.errors import CorruptStream
from narcore.formats.listing import NarListing, Node
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import Signature
from narcore.formats.storepath import StorePath
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.stores.memory import MemoryStore
from tests.api.support import STORE_PATH, Answer, Headers, answer, listing_of, ref, request

TREE = {
    "bin": {"hello": b"#!/bin/sh", "sh": "../lib/sh", "abs": "/nix/store/1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-bash/bin/sh"},
    "lib": {"sh": 2048, "self": ".", "up": "../bin/", "out": "../../1bbb-x/y", "maze": "a/../b", "etc": "/etc/passwd"},
    "lib.d": {},
    "lib64": "lib",
    "one": 1,
}
HOSTILE = [
    "<script>alert(1)<b>",
    "<img src=x onerror=alert(1)>",
    "a&amp;b",
    "\"'>",
    "new\nline",
    "\udcff\udcfe",
    "{{ 7*7 }}",
    "%41",
    "a?b#c",
    "javascript:alert(1)",
    "http:",
    " ",
    "grün",
    "\u202egnp.exe",
    "-->",
]


class Page(HTMLParser):
    """A parsed HTML page: its tags, its attributes, and its links with their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.links: list[tuple[str, str]] = []
        self.title = ""
        self._text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("a", "title"):
            self._text = ""
            self._href = dict(attrs).get("href") or ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self.links.append((self._text, self._href))
        elif tag == "title":
            self.title = self._text


def get(
    listing: NarListing,
    path: str = "",
    query: str = "",
    headers: Headers | None = None,
    method: str = "GET",
    environ: Mapping[str, object] | None = None,
) -> Answer:
    node = listing.root
    for name in filter(None, path.split("/")):
        found = listing.child(node, name)
        assert found is not None
        node = found
    return answer(
        request(f"/x/{query}", method, headers, environ),
        lambda req: listing_response(req, listing, node, ref(path)),
    )


def page_of(tree: object, path: str = "", script_name: str = "") -> Page:
    return Page(get(listing_of(tree), path, environ={"SCRIPT_NAME": script_name}).text)


def test_the_page_of_a_root_lists_its_entries() -> None:
    result = get(listing_of(TREE))
    assert result.headers["Content-Type"] == "text/html; charset=utf-8"
    assert result.headers["Content-Length"] == str(len(result.body))
    assert result.headers["Vary"] == "Accept"
    assert result.headers["Cache-Control"] == "public, max-age=600, stale-while-revalidate=86400"
    assert result.headers["Last-Modified"]
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    page = Page(result.text)
    assert page.title == f"{STORE_PATH}/"
    entries = [link for link in page.links if link[1].startswith("./") and link[1] != "./"]
    assert entries == [
        ("bin/", "./bin/"),
        ("lib/", "./lib/"),
        ("lib.d/", "./lib.d/"),
        ("", "./lib64"),
        ("lib64", "./lib64?view"),
        ("lib", "./lib"),
        ("", "./one"),
        ("one", "./one?view"),
    ]
    assert '<td class="size" title="1 byte">1 B</td>' in result.text


def test_the_page_of_a_subdirectory_has_breadcrumbs_and_a_parent() -> None:
    result = get(listing_of(TREE), "bin")
    page = Page(result.text)
    assert page.title == f"{STORE_PATH}/bin/"
    assert (STORE_PATH.rpartition("/")[2], "../") in page.links, "a breadcrumb to the root"
    assert ("../", "../") in page.links
    assert re.search(r'hello</bdi></a> <span class="mark" title="Executable">exec', result.text)
    assert result.text.count('title="Executable"') == 1


def test_the_page_of_a_root_links_to_no_parent_but_to_the_landing_page() -> None:
    page = page_of(TREE)
    assert "../" not in dict(page.links)
    assert dict(page.links)["nar-serve"] == "/"


def test_targets_of_symbolic_links_are_links() -> None:
    links = dict(page_of(TREE, "lib").links)
    assert links["../bin/"] == "./../bin"
    assert links["."] == "./"
    assert links["../../1bbb-x/y"] == "./out", (
        "the target is outside of this store path, so the server follows the link"
    )
    assert links["a/../b"] == "./maze", "a may be a symbolic link"
    assert "/etc/passwd" not in links
    assert dict(page_of(TREE, "bin").links)["/nix/store/1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-bash/bin/sh"].startswith(
        "/nix"
    )


def test_links_begin_with_script_name_or_the_prefix() -> None:
    target = "/nix/store/1bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-bash/bin/sh"
    links = dict(page_of(TREE, "bin", script_name="/prod").links)
    assert links[target] == f"/prod{target}"
    assert links["nar-serve"] == "/prod/"
    listing = listing_of(TREE)
    node = listing.child(listing.root, "bin")
    assert node is not None
    other = answer(request(), lambda req: listing_response(req, listing, node, ref("bin"), prefix="/unpack"))
    assert dict(Page(other.text).links)[target] == f"/unpack{target}"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("node", [1, "target", {"x": 1}])
def test_a_hostile_name_adds_no_tag_and_its_link_reaches_it(name: str, node: object) -> None:
    result = get(listing_of({name: node, "z": name}))
    page = Page(result.text)
    harmless = Page(get(listing_of({"name": node, "z": "name"})).text)
    assert sorted(page.tags) == sorted(harmless.tags), "a name adds no tag"
    assert {key for key, _ in page.attributes} == {key for key, _ in harmless.attributes}
    here = "http://host/nix/store/x/"
    urls = {urljoin(here, href.removesuffix("?view")) for _, href in page.links if href.startswith("./")}
    assert all(url.startswith(here) and not set(url) & set("?#\n") for url in urls)
    reached = {unquote_to_bytes(url.removeprefix(here)).removesuffix(b"/") for url in urls}
    assert name.encode("utf-8", "surrogateescape") in reached


def test_hostile_directory_names_add_no_tag_to_title_and_breadcrumbs() -> None:
    for name in HOSTILE:
        page = page_of({name: {"x": 1}}, name)
        assert sorted(page.tags) == sorted(page_of({"name": {"x": 1}}, "name").tags)
        assert page.title.startswith(f"{STORE_PATH}/")


def test_unprintable_characters_of_names_are_escaped() -> None:
    text = get(listing_of({"new\nline": 1, "\udcff": 1, "\u202egnp": 1, "grün ✓": 1})).text
    for shown in ("new\\nline", "\\xff", "\\u202egnp", "grün ✓"):
        assert f">{shown}<" in text


def test_the_page_of_an_empty_directory_says_so() -> None:
    assert "This directory is empty" in get(listing_of({})).text
    assert "This directory is empty" not in get(listing_of({"a": 1})).text


def test_a_page_has_only_the_static_script_and_no_inline_code() -> None:
    result = get(listing_of(TREE))
    page = Page(result.text)
    assert not {"style", "iframe", "object"} & set(page.tags)
    scripts = re.findall(r"<script(.*?)</script>", result.text, re.DOTALL)
    assert len(scripts) == 1
    assert re.fullmatch(r' src="/-/static/script\.js\?v=[0-9a-f]{16}" defer>', scripts[0])
    assert "script-src 'self';" in result.headers["Content-Security-Policy"]
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    csp = result.headers["Content-Security-Policy"]
    assert "default-src 'none'" in csp
    assert "unsafe-inline" not in csp


# --- order, sizes, panel and README


def order_of(query: str, path: str = "") -> list[str]:
    tree = {"a": 5, "b": {"x": 3, "y": {"z": 4}}, "c": "/x", "d": {}, "e": 7}
    page = Page(get(listing_of(tree), path, query).text)
    return [text for text, href in page.links if text.rstrip("/") in tree and not href.startswith("../")]


def test_links_change_the_order() -> None:
    assert order_of("") == order_of("?sort=x&folders=y") == ["a", "b/", "c", "d/", "e"]
    assert order_of("?sort=size") == ["b/", "e", "a", "c", "d/"]
    assert order_of("?folders=first") == ["b/", "d/", "a", "c", "e"]
    assert order_of("?sort=size&folders=first") == ["b/", "d/", "e", "a", "c"]
    links = dict(Page(get(listing_of(TREE), query="?list&sort=size").text).links)
    assert links["Largest first"] == "?list", "?list is kept"
    assert links["Folders first"] == "?list&sort=size&folders=first"
    assert dict(page_of(TREE).links)["Largest first"] == "?sort=size"
    listing = listing_of(TREE)
    assert get(listing).headers["ETag"] != get(listing, query="?sort=size").headers["ETag"]


def test_a_directory_shows_its_total_size() -> None:
    text = get(listing_of({"b": {"x": 3000, "y": {"z": 4000}}, "c": 1})).text
    assert '<td class="size" title="7,000 bytes">6.8 KiB</td>' in text
    assert '<span title="7,001 bytes">6.8 KiB</span> in total' in text
    assert ">2 entries<" in text


def path_info(**values: object) -> PathInfo:
    options: dict[str, Any] = {
        "store_path": StorePath.parse(STORE_PATH),
        "url": "nar/x.nar.xz",
        "compression": "xz",
        "nar_hash": NixHash("sha256", bytes(32)),
        "nar_size": 5000,
        "file_size": 2000,
        "references": (f"{'1' * 32}-bash", f"{'2' * 32}-glibc"),
        "deriver": f"{'3' * 32}-hello.drv",
        "signatures": (Signature("key-1", bytes(64)),),
    }
    return PathInfo(NarInfo(**{**options, **values}), MemoryStore({}, url="https://c.example/a b"), Trust.SIGNATURE)


def page_with(info: PathInfo | None = None, readme: bytes | None = None, tree: object = None) -> Answer:
    def read(node: Node) -> bytes:
        assert readme is not None
        if not readme:
            raise CorruptStream("broken")
        return readme

    listing = listing_of(tree or ({"README.md": 10, "a": 1} if readme is not None else {"a": 1}))
    extras = Extras(info, read if readme is not None else None)
    return answer(
        request("/nix/store/x/"), lambda req: listing_response(req, listing, listing.root, ref(), extras=extras)
    )


def test_the_page_of_a_root_shows_the_narinfo() -> None:
    result = page_with(path_info())
    page = Page(result.text)
    assert ("bash", f"/nix/store/{'1' * 32}-bash") in page.links
    assert ("hello.drv", f"/nix/store/{'3' * 32}-hello.drv?view") in page.links
    for text in ("4.9 KiB unpacked", "xz", "key-1", "Verified: signed by a key", "sha256-AAAA", "References: 2"):
        assert text in result.text
    assert f"nix copy --from &#39;https://c.example/a b&#39; {STORE_PATH}" in result.text
    assert "curl -L &#39;http://localhost/nix/store/x/?format=tar.zst&#39; | tar --zstd -x" in result.text
    assert page_with().headers["ETag"] != result.headers["ETag"]
    assert result.headers["ETag"] != page_with(path_info(signatures=())).headers["ETag"]


def test_a_readme_is_shown_as_safe_html() -> None:
    text = (
        b"# Title\n[in](doc/a.txt) [out](https://x.example/) [bad](javascript:alert(1)) [root](/healthz)\n\n"
        b"<script>alert(1)</script> ![pic](p.png) ![far](https://x.example/p.png)\n\n|a|b|\n|-|-|\n|1|2|\n"
    )
    result = page_with(readme=text)
    page = Page(result.text)
    assert "<h3>Title</h3>" in result.text
    assert "<h4>b</h4>" in str(readme_of("README.md", b"# a\n### b\n").html), "no heading level is skipped"
    links = dict(page.links)
    assert (links["in"], links["out"]) == ("doc/a.txt", "https://x.example/")
    assert "bad" not in links
    assert links["root"] == ""
    assert page.tags.count("script") == 1
    sources = [value for name, value in page.attributes if name == "src" and "static" not in (value or "")]
    assert sources == ["p.png"]
    assert "&lt;script&gt;" in result.text
    assert "nofollow" in result.text


def test_a_readme_that_is_not_markdown_is_shown_as_text() -> None:
    result = page_with(readme=b"# <b>\xff\n", tree={"README": 6})
    assert '<pre tabindex="0"># &lt;b&gt;\ufffd' in result.text
    assert readme_of("README.md", b"# x\n" * 20_000).html is None, "too long for the parser"
    assert 'class="readme"' not in page_with(readme=b"x", tree={"README": 300_000}).text
    assert 'class="readme"' not in page_with(readme=b"x", tree={"README": {}}).text


def test_a_page_without_its_unreadable_readme_is_not_cached() -> None:
    for result in (page_with(readme=b""), page_with(tree={"README.md": 10})):  # reading fails; reading is not cheap
        assert result.status == 200
        assert result.headers["Cache-Control"] == "no-store"
        assert "ETag" not in result.headers
        assert 'class="readme"' not in result.text


@given(st.text(alphabet="[]()<>!`*_#|-\n\"':/ajx.&;\\", max_size=80))
def test_no_markdown_is_rendered_as_executable_html(text: str) -> None:
    html = str(readme_of("README.md", text.encode()).html)
    page = Page(html)
    assert not {"script", "style", "iframe", "object", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "href" or not (value or "").startswith(("javascript:", "data:"))
        assert name != "src" or ":" not in (value or "")


# --- JSON


def test_json_has_one_level_by_default() -> None:
    result = get(listing_of(TREE), query="?format=json")
    assert result.headers["Content-Type"] == "application/json"
    assert result.headers["Content-Length"] == str(len(result.body))
    assert "Vary" not in result.headers, "the response depends only on the URL"
    listing = json.loads(result.body)
    assert listing["version"] == 1
    assert listing["root"]["entries"]["bin"] == {"type": "directory"}
    assert listing["root"]["entries"]["lib64"] == {"type": "symlink", "target": "lib"}
    assert listing["root"]["entries"]["one"]["narOffset"] > 0
    assert list(listing["root"]["entries"]) == ["bin", "lib", "lib.d", "lib64", "one"]


def test_recursive_json_has_all_levels() -> None:
    listing = listing_of(TREE)
    result = get(listing, query="?recursive", headers={"Accept": "application/json"})
    assert result.headers["Vary"] == "Accept"
    assert result.body == b"".join(listing.json_chunks())
    below = json.loads(get(listing, "bin", "?recursive&format=json").body)
    assert below["root"] == json.loads(result.body)["root"]["entries"]["bin"]


def test_a_file_has_a_json_listing_too() -> None:
    assert json.loads(get(listing_of(TREE), "one", "?format=json").body)["root"]["size"] == 1


def test_the_error_for_an_unknown_format_lists_the_formats() -> None:
    result = get(listing_of(TREE), query="?format=%3Cexe%3E")
    assert result.status == 400
    assert "json" in result.text


# --- caching


def test_each_representation_has_its_own_etag() -> None:
    listing = listing_of(TREE)
    urls: list[tuple[str, str]] = [("", ""), ("", "?format=json"), ("", "?format=json&recursive"), ("bin", "")]
    tags = {get(listing, path, query).headers["ETag"] for path, query in urls}
    assert len(tags) == 4
    assert ref().validators().etag not in tags
    by_accept = get(listing, headers={"Accept": "application/json"}).headers["ETag"]
    assert by_accept == get(listing, query="?format=json").headers["ETag"], "the same bytes"


def test_a_matching_etag_is_answered_with_not_modified() -> None:
    listing = listing_of(TREE)
    etag = get(listing).headers["ETag"]
    result = get(listing, headers={"If-None-Match": etag})
    assert (result.status, result.body) == (304, b"")
    assert {"ETag", "Cache-Control", "Vary"} <= set(result.headers.keys())
    other = get(listing, headers={"If-None-Match": etag, "Accept": "application/json"})
    assert other.status == 200


def test_head_is_get_without_a_body() -> None:
    listing = listing_of(TREE)
    full, head = get(listing), get(listing, method="HEAD")
    assert head.body == b""
    assert dict(head.headers) | {"Expires": ""} == dict(full.headers) | {"Expires": ""}


# --- size


def test_a_long_listing_is_generated_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = 0
    children = NarListing.children

    def counted(listing: NarListing, node: Node, start: int = 0) -> Iterator[Node]:
        nonlocal generated
        for child in children(listing, node, start):
            generated += 1
            yield child

    listing = listing_of({f"file-{n}": n for n in range(20_000)})
    monkeypatch.setattr(NarListing, "children", counted)
    response = listing_response(request("/x/"), listing, listing.root, ref())
    chunks = response.get_app_iter(request().environ)
    first = next(iter(chunks))
    assert generated < 10_000, "rows are generated on demand"
    body = first + b"".join(chunks)
    assert generated == 20_000
    assert body.count(b"<tr>") == 20_001
    assert body.count(b"<tbody>") == 100, "rows are grouped, and a browser lays out only visible groups"
    assert body.rstrip().endswith(b"</html>")
