"""The response for a regular file: conditions, ranges, headers, media types, and failures while it is read."""

import email
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from wsgiref.util import FileWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.responses.body import FileWindow
from api.responses.files import file_response
from narcore.errors import CacheFailure, StoreTimeout, TruncatedStream
from tests.api.support import DATA, Answer, Headers, Source, SourceBytes, answer, file_node, ref, request

SIZE = len(DATA)
DATE = "Thu, 01 Jan 1970 00:00:01 GMT"
ETAG = ref("share/a.txt").validators().etag
OTHER = '"something else"'
WRAPPING = {"wsgi.file_wrapper": FileWrapper}


def get(
    headers: Headers | None = None,
    *,
    path: str = "share/a.txt",
    data: bytes = DATA,
    method: str = "GET",
    query: str = "",
    executable: bool = False,
    source: Source | None = None,
    own_origin: bool = False,
    is_cached: bool = False,
    environ: Mapping[str, object] | None = None,
) -> Answer:
    source = source or Source(data)
    name = path.rpartition("/")[2]
    node = file_node(name, len(source.data), executable=executable)
    result = answer(
        request("/x" + query, method, headers, environ),
        lambda req: file_response(req, node, ref(path), source.read, own_origin=own_origin, is_cached=is_cached),
    )
    assert source.open == 0, "a read was not closed"
    return result


def test_a_get_sends_the_whole_file() -> None:
    result = get()
    assert (result.status, result.body) == (200, DATA)
    assert result.headers["Content-Length"] == str(SIZE)
    assert result.headers["NAR-File-Size"] == str(SIZE)
    assert result.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert result.headers["Accept-Ranges"] == "bytes"
    assert result.headers["Last-Modified"] == DATE
    assert result.headers["ETag"] == ETAG
    assert result.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    assert result.headers["Access-Control-Allow-Origin"] == "*"
    assert {"NAR-Executable", "Content-Range", "ETag"} <= set(
        re.split(", ", result.headers["Access-Control-Expose-Headers"])
    )
    year_on = parsedate_to_datetime(result.headers["Expires"]) - datetime.now(UTC)
    assert timedelta(days=364) < year_on < timedelta(days=366)
    for absent in ("NAR-Executable", "Content-Encoding", "Content-Disposition", "Content-Range", "Vary"):
        assert absent not in result.headers


def test_an_executable_has_a_header() -> None:
    assert get(executable=True).headers["NAR-Executable"] == "1"
    assert get(executable=True, method="HEAD").headers["NAR-Executable"] == "1"


def test_a_file_is_sandboxed_unless_its_store_path_has_its_own_host() -> None:
    csp = get(path="index.html").headers["Content-Security-Policy"]
    assert csp.startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in csp
    assert "Content-Security-Policy" not in get(path="index.html", own_origin=True).headers


# --- conditions: RFC 9110 13.2.2. The status of a GET of the first ten bytes.

RANGE = {"Range": "bytes=0-9"}
BEFORE, AFTER = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 02 Jan 1970 00:00:00 GMT"
CONDITIONS: list[tuple[Headers, int]] = [
    ({}, 206),
    ({"If-None-Match": ETAG}, 304),
    ({"If-None-Match": f"W/{ETAG}"}, 304),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": f'"a,b", {ETAG}'}, 304),
    ({"If-None-Match": f"{OTHER},,  W/{ETAG} "}, 304),
    ({"If-None-Match": OTHER}, 206),
    ({"If-None-Match": ETAG.strip('"')}, 206),  # an entity tag needs its quotes
    ({"If-None-Match": '"a, ' + ETAG.strip('"')}, 206),
    ({"If-None-Match": ""}, 206),
    ({"If-Modified-Since": DATE}, 304),
    ({"If-Modified-Since": AFTER}, 304),
    ({"If-Modified-Since": "Sunday, 06-Nov-94 08:49:37 GMT"}, 304),
    ({"If-Modified-Since": "Sun Nov  6 08:49:37 1994"}, 304),
    ({"If-Modified-Since": BEFORE}, 206),
    ({"If-Modified-Since": "yesterday"}, 206),
    ({"If-Modified-Since": "Thu, 01 Jan 99999999999999999999 00:00:00 GMT"}, 206),
    ({"If-None-Match": OTHER, "If-Modified-Since": AFTER}, 206),  # the date is ignored if there is a tag
    ({"If-None-Match": "nonsense", "If-Modified-Since": AFTER}, 206),
    ({"If-Match": ETAG}, 206),
    ({"If-Match": "*"}, 206),
    ({"If-Match": f"{OTHER}, {ETAG}"}, 206),
    ({"If-Match": OTHER}, 412),
    ({"If-Match": f"W/{ETAG}"}, 412),  # strong comparison
    ({"If-Match": "nonsense"}, 412),
    ({"If-Match": OTHER, "If-None-Match": ETAG}, 412),
    ({"If-Match": ETAG, "If-None-Match": ETAG}, 304),
    ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, 206),
    ({"If-Unmodified-Since": DATE}, 206),
    ({"If-Unmodified-Since": BEFORE}, 412),
    ({"If-Unmodified-Since": "tomorrow"}, 206),
    ({"If-Range": ETAG}, 206),
    ({"If-Range": f"W/{ETAG}"}, 200),  # strong comparison
    ({"If-Range": OTHER}, 200),
    ({"If-Range": DATE}, 206),
    ({"If-Range": AFTER}, 200),  # the date must be equal; a later date does not match
    ({"If-Range": BEFORE}, 200),
    ({"If-Range": "nonsense"}, 200),
    ({"If-Range": OTHER, "If-None-Match": ETAG}, 304),
]


