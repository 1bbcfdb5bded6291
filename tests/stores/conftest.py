"""Fixtures: servers and stores that are closed after the test, in an environment without proxies and netrc."""

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import pytest
import urllib3.util.connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from narcore.stores import HttpBinaryCacheStore
from narcore.stores.cafile import CA_VARIABLES
from narcore.stores.http import guard
from tests.stores.flaky_server import FlakyServer, Script

CLOUDS = ("AWS_", "GOOGLE_", "GCE_", "AZURE_")


class Serve(Protocol):
    def __call__(self, script: Script, *, context: ssl.SSLContext | None = None) -> FlakyServer: ...


class OpenHttp(Protocol):
    def __call__(self, url: str, **options: Any) -> HttpBinaryCacheStore: ...


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in (*CA_VARIABLES, *(name for name in os.environ if name.startswith(CLOUDS))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # Only the credentials that a test sets, and no requests to a metadata service except one that the test simulates.
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "no-credentials"))
    for name in ("AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK", "AZURE_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # in case obstore sends requests anyway
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test from sending anything to an address that should have been rejected."""
    real = urllib3.util.connection.create_connection

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        for *_, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            assert ipaddress.ip_address(found[0]).is_loopback, f"would connect to {address}"
        return real(address, *args, **options)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    monkeypatch.setattr(guard, "create_connection", connect)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(closing: ExitStack) -> Serve:
    def start(script: Script, *, context: ssl.SSLContext | None = None) -> FlakyServer:
        return closing.enter_context(FlakyServer(script, context=context))

    return start


@pytest.fixture
def slept() -> list[float]:
    """The pauses of the stores of ``open_http``, in seconds, instead of sleeping."""
    return []


@pytest.fixture
def open_http(closing: ExitStack, slept: list[float]) -> OpenHttp:
    def make(url: str, **options: Any) -> HttpBinaryCacheStore:
        settings: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 10, "sleep": slept.append, **options}
        store = HttpBinaryCacheStore(url, **settings)
        closing.callback(store.close)
        return store

    return make


@pytest.fixture(scope="session")
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
