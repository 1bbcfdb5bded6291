"""Responses when the upstream fails, is slow, or sends wrong data."""

import hashlib
import json
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from narcore.formats import nixbase32
from tests.e2e import links, trees
from tests.e2e.client import Client, ClientResponse, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Shape
from tests.e2e.nixcaches import NixCaches, read_narinfo
from tests.e2e.test_http_errors import check_no_secrets
from tests.e2e.upstream import Upstream

STREAMED = {"gzip": "*.nar", "zstd": "*.nar.zst", "xz": "*.nar.xz", "bzip2": "*.nar.bz2", "br": "*.nar.br"}


@pytest.fixture(params=["cached", "uncached"])
def fresh(request: pytest.FixtureRequest, upstream: Upstream, run_front: RunFront, tmp_path: Path) -> Iterator[Client]:
    """A client of a new front."""
    directory = f"{tmp_path}/nars" if request.param == "cached" else "off"
    with run_front(f"{upstream.url}/zstd", directory, expect_trouble=True) as front, Client(front) as client:
        yield client


@pytest.fixture
def hello(caches: NixCaches) -> str:
    """The URL path of a file."""
    return url_path(caches.store_paths[links.HELLO], b"bin/hello")


def check_bad_gateway(got: ClientResponse) -> None:
    """Fail if a response is not a 502, may be cached, or contains implementation details."""
    assert got.status == 502, (got.status, got.body[:200])
    assert got.header("Cache-Control") == "no-store"
    check_no_secrets(got)


def fetch(client: Client, path: str) -> bytes | None:
    """Return the body of a complete 200 response, or None for a 502 or a response that was cut."""
    try:
        got = client.get(path)
    except (HTTPException, OSError):
        return None
    if got.status != 200:
        check_bad_gateway(got)
        return None
    return got.body


def changed(narinfo: str, key: str, value: str) -> bytes:
    """Return a narinfo with another value for ``key``."""
    lines = narinfo.splitlines(keepends=True)
    return "".join(f"{key}: {value}\n" if line.startswith(f"{key}: ") else line for line in lines).encode()


