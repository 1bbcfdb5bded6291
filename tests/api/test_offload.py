"""The bucket for large responses: its URLs and uploads. tests/e2e/test_large_responses.py tests what a client sees."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from werkzeug.datastructures import Headers

from api.offload.bucket import URL_SECONDS, Bucket
from api.offload.presign import Credentials
from api.offload.redirect import WAIT_SECONDS, Offload
from api.responses.base import Response
from narcore.errors import CapacityError, CorruptStream, SettingsError, WriteError
from narcore.settings import Settings
from narcore.stores.writer import CLAIM_SECONDS
from tests import tools
from tests.e2e import s3
from tests.e2e.s3 import BUCKET, S3

pytestmark = pytest.mark.slow

NAME = "0123abcd"
HEADERS = Headers({"ETag": f'"{NAME}"', "Content-Disposition": "inline; filename=\"x\"; filename*=UTF-8''%C3%A9"})
KEY = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}

BOTO = """
import json, sys, boto3, botocore.config
options = json.load(sys.stdin)
config = botocore.config.Config(signature_version="s3v4", s3={"addressing_style": options.pop("style")})
params = options.pop("params")
print(boto3.client("s3", config=config, **options).generate_presigned_url("get_object", Params=params, ExpiresIn=3600))
"""


@pytest.mark.parametrize("token", ["", "IQoJb3JpZ2luX2VjE/+=="])
@pytest.mark.parametrize(
    ("query", "endpoint", "style"),
    [("", None, "virtual"), ("?endpoint=http://localhost:9000", "http://localhost:9000", "path")],
)
def test_urls_are_signed_like_those_of_boto3(token: str, query: str, endpoint: str | None, style: str) -> None:
    python = tools.moto_server().with_name("python")
    options = {
        "aws_access_key_id": KEY["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": KEY["AWS_SECRET_ACCESS_KEY"],
        "aws_session_token": token or None,
        "region_name": "eu-west-1",
        "endpoint_url": endpoint,
        "style": style,
        "params": {
            "Bucket": BUCKET,
            "Key": "a b+c/\u00e9/0123abcd",
            "ResponseContentDisposition": HEADERS["Content-Disposition"],
        },
    }
    done = subprocess.run([python, "-c", BOTO], input=json.dumps(options), capture_output=True, text=True, check=True)
    theirs = urlsplit(done.stdout.strip())
    parameters = parse_qs(theirs.query)
    signed_at = datetime.strptime(parameters["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    environ = KEY | {"AWS_SESSION_TOKEN": token, "AWS_REGION": "eu-west-1"}
    bucket = Bucket.open(f"s3://{BUCKET}/a b+c/\u00e9{query}", environ, lambda: signed_at)
    ours = urlsplit(bucket.url_of("0123abcd", HEADERS["Content-Disposition"]))
    assert parse_qs(ours.query) == parameters
    assert int(parameters["X-Amz-Expires"][0]) == URL_SECONDS
    assert unquote(ours.path) == unquote(theirs.path)
    assert ours.netloc.replace(".eu-west-1", "") == theirs.netloc.replace(".eu-west-1", "")


def test_missing_credentials_and_invalid_urls_are_reported_at_start() -> None:
    for environ in ({}, {"AWS_ACCESS_KEY_ID": "x"}):
        with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY"):
            Bucket.open("s3://x", environ)
    for text in ("https://x/y", "gs://x", "s3://", "s3://x/../y"):
        with pytest.raises(SettingsError, match="NAR_OFFLOAD_URL"):
            Settings.from_environ({"NAR_OFFLOAD_URL": text})
    with pytest.raises(SettingsError, match="NAR_CACHE_DIR"):
        Settings.from_environ({"NAR_OFFLOAD_URL": "s3://x", "NAR_CACHE_DIR": "off"})


def test_credentials_are_not_shown() -> None:
    shown = repr(Credentials.from_environ(KEY | {"AWS_SESSION_TOKEN": "secret token"}))
    assert "EXAMPLEKEY" not in shown
    assert "secret token" not in shown


# --- with a bucket


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3.running(tmp_path_factory.mktemp("s3") / "log") as running:
        yield running


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.on_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now.timestamp()

    def sleep(self, seconds: float) -> None:
        self.on_sleep()
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix in the bucket that only this test uses."""
    return str(request.node.name)


