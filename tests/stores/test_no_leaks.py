"""User names, passwords and signatures never appear in a URL, a message, a traceback, a repr or a log."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from narcore.errors import NarcoreError, SettingsError
from narcore.stores import open_store
from narcore.stores.http.urls import StoreUrl
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import Act, Request, Step, answer, head, redirect

SECRETS = ("hunter2", "aladdin", "sIgNaTuRe")
PATH = "x?X-Amz-Signature=sIgNaTuRe"

SCRIPTS: dict[str, Callable[[Request], list[Step]]] = {
    "refused credentials": lambda _: answer(401, b"", 'WWW-Authenticate: Basic realm="x"'),
    "missing": lambda _: answer(404, b"no"),
    "broken": lambda _: answer(500, b"no"),
    "reset": lambda _: [Act.CUT],
    "stalled": lambda _: [b"HTTP/1.1", Act.STALL],
    "junk": lambda _: [b"junk\r\n\r\n", Act.CLOSE],
    "two lengths": lambda _: [head(200, "Content-Length: 4", "Content-Length: 5"), Act.CLOSE],
    "cut": lambda _: [head(200, length=9) + b"x", Act.CLOSE],
    "cut for good": lambda _: [head(200, 'ETag: "x"', length=9) + b"x", Act.CLOSE],
    "bad chunk": lambda _: [head(200, "Transfer-Encoding: chunked") + b"zz\r\n", Act.CLOSE],
    "redirect to a refusal": lambda request: (
        answer(403) if "y" in request.target else redirect("/y?X-Amz-Signature=sIgNaTuRe")
    ),
    "redirect to a reset": lambda request: (
        [Act.CUT] if "y" in request.target else redirect("/y?X-Amz-Signature=sIgNaTuRe")
    ),
    "redirect loop": lambda _: redirect("/y?X-Amz-Signature=sIgNaTuRe"),
    "redirect with credentials": lambda _: redirect("http://aladdin:hunter2@10.0.0.1/?X-Amz-Signature=sIgNaTuRe"),
    "redirect to a private address": lambda _: redirect("http://10.0.0.1/?X-Amz-Signature=sIgNaTuRe"),
    "redirect to an invalid URL": lambda _: redirect("http://aladdin:hunter2@[/?X-Amz-Signature=sIgNaTuRe"),
    "redirect to a closed port": lambda _: redirect("http://localhost:1/?X-Amz-Signature=sIgNaTuRe"),
}


def assert_no_secret(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text], text


@pytest.mark.parametrize("where", ["url", "netrc"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_failed_requests_reveal_no_secrets(
    serve: Serve,
    open_http: OpenHttp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: Callable[[Request], list[Step]],
    where: str,
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login aladdin password hunter2")
    if where == "netrc":
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(script)
    store = open_http(server.url.replace("//", "//aladdin:hunter2@" if where == "url" else "//"), read_timeout=0.05)
    with pytest.raises(NarcoreError) as caught, store.get_file(PATH) as file:
        b"".join(file)
    assert all("authorization" in request.headers for request in server.requests)
    assert server.requests
    assert "127.0.0.1" in str(caught.value)  # the message still names the host
    assert_no_secret("".join(traceback.format_exception(caught.value)))
    assert_no_secret(caplog.text)


@pytest.mark.parametrize("path", ["../x", "//evil.example/x", "http://aladdin:hunter2@127.0.0.1/", "x\0"])
def test_rejected_paths_reveal_no_secrets(open_http: OpenHttp, path: str) -> None:
    store = open_http("https://aladdin:hunter2@cache.example.org/x")
    with pytest.raises(NarcoreError) as caught:
        store.get_file(path)
    assert_no_secret("".join(traceback.format_exception(caught.value)))


def test_unreachable_store_and_proxy_reveal_no_secrets(open_http: OpenHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_http("http://aladdin:hunter2@127.0.0.1:1", retries=0)
    with pytest.raises(NarcoreError) as caught:
        store.get_file("x")
    assert_no_secret("".join(traceback.format_exception(caught.value)))
    for proxy in ("http://aladdin:hunter2@127.0.0.1:1", "http://aladdin:hunter2@[", "socks9://aladdin:hunter2@x"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(NarcoreError) as caught:
            store.get_file("x")
        assert_no_secret("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize(
    "url",
    [
        "https://aladdin:hunter2@cache.example.org/x?priority=3&token=sIgNaTuRe",
        "https://aladdin:hunter2@cache.example.org",
    ],
)
def test_representations_of_a_store_reveal_no_secrets(url: str) -> None:
    store = open_store(url)
    assert store.url.startswith("https://cache.example.org")
    for text in (store.url, repr(store), str(store), repr(StoreUrl.parse(url)), str(StoreUrl.parse(url))):
        assert_no_secret(text)


@pytest.mark.parametrize(
    "url",
    [
        "https://aladdin:hunter2@",
        "https://aladdin:hunter2@cache.example.org:port/",
        "https://aladdin:12/hunter2@cache.example.org/",
        "https://aladdin:12?hunter2@cache.example.org/",
        "https://aladdin:12#hunter2@cache.example.org/",
        "https://aladdin:hun@ter/hunter2@cache.example.org/",
        "https://aladdin:hunter2@[cache",
        "ftp://aladdin:hunter2@cache.example.org/",
        "s3://aladdin:hunter2@bucket",
        "file://aladdin:hunter2@host/x",
        "aladdin:hunter2@cache.example.org",
    ],
)
def test_rejected_store_urls_reveal_no_secrets(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(url)
    assert_no_secret("".join(traceback.format_exception(caught.value)))
