"""Error responses: the table of exceptions, the three media types, and the details that are hidden from the client."""

import json
from collections.abc import Iterator

import pytest
from werkzeug import exceptions as http

from api.errors import ROWS, error_response
from narcore import errors
from tests.api.support import Answer, answer, request
from tests.api.test_listings import Page

SECRETS = "https://user:hunter2@cache.internal/x.narinfo: [Errno 13] Permission denied: '/var/lib/nar'"


def every_error(base: type[errors.NarcoreError] = errors.NarcoreError) -> Iterator[type[errors.NarcoreError]]:
    yield base
    for child in base.__subclasses__():
        yield from every_error(child)


def respond(error: Exception, accept: str | None = None, method: str = "GET") -> Answer:
    headers = {"Accept": accept} if accept else {}
    return answer(request("/", method, headers), lambda req: error_response(req, error))


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind.__module__ == "narcore.errors"])
def test_every_error_has_a_row(kind: type[errors.NarcoreError]) -> None:
    assert kind in ROWS
    result = respond(kind("message"))
    assert result.status == ROWS[kind].status
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    assert result.headers["Vary"] == "Accept"
    assert result.headers["Content-Length"] == str(len(result.body))
    assert result.text.count("\n") == 1
    assert (result.headers["Cache-Control"] == "no-store") == (result.status >= 500)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.StorePathError("x"), 400),
        (errors.FileNotInStore("x"), 404),
        (errors.NoSuchNode("x"), 404),
        (errors.NotADirectory("x"), 404),
        (errors.SymlinkLoop("x"), 404),
        (errors.OutsideStore("x"), 404),
        (errors.NarInfoError("x"), 502),
        (errors.HashMismatch("x"), 502),
        (errors.UntrustedSignature("x"), 502),
        (errors.UnknownCompression("x"), 502),
        (errors.TruncatedStream("x"), 502),
        (errors.StoreUnavailable("x"), 502),
        (errors.StoreForbidden("x"), 502),
        (errors.StoreTimeout("x"), 504),
        (errors.CapacityError("x"), 503),
        (ZeroDivisionError("x"), 500),
        (http.NotFound(), 404),
        (http.BadRequest("no format x; there is json"), 400),
        (http.MethodNotAllowed(["GET", "HEAD"]), 405),
        (http.PreconditionFailed(), 412),
        (http.RequestedRangeNotSatisfiable(length=7), 416),
        (http.RequestURITooLarge(), 414),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert respond(error).status == status


def test_a_class_without_a_row_uses_the_row_of_its_base_class() -> None:
    class Derived(errors.NarInfoError):
        pass

    assert respond(Derived("x")).status == 502


def test_an_error_is_sent_as_text_json_or_html() -> None:
    error = errors.NoSuchNode("hello-2.12 has no 'bin/x'")
    text = respond(error)
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert text.text.startswith("Not found: hello-2.12 has no 'bin/x'. ")
    as_json = respond(error, "application/json")
    assert as_json.headers["Content-Type"] == "application/json"
    body = json.loads(as_json.body)
    assert set(body) == {"error", "detail"}
    assert body["error"] == "Not found"
    assert "has no 'bin/x'" in body["detail"]
    html = respond(error, "text/html,application/xhtml+xml,*/*;q=0.8")
    assert html.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in html.headers["Content-Security-Policy"]
    assert "has no &#39;bin/x&#39;" in html.text
    assert respond(error, method="HEAD").body == b""


def test_only_errors_that_depend_on_the_store_path_are_immutable() -> None:
    missing_file = respond(errors.NoSuchNode("x"))
    assert missing_file.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "Expires" in missing_file.headers
    page = respond(errors.NoSuchNode("x"), "text/html")  # changes with the program
    assert page.headers["Cache-Control"] == "public, max-age=600, stale-while-revalidate=86400"
    assert "Expires" not in page.headers
    assert respond(errors.FileNotInStore("x")).headers["Cache-Control"] == "public, max-age=60"
    for error in (errors.StoreUnavailable("x"), errors.CapacityError("x"), OSError("x"), http.MethodNotAllowed()):
        result = respond(error)
        assert result.headers["Cache-Control"] == "no-store"
        assert "Expires" not in result.headers


def test_errors_have_the_headers_of_their_status() -> None:
    assert respond(errors.CapacityError("full", retry_after=17)).headers["Retry-After"] == "17"
    assert respond(http.MethodNotAllowed(["HEAD", "GET"])).headers["Allow"] == "HEAD, GET"
    assert respond(http.MethodNotAllowed()).headers["Allow"] == "GET, HEAD, OPTIONS"
    assert respond(http.RequestedRangeNotSatisfiable(length=7)).headers["Content-Range"] == "bytes */7"


@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json"])
@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in [*every_error(), OSError, ConnectionError, KeyError, RuntimeError]
        if not issubclass(kind, errors.PathError | errors.StorePathError)
    ],
)
def test_an_error_response_leaks_no_internals(kind: type[Exception], accept: str) -> None:
    result = respond(kind(SECRETS), accept)
    sent = result.text + str(result.headers)
    for secret in ("hunter2", "cache.internal", "Errno", "/var/lib", kind.__name__, "Traceback"):
        assert secret not in sent


@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json"])
def test_a_hostile_path_in_a_message_is_escaped_and_truncated(accept: str) -> None:
    name = "<script>alert(1)</script>\r\nX: y\udcff\u202e" + "a" * 100_000
    result = respond(errors.NoSuchNode(f"hello has no {name}"), accept)
    assert len(result.body) < 10_000
    assert "\u202e" not in result.text
    assert "\\xff" in result.text
    if accept == "text/html":
        assert "script" not in Page(result.text).tags
    else:
        assert result.text.count("\n") == 1


def test_a_bad_request_shows_its_own_description_but_not_werkzeugs() -> None:
    assert "no format x; there is json." in respond(http.BadRequest("no format x; there is json")).text
    assert "browser (or proxy)" not in respond(http.BadRequest()).text
