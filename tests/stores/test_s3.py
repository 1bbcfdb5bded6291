"""S3 stores against a scripted server: requests and signatures, errors, sources of credentials.

``tests/e2e/test_stores.py`` uses two real implementations.
"""

import logging
import os
import re
import ssl
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import pytest

from narcore.errors import (
    FileNotInStore,
    NarcoreError,
    RangeNotSupported,
    StoreForbidden,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.stores import read_file
from narcore.stores.buckets.s3 import S3BinaryCacheStore
from tests.stores.conftest import Serve
from tests.stores.flaky_server import Act, FlakyFile, FlakyServer, Request, Script, Step, answer, head

CONTENT = bytes(range(256)) * 4000


class OpenS3(Protocol):
    def __call__(
        self, server: FlakyServer, parameters: str = "", bucket: str = "bucket/pre", *, read_timeout: float = 10
    ) -> S3BinaryCacheStore: ...


@pytest.fixture
def open_s3(closing: ExitStack) -> OpenS3:
    def make(
        server: FlakyServer, parameters: str = "", bucket: str = "bucket/pre", *, read_timeout: float = 10
    ) -> S3BinaryCacheStore:
        options: dict[str, Any] = {"connect_timeout": 10, "read_timeout": read_timeout, "sleep": lambda _: None}
        store = S3BinaryCacheStore(f"s3://{bucket}?endpoint={server.url}{parameters}", **options)
        closing.callback(store.close)
        return store

    return make


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "aladdin")


def signature(request: Request) -> dict[str, str]:
    """Return the query parameters of a signed request; empty if the request is not signed."""
    return {name: values[0] for name, values in parse_qs(urlsplit(request.target).query).items()}


def path(request: Request) -> str:
    return urlsplit(request.target).path


@pytest.mark.usefixtures("keys")
def test_requests_are_signed_and_a_cut_body_is_resumed(
    serve: Serve, open_s3: OpenS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login joe password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # S3 rejects a request with two authorizations
    script = FlakyFile(CONTENT, [1000, 300_000])
    server = serve(script)
    assert read_file(open_s3(server, "&region=eu-west-1"), "nar/x y.nar", 10**7) == CONTENT
    assert {path(request) for request in server.requests} == {"/bucket/pre/nar/x%20y.nar"}
    assert script.if_range == ['"v1"'] * 2
    for request in server.requests:
        signed = signature(request)
        assert re.fullmatch(r"AKIDEXAMPLE/\d{8}/eu-west-1/s3/aws4_request", signed["X-Amz-Credential"])
        assert (signed["X-Amz-Security-Token"], signed["X-Amz-SignedHeaders"]) == ("aladdin", "host")
        assert "authorization" not in request.headers


@pytest.mark.usefixtures("keys")
def test_ranges_are_read_exactly_or_rejected(serve: Serve, open_s3: OpenS3) -> None:
    server = serve(FlakyFile(CONTENT, [100]))
    with open_s3(server).get_file("x", 5, 5005) as file:
        assert (b"".join(file), file.size) == (CONTENT[5:5005], len(CONTENT))
    with open_s3(server).get_file("x", 5005) as file:
        assert (b"".join(file), file.size) == (CONTENT[5005:], len(CONTENT))
    assert [request.range for request in server.requests] == [(5, 5004), (105, 5004), (5005, None)]
    whole = serve(lambda _: answer(200, CONTENT))
    with pytest.raises(RangeNotSupported):
        open_s3(whole).get_file("x", 5, 6)


def test_requests_without_credentials_are_unsigned(serve: Serve, open_s3: OpenS3) -> None:
    server = serve(lambda _: answer(200, b"x"))
    assert read_file(open_s3(server), "nar/x", 9) == b"x"
    assert [request.target for request in server.requests] == ["/bucket/pre/nar/x"]


def test_literal_key_is_tried_first(serve: Serve, open_s3: OpenS3) -> None:
    def script(request: Request) -> list[Step]:
        return answer(200, b"x") if path(request).endswith("nar") else answer(403)

    server = serve(script)
    store = open_s3(server)
    assert read_file(store, "nar/x.nar?hash=y", 9) == b"x"
    assert [request.target for request in server.requests] == [
        "/bucket/pre/nar/x.nar%3Fhash%3Dy",
        "/bucket/pre/nar/x.nar",
    ]
    assert read_file(store, "nar/%78.nar", 9) == b"x"
    with pytest.raises(FileNotInStore):
        store.get_file("nar/\udcff")


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "nar/../../x", "%2e%2e/x", "/x", "//h/x", "..%2fx", "x\\y", "x\r\ny", "x%00"]
)
def test_path_out_of_the_prefix_causes_no_request(serve: Serve, open_s3: OpenS3, name: str) -> None:
    server = serve(lambda _: answer(200, b"x"))
    store = open_s3(server)
    with pytest.raises(StoreForbidden):
        store.get_file(name)
    assert server.connections == 0


