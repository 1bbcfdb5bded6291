"""``gs://`` and ``az://`` stores against a scripted server: ranges, cuts, errors, signed and unsigned requests.

``tests/e2e/test_stores.py`` uses emulators of both services.
"""

import base64
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import unquote

import pytest

from narcore.errors import (
    FileNotInStore,
    NarcoreError,
    RangeNotSupported,
    StoreForbidden,
    StoreTimeout,
    StoreUnavailable,
)
from narcore.sizes import CHUNK_SIZE
from narcore.stores import read_file
from narcore.stores.buckets import metadata
from narcore.stores.buckets.googleazure import ObjectBinaryCacheStore, has_azure_credentials, has_google_credentials
from tests.stores.conftest import Serve
from tests.stores.flaky_server import Act, FlakyFile, FlakyServer, Step, answer, head

CONTENT = bytes(range(256)) * 8000
# Both services always send this header, and obstore requires it.
MODIFIED = "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"
TAG = 'ETag: "v1"'
URLS = {"gs": "gs://bucket/pre?endpoint={}", "az": "az://bucket/pre?account=joe&endpoint={}"}
SECRETS = ("hunter2", "sIgNaTuRe")

Open = Callable[..., ObjectBinaryCacheStore]


@pytest.fixture(params=URLS)
def open_bucket(request: pytest.FixtureRequest, closing: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.delenv("AZURE_SKIP_SIGNATURE")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2021&sig=hunter2")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "hunter2")

    def make(server: FlakyServer, **options: Any) -> ObjectBinaryCacheStore:
        settings: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 10, "retries": 0, **options}
        store = ObjectBinaryCacheStore(URLS[request.param].format(server.url), **settings)
        closing.callback(store.close)
        return store

    return make


def test_whole_files_and_ranges_are_read(serve: Serve, open_bucket: Open) -> None:
    server = serve(FlakyFile(CONTENT, extra=[MODIFIED, "Content-Encoding: BR"]))
    store = open_bucket(server)
    with store.get_file("nar/x y.nar") as file:
        chunks = list(file)
    assert (b"".join(chunks), file.size, file.content_encoding) == (CONTENT, len(CONTENT), "br")
    assert all(0 < len(chunk) <= CHUNK_SIZE for chunk in chunks)
    for start, stop in ((5, 1_000_000), (5, None)):
        with store.get_file("x", start, stop) as file:
            assert (b"".join(file), file.size) == (CONTENT[start:stop], len(CONTENT))
    assert unquote(server.requests[0].target.partition("?")[0]).endswith("/bucket/pre/nar/x y.nar")


def test_cut_body_is_resumed_if_the_file_is_unchanged(serve: Serve, open_bucket: Open) -> None:
    cuts = [100_000, 900_000]
    server = serve(FlakyFile(CONTENT, cuts, extra=[MODIFIED]))
    assert read_file(open_bucket(server, retries=3), "x", 10**7) == CONTENT
    assert len(server.requests) == 3
    changed = serve(FlakyFile(CONTENT, cuts, extra=[MODIFIED], tags=['"v1"', '"v2"']))
    with pytest.raises(StoreUnavailable):
        read_file(open_bucket(changed, retries=3), "x", 10**7)


def test_reading_after_close_fails(serve: Serve, open_bucket: Open) -> None:
    file = open_bucket(serve(FlakyFile(CONTENT, extra=[MODIFIED]))).get_file("x")
    chunks = iter(file)
    next(chunks)
    file.close()
    with pytest.raises(StoreUnavailable, match="closed before the end"):
        next(chunks)


def test_reading_after_an_error_fails_again(serve: Serve, open_bucket: Open) -> None:
    with open_bucket(serve(FlakyFile(CONTENT, [9] * 99, extra=[MODIFIED], tags=['"v1"', '"v2"']))).get_file(
        "x"
    ) as file:
        chunks = iter(file)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                list(chunks)


def refused(status: int, code: str = "") -> list[Step]:
    return answer(status, f"<Error><Code>{code}</Code><Message>sIgNaTuRe</Message></Error>".encode() if code else b"")


REFUSALS: dict[str, tuple[list[Step], type[NarcoreError], str]] = {
    "missing": (refused(404, "NoSuchKey"), FileNotInStore, "404 NoSuchKey"),
    "may not list": (refused(403, "AccessDenied"), FileNotInStore, "403 AccessDenied"),
    "gone": (refused(410), FileNotInStore, "410"),
    "no bucket": (refused(404, "NoSuchBucket"), StoreUnavailable, "there is no such bucket; check"),
    "no container": (refused(404, "ContainerNotFound"), StoreUnavailable, "there is no such bucket; check"),
    "no credentials": (refused(401), StoreForbidden, "the credentials were refused, or there are none"),
    "bad credentials": (refused(403, "AuthenticationFailed"), StoreForbidden, "the credentials were refused"),
    "not public": (refused(409, "PublicAccessNotPermitted"), StoreForbidden, "the bucket is not public"),
    "bad request": (refused(400, "InvalidUri"), StoreUnavailable, "400 InvalidUri"),
    "broken": (refused(500), StoreUnavailable, "500"),
    "gateway": (refused(504), StoreTimeout, "504"),
    "stalled": ([Act.STALL], StoreTimeout, "no answer in time"),
    "stalled later": ([head(200, MODIFIED, TAG, length=9) + b"x", Act.STALL], StoreUnavailable, ""),
    "junk": ([b"junk\r\n\r\n", Act.CLOSE], StoreUnavailable, "the response is invalid"),
    "cut": ([head(200, MODIFIED, TAG, length=9) + b"x", Act.CLOSE], StoreUnavailable, ""),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_error_responses_become_store_errors_without_secrets(serve: Serve, open_bucket: Open, case: str) -> None:
    steps, error, text = REFUSALS[case]
    store = open_bucket(serve(lambda _: steps), read_timeout=0.3 if Act.STALL in steps else 10)
    with pytest.raises(NarcoreError) as caught:
        read_file(store, "x", 9)
    assert isinstance(caught.value, error)
    assert text in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in SECRETS if secret in shown], shown


