"""NAR_MAX_RESPONSE: a response that fits is sent unchanged, a larger one is rejected or cut, and every body is closed."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from api.responses.base import Response
from api.responses.limits import BodyTooLarge, Limit, ResponseTooLarge
from narcore.errors import CorruptStream
from tests.api.support import request

LARGE = 20 << 20  # a limit above the size up to which a body is buffered


class Body:
    """A body of unknown length that counts the chunks it yields and the calls of close."""

    def __init__(self, chunks: list[bytes], error: Exception | None = None) -> None:
        self._chunks = chunks
        self._error = error
        self.yielded = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.yielded += 1
            yield chunk
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def body_of(response: Response) -> bytes:
    try:
        return b"".join(response.iter_encoded())
    finally:
        response.close()


@given(chunks=st.lists(st.binary(max_size=20)), size=st.integers(1, 100))
def test_a_body_of_unknown_length_is_measured(chunks: list[bytes], size: int) -> None:
    body, whole = Body(chunks), b"".join(chunks)
    response = Response(body)
    if len(whole) <= size:
        checked = Limit(size).check(request(), response)
        assert checked.headers["Content-Length"] == str(len(whole))
        assert body_of(checked) == whole
    else:
        with pytest.raises(ResponseTooLarge):
            Limit(size).check(request(), response)
        assert sum(map(len, chunks[: body.yielded - 1])) <= size  # reading stops at the limit
    assert body.closed == 1


@given(size=st.integers(1, 50), length=st.integers(0, 60))
def test_a_body_of_known_length_is_rejected_above_the_limit(size: int, length: int) -> None:
    for response in (Response(bytes(length)), Response(Body([bytes(length)]), headers={"Content-Length": str(length)})):
        if length <= size:
            assert body_of(Limit(size).check(request(), response)) == bytes(length)
        else:
            with pytest.raises(ResponseTooLarge):
                Limit(size).check(request(), response)


def test_a_large_limit_is_enforced_while_the_body_is_sent() -> None:
    """The body is not buffered, so a body that is too large is cut instead of rejected."""
    fitting, too_large = Body([bytes(1 << 20)] * 20), Body([bytes(1 << 20)] * 21)
    assert len(body_of(Limit(LARGE).check(request(), Response(fitting)))) == LARGE
    assert fitting.yielded == 20
    with pytest.raises(BodyTooLarge):
        body_of(Limit(LARGE).check(request(), Response(too_large)))
    assert (fitting.closed, too_large.closed) == (1, 1)


def test_a_failure_while_a_body_is_buffered_is_raised() -> None:
    body = Body([b"12"], CorruptStream("x"))
    with pytest.raises(CorruptStream):
        Limit(10).check(request(), Response(body))
    assert body.closed == 1


@pytest.mark.parametrize("size", [None, 5])
def test_head_and_no_limit_do_not_read_the_body(size: int | None) -> None:
    body = Body([bytes(100)])
    method = "GET" if size is None else "HEAD"
    assert Limit(size).check(request(method=method), Response(body)).status_code == 200
    assert body.yielded == 0


def test_the_exception_has_the_headers_of_the_whole_response() -> None:
    for media_type in ("text/html; charset=utf-8", "application/json"):
        with pytest.raises(ResponseTooLarge) as caught:
            Limit(5).check(request(), Response(b"123456", headers={"Content-Type": media_type, "ETag": '"x"'}))
        assert caught.value.headers["Content-Type"] == media_type
        assert caught.value.headers["ETag"] == '"x"'


def test_the_example_command_is_safe_in_a_shell() -> None:
    environ = {"SCRIPT_NAME": "/prod", "HTTP_HOST": "a.example:80';id;'", "SERVER_NAME": "own.example"}
    req = request("/nix/store/x/caf%C3%A9%20'$(id)'", environ=environ)
    with pytest.raises(ResponseTooLarge) as caught:
        Limit(100).check_length(req, 101, Headers)
    text = str(caught.value.description)
    assert "curl -r 0-99 'http://own.example/prod/nix/store/x/caf%C3%A9%20%27$(id)%27'" in text
    assert "101" in text
    Limit(101).check_length(req, 101, Headers)
    Limit().check_length(req, 101, Headers)
