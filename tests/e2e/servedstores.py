"""Serves one binary cache in every way that a store URL can name: object stores, HTTP with a password, HTTPS, files."""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import obstore
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from obstore.store import AzureStore, S3Store

from narcore.stores.cafile import CA_VARIABLES
from tests import needs
from tests.e2e.emulators import emulator, running

BUCKET = "nix-cache"
PREFIX = "public/x86 64"
SECRET = b"a file outside the cache"
USER, PASSWORD = "joe", "s3cret/@?p%ss"  # no colon, which ends the password in the file that nginx reads
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # built into Azurite
)
S3_KEYS = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True, slots=True)
class ServedStore:
    """A store that is being served.

    ``environ`` has the environment variables that its clients need. ``secrets`` must not appear in logs or pages. ``ranges`` tells
    whether the store supports range requests.
    """

    url: str
    environ: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    ranges: bool = True


Opener = Callable[[Path, Path, Path], contextlib.AbstractContextManager[ServedStore]]
"""Serves the files of a directory. The other arguments are the directory of the emulators and one for its own files."""


def upload(files: Path, put: Callable[[str, bytes], Any]) -> None:
    """Upload every file below the prefix, and a secret outside it."""
    put("secret", SECRET)
    put("public/secret", SECRET)
    for path in sorted(files.rglob("*")):
        if path.is_file():
            put(f"{PREFIX}/{path.relative_to(files)}", path.read_bytes())


@contextlib.contextmanager
def s3(
    implementation: str, files: Path, emulators: Path, scratch: Path, *, signed: bool = True
) -> Iterator[ServedStore]:
    with emulator(implementation, emulators, scratch / "data") as url:
        requests.put(f"{url}/{BUCKET}", timeout=10).raise_for_status()
        config = {"endpoint": url, "region": "us-east-1", "access_key_id": "S3RVER", "secret_access_key": "S3RVER"}
        store = S3Store(BUCKET, config=config, client_options={"allow_http": True})  # type: ignore[arg-type]  # a TypedDict
        upload(files, lambda key, data: obstore.put(store, key, data, use_multipart=False))
        environ = S3_KEYS if signed else {"AWS_SKIP_SIGNATURE": "true"}
        parameters = f"endpoint={url}&region=us-east-1&addressing-style=auto&compression=zstd"
        yield ServedStore(f"s3://{BUCKET}/{quote(PREFIX)}?{parameters}", environ, ("X-Amz-Signature",))


@contextlib.contextmanager
def google(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    with emulator("fake-gcs-server", emulators, scratch / "data") as url, requests.Session() as session:
        session.post(f"{url}/storage/v1/b?project=x", json={"name": BUCKET}, timeout=10).raise_for_status()

        def put(key: str, data: bytes) -> None:
            # Not with obstore, which would request a token from a metadata service before it writes.
            target = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}"
            headers = {"Content-Type": "application/octet-stream"}
            session.post(target, data=data, headers=headers, timeout=30).raise_for_status()

        upload(files, put)
        yield ServedStore(f"gs://{BUCKET}/{quote(PREFIX)}?endpoint={url}", {"GOOGLE_SKIP_SIGNATURE": "true"})


@contextlib.contextmanager
def azure(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    with emulator("azurite", emulators, scratch / "data") as url:
        _create_container(url)
        config = {"account_name": ACCOUNT, "account_key": ACCOUNT_KEY, "endpoint": f"{url}/{ACCOUNT}"}
        store = AzureStore(BUCKET, config=config, client_options={"allow_http": True})  # type: ignore[arg-type]  # a TypedDict
        upload(files, lambda key, data: obstore.put(store, key, data, use_multipart=False))
        environ = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}
        yield ServedStore(f"az://{BUCKET}/{quote(PREFIX)}?endpoint={url}/{ACCOUNT}", environ, (ACCOUNT_KEY,))


def _create_container(url: str) -> None:
    """Create the container, which obstore can't do.

    The request is signed with the key of the account, as in the reference of the service ("Authorize with Shared Key").
    """
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    resource = f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
    text = "\n".join(["PUT", *[""] * 11, *map(":".join, headers.items()), resource])
    signature = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
    target = f"{url}/{ACCOUNT}/{BUCKET}?restype=container"
    requests.put(target, headers=headers, timeout=10).raise_for_status()