@pytest.mark.parametrize("steps", [answer(200, CONTENT, MODIFIED, TAG), refused(416, "InvalidRange")])
def test_unsupported_range_is_rejected(serve: Serve, open_bucket: Open, steps: list[Step]) -> None:
    with pytest.raises(RangeNotSupported):
        open_bucket(serve(lambda _: steps)).get_file("x", 1, 5)


def test_range_beyond_the_end_is_rejected(serve: Serve, open_bucket: Open) -> None:
    part = [head(206, MODIFIED, TAG, "Content-Range: bytes 5-9/10", length=5) + b"56789"]
    store = open_bucket(serve(lambda _: part))
    with pytest.raises(RangeNotSupported, match="has 10 bytes, requested 5 to 12"):
        store.get_file("x", 5, 12)
    with store.get_file("x", 5, 10) as file:
        assert b"".join(file) == b"56789"


@pytest.mark.parametrize("path", ["", "..", "../x", "nar/../../x", "%2e%2e/x", "/x", "//h/x", "..%2fx"])
def test_path_out_of_the_prefix_causes_no_request(serve: Serve, open_bucket: Open, path: str) -> None:
    server = serve(lambda _: answer(200, b"x", MODIFIED, TAG))
    with pytest.raises(StoreForbidden):
        open_bucket(server).get_file(path)
    assert server.connections == 0


def test_invalid_key_is_a_missing_file(serve: Serve, open_bucket: Open) -> None:
    store = open_bucket(serve(lambda _: answer(200, b"x", MODIFIED, TAG)))
    for path in ("x\ny", "\udcff"):
        with pytest.raises(FileNotInStore):
            store.get_file(path)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (answer(200, b"", MODIFIED, TAG), ""),
        (refused(404, "BlobNotFound"), ""),
        (refused(403, "AccessDenied"), "allow reading and listing"),
        (refused(404, "NoSuchBucket"), "no such bucket"),
        (refused(401), "credentials"),
    ],
)
def test_check_says_what_to_do(serve: Serve, open_bucket: Open, steps: list[Step], text: str) -> None:
    store = open_bucket(serve(lambda _: steps))
    if not text:
        store.check()
    else:
        with pytest.raises((StoreForbidden, StoreUnavailable), match=text):
            store.check()


def test_requests_are_signed_unless_signing_is_turned_off(
    serve: Serve, open_bucket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: answer(200, b"x", MODIFIED, TAG))
    assert read_file(open_bucket(server), "x", 9) == b"x"
    assert "hunter2" in server.requests[-1].headers.get("authorization", "") + server.requests[-1].target
    for name in ("GOOGLE_SKIP_SIGNATURE", "AZURE_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")  # obstore sends a bearer token even if signing is off
    assert read_file(open_bucket(server), "x", 9) == b"x"
    assert "authorization" not in server.requests[-1].headers
    assert "sig=" not in server.requests[-1].target


def test_settings_that_obstore_rejects_are_reported_without_secrets(
    serve: Serve, open_bucket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2 is not base64")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "hunter2 is not JSON")
    with pytest.raises(StoreForbidden, match=r"obstore rejected .* (GOOGLE|AZURE)_") as caught:
        open_bucket(serve(lambda _: answer(200))).get_file("x")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_google_credentials_are_detected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service, refusing = serve(lambda _: answer(200, b"x")), serve(lambda _: answer(403))
    nowhere = {"CLOUDSDK_CONFIG": "/nowhere"}
    host = service.url.removeprefix("http://")
    assert has_google_credentials({"GCE_METADATA_HOST": host} | nowhere)
    assert service.requests[0].headers["metadata-flavor"] == "Google"
    assert not has_google_credentials({"GCE_METADATA_IP": refusing.url.removeprefix("http://")} | nowhere)
    assert not has_google_credentials({"NO_GCE_CHECK": "true"} | nowhere)
    assert not has_google_credentials({"GOOGLE_SKIP_SIGNATURE": "TRUE", "GCE_METADATA_HOST": host})
    assert has_google_credentials({"GOOGLE_APPLICATION_CREDENTIALS": "/x.json"})


def test_azure_credentials_are_detected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base64.b64encode(b"x").decode()
    assert has_azure_credentials({"AZURE_STORAGE_ACCOUNT_KEY": key})
    assert not has_azure_credentials({"AZURE_STORAGE_ACCOUNT_KEY": key, "AZURE_SKIP_SIGNATURE": "1"})
    service = serve(lambda _: answer(200, b"x"))
    monkeypatch.setattr(metadata, "LINK_LOCAL", service.url)
    assert has_azure_credentials({})
    assert service.requests[0].headers["metadata"] == "true"
    monkeypatch.setattr(metadata, "LINK_LOCAL", serve(lambda _: answer(404)).url)
    assert not has_azure_credentials({})
