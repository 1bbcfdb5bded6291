"""NAR_MAX_RESPONSE: what fits is sent as it is, what does not is found out in time, and nothing is left open."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from api.responses.base import Response
from api.responses.limits import AnswerTooLarge, BodyTooLarge, Limit
from narcore.errors import CorruptStream
from tests.api.support import request

LARGE = 20 << 20  # more than is collected to see whether it fits


class Body:
    """A body of unknown length, which keeps a record."""

    def __init__(self, chunks: list[bytes], error: Exception | None = None) -> None:
        self._chunks = chunks
        self._error = error
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.given += 1
            yield chunk
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def sent(response: Response) -> bytes:
    try:
        return b"".join(response.iter_encoded())
    finally:
        response.close()


@given(chunks=st.lists(st.binary(max_size=20)), size=st.integers(1, 100))
def test_a_body_of_unknown_length(chunks: list[bytes], size: int) -> None:
    body, whole = Body(chunks), b"".join(chunks)
    response = Response(body)
    if len(whole) <= size:
        checked = Limit(size).check(request(), response)
        assert checked.headers["Content-Length"] == str(len(whole))
        assert sent(checked) == whole
    else:
        with pytest.raises(AnswerTooLarge):
            Limit(size).check(request(), response)
        assert sum(map(len, chunks[: body.given - 1])) <= size  # no further than to see it
    assert body.closed == 1


@given(size=st.integers(1, 50), length=st.integers(0, 60))
def test_a_body_of_known_length(size: int, length: int) -> None:
    for response in (Response(bytes(length)), Response(Body([bytes(length)]), headers={"Content-Length": str(length)})):
        if length <= size:
            assert sent(Limit(size).check(request(), response)) == bytes(length)
        else:
            with pytest.raises(AnswerTooLarge):
                Limit(size).check(request(), response)


def test_a_large_limit_is_kept_while_it_is_sent() -> None:
    """Nothing is collected, so it can't be refused any more: it is cut."""
    fits, not_so = Body([bytes(1 << 20)] * 20), Body([bytes(1 << 20)] * 21)
    assert len(sent(Limit(LARGE).check(request(), Response(fits)))) == LARGE
    assert fits.given == 20
    with pytest.raises(BodyTooLarge):
        sent(Limit(LARGE).check(request(), Response(not_so)))
    assert (fits.closed, not_so.closed) == (1, 1)


def test_a_failure_while_collecting_is_an_error_and_not_an_answer() -> None:
    body = Body([b"12"], CorruptStream("x"))
    with pytest.raises(CorruptStream):
        Limit(10).check(request(), Response(body))
    assert body.closed == 1


@pytest.mark.parametrize("size", [None, 5])
def test_head_and_no_limit_read_nothing(size: int | None) -> None:
    body = Body([bytes(100)])
    method = "GET" if size is None else "HEAD"
    assert Limit(size).check(request(method=method), Response(body)).status_code == 200
    assert body.given == 0


def test_what_is_moved_and_what_is_not() -> None:
    for media_type in ("text/html; charset=utf-8", "application/json"):
        with pytest.raises(AnswerTooLarge) as caught:
            Limit(5).check(request(), Response(b"123456", headers={"Content-Type": media_type, "ETag": '"x"'}))
        assert caught.value.headers["Content-Type"] == media_type
        assert caught.value.headers["ETag"] == '"x"'


def test_the_example_can_be_pasted() -> None:
    environ = {"SCRIPT_NAME": "/prod", "HTTP_HOST": "a.example:80';id;'", "SERVER_NAME": "own.example"}
    asked = request("/nix/store/x/caf%C3%A9%20'$(id)'", environ=environ)
    with pytest.raises(AnswerTooLarge) as caught:
        Limit(100).check_length(asked, 101, Headers())
    text = str(caught.value.description)
    assert "curl -r 0-99 'http://own.example/prod/nix/store/x/caf%C3%A9%20%27$(id)%27'" in text
    assert "101" in text
    Limit(101).check_length(asked, 101, Headers())
    Limit().check_length(asked, 101, Headers())
