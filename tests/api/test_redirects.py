"""Redirects, and the encoding of paths in URLs."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.text import quote_path
from api.responses.base import options_response, text_response
from api.responses.redirects import redirect_response
from tests.api.support import Answer, answer, request

any_path = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


def redirect(path: str, query: str = "", script_name: str = "", **options: object) -> Answer:
    req = request("/" + query, environ={"SCRIPT_NAME": script_name})
    return answer(req, lambda req: redirect_response(req, path, **options))  # type: ignore[arg-type]


def test_a_redirect_keeps_the_query_and_may_be_cached() -> None:
    result = redirect("/nix/store/x/bin/", "?list&a=%20%2B+b")
    assert result.status == 302
    assert result.headers["Location"] == "/nix/store/x/bin/?list&a=%20%2B+b"
    assert result.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "Expires" in result.headers
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    assert result.headers["Access-Control-Allow-Origin"] == "*", "a cross-origin fetch may follow it"
    assert result.text == "See /nix/store/x/bin/?list&a=%20%2B+b\n"


def test_a_location_has_script_name_and_origin() -> None:
    assert redirect("/nix/store/x", script_name="/prod").headers["Location"] == "/prod/nix/store/x"
    assert redirect("/nix/store/x", script_name="/gr\xc3\xbcn/").headers["Location"] == "/gr%C3%BCn/nix/store/x"
    other_host = redirect("/bin/x", "?a", script_name="/prod", origin="//abc.example.org")
    assert other_host.headers["Location"] == "//abc.example.org/prod/bin/x?a"


def test_a_redirect_that_may_change_is_not_cached() -> None:
    mutable = redirect("/nix/store/x", "?path=abc", immutable=False, keep_query=False)
    assert (mutable.headers["Location"], mutable.headers["Cache-Control"]) == ("/nix/store/x", "no-cache")


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("//evil.example/x", "/evil.example/x"),
        ("/\\evil.example", "/%5Cevil.example"),
        ("/a b?c#d%41+e=f", "/a%20b%3Fc%23d%2541%2Be%3Df"),
        ("/x\r\nSet-Cookie: a", "/x%0D%0ASet-Cookie%3A%20a"),
        ("/\udcff/grün", "/%FF/gr%C3%BCn"),
        ("/<\"'>", "/%3C%22%27%3E"),
    ],
)
def test_a_location_stays_on_this_host_and_in_its_header(path: str, location: str) -> None:
    assert redirect(path).headers["Location"] == location


def test_unsafe_characters_of_a_query_are_encoded() -> None:
    req = request("/")
    req = type(req)({**req.environ, "QUERY_STRING": 'a=<b> "c"\r\nX: y&d=\xff%2F'})
    location = answer(req, lambda req: redirect_response(req, "/x")).headers["Location"]
    assert location == "/x?a=%3Cb%3E%20%22c%22%0D%0AX:%20y&d=%FF%2F"


@given(any_path)
def test_a_quoted_path_decodes_to_the_same_bytes(path: str) -> None:
    quoted = quote_path(path)
    assert unquote_to_bytes(quoted) == path.encode("utf-8", "surrogateescape")
    assert quoted.isascii()
    assert not set(quoted) & set("?#+ \"'<>&\\=:\r\n")
    assert quoted.count("/") == path.count("/")


def test_options_allows_cross_origin_requests() -> None:
    result = answer(request(method="OPTIONS"), lambda _: options_response())
    assert (result.status, result.body) == (204, b"")
    assert result.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert result.headers["Access-Control-Allow-Headers"] == "*"


def test_a_text_response_is_not_cached_by_default() -> None:
    result = answer(request(), lambda _: text_response("OK"))
    assert (result.status, result.body) == (200, b"OK")
    assert result.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert result.headers["Cache-Control"] == "no-store"