def refused(status: int, code: str, *more: str, headers: Iterable[str] = ()) -> list[Step]:
    body = f"<?xml?><Error><Code>{code}</Code>{''.join(more)}<Message>sIgNaTuRe</Message></Error>" if code else ""
    return answer(status, body.encode(), *headers)


ELSEWHERE = "is not in the region us-east-1; it is in eu-west-1: set region=eu-west-1"
REFUSALS: list[tuple[str, list[Step], type[NarcoreError], str]] = [
    ("missing", refused(404, "NoSuchKey"), FileNotInStore, "404"),
    ("missing, may not list", refused(403, "AccessDenied"), FileNotInStore, "403 AccessDenied"),
    ("403 without a body", refused(403, ""), FileNotInStore, "403"),
    ("gone", refused(410, ""), FileNotInStore, "410"),
    (
        "no bucket",
        refused(404, "NoSuchBucket"),
        StoreUnavailable,
        "there is no bucket 'bucket'; check its name, region and",
    ),
    (
        "unknown key",
        refused(403, "InvalidAccessKeyId"),
        StoreForbidden,
        "service does not know the key; check the credentials",
    ),
    ("wrong secret", refused(403, "SignatureDoesNotMatch"), StoreForbidden, "the secret key is wrong"),
    ("expired", refused(400, "ExpiredToken"), StoreForbidden, "the session token has expired"),
    ("clock", refused(403, "RequestTimeTooSkewed"), StoreForbidden, "the clock of this machine is wrong"),
    (
        "region by the body",
        refused(400, "AuthorizationQueryParametersError", "<Region>eu-west-1</Region>"),
        StoreForbidden,
        ELSEWHERE,
    ),
    (
        "region by the header",
        refused(301, "PermanentRedirect", headers=["x-amz-bucket-region: eu-west-1"]),
        StoreForbidden,
        ELSEWHERE,
    ),
    ("region unknown", refused(301, "PermanentRedirect"), StoreForbidden, "not in the region us-east-1; set region="),
    ("a bad request", refused(400, "InvalidRequest"), StoreUnavailable, "400"),
    ("broken", refused(500, "InternalError"), StoreUnavailable, "500"),
    ("slow down", refused(503, "SlowDown"), StoreUnavailable, "503"),
    ("gateway", refused(504, ""), StoreTimeout, "504"),
    ("stalled", [Act.STALL], StoreTimeout, "no data for"),
    ("junk", [b"junk\r\n\r\n", Act.CLOSE], StoreUnavailable, "connection"),
    ("cut for good", [head(200, length=9) + b"x", Act.CLOSE], StoreUnavailable, "end early"),
]


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("steps", "error", "text"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_error_responses_become_store_errors_without_secrets(
    serve: Serve,
    open_s3: OpenS3,
    caplog: pytest.LogCaptureFixture,
    steps: list[Step],
    error: type[NarcoreError],
    text: str,
) -> None:
    caplog.set_level(logging.INFO)
    store = open_s3(serve(lambda _: steps), read_timeout=0.4 if Act.STALL in steps else 10)
    with pytest.raises(NarcoreError, match=re.escape(text)) as caught:
        read_file(store, "x", 9)
    assert isinstance(caught.value, error)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert not [secret for secret in ("hunter2", "aladdin", "sIgNaTuRe", "X-Amz") if secret in shown], shown


@pytest.mark.parametrize(
    ("steps", "fine", "text"),
    [
        (answer(200, b"StoreDir: /nix/store\n"), True, ""),
        (refused(404, "NoSuchKey"), True, ""),
        (refused(403, "AccessDenied"), False, "allow s3:GetObject .* or use credentials"),
        (refused(404, "NoSuchBucket"), False, "there is no bucket"),
        (refused(403, "InvalidAccessKeyId"), False, "check the credentials"),
    ],
)
def test_check_says_what_to_do(serve: Serve, open_s3: OpenS3, steps: list[Step], fine: bool, text: str) -> None:
    store = open_s3(serve(lambda _: steps))
    if fine:
        store.check()
    else:
        with pytest.raises((StoreForbidden, StoreUnavailable), match=text):
            store.check()


# --- sources of credentials

ROLE = b"""{"AccessKeyId": "FROM-THE-SERVICE", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z",
"Code": "Success"}"""
STS = b"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>FROM-THE-SERVICE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


def instance(request: Request) -> list[Step]:
    """The metadata service of an instance (IMDSv2)."""
    if request.method == "PUT":
        return answer(200, b"token")
    if request.headers.get("x-aws-ec2-metadata-token") != "token":
        return answer(401)
    return answer(200, ROLE if request.target.endswith("/role") else b"role")


def web_identity(service: FlakyServer, directory: Path) -> dict[str, str]:
    (directory / "token").write_text("aladdin")
    return {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(directory / "token"),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
        "AWS_ENDPOINT_URL_STS": service.url,
        "SSL_CERT_FILE": str(directory / "ca.pem"),
    }


def container(service: FlakyServer, directory: Path) -> dict[str, str]:
    return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service.url}/role"}


