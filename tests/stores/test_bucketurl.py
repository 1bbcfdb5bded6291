"""URLs of buckets: how they are parsed, where they lead, and that any invalid text raises ``SettingsError``."""

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import SettingsError
from narcore.stores import open_store
from narcore.stores.buckets.url import BucketUrl, parse_endpoint, s3_access
from narcore.stores.http.urls import StoreUrl


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "prefix", "shown"),
    [
        ("s3://bucket", "s3", "bucket", "", "s3://bucket"),
        ("S3://bucket/", "s3", "bucket", "", "s3://bucket"),
        ("s3://my.bucket/a//b%20c/?x=y", "s3", "my.bucket", "a/b c", "s3://my.bucket/a/b%20c"),
        ("s3://b/p?endpoint=h:9000&scheme=http", "s3", "b", "p", "s3://b/p?endpoint=h:9000"),
        ("gs://bucket_1/a+b", "gs", "bucket_1", "a+b", "gs://bucket_1/a%2Bb"),
        ("az://$web/x", "az", "$web", "x", "az://$web/x"),
    ],
)
def test_bucket_url_is_parsed(text: str, scheme: str, bucket: str, prefix: str, shown: str) -> None:
    url = BucketUrl.parse(text)
    assert (url.scheme, url.bucket, url.prefix, str(url)) == (scheme, bucket, prefix, shown)
    assert url.key("nar/x") == f"{prefix}/nar/x".lstrip("/")
    assert BucketUrl.parse(shown).key("x") == url.key("x")


def test_parameters_are_decoded_and_plus_is_not_a_space() -> None:
    url = BucketUrl.parse("s3://b?region=eu-west-1&endpoint=http%3A%2F%2Fh%3A1&profile=a+b&compression=zstd&flag&x=1=2")
    assert url.parameters == {
        "region": "eu-west-1",
        "endpoint": "http://h:1",
        "profile": "a+b",
        "compression": "zstd",
        "flag": "",
        "x": "1=2",
    }


@pytest.mark.parametrize(
    ("text", "base", "virtual"),
    [
        ("s3://b1", "https://b1.s3.us-east-1.amazonaws.com", True),
        ("s3://b1?addressing-style=path", "https://s3.us-east-1.amazonaws.com/b1", False),
        ("s3://my.bucket", "https://s3.us-east-1.amazonaws.com/my.bucket", False),
        ("s3://my.bucket?addressing-style=virtual", "https://my.bucket.s3.us-east-1.amazonaws.com", True),
        ("s3://Old_Bucket", "https://s3.us-east-1.amazonaws.com/Old_Bucket", False),
        ("s3://b1?scheme=http", "http://b1.s3.us-east-1.amazonaws.com", True),
        ("s3://b1?endpoint=minio:9000", "https://minio:9000/b1", False),
        ("s3://b1?endpoint=minio:9000&scheme=http", "http://minio:9000/b1", False),
        ("s3://b1?endpoint=http://minio:9000/&scheme=https", "http://minio:9000/b1", False),
        ("s3://b1?endpoint=https://minio/s3", "https://minio/s3/b1", False),
        ("s3://b1?endpoint=https://minio&addressing-style=virtual", "https://b1.minio", True),
        ("s3://b1?endpoint=minio&addressing-style=auto", "https://minio/b1", False),
        ("s3://b1?endpoint=[::1]:9000", "https://[::1]:9000/b1", False),
    ],
)
def test_parameters_determine_the_base_url_of_a_bucket(text: str, base: str, virtual: bool) -> None:
    url = BucketUrl.parse(text)
    access = s3_access(url, "us-east-1", url.endpoint)
    assert (access.base, access.virtual) == (base, virtual)
    assert access.endpoint == (base if virtual else base.rpartition("/")[0])


def test_chinese_regions_use_their_own_domain() -> None:
    assert s3_access(BucketUrl.parse("s3://b1"), "cn-north-1", None).base == "https://b1.s3.cn-north-1.amazonaws.com.cn"