@pytest.mark.parametrize(("condition", "status"), CONDITIONS)
def test_conditions_are_evaluated_before_ranges(condition: Headers, status: int) -> None:
    source = Source(DATA)
    result = get({**RANGE, **condition}, source=source)
    assert result.status == status
    assert result.body == {200: DATA, 206: DATA[:10], 304: b"", 412: result.body}[status]
    assert bool(source.reads) == (status in (200, 206)), "bytes are read only if they are sent"
    head = get({**RANGE, **condition}, method="HEAD")
    assert head.status == (200 if status == 206 else status)


def test_not_modified_has_only_the_headers_that_a_cache_needs() -> None:
    result = get({"If-None-Match": ETAG}, executable=True, query="?download")
    for name in ("ETag", "Cache-Control", "Expires", "X-Content-Type-Options", "Access-Control-Allow-Origin"):
        assert name in result.headers
    for name in ("Content-Length", "Content-Type", "Content-Disposition", "NAR-Executable"):
        assert name not in result.headers


def test_the_etag_depends_on_the_nar_and_the_path() -> None:
    tags = {
        ref("a").validators().etag,
        ref("a/b").validators().etag,
        ref("a\udcff").validators().etag,
        ref("a", nar_hash="0" * 52).validators().etag,
        ref("").validators().etag,
    }
    assert len(tags) == 5
    assert all(re.fullmatch(r'"[0-9a-f]{32,}"', tag) for tag in tags)


# --- ranges


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=2000-", (2000, SIZE)),
        ("bytes=-5", (SIZE - 5, SIZE)),
        ("bytes=7-7,9999-", (7, 8)),
    ],
)
def test_a_single_range_is_sent_as_partial_content(header: str, part: tuple[int, int]) -> None:
    start, stop = part
    source = Source(DATA)
    result = get({"Range": header}, source=source)
    assert (result.status, result.body) == (206, DATA[start:stop])
    assert result.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert result.headers["Content-Length"] == str(stop - start)
    assert result.headers["NAR-File-Size"] == str(SIZE)
    assert result.headers["ETag"] == ETAG
    assert source.reads == [part], "only the range is read"


@pytest.mark.parametrize("header", ["items=0-1", "bytes=2-1", "bytes", "bytes=0-1,x"])
def test_a_malformed_range_header_is_ignored(header: str) -> None:
    result = get({"Range": header})
    assert (result.status, result.body) == (200, DATA)


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0", "bytes=0-,0-,0-", "bytes=" + "9" * 9999 + "-"])
def test_an_unsatisfiable_range_is_rejected(header: str) -> None:
    source = Source(DATA)
    result = get({"Range": header, "Accept": "application/json"}, source=source)
    assert result.status == 416
    assert result.headers["Content-Range"] == f"bytes */{SIZE}"
    assert result.headers["Cache-Control"] == "no-store"
    assert result.headers["Content-Type"] == "application/json"
    assert source.reads == []
    assert get({"Range": header}, method="HEAD").status == 200, "HEAD ignores Range"