@pytest.fixture
def bucket(server: S3, clock: Clock, prefix: str) -> Bucket:
    return Bucket.open(f"s3://{BUCKET}/{prefix}?endpoint={server.url}", KEY, lambda: clock.now)


@pytest.fixture
def offload(bucket: Bucket, clock: Clock) -> Offload:
    return Offload(bucket, clock=clock.monotonic, sleep=clock.sleep)


def whole(chunks: Any = (b"bytes",)) -> Response:
    headers = {"Content-Type": "text/x-test; charset=utf-8", "Cache-Control": "public, max-age=600"}
    return Response(chunks, headers=headers)


def never() -> Response:
    raise AssertionError("the copy exists already, or another process uploads it")


def keys(server: S3, prefix: str) -> list[str]:
    return [key.removeprefix(f"{prefix}/") for key in server.objects() if key.startswith(f"{prefix}/")]


def test_a_response_is_uploaded_once(offload: Offload, server: S3, prefix: str) -> None:
    location = offload.response(NAME, HEADERS, whole).headers["Location"]
    assert offload.response(NAME, HEADERS, never).status_code == 302
    assert keys(server, prefix) == ["0123abcd"]  # the claim is deleted
    assert server.request("GET", location.removeprefix(server.url)) == b"bytes"


def test_a_failed_upload_leaves_nothing_in_the_bucket(offload: Offload, server: S3, prefix: str) -> None:
    closed: list[bool] = []

    def broken() -> Iterator[bytes]:
        try:
            for _ in range(100):
                yield bytes(256 * 1024)
            raise CorruptStream("no more")
        finally:
            closed.append(True)

    with pytest.raises(CorruptStream):
        offload.response(NAME, HEADERS, lambda: whole(broken()))
    assert closed == [True]
    assert keys(server, prefix) == []
    assert server.unfinished() == []
    assert offload.response(NAME, HEADERS, whole).status_code == 302


def test_a_request_waits_for_the_upload_of_another_process(offload: Offload, bucket: Bucket, clock: Clock) -> None:
    assert bucket.writer.claim("0123abcd")
    assert not bucket.writer.claim("0123abcd")
    rounds: list[int] = []

    def after_a_while() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            bucket.writer.put("0123abcd", iter([b"theirs"]), {})
            bucket.writer.release("0123abcd")

    clock.on_sleep = after_a_while
    assert offload.response(NAME, HEADERS, never).status_code == 302
    assert len(rounds) == 3


def test_waiting_too_long_for_another_upload_raises_capacity_error(
    offload: Offload, bucket: Bucket, clock: Clock
) -> None:
    started = clock.now
    assert bucket.writer.claim("0123abcd")
    with pytest.raises(CapacityError):
        offload.response(NAME, HEADERS, never)
    assert WAIT_SECONDS <= (clock.now - started).total_seconds() < 28


def test_only_one_process_takes_over_an_expired_claim(bucket: Bucket, clock: Clock) -> None:
    assert bucket.writer.claim("x")
    clock.now += timedelta(seconds=CLAIM_SECONDS - 2)
    assert not bucket.writer.claim("x")
    clock.now += timedelta(seconds=4)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(bucket.writer.claim("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_the_error_of_a_failed_bucket_hides_credentials(server: S3, tmp_path: Path) -> None:
    for url, reason in (
        (f"s3://no-such-bucket?endpoint={server.url}", "404"),
        ("s3://x?endpoint=http://127.0.0.1:9", ""),
    ):
        bucket = Bucket.open(url, KEY)
        with pytest.raises(WriteError) as caught:
            Offload(bucket).response(NAME, HEADERS, whole)
        assert reason in str(caught.value)
        assert "EXAMPLEKEY" not in str(caught.value)
        assert "\n" not in str(caught.value)
