"""Response bodies that are cut, stall, change, or arrive slowly."""

import random
import threading
import time
from collections.abc import Iterable

import pytest

from narcore.errors import StoreError, StoreTimeout, StoreUnavailable
from narcore.sizes import CHUNK_SIZE
from narcore.stores import StoreFile, read_file
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import Act, FlakyFile, Request, Step, head

CONTENT = random.Random(1).randbytes(400_000)
LAST_MODIFIED = "Last-Modified: Mon, 06 Jan 2025 10:00:00 GMT"
LATER = "Date: Mon, 06 Jan 2025 11:00:00 GMT"


@pytest.mark.parametrize("end", [Act.CUT, Act.CLOSE])
@pytest.mark.parametrize("cuts", [[0], [1], [399_999], [100_000, 0, 1], [5, 5, 5]])
def test_cut_body_is_resumed(serve: Serve, open_http: OpenHttp, cuts: list[int], end: Act) -> None:
    script = FlakyFile(CONTENT, cuts, end=end)
    server = serve(script)
    with open_http(server.url).get_file("x") as file:
        assert file.size == len(CONTENT)
        assert b"".join(file) == CONTENT
    if end is Act.CLOSE:  # a reset may also lose the head of a response; then the request is just retried
        assert script.if_range == ['"v1"'] * len(cuts)


