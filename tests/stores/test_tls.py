"""TLS is verified, and the usual variables name an own CA."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from narcore.errors import StoreForbidden, StoreUnavailable
from narcore.stores import read_file
from tests.stores.conftest import OpenHttp, Serve
from tests.stores.flaky_server import FlakyFile, answer, redirect


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_unknown_certificate_is_refused_at_once(
    serve: Serve, open_http: OpenHttp, context: ssl.SSLContext, slept: list[float]
) -> None:
    server = serve(lambda _: answer(200, b"x"), context=context)
    with pytest.raises(StoreUnavailable, match="certificate is not trusted: self-signed certificate"):
        open_http(server.url).get_file("x")
    assert (server.requests, slept) == ([], [])


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE"])
def test_an_own_ca(
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


def test_no_redirect_down_to_http_and_a_safe_one_across(
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