def parts_of(result: Answer) -> list[tuple[str, bytes]]:
    """Return Content-Range and bytes of each part, parsed by Python's MIME parser. DATA must not have line ends."""
    head = f"Content-Type: {result.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + result.body)
    assert message.is_multipart()
    assert not message.defects
    return [
        (str(part["Content-Range"]), bytes(part.get_payload(decode=True)))
        for part in message.get_payload()
        if isinstance(part, email.message.Message)
    ]


def test_several_ranges_are_sent_as_multipart() -> None:
    source = Source(DATA)
    result = get({"Range": "bytes=2000-2009, 0-4, -3"}, source=source, path="a.tar")
    assert result.status == 206
    assert result.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert "Content-Range" not in result.headers
    assert result.headers["Content-Length"] == str(len(result.body))
    assert parts_of(result) == [
        (f"bytes 2000-2009/{SIZE}", DATA[2000:2010]),
        (f"bytes 0-4/{SIZE}", DATA[:5]),
        (f"bytes {SIZE - 3}-{SIZE - 1}/{SIZE}", DATA[-3:]),
    ]
    assert result.body.count(b"Content-Type: application/x-tar\r\n") == 3
    again = get({"Range": "bytes=2000-2009, 0-4"}, path="a.tar")
    assert again.headers["Content-Type"] != result.headers["Content-Type"], "the boundary is not predictable"


def split_parts(result: Answer) -> list[tuple[str, bytes]]:
    """Return the same as ``parts_of``, parsed by the grammar of RFC 2046 5.1.1, for bytes that the MIME parser would change."""
    boundary = result.headers["Content-Type"].partition("boundary=")[2].encode()
    preamble, *parts, tail = result.body.split(b"\r\n--" + boundary)
    assert (preamble, tail) == (b"", b"--\r\n")
    pairs = [part.removeprefix(b"\r\n").partition(b"\r\n\r\n") for part in parts]
    return [(re.findall(r"Content-Range: (.*)", head.decode())[0], body) for head, _, body in pairs]


@given(
    data=st.binary(max_size=200),
    specs=st.lists(
        st.one_of(
            st.tuples(st.integers(0, 210), st.integers(0, 210)).map(lambda pair: f"{min(pair)}-{max(pair)}"),
            st.integers(0, 210).map("{}-".format),
            st.integers(0, 210).map("-{}".format),
        ),
        min_size=1,
        max_size=4,
    ),
    piece=st.integers(1, 50),
    on_disk=st.booleans(),
)
def test_parts_are_slices_and_lengths_are_exact(data: bytes, specs: list[str], piece: int, on_disk: bool) -> None:
    source = Source(data, piece=piece, on_disk=on_disk)
    result = get({"Range": "bytes=" + ",".join(specs)}, source=source, path="x", environ=WRAPPING)
    assert int(result.headers["Content-Length"]) == len(result.body)
    if result.status == 416:
        assert result.headers["Content-Range"] == f"bytes */{len(data)}"
        return
    if result.status == 200:
        assert (data, result.body) == (b"", b"")
        return
    assert result.status == 206
    multiple = "Content-Range" not in result.headers
    parts = split_parts(result) if multiple else [(result.headers["Content-Range"], result.body)]
    for content_range, body in parts:
        first, last, size = map(int, re.findall(r"\d+", content_range))
        assert (body, size) == (data[first : last + 1], len(data))
        assert body


# --- an empty file


@pytest.mark.parametrize("header", [None, "bytes=-5", "bytes=5-4"])
def test_an_empty_file_is_served_without_reading(header: str | None) -> None:
    source = Source(b"")
    result = get({"Range": header} if header else {}, source=source, path="empty")
    assert (result.status, result.body, source.reads) == (200, b"", [])
    assert result.headers["Content-Length"] == "0"
    assert result.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_range_of_an_empty_file_is_unsatisfiable() -> None:
    result = get({"Range": "bytes=0-"}, data=b"")
    assert (result.status, result.headers["Content-Range"]) == (416, "bytes */0")


# --- HEAD