NGINX = """
daemon off; master_process off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/error.log;
events {{ worker_connections 128; }}
http {{
  access_log off; default_type application/octet-stream; sendfile on;
  client_body_temp_path {scratch}/t1; proxy_temp_path {scratch}/t2; fastcgi_temp_path {scratch}/t3;
  uwsgi_temp_path {scratch}/t4; scgi_temp_path {scratch}/t5;
  server {{
    listen 127.0.0.1:{port}; root {root};
    auth_basic "cache"; auth_basic_user_file {scratch}/passwords;
  }}
}}
"""


@contextlib.contextmanager
def _nginx(files: Path, scratch: Path) -> Iterator[str]:
    """Run nginx with a password; yields ``host:port``. The cache is at ``/public/x86 64``, as in a bucket."""
    root = _root(files, scratch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (scratch / "passwords").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    (scratch / "nginx.conf").write_text(NGINX.format(scratch=scratch, port=port, root=root))
    program = needs.program("nginx")
    with running([program, "-c", f"{scratch}/nginx.conf", "-p", f"{scratch}"], port, scratch / "nginx.log"):
        yield f"127.0.0.1:{port}"


def _root(files: Path, scratch: Path) -> Path:
    root = scratch / "root"
    for place in (root, root / "public"):
        place.mkdir(parents=True)
        (place / "secret").write_bytes(SECRET)
    shutil.copytree(files, root / PREFIX, copy_function=os.link)
    return root


@contextlib.contextmanager
def basic_auth(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    with _nginx(files, scratch) as host:
        credentials = f"{USER}:{quote(PASSWORD, safe='')}"
        yield ServedStore(f"http://{credentials}@{host}/{quote(PREFIX)}", {}, (PASSWORD, quote(PASSWORD, safe="")))


@contextlib.contextmanager
def netrc(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    with _nginx(files, scratch) as host:
        (scratch / "netrc").write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        yield ServedStore(f"http://{host}/{quote(PREFIX)}", {"NETRC": str(scratch / "netrc")}, (PASSWORD,))


@contextlib.contextmanager
def own_ca(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    """Serve HTTPS with Python's http.server: a second server implementation, which does not support ranges."""
    root = _root(files, scratch)
    bundle, server_file = _certificates(scratch)
    handler = partial(_QuietHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server_file)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"https://127.0.0.1:{server.server_address[1]}/{quote(PREFIX)}"
        variables = dict.fromkeys(CA_VARIABLES, "") | {"NIX_SSL_CERT_FILE": str(bundle)}
        yield ServedStore(url, variables, ranges=False)
        server.shutdown()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 2  # seconds, so that the threads of idle connections end

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (named by the base class)
        pass


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Create a CA and a server certificate; returns the CA file for clients, and the file with server key and certificate."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("test authority", authority_key, "test authority", authority_key, is_authority=True)
    server = _certificate("127.0.0.1", server_key, "test authority", authority_key, is_authority=False)
    private = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    bundle, server_file = directory / "authority.pem", directory / "server.pem"
    bundle.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    server_file.write_bytes(private + server.public_bytes(serialization.Encoding.PEM))
    return bundle, server_file


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_authority:
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    else:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(subject))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@contextlib.contextmanager
def on_disk(files: Path, emulators: Path, scratch: Path) -> Iterator[ServedStore]:
    yield ServedStore((_root(files, scratch) / PREFIX).as_uri())


SERVED_STORES: dict[str, Opener] = {
    "s3-moto": partial(s3, "moto"),
    "s3-s3rver": partial(s3, "s3rver"),
    "s3-unsigned": partial(s3, "s3rver", signed=False),
    "gs": google,
    "az": azure,
    "http-basic": basic_auth,
    "http-netrc": netrc,
    "https-own-ca": own_ca,
    "file": on_disk,
}
NEED_EMULATORS = frozenset({"s3-moto", "s3-s3rver", "s3-unsigned", "gs", "az"})