def container_with_token(service: FlakyServer, directory: Path) -> dict[str, str]:
    (directory / "token").write_text("aladdin")
    token = {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(directory / "token")}
    return container(service, directory) | token


def machine(service: FlakyServer, directory: Path) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url, "AWS_EC2_METADATA_DISABLED": ""}


Kind = Callable[[FlakyServer, Path], dict[str, str]]
SERVICES: dict[str, tuple[Kind, Callable[[Request], list[Step]]]] = {
    "web identity": (web_identity, lambda _: answer(200, STS)),
    "container": (container, lambda _: answer(200, ROLE)),
    "container with a token": (container_with_token, lambda _: answer(200, ROLE)),
    "instance": (machine, instance),
}
BY_BOTO3 = {"container"}


@pytest.fixture
def play(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path, context: ssl.SSLContext
) -> Callable[..., FlakyServer]:
    """Start a service that provides credentials, and set the environment variables that lead to it."""

    def start(kind: str, script: Script | None = None) -> FlakyServer:
        settings, usual = SERVICES[kind]
        (tmp_path / "ca.pem").write_bytes(certificate.read_bytes())
        # Requests to STS use https only, those to the others http only.
        service = serve(script or usual, context=context if kind == "web identity" else None)
        for name, value in settings(service, tmp_path).items():
            monkeypatch.setenv(name, value)
        return service

    return start


@pytest.fixture
def key_used(serve: Serve, open_s3: OpenS3) -> Callable[..., str | None]:
    """Fetch a file, and return the access key that signed the request."""

    def ask(parameters: str = "") -> str | None:
        server = serve(lambda _: answer(200, b"x"))
        store = open_s3(server, parameters)
        assert read_file(store, "x", 9) == b"x"
        assert read_file(store, "y", 9) == b"x"
        credential = signature(server.requests[-1]).get("X-Amz-Credential")
        return credential.replace("/", " ").split()[0] if credential else None

    return ask


@pytest.mark.parametrize("kind", SERVICES)
def test_service_is_asked_for_credentials_once(
    play: Callable[..., FlakyServer], key_used: Callable[..., str | None], kind: str
) -> None:
    service = play(kind)
    assert key_used() == "FROM-THE-SERVICE"
    assert 1 <= len(service.requests) <= 4  # instance: detection, token, role, credentials


@pytest.mark.parametrize("kind", [kind for kind in SERVICES if kind != "instance"])
@pytest.mark.parametrize("steps", [answer(403, b"aladdin"), [Act.CLOSE]], ids=["403", "closed"])
def test_failing_credential_service_is_reported_without_secrets(
    serve: Serve,
    open_s3: OpenS3,
    play: Callable[..., FlakyServer],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    steps: list[Step],
) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    play(kind, lambda _: steps)
    server = serve(lambda _: answer(200, b"x"))
    refuses = steps != [Act.CLOSE]
    with pytest.raises(
        StoreForbidden if refuses or kind in BY_BOTO3 else StoreUnavailable, match="credentials"
    ) as caught:
        open_s3(server).get_file("x")
    assert server.connections == 0
    assert "aladdin" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("steps", [[Act.STALL], [Act.CLOSE], answer(403, b"denied"), answer(404)])