REFUSED = [
    "s3://",
    "s3:///x",
    "s3://?region=x",
    "s3:bucket",
    "s3://-b",
    "s3://a..b",
    "s3://b:9000/x",
    "s3://b\\x",
    "s3://b%2fx",
    "s3://b/../x",
    "s3://b/%2e%2e/x",
    "s3://b/a%2f..%2fx",
    "s3://b/x%00",
    "s3://b/x%0d%0a",
    "s3://b/%5c",
    "s3://b/%ff",
    "s3://b#x",
    "s3://b?region=EU",
    "s3://b?region=x.evil.example/",
    "s3://b?scheme=ftp",
    "s3://b?addressing-style=host",
    "s3://b?endpoint=ftp://h",
    "s3://b?endpoint=h&scheme=file",
    "s3://b?endpoint=http://",
    "s3://b?endpoint=http://h:x",
    "s3://Old_Bucket?addressing-style=virtual",
    "s3://b1?endpoint=https://minio/s3&addressing-style=virtual",
    "gs://b?endpoint=file:///x",
    "az://container",
]
SECRET = ["s3://aladdin:hunter2@b", "s3://b?endpoint=https://aladdin:hunter2@h", "az://a:hunter2@b?account=x"]


@pytest.mark.parametrize("text", REFUSED + SECRET)
def test_invalid_urls_are_rejected_when_opened_and_credentials_stay_secret(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(text)
    assert "hunter2" not in str(caught.value)
    assert "aladdin" not in str(caught.value)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"])
def test_invalid_endpoint_or_region_in_the_environment_is_rejected(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "ftp://x")
    with pytest.raises(SettingsError):
        open_store("s3://b")


@pytest.mark.parametrize("url", ["s3://b", "gs://b", "az://b?account=x"])
def test_missing_obstore_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    _hide(monkeypatch, "obstore")
    with pytest.raises(SettingsError, match=r"pip install '\.\[objectstore\]'"):
        open_store(url)


def test_profile_without_boto3_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "boto3")
    open_store("s3://b")
    with pytest.raises(SettingsError, match="pip install boto3"):
        open_store("s3://b?profile=x")


def _hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    real: Callable[[str], ModuleSpec | None] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else real(name))


PIECES = [
    "s3",
    "gs",
    "az",
    "://",
    ":",
    "/",
    "//",
    "..",
    ".",
    "?",
    "&",
    "=",
    "#",
    "@",
    "%",
    "%2e",
    "%2F",
    "%00",
    "\\",
    "+",
    "bucket",
    "b.c",
    "region",
    "us-east-1",
    "endpoint",
    "http",
    "scheme",
    "addressing-style",
    "virtual",
    "path",
    "profile",
    "account",
    "[::1]",
    "[",
    "127.0.0.1:9000",
    "é",
    "①",
    "xn--",
]
STARTS = ["s3://", "gs://b", "az://b?account=x&", "s3://b?endpoint=", "s3://b?region=", "s3://b/"]
TEXTS = st.tuples(
    st.sampled_from(STARTS),
    st.lists(st.sampled_from([*PIECES, " ", "\n", "\0", "\ud800"]) | st.text(max_size=4), max_size=12).map("".join),
).map("".join)


@given(TEXTS)
def test_any_text_opens_or_raises_settings_error(text: str) -> None:
    try:
        store = open_store(text)
    except SettingsError:
        return
    store.close()
    assert store.url.partition(":")[0] in ("s3", "gs", "az")
    url = BucketUrl.parse(text)
    assert BucketUrl.parse(str(url).partition("?")[0]).prefix == url.prefix
    if url.scheme == "s3":
        access = s3_access(url, url.parameters.get("region") or "us-east-1", url.endpoint)
        base = StoreUrl.parse(access.base)  # a URL that the HTTP store accepts, on the host in the URL
        host = url.endpoint.authority if url.endpoint else "amazonaws.com"
        assert base.authority.endswith((host, f"{host}.cn"))


@given(st.text(max_size=30), st.sampled_from(["http", "https", "ftp", ""]))
def test_any_endpoint_is_parsed_or_raises_settings_error(text: str, scheme: str) -> None:
    try:
        endpoint = parse_endpoint(text, scheme)
    except SettingsError:
        return
    assert endpoint is None or (endpoint.scheme in ("http", "https") and endpoint.authority)
