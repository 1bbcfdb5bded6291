"""Responses above the size limit of a platform, on its own runtime: ranges, offloading to a bucket, and helpful errors."""

import hashlib
import io
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from narserve.awslambda.buffered import CARRIES
from tests import needs
from tests.builders import Tree, binary_cache, store_path
from tests.e2e import fronts, s3
from tests.e2e.cache_support import write_cache
from tests.e2e.client import Client, ClientResponse, digest, url_path
from tests.e2e.fronts import Front
from tests.e2e.s3 import S3

SIZE = 60_000_000
DATA = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(3000)) * (SIZE // 96_000)
FILES = 30_000
MANY: Tree = {f"{number:05}-{'long name ' * 12}.txt": b"" for number in range(FILES)}
ARCHIVE: Tree = {"one": b"1" * 3_000_000, "two": b"2" * 3_000_000}
TREE: Tree = {
    "data.bin": DATA,
    "tool": b"\x7fELF" + bytes(CARRIES),
    "fits": bytes(CARRIES),
    "ranged": b"0123456789" * 500_000,
    "caf\xe9 \u20ac.css": b"a{}" * 2_000_000,
    "many": MANY,
    "archive": ARCHIVE,
}
ROOT = url_path(str(store_path("large")))
BINARY = "application/octet-stream"


@pytest.fixture(scope="module")
def large_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a binary cache that contains TREE as ``large``."""
    return write_cache(tmp_path_factory.mktemp("large"), {"large": TREE}, listings=False).as_uri()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3.running(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def with_bucket(large_cache: str, bucket: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a front on awslambdaric, with a bucket."""
    directory = tmp_path_factory.mktemp("with-bucket")
    settings = bucket.settings | {"NAR_CACHE_URL": large_cache, "NAR_CACHE_DIR": str(directory / "nars")}
    with fronts.running(settings, directory / "log", kind="lambda") as front, Client(front) as client:
        yield client


@pytest.fixture(scope="module")
def without_bucket(large_cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a front on awslambdaric, without a bucket."""
    directory = tmp_path_factory.mktemp("without-bucket")
    settings = {"NAR_CACHE_URL": large_cache, "NAR_CACHE_DIR": str(directory / "nars")}
    with fronts.running(settings, directory / "log", kind="lambda") as front, Client(front) as client:
        yield client


def follow(redirect: ClientResponse, headers: dict[str, str] | None = None) -> ClientResponse:
    """Follow a redirect to the bucket, with ``headers``, and return the response."""
    assert redirect.status == 302, redirect
    assert redirect.header("Cache-Control") == "no-store"
    assert redirect.header("Access-Control-Allow-Origin") == "*"
    url = urlsplit(redirect.header("Location"))
    connection = HTTPConnection(url.netloc, timeout=30)
    try:
        connection.request("GET", f"{url.path}?{url.query}", headers=headers or {})
        response = connection.getresponse()
        return ClientResponse(response.status, response.msg, response.read())
    finally:
        connection.close()


def test_ranges_below_the_limit_are_sent_directly(with_bucket: Client, without_bucket: Client, bucket: S3) -> None:
    for client in (with_bucket, without_bucket):
        for header, start, stop in (
            ("bytes=0-9", 0, 10),
            ("bytes=-5", len(DATA) - 5, len(DATA)),
            (f"bytes={len(DATA) - CARRIES}-", len(DATA) - CARRIES, len(DATA)),
            (f"bytes=30000000-{30_000_000 + CARRIES - 1}", 30_000_000, 30_000_000 + CARRIES),
        ):
            got = client.get(f"{ROOT}/data.bin", {"Range": header})
            assert (got.status, digest(got.body)) == (206, digest(DATA[start:stop]))
            assert got.header("Content-Range") == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert digest(client.get(f"{ROOT}/fits").body) == digest(bytes(CARRIES))
    assert bucket.uploads() == 0


def test_a_large_file_is_redirected_to_the_bucket(with_bucket: Client, bucket: S3) -> None:
    before = bucket.uploads()
    first = with_bucket.get(f"{ROOT}/data.bin")
    got = follow(first)
    assert (got.status, digest(got.body)) == (200, digest(DATA))
    assert got.header("Content-Type") == BINARY
    assert got.header("Content-Disposition") == 'inline; filename="data.bin"'
    assert "immutable" in got.header("Cache-Control")
    assert bucket.uploads() == before + 1

    assert follow(with_bucket.get(f"{ROOT}/data.bin?download")).header("Content-Disposition") == (
        'attachment; filename="data.bin"'
    )
    part = {"Range": f"bytes=5-{5 + CARRIES}"}  # one byte above the limit
    got = follow(with_bucket.get(f"{ROOT}/data.bin", part), part)
    assert (got.status, digest(got.body)) == (206, digest(DATA[5 : 6 + CARRIES]))
    assert bucket.uploads() == before + 1
    assert bucket.unfinished() == []


def test_a_range_request_uploads_the_whole_file(with_bucket: Client) -> None:
    part = {"Range": "bytes=1-", "If-None-Match": '"other"'}
    redirect = with_bucket.get(f"{ROOT}/ranged", part)
    assert digest(follow(redirect).body) == digest(b"0123456789" * 500_000)
    assert follow(redirect, {"Range": "bytes=1-"}).header("Content-Range") == "bytes 1-4999999/5000000"


def test_objects_have_the_name_and_type_of_the_file(with_bucket: Client) -> None:
    got = follow(with_bucket.get(f"{ROOT}/caf%C3%A9%20%E2%82%AC.css"))
    assert got.header("Content-Type") == "text/css; charset=utf-8"
    assert got.header("Content-Disposition") == (
        "inline; filename=\"caf_ _.css\"; filename*=UTF-8''caf%C3%A9%20%E2%82%AC.css"
    )


def test_conditions_and_head_need_no_bucket(with_bucket: Client, without_bucket: Client, bucket: S3) -> None:
    before = bucket.uploads()
    for client in (with_bucket, without_bucket):
        head = client.head(f"{ROOT}/data.bin")
        assert (head.status, head.size) == (200, len(DATA))
        assert head.header("NAR-File-Size") == str(len(DATA))
        for path in (f"{ROOT}/data.bin", f"{ROOT}/tool"):
            etag = client.head(path).header("ETag")
            assert client.get(path, {"If-None-Match": etag}).status == 304
        for path in ("many/?list", "many/?format=json", "?format=tar", "archive?format=zip"):
            assert client.head(f"{ROOT}/{path}").status == 200
    assert bucket.uploads() == before


def test_concurrent_requests_share_one_upload(large_cache: str, bucket: S3, tmp_path: Path) -> None:
    before = bucket.uploads()
    settings = bucket.settings | {"NAR_CACHE_URL": large_cache, "NAR_CACHE_DIR": str(tmp_path / "nars")}
    shape = fronts.Shape(workers=3)  # four processes

    def get(front: Front) -> ClientResponse:
        with Client(front) as client:
            return client.get(f"{ROOT}/tool")

    with (
        fronts.running(settings, tmp_path / "log", kind="lambda", shape=shape) as front,
        ThreadPoolExecutor(20) as pool,
    ):
        responses = list(pool.map(get, [front] * 20))
    assert {response.status for response in responses} == {302}
    assert digest(follow(responses[7]).body) == digest(b"\x7fELF" + bytes(CARRIES))
    assert bucket.uploads() == before + 1
    assert [key for key in bucket.objects() if "claims" in key] == []


def test_listings_and_archives_are_redirected_to_the_bucket(with_bucket: Client, bucket: S3) -> None:
    got = follow(with_bucket.get(f"{ROOT}/many/?format=json"))
    assert got.header("Content-Type") == "application/json"
    assert got.body.count(b'"regular"') == FILES
    got = follow(with_bucket.get(f"{ROOT}/archive?format=tar"))
    assert got.header("Content-Disposition") == 'attachment; filename="archive.tar"'
    with tarfile.open(fileobj=io.BytesIO(got.body)) as tar:
        assert {member.name: member.size for member in tar if member.isfile()} == {
            "archive/one": 3_000_000,
            "archive/two": 3_000_000,
        }
    before = bucket.uploads()
    assert with_bucket.get(f"{ROOT}/archive?format=tar").status == 302
    assert bucket.uploads() == before


def test_a_page_in_the_bucket_links_to_the_server(with_bucket: Client, bucket: S3) -> None:
    """Its base URL, which its links and its style sheet need, has the host name of the request; each name has its own page."""
    pages = {}
    for host in ("one.example", "two.example"):
        before = bucket.uploads()
        for _ in range(2):
            got = follow(with_bucket.get(f"{ROOT}/many/?list", {"Host": host}))
        assert bucket.uploads() == before + 1
        assert got.header("Content-Type") == "text/html; charset=utf-8"
        pages[host] = got.text
        (base,) = re.findall(r'<base href="([^"]*)">', got.text)
        assert re.fullmatch(rf"https?://{host}/.*/many/", base)
        assert got.text.count("<tr") > FILES
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', got.text)
        assert f"script-src {base.partition('/nix')[0]}" in policy
    assert pages["one.example"] != pages["two.example"]


def test_a_page_outside_the_bucket_has_no_base(with_bucket: Client) -> None:
    assert "<base" not in with_bucket.get(f"{ROOT}/archive/?list").text


def test_without_a_bucket_the_error_shows_a_command(without_bucket: Client) -> None:
    needs.program("curl")
    got = without_bucket.get(f"{ROOT}/data.bin")
    assert got.status == 413
    assert got.header("Cache-Control") == "public, max-age=60"
    assert str(len(DATA)) in got.text
    assert str(CARRIES) in got.text
    example = re.search(r"curl -r [^\n]*'", got.text)
    assert example
    done = subprocess.run([*shlex.split(example[0]), "-s", "--fail"], capture_output=True, check=True)
    assert digest(done.stdout) == digest(DATA[:CARRIES])
    for path in ("many/?format=json", "many/?list", "archive?format=tar", "?format=nar"):
        got = without_bucket.get(f"{ROOT}/{path}")
        assert got.status == 413, path
        assert "directory" in got.text
    too_many = without_bucket.get(f"{ROOT}/data.bin", {"Range": f"bytes=0-{CARRIES // 2},-{CARRIES // 2}"})
    assert too_many.status == 413
    json = without_bucket.get(f"{ROOT}/data.bin", {"Accept": "application/json"})
    assert json.header("Content-Type") == "application/json"


def test_files_of_a_wrong_nar_are_not_left_in_the_bucket(bucket: S3, tmp_path: Path) -> None:
    """The requested file is right and could be read alone, but its NAR does not have the NarHash of the narinfo."""
    tree: Tree = {"a.bin": b"a" * (CARRIES + 1), "z.bin": b"z" * 30_000_000}
    for name, data in binary_cache({"wrong": tree}, compression="none").items():
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.replace(b"zz", b"yy") if name.startswith("nar/") else data)
    root = url_path(str(store_path("wrong")))
    before = bucket.objects()
    urls = {"NAR_CACHE_URL": (tmp_path / "cache").as_uri(), "NAR_CACHE_DIR": str(tmp_path / "nars")}
    settings = bucket.settings | urls
    with (
        fronts.running(settings, tmp_path / "log", kind="lambda", expect_trouble=True) as front,
        Client(front) as client,
    ):
        for query in ("", "?download", "?format=nar"):
            assert client.get(f"{root}/a.bin{query}").status == 502
    assert bucket.objects() == before
    assert bucket.unfinished() == []


@pytest.mark.parametrize("platform", ["stream", "vercel"])
def test_streaming_platforms_send_large_responses(large_cache: str, tmp_path: Path, platform: str) -> None:
    settings = {"NAR_CACHE_URL": large_cache, "NAR_CACHE_DIR": str(tmp_path / "nars")}
    with fronts.running(settings, tmp_path / "log", kind=platform) as front, Client(front) as client:
        got = client.get(f"{ROOT}/data.bin")
        assert (got.status, digest(got.body)) == (200, digest(DATA))
        assert client.get(f"{ROOT}/many/?format=json").body.count(b'"regular"') == FILES
        with tarfile.open(fileobj=io.BytesIO(client.get(f"{ROOT}/archive/?format=tar").body)) as tar:
            assert len(tar.getmembers()) == 3


@pytest.mark.parametrize("platform", ["lambda", "stream"])
def test_a_damaged_nar_returns_a_server_error(large_cache: str, tmp_path: Path, platform: str) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", urlsplit(large_cache).path, broken], check=True)
    (nar,) = broken.glob("nar/*")
    packed = bytearray(nar.read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    nar.write_bytes(packed)
    settings = {"NAR_CACHE_URL": broken.as_uri(), "NAR_CACHE_DIR": "off"}
    with (
        fronts.running(settings, tmp_path / "log", kind=platform, expect_trouble=True) as front,
        Client(front) as client,
    ):
        assert client.get(f"{ROOT}/fits").status >= 500
        assert client.get("/healthz").status == 200  # the process continues
