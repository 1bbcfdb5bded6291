"""The Accept header: RFC 9110 12.5.1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.negotiation import HTML, JSON, TEXT, negotiate

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

LISTING = [
    (None, HTML),
    ("", HTML),
    ("*/*", HTML),
    (FIREFOX, HTML),
    ("application/json", JSON),
    ("Application/JSON", JSON),
    ("application/json;charset=utf-8", JSON),
    ("application/*", JSON),
    ("application/json, text/plain, */*", JSON),
    ("application/json, */*;q=0.8", JSON),
    ("application/json, text/html;q=0.9", JSON),
    ("application/json;q=0.9, text/html;q=0.8", JSON),
    ("application/json ; q=0.9 , text/html ; q=0.8", JSON),
    ("text/html;q=0, */*", JSON),
    ("application/json, text/html", HTML),
    ("text/html, application/json;q=0.9", HTML),
    ("application/json;q=0.5, */*;q=0.8", HTML),
    ("application/json;q=0", HTML),
    ("application/json;q=0, */*", HTML),
    ("application/json;q=nonsense", HTML),
    ("application/jsonp", HTML),
    ("image/png", HTML),
    (";;;,,,=", HTML),
]

ERRORS = [
    (None, TEXT),
    ("*/*", TEXT),
    (FIREFOX, HTML),
    ("text/html", HTML),
    ("application/json", JSON),
    ("application/json, text/plain, */*", JSON),
    ("text/plain", TEXT),
    ("text/plain, text/html;q=0.1", TEXT),
    ("image/avif,image/webp,*/*;q=0.8", TEXT),
]


@pytest.mark.parametrize(("accept", "expected"), LISTING)
def test_a_listing_is_html_unless_json_is_preferred(accept: str | None, expected: str) -> None:
    assert negotiate(accept, (HTML, JSON), HTML) == expected


@pytest.mark.parametrize(("accept", "expected"), ERRORS)
def test_an_error_is_text_unless_another_type_is_named(accept: str | None, expected: str) -> None:
    assert negotiate(accept, (HTML, JSON, TEXT), TEXT) == expected


@given(st.text())
def test_any_header_selects_an_offer(accept: str) -> None:
    assert negotiate(accept, (HTML, JSON), TEXT) in (HTML, JSON, TEXT)