def test_cut_range_is_resumed_up_to_its_end(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(FlakyFile(CONTENT, [1000, 70_000]))
    with open_http(server.url).get_file("x", 1234, 300_000) as file:
        assert file.size == len(CONTENT)
        assert b"".join(file) == CONTENT[1234:300_000]
    first = [request.range for request in server.requests if request.range]
    assert first[0] == (1234, 299_999)
    assert {last for _, last in first} == {299_999}


def test_cut_chunked_body_is_resumed(serve: Serve, open_http: OpenHttp) -> None:
    ranged = FlakyFile(CONTENT)

    def script(request: Request) -> Iterable[Step]:
        if request.range:
            return ranged(request)
        chunk = CONTENT[:65536]
        return [head(200, "Transfer-Encoding: chunked", 'ETag: "v1"') + b"10000\r\n" + chunk + b"\r\n", Act.CLOSE]

    server = serve(script)
    with open_http(server.url).get_file("x") as file:
        assert file.size is None
        assert b"".join(file) == CONTENT
    assert server.requests[1].headers["range"] == "bytes=65536-"


def test_stalled_body_is_resumed(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(FlakyFile(CONTENT, [150_000], end=Act.STALL))
    with open_http(server.url, read_timeout=1).get_file("x") as file:
        assert b"".join(file) == CONTENT
    assert len(server.requests) == 2


def test_body_that_stalls_twice_times_out(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(FlakyFile(CONTENT, [0] * 9, end=Act.STALL))
    with open_http(server.url, read_timeout=0.05).get_file("x") as file, pytest.raises(StoreTimeout):
        b"".join(file)
    assert len(server.requests) == 2  # only one retry, since the client waits for each timeout


@pytest.mark.parametrize(
    ("validators", "if_range"),
    [
        (['ETag: "a"', LAST_MODIFIED, LATER], '"a"'),
        (['ETag: W/"a"', LAST_MODIFIED, LATER], "Mon, 06 Jan 2025 10:00:00 GMT"),
        ([LAST_MODIFIED, LATER], "Mon, 06 Jan 2025 10:00:00 GMT"),
        ([LAST_MODIFIED, "Date: Mon, 06 Jan 2025 10:00:00 GMT"], None),
        ([LAST_MODIFIED], None),
        (["Last-Modified: yesterday", LATER], None),
        (['ETag: W/"a"'], None),
        ([], None),
    ],
)
def test_body_is_resumed_only_with_a_strong_validator(
    serve: Serve, open_http: OpenHttp, validators: list[str], if_range: str | None
) -> None:
    script = FlakyFile(CONTENT, [1000], tags=[""], extra=validators)
    with open_http(serve(script).url).get_file("x") as file:
        if if_range is None:
            with pytest.raises(StoreUnavailable):
                b"".join(file)
        else:
            assert b"".join(file) == CONTENT
    assert script.if_range == ([if_range] if if_range else [])


def cut_then(*reply: Step) -> list[list[Step]]:
    return [[head(200, 'ETag: "v1"', length=10), b"0123", Act.CLOSE], list(reply)]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param([head(200, 'ETag: "v1"', length=10), b"0123456789"], id="no ranges"),
        pytest.param([head(200, 'ETag: "v2"', length=10), b"abcdefghij"], id="changed"),
        pytest.param([head(206, "Content-Range: bytes 0-9/10", length=10), b"0123456789"], id="another start"),
        pytest.param([head(206, "Content-Range: bytes 4-8/10", length=5), b"45678"], id="another end"),
        pytest.param([head(206, "Content-Range: bytes 4-9/11", length=6), b"456789"], id="another total"),
        pytest.param([head(206, "Content-Range: bytes 4-9/10", 'ETag: "v2"', length=6), b"456789"], id="another tag"),
        pytest.param(
            [head(206, "Content-Range: bytes 4-9/10", "Content-Encoding: br", length=6), b"456789"], id="encoded"
        ),
        pytest.param([head(206, length=6), b"456789"], id="no Content-Range"),
        pytest.param([head(416, "Content-Range: bytes */3", length=0)], id="416"),
        pytest.param([head(404, length=0)], id="gone"),
        pytest.param([head(302, "Location: file:///etc/passwd", length=0)], id="redirect to a file"),
    ],
)
def test_unusable_answer_to_a_resume_is_an_error(serve: Serve, open_http: OpenHttp, reply: list[Step]) -> None:
    replies = cut_then(*reply)
    file = open_http(serve(lambda _: replies.pop(0)).url).get_file("x")
    chunks = iter(file)
    assert next(chunks) == b"0123"
    for _ in range(2):  # reading again fails again: a truncated body must never end cleanly
        with pytest.raises(StoreError):
            next(chunks)
    file.close()


def test_resumed_response_may_omit_the_total_and_the_etag(serve: Serve, open_http: OpenHttp) -> None:
    replies = cut_then(head(206, "Content-Range: bytes 4-9/*", length=6), b"456789")
    assert read_file(open_http(serve(lambda _: replies.pop(0)).url), "x", 10) == b"0123456789"


def test_resumes_without_progress_are_limited(serve: Serve, open_http: OpenHttp, slept: list[float]) -> None:
    server = serve(FlakyFile(CONTENT, [1] * 1000))
    with open_http(server.url).get_file("x") as file, pytest.raises(StoreUnavailable):
        b"".join(file)
    assert len(server.requests) == 5
    assert len(slept) == 3


def test_progress_allows_more_resumes_up_to_a_limit(serve: Serve, open_http: OpenHttp) -> None:
    content = bytes(60 << 20)
    server = serve(FlakyFile(content, [1 << 20] * 10))
    with open_http(server.url).get_file("x", 0, 12 << 20) as file:
        assert sum(map(len, file)) == 12 << 20
    assert len(server.requests) == 11
    server = serve(FlakyFile(content, [1 << 20] * 1000))
    with open_http(server.url).get_file("x") as file, pytest.raises(StoreUnavailable):
        for _ in file:
            pass
    assert len(server.requests) == 51


def test_body_without_a_length_ends_with_the_connection(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(lambda _: [head(200, 'ETag: "v1"') + CONTENT[:1000], Act.CLOSE])
    with open_http(server.url).get_file("x") as file:
        assert (file.size, b"".join(file)) == (None, CONTENT[:1000])


def test_bytes_after_the_content_length_are_not_read(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(lambda _: [head(200, length=4) + b"0123HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", Act.CLOSE])
    store = open_http(server.url)
    assert read_file(store, "x", 99) == b"0123"


def test_chunks_are_returned_as_they_arrive(serve: Serve, open_http: OpenHttp) -> None:
    more = threading.Event()
    server = serve(lambda _: [head(200, length=10), b"01234", more, b"56789"])
    with open_http(server.url).get_file("x") as file:
        chunks = iter(file)
        began = time.monotonic()
        assert next(chunks) == b"01234"
        assert time.monotonic() - began < 4, "the server waits 5 seconds for the event"
        more.set()
        assert b"".join(chunks) == b"56789"


def test_chunk_size_is_limited(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(FlakyFile(bytes(8 << 20)))
    with open_http(server.url).get_file("x") as file:
        assert 0 < max(len(chunk) for chunk in file) <= CHUNK_SIZE


def test_reading_after_close_fails(serve: Serve, open_http: OpenHttp) -> None:
    server = serve(FlakyFile(bytes(64 << 20)))
    file: StoreFile = open_http(server.url).get_file("x")
    chunks = iter(file)
    next(chunks)
    file.close()
    file.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        next(chunks)


def test_read_file_enforces_its_limit_with_and_without_a_length(serve: Serve, open_http: OpenHttp) -> None:
    store = open_http(serve(FlakyFile(b"0123456789")).url)
    assert read_file(store, "x", 10) == b"0123456789"
    with pytest.raises(StoreError, match="10 bytes"):
        read_file(store, "x", 9)
    endless = serve(lambda _: [head(200), *[b"x" * 65536] * 1000, Act.CLOSE])
    with pytest.raises(StoreError, match="more than"):
        read_file(open_http(endless.url), "x", 1000)