def test_machine_without_a_metadata_service_soon_reads_unsigned(
    play: Callable[..., FlakyServer], key_used: Callable[..., str | None], steps: list[Step]
) -> None:
    play("instance", lambda _: steps)
    begin = time.monotonic()
    assert key_used() is None
    assert time.monotonic() - begin < 2


@pytest.fixture
def shared_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon's two files, with a default profile and another one."""
    text = "[{}]\naws_access_key_id = {}\naws_secret_access_key = hunter2\n"
    (tmp_path / "credentials").write_text(text.format("default", "DEFAULT") + text.format("other", "OTHER"))
    (tmp_path / "config").write_text("[profile other]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.mark.usefixtures("shared_files")
@pytest.mark.parametrize(
    ("parameters", "environ", "key"),
    [
        ("&profile=other", {"AWS_ACCESS_KEY_ID": "ENVIRONMENT", "AWS_SECRET_ACCESS_KEY": "x"}, "OTHER"),
        ("", {"AWS_PROFILE": "other"}, "OTHER"),
        ("", {"AWS_ACCESS_KEY_ID": "ENVIRONMENT", "AWS_SECRET_ACCESS_KEY": "x"}, "ENVIRONMENT"),
        ("", {}, "DEFAULT"),
        ("", {"AWS_SKIP_SIGNATURE": "true"}, None),
    ],
)
def test_credentials_have_an_order_of_precedence(
    key_used: Callable[..., str | None],
    monkeypatch: pytest.MonkeyPatch,
    parameters: str,
    environ: dict[str, str],
    key: str | None,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert key_used(parameters) == key


@pytest.mark.usefixtures("shared_files")
@pytest.mark.parametrize(
    ("parameters", "environ", "region"),
    [
        ("&profile=other&region=ca-west-1", {"AWS_REGION": "sa-east-1"}, "ca-west-1"),
        ("&profile=other", {"AWS_REGION": "sa-east-1", "AWS_DEFAULT_REGION": "us-west-1"}, "sa-east-1"),
        ("&profile=other", {}, "eu-west-3"),
        ("", {}, "us-east-1"),
    ],
)
def test_regions_have_an_order_of_precedence(
    serve: Serve,
    open_s3: OpenS3,
    monkeypatch: pytest.MonkeyPatch,
    parameters: str,
    environ: dict[str, str],
    region: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    server = serve(lambda _: answer(200, b"x"))
    assert read_file(open_s3(server, parameters), "x", 9) == b"x"
    assert signature(server.requests[0])["X-Amz-Credential"].split("/")[2] == region


def test_user_without_a_home_directory_reads_unsigned(
    key_used: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container that runs with a user ID without a user."""
    for name in ("HOME", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", dict[int, Any]().__getitem__)
    assert key_used() is None


@pytest.mark.usefixtures("shared_files")
def test_unknown_profile_is_reported(serve: Serve, open_s3: OpenS3) -> None:
    server = serve(lambda _: answer(200, b"x"))
    with pytest.raises(StoreForbidden, match=r"no credentials for profile 'third' \(ProfileNotFound\)"):
        open_s3(server, "&profile=third").get_file("x")
    assert server.connections == 0


@pytest.mark.usefixtures("keys")
def test_endpoint_comes_from_the_url_or_the_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, other = serve(lambda _: answer(200, b"x")), serve(lambda _: answer(200, b"y"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    store = S3BinaryCacheStore("s3://bucket")
    assert read_file(store, "x", 9) == b"x"
    store.close()
    store = S3BinaryCacheStore(f"s3://bucket?endpoint={other.url}")
    assert read_file(store, "x", 9) == b"y"
    store.close()
    assert len(server.requests) == len(other.requests) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_store_can_be_used_after_a_fork(serve: Serve, open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is opened before the fork and used after it, as with gunicorn's ``preload_app``."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store = open_s3(serve(lambda _: answer(200, b"x")))
    child = os.fork()
    if not child:
        try:
            os._exit(0 if read_file(store, "x", 9) == b"x" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