def test_invalid_narinfos_return_502(fresh: Client, upstream: Upstream, caches: NixCaches) -> None:
    narinfo = (caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo").read_text()
    other = (caches.cache("zstd") / f"{caches.hash_part(trees.BIG_NAME)}.narinfo").read_bytes()
    path = url_path(caches.store_paths[links.HELLO], b"bin/hello")
    bodies = [
        b"<!DOCTYPE html><html>Sign in</html>", b"", b"\xff\xfe\0", narinfo[:200].encode(), other, b"x" * 3_000_000,
        changed(narinfo, "NarHash", "sha256:00"), changed(narinfo, "NarSize", "-1"), changed(narinfo, "NarSize", "0"),
        changed(narinfo, "StorePath", "/etc/passwd"),
    ]  # fmt: skip
    for body in bodies:
        with upstream.fault("*.narinfo", body=body):
            got = fresh.get(path)
            check_bad_gateway(got)
            assert "root:" not in got.text
    assert fresh.get(path).status == 200  # an error is not remembered


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("URL", "http://169.254.169.254/latest"),
        ("URL", "../../../etc/passwd"),
        ("URL", "file:///etc/passwd"),
        ("Compression", "rot13"),
        ("Compression", "lzop"),
        ("URL", "nar/none.nar.zst"),
        ("NarSize", "1"),
    ],
)
def test_narinfos_with_unusable_fields_return_502(
    fresh: Client, upstream: Upstream, caches: NixCaches, hello: str, key: str, value: str
) -> None:
    narinfo = (caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo").read_text()
    with upstream.fault("*.narinfo", body=changed(narinfo, key, value)):
        got = fresh.get(hello)
        check_bad_gateway(got)
        assert "169.254" not in got.text


@pytest.mark.parametrize("status", [400, 429, 500, 502, 503])
def test_a_failing_upstream_returns_502(fresh: Client, upstream: Upstream, hello: str, status: int) -> None:
    with upstream.fault("*.narinfo", status=status, headers={"Retry-After": "0"}):
        check_bad_gateway(fresh.get(hello))
    assert fresh.get(hello).body == trees.SCRIPT
    assert fresh.head("/healthz").status == 200


def test_a_failure_that_happens_once_is_retried(
    fresh: Client, upstream: Upstream, hello: str, caches: NixCaches
) -> None:
    with upstream.fault("*.narinfo", status=503, times=1), upstream.fault("*.zst", drop=True, times=1):
        assert fresh.get(hello).body == trees.SCRIPT
    big = url_path(caches.store_paths[trees.BIG_NAME], b"data.bin")
    with upstream.fault("*.nar.zst", cut_after=3_000_000, times=1):
        assert fresh.get(big).body == (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()


def test_an_unreachable_upstream_returns_502(run_front: RunFront, hello: str) -> None:
    with run_front("http://127.0.0.1:9/cache", expect_trouble=True) as front, Client(front) as client:
        check_bad_gateway(client.get(hello))


def test_a_stalled_upstream_returns_504(upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str) -> None:
    short_timeouts = Shape(app="tests.e2e.short_timeouts_app:app")
    with (
        run_front(f"{upstream.url}/zstd", shape=short_timeouts, expect_trouble=True) as front,
        Client(front) as client,
    ):
        with upstream.fault("*.narinfo", delay=1.5):
            got = client.get(hello)
            assert (got.status, got.header("Cache-Control")) == (504, "no-store")
        big = url_path(caches.store_paths[trees.BIG_NAME], b"z-last.txt")
        with upstream.fault("*.nar.zst", stall_after=100_000):
            got = client.get(big)
            assert (got.status, got.header("Cache-Control")) == (504, "no-store")
        with upstream.fault("*.nar.zst", rate=20_000_000):  # slow, but without pauses
            assert client.get(big).body == b"behind it\n"


def damages(size: int) -> list[dict[str, Any]]:
    """Return faults that damage a file of ``size`` bytes: clean but early ends, a cut, wrong bytes, another file."""
    return [
        {"length": size // 3},
        {"length": size - 5},
        {"length": 0},
        {"cut_after": size // 3, "ranges": False},
        {"patch": (size // 2, b"\0\xff" * 9)},
        {"patch": (0, b"nonsense")},
        {"body": b"<html>"},
    ]


def file_size(caches: NixCaches, cache: str, name: str) -> int:
    """Return the size of the compressed NAR of a tree in bytes."""
    return int(read_narinfo(caches.cache(cache) / f"{caches.hash_part(name)}.narinfo")["FileSize"])


@pytest.mark.parametrize("compression", STREAMED)
def test_a_damaged_nar_never_gives_a_complete_response(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, compression: str
) -> None:
    big = caches.store_paths[trees.BIG_NAME]
    with run_front(f"{upstream.url}/{compression}", expect_trouble=True) as front, Client(front) as client:
        for damage in damages(file_size(caches, compression, trees.BIG_NAME)):
            with upstream.fault(STREAMED[compression], **damage):
                assert fetch(client, url_path(big, b"z-last.txt")) is None, damage


@pytest.mark.parametrize("number", range(7))
def test_a_damaged_nar_is_not_cached(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, number: int
) -> None:
    big, data = caches.store_paths[trees.BIG_NAME], (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()
    damage = damages(file_size(caches, "zstd", trees.BIG_NAME))[number]
    with (
        upstream.fault("*.nar.zst", **damage),
        run_front(f"{upstream.url}/zstd", tmp_path / "nars", expect_trouble=True) as front,
        Client(front) as client,
    ):
        assert fetch(client, url_path(big, b"data.bin")) in (None, data)
        assert fetch(client, url_path(big, b"z-last.txt")) is None
        assert client.get(url_path(caches.store_paths[links.HELLO], b"bin/hi")).status == 302
    for path in (tmp_path / "nars").rglob("*.nar"):
        assert nixbase32.encode(hashlib.sha256(path.read_bytes()).digest()) == path.stem


def test_a_nar_with_another_hash_is_rejected(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    """Only the NarHash is wrong. With NAR_VERIFY=strict, files at the start of the NAR are rejected, too."""
    hash_part = caches.hash_part(trees.BIG_NAME)
    narinfo = (caches.cache("gzip") / f"{hash_part}.narinfo").read_text()
    wrong = changed(narinfo, "NarHash", "sha256:" + "0" * 52)
    big = caches.store_paths[trees.BIG_NAME]
    with (
        upstream.fault("*.narinfo", body=wrong),
        run_front(f"{upstream.url}/gzip", f"{tmp_path}/nars", expect_trouble=True) as front,
        Client(front) as client,
    ):
        assert fetch(client, url_path(big, b"z-last.txt")) is None
        assert fetch(client, url_path(big, b"z-last.txt")) is None
        strict = {"NAR_VERIFY": "strict"}
        with (
            run_front(f"{upstream.url}/gzip", f"{tmp_path}/strict", strict, expect_trouble=True) as strict_front,
            Client(strict_front) as strict_client,
        ):
            for name in (b"a-first.txt", b"data.bin"):
                check_bad_gateway(strict_client.get(url_path(big, name)))


def test_an_invalid_listing_is_ignored(fresh: Client, upstream: Upstream, caches: NixCaches, hello: str) -> None:
    other = (caches.cache("zstd") / f"{caches.hash_part(trees.NAMES_NAME)}.ls").read_bytes()
    names = [links.HELLO, trees.TYPES_NAME, trees.SIBLINGS_NAME, trees.WEBSITE_NAME, trees.EMPTIES_NAME, trees.ODD_NAME]
    bodies = [
        b"",
        b"{",
        other,
        b"<html>",
        b'{"version":1,"root":{"type":"regular","size":99}}',
        b"\x28\xb5\x2f\xfd" * 9,
    ]
    for name, body in zip(names, bodies, strict=True):
        with upstream.fault("*.ls", body=body):
            for entry in caches.entries(name):
                if entry.kind == "regular":
                    assert fetch(fresh, url_path(caches.store_paths[name], entry.path)) == entry.source.read_bytes()
    with upstream.fault("*.ls", status=500, headers={"Retry-After": "0"}):
        assert fetch(fresh, url_path(caches.store_paths[links.LINKS_NAME], b"file.txt")) == b"the file\n"


@pytest.mark.parametrize("cache", ["zstd", "none"])
def test_a_wrong_listing_of_the_right_size_gives_no_wrong_file(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, cache: str
) -> None:
    """The sizes of the first and the last file are exchanged: the total is right, but the offsets between them are wrong."""
    listing = caches.listing(trees.BIG_NAME)
    files = listing["root"]["entries"]
    files["a-first.txt"]["size"], files["z-last.txt"]["size"] = 10, 15
    for entry in files.values():
        del entry["narOffset"]
    big = caches.store_paths[trees.BIG_NAME]
    with upstream.fault("*.ls", body=json.dumps(listing).encode()):
        for directory in ("off", f"{tmp_path}/nars"):
            with (
                run_front(f"{upstream.url}/{cache}", directory, expect_trouble=True) as front,
                Client(front) as client,
            ):
                for name in ("a-first.txt", "later.bin", "z-last.txt"):
                    expected = (caches.tree(trees.BIG_NAME) / name).read_bytes()
                    assert fetch(client, url_path(big, name.encode())) in (None, expected), (name, directory)


def test_passwords_are_not_in_responses_and_logs(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str
) -> None:
    url = upstream.url.replace("://", "://user:hunter2@")
    unknown = caches.store_paths[trees.TYPES_NAME].replace("types", "x")
    with run_front(f"{url}/zstd", expect_trouble=True) as front, Client(front) as client:
        assert client.get(hello).body == trees.SCRIPT
        assert upstream.seen("*.narinfo")[-1].headers["Authorization"].startswith("Basic ")
        responses = [client.get("/", {"Accept": "text/html"})]
        with upstream.fault("*.narinfo", status=401):
            responses += [
                client.get(unknown, {"Accept": accept}) for accept in ("text/html", "application/json", "*/*")
            ]
        with upstream.fault("*", status=500, headers={"Retry-After": "0"}):
            responses.append(client.get(unknown))
            responses.append(client.get("/readyz"))
        log = front.log_text()
    for got in responses:
        check_no_secrets(got, "hunter2", "dXNlcjpodW50ZXIy")
    assert "hunter2" not in log


def test_clients_that_disconnect_block_no_thread(upstream: Upstream, run_front: RunFront, caches: NixCaches) -> None:
    big = url_path(caches.store_paths[trees.BIG_NAME], b"data.bin")
    with run_front(f"{upstream.url}/zstd", shape=Shape(threads=4)) as front:
        for _ in range(12):
            connection = front.connect()
            connection.request("GET", big)
            connection.getresponse().read(1000)
            connection.close()
        with Client(front) as client:
            assert client.get(big).body == (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()


def test_only_trusted_keys_are_accepted(upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str) -> None:
    name, key = caches.public_key.split(":")
    other = f"{name}:{key[:5]}{'A' if key[5] != 'A' else 'B'}{key[6:]}"
    for keys, status in ((caches.public_key, 200), (f"{other} {caches.public_key}", 200), (other, 502)):
        settings = {"NAR_TRUSTED_PUBLIC_KEYS": keys}
        with run_front(f"{upstream.url}/zstd", "off", settings, expect_trouble=True) as front, Client(front) as client:
            got = client.get(hello)
            assert got.status == status, keys
            if status == 502:
                check_bad_gateway(got)
