"""TLS: certificates are verified, and the usual environment variables name a custom CA."""

import ssl
from pathlib import Path

import pytest

from narcore.errors import StoreForbidden, StoreUnavailable
from narcore.stores import read_file
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import FlakyFile, answer, redirect


def test_untrusted_certificate_is_rejected_without_retries(
    serve: Serve, open_http: OpenHttp, context: ssl.SSLContext, slept: list[float]
) -> None:
    server = serve(lambda _: answer(200, b"x"), context=context)
    with pytest.raises(StoreUnavailable, match="certificate is not trusted: self-signed certificate"):
        open_http(server.url).get_file("x")
    assert (server.requests, slept) == ([], [])


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE"])
def test_custom_ca_is_used_from_the_environment(
    serve: Serve,
    open_http: OpenHttp,
    context: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(certificate))
    content = bytes(range(256)) * 1000
    server = serve(FlakyFile(content, [100_000]), context=context)
    assert read_file(open_http(server.url), "x", 10**6) == content
    monkeypatch.setenv(variable, "/nowhere.pem")
    with pytest.raises(StoreUnavailable, match="CA bundle"):
        open_http(server.url).get_file("x")


def test_redirect_from_https_to_http_is_rejected_but_to_https_is_followed(
    serve: Serve, open_http: OpenHttp, context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    plain = serve(lambda _: answer(200, b"x"))
    safe = serve(lambda _: answer(200, b"y"), context=context)
    down = serve(lambda _: redirect(f"{plain.url}/x"), context=context)
    across = serve(lambda _: redirect(f"{safe.url}/x"), context=context)
    with pytest.raises(StoreForbidden, match="from https to http"):
        open_http(down.url).get_file("x")
    assert plain.connections == 0
    assert read_file(open_http(across.url), "x", 9) == b"y"
