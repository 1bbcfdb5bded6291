"""The landing page, and the static files of our pages."""

import re

from api.responses import STATIC_PREFIX, landing_response, static_response
from tests.api.support import Answer, Headers, answer, request
from tests.api.test_listings import Page


def landing(headers: Headers | None = None, method: str = "GET", script_name: str = "", **values: object) -> Answer:
    options = {"caches": [("https://cache.example.org", "")], "store_dir": "/nix/store", **values}
    return answer(
        request("/", method, headers, {"SCRIPT_NAME": script_name}),
        lambda asked: landing_response(asked, **options),  # type: ignore[arg-type]
    )


def test_the_landing_page() -> None:
    examples = [("A <b> program", "/nix/store/x/bin/a%20b"), ("Its directory", "/nix/store/x/bin/")]
    result = landing(examples=examples)
    assert result.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "https://cache.example.org" in result.text
    page = Page(result.text)
    assert ("A <b> program", "/nix/store/x/bin/a%20b") in page.links
    attributes = page.attributes
    assert {"form", "input", "button", "label"} <= set(page.tags)
    assert ("method", "get") in attributes
    assert ("action", "/") in attributes
    assert ("name", "path") in attributes
    assert not {"script", "style"} & set(page.tags)
    assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]
    assert "form-action 'self'" in result.headers["Content-Security-Policy"]
    assert result.headers["X-Content-Type-Options"] == "nosniff"


def test_everything_of_ours_is_below_script_name() -> None:
    result = landing(script_name="/prod", examples=[("x", "/nix/store/x")])
    urls = [value for name, value in Page(result.text).attributes if name in ("href", "src", "action")]
    assert len(urls) >= 5
    assert all(url and url.startswith("/prod/") for url in urls)


def test_several_caches_are_in_order_and_have_their_store_dirs() -> None:
    text = landing(caches=[("https://a.example", "/nix/store"), ("https://b.example", ""), ("https://c", "/<x>")]).text
    assert text.index("a.example") < text.index("b.example")
    shown = re.findall(r"<li><code>(.*?)</code>(?:, for <code>(.*?)</code>)?</li>", text)
    assert shown == [("https://a.example", "/nix/store"), ("https://b.example", ""), ("https://c", "/&lt;x&gt;")]


def test_the_landing_page_is_asked_for_again_cheaply() -> None:
    first = landing()
    assert first.headers["Cache-Control"] == "no-cache"
    again = landing({"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert landing(caches=[("https://other.example", "")]).headers["ETag"] != first.headers["ETag"]
    head = landing(method="HEAD")
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(first.body)))


def test_what_the_pages_link_to_is_there_and_may_be_kept() -> None:
    urls = set(re.findall(rf'"({STATIC_PREFIX}[^"]+)"', landing().text))
    assert len(urls) == 2
    for url in urls:
        name = url.removeprefix(STATIC_PREFIX).partition("?")[0]
        result = answer(request(url), lambda asked, name=name: static_response(asked, name))  # type: ignore[misc]
        assert result.status == 200
        assert "immutable" in result.headers["Cache-Control"]
        assert result.headers["Content-Type"] in ("text/css; charset=utf-8", "image/svg+xml")
        unchanged = request(url, headers={"If-None-Match": result.headers["ETag"]})
        assert answer(unchanged, lambda asked, name=name: static_response(asked, name)).status == 304  # type: ignore[misc]


def test_without_the_right_version_a_static_file_may_change() -> None:
    for url in ("/", "/?v=old"):
        result = answer(request(url), lambda asked: static_response(asked, "style.css"))
        assert (result.status, result.headers["Cache-Control"]) == (200, "no-cache")


def test_no_other_file_is_static() -> None:
    for name in ("", "../errors.py", "..", "style.css/", "/etc/passwd"):
        result = answer(request(), lambda asked, name=name: static_response(asked, name))  # type: ignore[misc]
        assert result.status == 404