@pytest.mark.parametrize("path", ["a.txt", "a.html", "unknown.xyz", "bin/hello"])
def test_head_has_the_headers_of_get_and_reads_nothing(path: str) -> None:
    source = Source(DATA)
    full, head = get(path=path), get(path=path, method="HEAD", source=source)
    assert (head.status, head.body, source.reads) == (200, b"", [])
    expected = dict(full.headers) | {"Expires": head.headers["Expires"]}
    if path in ("unknown.xyz", "bin/hello"):  # only the bytes determine the type
        del expected["Content-Type"]
    assert dict(head.headers) == expected


def test_head_has_the_type_of_a_cached_or_empty_file() -> None:
    assert get(path="README", method="HEAD", is_cached=True).headers["Content-Type"] == "text/plain; charset=utf-8"
    assert get(path="README", method="HEAD", data=b"").headers["Content-Type"] == "text/plain; charset=utf-8"


# --- the type by the first bytes

TEXT, BINARY = "text/plain; charset=utf-8", "application/octet-stream"
LONG_TEXT = ("grün " * 1000).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"#!/bin/sh\n", TEXT),
        (b"\x1b[1mbold\x1b[0m\tx\x0c\r\n", TEXT),
        (LONG_TEXT, TEXT),
        (b"x" + LONG_TEXT, TEXT),  # in one of the two, a character crosses the end of the examined bytes
        (b"<html><script>alert(1)</script>", TEXT),  # bytes never determine a more specific type than text
        (b"\x7fELF\x02\x01\x01\x00", BINARY),
        (b"caf\xe9\n", BINARY),
        ("grün".encode()[:3], BINARY),  # ends inside a character
        (b"a" * 1000 + b"\x00", BINARY),
        (b"\x08", BINARY),
        ("text".encode("utf-16"), BINARY),
    ],
)
@pytest.mark.parametrize("piece", [1, 700, 10_000])
def test_the_first_bytes_determine_text_or_binary(data: bytes, expected: str, piece: int) -> None:
    source = Source(data, piece=piece)
    result = get(path="README", source=source)
    assert (result.headers["Content-Type"], result.body) == (expected, data)
    assert source.reads == [(0, len(data))], "the file is read once, for the type and the body"


@pytest.mark.parametrize("header", ["bytes=1500-1600", "bytes=0-9", "bytes=0-9,20-29", "bytes=0-2000"])
def test_the_type_does_not_depend_on_the_range(header: str) -> None:
    data = b"\x00" + DATA
    result = get({"Range": header}, path="blob", data=data)
    multiple = result.headers["Content-Type"].startswith("multipart/")
    assert (result.body.count(b"octet-stream") == 2) if multiple else (result.headers["Content-Type"] == BINARY)


# --- failures


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-0"}, {"Range": "bytes=0-0,5-6"}])
@pytest.mark.parametrize("path", ["a.txt", "README"])
def test_a_failure_before_the_first_byte_is_an_error_response(path: str, headers: Headers) -> None:
    source = Source(DATA, fail_at=0)
    result = get(headers, source=source, path=path)
    assert result.status == 500
    assert b"secret" not in result.body


def test_a_failure_to_open_is_an_error_response() -> None:
    def read(start: int, stop: int) -> SourceBytes:
        raise StoreTimeout("https://upstream is too slow")

    result = answer(request(), lambda req: file_response(req, file_node("a.txt", 5), ref("a.txt"), read))
    assert (result.status, result.headers["Cache-Control"]) == (504, "no-store")


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-999"}, {"Range": "bytes=0-9,400-999"}])
def test_a_later_failure_cuts_the_connection(headers: Headers) -> None:
    source = Source(DATA, fail_at=500)
    with pytest.raises(ConnectionError):
        get(headers, source=source)
    assert source.open == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_body_that_is_too_short_raises(on_disk: bool) -> None:
    class Short(Source):
        def read(self, start: int, stop: int) -> SourceBytes:
            content = super().read(start, stop)
            content.length += 50  # more than the source has; on disk, more than the rest of the NAR
            return content

    source = Short(DATA, on_disk=on_disk)
    req = request("/", environ=WRAPPING)
    response = file_response(req, file_node("a.txt", SIZE), ref("a.txt"), source.read)
    with pytest.raises(TruncatedStream):
        Answer(response, req.environ)
    assert source.open == 0


def test_closing_the_response_closes_the_read() -> None:
    source = Source(DATA)
    response = file_response(request(), file_node("a.txt", SIZE), ref("a.txt"), source.read)
    chunks = response.get_app_iter(request().environ)
    assert next(iter(chunks)) == DATA[:100]
    chunks.close()  # type: ignore[attr-defined]
    assert source.open == 0


