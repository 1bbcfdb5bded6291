"""The result of each status of a GET and of a ranged GET: a value or an exception."""

import pytest
import responses

from narcore.errors import (
    FileNotInStore,
    NarcoreError,
    RangeNotSupported,
    StoreForbidden,
    StoreTimeout,
    StoreUnavailable,
)
from tests.stores.conftest import OpenHttp

URL = "https://cache.example.org/base/nar/x.nar"
Outcome = type[NarcoreError] | bytes

# status: whole file, part
MATRIX: dict[int, tuple[Outcome, Outcome]] = {
    200: (b"0123", RangeNotSupported),
    204: (StoreUnavailable, StoreUnavailable),
    206: (StoreUnavailable, b"12"),
    304: (StoreUnavailable, StoreUnavailable),
    400: (StoreUnavailable, StoreUnavailable),
    401: (StoreForbidden, StoreForbidden),
    403: (FileNotInStore, FileNotInStore),
    404: (FileNotInStore, FileNotInStore),
    407: (StoreForbidden, StoreForbidden),
    410: (FileNotInStore, FileNotInStore),
    416: (StoreUnavailable, RangeNotSupported),
    429: (StoreUnavailable, StoreUnavailable),
    500: (StoreUnavailable, StoreUnavailable),
    503: (StoreUnavailable, StoreUnavailable),
    504: (StoreTimeout, StoreTimeout),
    599: (StoreUnavailable, StoreUnavailable),
}
ROWS = [
    pytest.param(status, call, outcome, id=f"{status}-{call}")
    for status, outcomes in MATRIX.items()
    for call, outcome in zip(("whole", "part"), outcomes, strict=True)
]


@responses.activate
@pytest.mark.parametrize(("status", "call", "outcome"), ROWS)
def test_status_determines_the_result(open_http: OpenHttp, status: int, call: str, outcome: Outcome) -> None:
    body, headers = (b"12", {"Content-Range": "bytes 1-2/4"}) if call == "part" else (b"0123", {})
    responses.add("GET", URL, status=status, body=body, headers=headers)
    store = open_http("https://cache.example.org/base")

    def ask() -> bytes:
        with store.get_file("nar/x.nar", *((1, 3) if call == "part" else ())) as file:
            return b"".join(file)

    if isinstance(outcome, bytes):
        assert ask() == outcome
        return
    with pytest.raises(outcome) as caught:
        ask()
    assert caught.type is outcome
    assert str(status) in str(caught.value)
    assert URL in str(caught.value)


@responses.activate
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": "bytes 0-2/4"},
        {"Content-Range": "bytes 1-3/4"},
        {"Content-Range": "bytes 1-2/2"},
        {"Content-Range": "bytes */4"},
        {"Content-Range": "lines 1-2/4"},
        {"Content-Range": "bytes 1-2/4", "Content-Encoding": "gzip"},
        {"Content-Type": "multipart/byteranges; boundary=x"},
    ],
)
def test_range_other_than_requested_is_rejected(open_http: OpenHttp, headers: dict[str, str]) -> None:
    responses.add("GET", URL, status=206, body=b"12", headers=headers)
    with pytest.raises(RangeNotSupported):
        open_http("https://cache.example.org/base").get_file("nar/x.nar", 1, 3)


@responses.activate
def test_open_ended_range_must_reach_the_end_of_the_file(open_http: OpenHttp) -> None:
    store = open_http("https://cache.example.org/base")
    responses.add("GET", URL, status=206, body=b"12", headers={"Content-Range": "bytes 1-2/4"})
    with pytest.raises(RangeNotSupported):
        store.get_file("nar/x.nar", 1)
    responses.replace("GET", URL, status=206, body=b"123", headers={"Content-Range": "bytes 1-3/4"})
    with store.get_file("nar/x.nar", 1) as file:
        assert (file.size, b"".join(file)) == (4, b"123")


@responses.activate
@pytest.mark.parametrize(("header", "encoding"), [("BR", "br"), ("identity", None), (None, None)])
def test_encoded_body_is_returned_without_decoding(
    open_http: OpenHttp, header: str | None, encoding: str | None
) -> None:
    responses.add("GET", URL, body=b"not brotli", headers={"Content-Encoding": header} if header else {})
    with open_http("https://cache.example.org/base").get_file("nar/x.nar") as file:
        assert (file.content_encoding, b"".join(file)) == (encoding, b"not brotli")


@responses.activate
@pytest.mark.parametrize(("start", "stop"), [(-1, None), (3, 3), (4, 2), (0, 0)])
def test_empty_or_negative_range_is_a_value_error(open_http: OpenHttp, start: int, stop: int | None) -> None:
    with pytest.raises(ValueError, match="part"):
        open_http("https://cache.example.org/base").get_file("nar/x.nar", start, stop)
