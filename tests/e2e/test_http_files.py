"""Regular files: headers, conditional requests, downloads. test_http_ranges.py tests ranges."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest

from narserve.dev.apigateway import REMAPPED_LENGTH
from tests.e2e import links, trees
from tests.e2e.client import Client, url_path
from tests.e2e.nixcaches import NixCaches

FOREVER = {"public": "", "max-age": "31536000", "immutable": ""}
PAGE = {"public": "", "max-age": "600", "stale-while-revalidate": "86400"}


@pytest.fixture
def script(caches: NixCaches) -> str:
    """The URL path of an executable."""
    return url_path(caches.store_paths[links.HELLO], b"bin/hello")


@pytest.fixture
def readme(caches: NixCaches) -> str:
    """The URL path of a plain text file."""
    return url_path(caches.store_paths[links.HELLO], b"share/doc/hello/README")


def test_a_file_has_all_headers(client: Client, script: str, readme: str) -> None:
    got = client.get(script)
    assert (got.status, got.body) == (200, trees.SCRIPT)
    assert got.header("Content-Length") == str(len(trees.SCRIPT))
    assert got.header("NAR-Executable") == "1"
    assert got.header("Accept-Ranges") == "bytes"
    assert got.header("Last-Modified") == "Thu, 01 Jan 1970 00:00:01 GMT"
    assert got.directives() == FOREVER
    expires = parsedate_to_datetime(got.header("Expires")) - datetime.now(UTC)
    assert timedelta(days=364) < expires < timedelta(days=367)
    assert got.header("X-Content-Type-Options") == "nosniff"
    assert got.header("Access-Control-Allow-Origin") == "*"
    assert "nar-executable" in got.header("Access-Control-Expose-Headers").lower()
    assert "Content-Encoding" not in got.headers
    assert "NAR-Executable" not in client.get(readme).headers


def test_contents_of_nars_are_sandboxed(client: Client, caches: NixCaches) -> None:
    website = url_path(caches.store_paths[trees.WEBSITE_NAME])
    for path in ("/index.html", "/", "/img/logo.png"):
        policy = client.get(website + path).header("Content-Security-Policy")
        sandbox = next(part.split() for part in policy.split(";") if part.split()[:1] == ["sandbox"])
        assert "allow-scripts" in sandbox
        assert "allow-same-origin" not in sandbox


def test_etags_are_strong_and_differ_between_files(client: Client, caches: NixCaches, readme: str) -> None:
    paths = [f"{name.decode('latin-1')}/same.txt".encode("latin-1") for name in trees.SIBLINGS]
    siblings = [url_path(caches.store_paths[trees.SIBLINGS_NAME], path) for path in paths]
    empties = [url_path(caches.store_paths[trees.EMPTIES_NAME], path) for path in (b"file", b"script")]
    etags = [client.get(path).header("ETag") for path in (readme, *siblings, *empties)]
    assert all(etag[0] == etag[-1] == '"' and len(etag) > 10 for etag in etags)
    assert len(set(etags)) == len(etags)


def test_the_etag_does_not_depend_on_the_form_of_the_url(client: Client, script: str) -> None:
    by_hash = script.replace(f"-{links.HELLO}", "")
    assert client.get(by_hash).header("ETag") == client.get(script).header("ETag")


@pytest.mark.parametrize("name", trees.TYPES)
def test_media_types_match_the_table(client: Client, caches: NixCaches, name: str) -> None:
    got = client.get(url_path(caches.store_paths[trees.TYPES_NAME], name.encode()))
    data, expected = trees.TYPES[name]
    assert got.body == data
    media_type = got.header("Content-Type")
    assert media_type.replace(" ", "").lower() == expected.replace(" ", "") or (
        ";" not in expected and media_type.partition(";")[0] == expected
    )
    assert "Content-Encoding" not in got.headers


def test_a_file_that_is_not_utf_8_has_no_charset(client: Client, caches: NixCaches) -> None:
    """An HTML page declares its own charset, which a header would override."""
    got = client.get(url_path(caches.store_paths[trees.TYPES_NAME], b"latin1"))
    assert "charset" not in got.header("Content-Type")


@pytest.mark.parametrize("name", [b"doc.txt", b"page.html", b"text", b"binary"])
def test_head_has_the_headers_of_get(client: Client, caches: NixCaches, name: bytes) -> None:
    path = url_path(caches.store_paths[trees.TYPES_NAME], name)
    client.get(path)  # the lifetime of a HEAD depends on whether the NAR is cached
    head, get = client.head(path), client.get(path)
    assert head.status == get.status == 200
    assert head.size == get.size == len(get.body)
    volatile = {
        "date",
        "expires",
        "server-timing",
        "connection",
        "keep-alive",
        "content-length",
        REMAPPED_LENGTH.lower(),
    }
    from_head = {key.lower(): value for key, value in head.headers.items() if key.lower() not in volatile}
    from_get = {key.lower(): value for key, value in get.headers.items() if key.lower() not in volatile}
    if "content-type" not in from_head and b"." not in name:
        del from_get["content-type"]  # GET detects it from the contents
    assert from_head == from_get


def test_a_matching_condition_returns_304(client: Client, script: str) -> None:
    got = client.get(script)
    etag = got.header("ETag")
    for condition in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        unchanged = client.get(script, {"If-None-Match": condition})
        assert (unchanged.status, unchanged.body) == (304, b""), condition
        assert unchanged.header("ETag") == etag
        assert unchanged.directives() == FOREVER
        assert "Expires" in unchanged.headers
        assert client.head(script, {"If-None-Match": condition}).status == 304
    assert client.get(script, {"If-None-Match": '"other"'}).status == 200
    assert client.get(script, {"If-None-Match": etag.strip('"')}).status == 200
    since = got.header("Last-Modified")
    assert client.get(script, {"If-Modified-Since": since}).status == 304
    assert client.get(script, {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}).status == 200
    assert client.get(script, {"If-Modified-Since": "yesterday"}).status == 200
    assert client.get(script, {"If-None-Match": '"other"', "If-Modified-Since": since}).status == 200


def test_a_failed_precondition_returns_412(client: Client, script: str) -> None:
    etag = client.get(script).header("ETag")
    assert client.get(script, {"If-Match": etag}).status == 200
    assert client.get(script, {"If-Match": "*"}).status == 200
    assert client.get(script, {"If-Match": '"other"'}).status == 412
    assert client.get(script, {"If-Match": f"W/{etag}"}).status == 412
    assert client.get(script, {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}).status == 412
    assert client.get(script, {"If-Unmodified-Since": "Fri, 01 Jan 2021 00:00:00 GMT"}).status == 200


def test_download_sends_a_content_disposition(client: Client, caches: NixCaches, script: str) -> None:
    got = client.get(f"{script}?download")
    assert got.body == trees.SCRIPT
    disposition = got.header("Content-Disposition")
    assert disposition.startswith("attachment")
    assert "hello" in disposition
    assert "Content-Disposition" not in client.get(script).headers
    names = caches.store_paths[trees.NAMES_NAME]
    for name in trees.ODD_NAMES:
        got = client.get(url_path(names, name) + "?download")
        disposition = got.header("Content-Disposition")
        assert got.body == b"contents of " + name
        assert disposition.startswith("attachment")
        assert disposition.isascii()
        assert disposition.isprintable()
        assert "X-Injected" not in got.headers
    utf8 = client.get(url_path(names, b"caf\xc3\xa9") + "?download").header("Content-Disposition")
    assert "filename*=UTF-8''caf%C3%A9" in utf8


def test_unknown_query_parameters_are_ignored(client: Client, script: str) -> None:
    assert client.get(f"{script}?x=1&y").body == trees.SCRIPT


def test_an_empty_file_is_served(client: Client, caches: NixCaches) -> None:
    for name, executable in ((b"file", None), (b"script", "1"), (b"a/b/file", None)):
        got = client.get(url_path(caches.store_paths[trees.EMPTIES_NAME], name))
        assert (got.status, got.body) == (200, b"")
        assert got.header("Content-Length") == "0"
        assert got.headers["NAR-Executable"] == executable
        assert "Content-Type" in got.headers


def test_a_store_path_that_is_a_file_is_served(client: Client, caches: NixCaches) -> None:
    for name, executable in ((trees.ONE_FILE_NAME, None), (trees.ONE_SCRIPT_NAME, "1")):
        got = client.get(url_path(caches.store_paths[name]))
        assert (got.status, got.body) == (200, caches.tree(name).read_bytes())
        assert got.headers["NAR-Executable"] == executable
        assert client.get(url_path(caches.store_paths[name], b"x")).status == 404
    assert client.get(url_path(caches.store_paths[trees.ONE_FILE_NAME])).header("Content-Type").startswith("text/plain")


def test_the_json_of_a_file_has_its_type_and_size(client: Client, script: str) -> None:
    got = client.get(f"{script}?format=json")
    assert got.header("Content-Type") == "application/json"
    assert '"type":"regular"' in got.text.replace(" ", "")
    assert '"executable":true' in got.text.replace(" ", "")
    assert f'"size":{len(trees.SCRIPT)}' in got.text.replace(" ", "")