# --- files on disk


class Wrapper(FileWrapper):
    """The file wrapper of a server. The server sends a file itself only for an instance of this class."""


def test_a_file_on_disk_is_sent_by_the_wrapper_of_the_server() -> None:
    for headers, expected in (({}, DATA), ({"Range": "bytes=5-9"}, DATA[5:10])):
        source = Source(DATA, on_disk=True)
        environ = {"wsgi.file_wrapper": Wrapper}
        req = request("/", headers=headers, environ=environ)
        response = file_response(req, file_node("README", SIZE), ref("README"), source.read)
        body = response.get_app_iter(req.environ)
        assert isinstance(body, Wrapper)
        window = body.filelike
        assert isinstance(window, FileWindow)
        assert os.pread(window.descriptor, window.stop - window.position, window.position) == expected
        assert not hasattr(window, "fileno"), "a server would use the position of the descriptor, which readers share"
        window.position += 2
        assert (window.read(1), window.sent) == (expected[2:3], 3)
        assert b"".join(body) == expected[3:], "no byte after the file is read"
        assert window.sent == window.length == len(expected)
        body.close()
        assert source.open == 0


@pytest.mark.parametrize("sendfile", [False, True])
def test_a_file_that_changes_while_it_is_sent_raises(sendfile: bool) -> None:
    source = Source(DATA, on_disk=True)
    req = request("/", environ=WRAPPING)
    response = file_response(req, file_node("a.txt", SIZE), ref("a.txt"), source.read)
    body = response.get_app_iter(req.environ)
    source.changed = True
    if not sendfile:  # the server reads, and does not get the last bytes
        with pytest.raises(CacheFailure):
            next(iter(body))
    with pytest.raises(CacheFailure):
        body.close()  # type: ignore[attr-defined]
    assert source.open == 0


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ("hello", 'attachment; filename="hello"'),
        ("grün.txt", "attachment; filename=\"gr_n.txt\"; filename*=UTF-8''gr%C3%BCn.txt"),
        ('a"b\\c', "attachment; filename=\"a_b_c\"; filename*=UTF-8''a%22b%5Cc"),
        ("100%41", "attachment; filename=\"100_41\"; filename*=UTF-8''100%2541"),
        ("a\r\nSet-Cookie: x", "attachment; filename=\"a__Set-Cookie: x\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x"),
        ("a\udcffb", "attachment; filename=\"a_b\"; filename*=UTF-8''a%EF%BF%BDb"),
        ("日本", "attachment; filename=\"__\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC"),
    ],
)
def test_a_download_has_the_name_of_the_file(name: str, expected: str) -> None:
    assert get(path=f"share/{name}", query="?download").headers["Content-Disposition"] == expected


def test_a_download_of_a_store_path_that_is_a_file_has_its_base_name() -> None:
    disposition = get(path="", query="?download=1").headers["Content-Disposition"]
    assert disposition == 'attachment; filename="0c0jn4b2x5k2s6v1zqmz3n2a9wqjkvfd-hello-2.12"'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("INDEX.HTM", "text/html; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.min.mjs", "text/javascript; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.wasm", "application/wasm"),
        ("a.svg", "image/svg+xml"),
        ("a.png", "image/png"),
        ("a.woff2", "font/woff2"),
        ("a.pdf", "application/pdf"),
        ("main.py", "text/plain; charset=utf-8"),
        ("default.nix", "text/plain; charset=utf-8"),
        ("foo.1.gz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a.svgz", "application/gzip"),
        ("libc.so", "application/octet-stream"),
        ("libc.a", "application/octet-stream"),
    ],
)
def test_the_extension_determines_the_type(name: str, expected: str) -> None:
    for method in ("GET", "HEAD"):
        headers = get(path=name, data=b"\x00", method=method).headers
        assert headers["Content-Type"] == expected
        assert "Content-Encoding" not in headers


@pytest.mark.parametrize("name", [".html", "html", "a.", "foo.1", "libc.so.6"])
def test_a_name_without_a_known_extension_has_no_type_of_its_own(name: str) -> None:
    assert get(path=name, data=b"\x00").headers["Content-Type"] == "application/octet-stream"
