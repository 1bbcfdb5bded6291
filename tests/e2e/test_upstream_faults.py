"""What clients see when the upstream is wrong, broken, slow or lies."""

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
from tests.e2e.test_http_errors import no_secrets
from tests.e2e.upstream import Upstream

STREAMED = {"gzip": "*.nar", "zstd": "*.nar.zst", "xz": "*.nar.xz", "bzip2": "*.nar.bz2", "br": "*.nar.br"}


@pytest.fixture(params=["cached", "uncached"])
def fresh(request: pytest.FixtureRequest, upstream: Upstream, run_front: RunFront, tmp_path: Path) -> Iterator[Client]:
    """A client of a front that has seen nothing yet."""
    directory = f"{tmp_path}/nars" if request.param == "cached" else "off"
    with run_front(f"{upstream.url}/zstd", directory, expect_trouble=True) as front, Client(front) as client:
        yield client


@pytest.fixture
def hello(caches: NixCaches) -> str:
    """The URL path of a file."""
    return url_path(caches.store_paths[links.HELLO], b"bin/hello")


def is_bad_gateway(got: ClientResponse) -> bool:
    """Whether it is a 502 as it should be."""
    assert got.status == 502, (got.status, got.body[:200])
    assert got.header("Cache-Control") == "no-store"
    no_secrets(got)
    return True


def fetch(client: Client, path: str) -> bytes | None:
    """The body of a 200 that ended as its Content-Length says; None for a 5xx, or one that was cut."""
    try:
        got = client.get(path)
    except (HTTPException, OSError):
        return None
    if got.status != 200:
        assert is_bad_gateway(got)
        return None
    return got.body


def changed(narinfo: str, key: str, value: str) -> bytes:
    """A narinfo with another value."""
    lines = narinfo.splitlines(keepends=True)
    return "".join(f"{key}: {value}\n" if line.startswith(f"{key}: ") else line for line in lines).encode()


def test_bad_narinfos(fresh: Client, upstream: Upstream, caches: NixCaches) -> None:
    narinfo = (caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo").read_text()
    other = (caches.cache("zstd") / f"{caches.hash_part(trees.BIG_NAME)}.narinfo").read_bytes()
    path = url_path(caches.store_paths[links.HELLO], b"bin/hello")
    bodies = [
        b"<!DOCTYPE html><html>Sign in</html>", b"", b"\xff\xfe\0", narinfo[:200].encode(), other, b"x" * 3_000_000,
        changed(narinfo, "NarHash", "sha256:00"), changed(narinfo, "NarSize", "-1"), changed(narinfo, "NarSize", "0"),
        changed(narinfo, "URL", "http://169.254.169.254/latest"), changed(narinfo, "URL", "../../../etc/passwd"),
        changed(narinfo, "URL", "file:///etc/passwd"), changed(narinfo, "Compression", "rot13"),
        changed(narinfo, "StorePath", "/etc/passwd"),
    ]  # fmt: skip
    for body in bodies:
        with upstream.fault("*.narinfo", body=body):
            got = fresh.get(path)
            assert is_bad_gateway(got), body
            assert "root:" not in got.text
            if b"rot13" in body or b"URL: " in body:
                break  # a narinfo that could be read is remembered
    with upstream.fault("*.narinfo", body=b"nonsense"):
        assert is_bad_gateway(fresh.get(url_path(caches.store_paths[trees.TYPES_NAME], b"text")))
    assert (
        fresh.get(url_path(caches.store_paths[trees.TYPES_NAME], b"text")).status == 200
    )  # an error is not remembered


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
def test_narinfos_that_can_be_read_but_not_followed(
    fresh: Client, upstream: Upstream, caches: NixCaches, hello: str, key: str, value: str
) -> None:
    narinfo = (caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo").read_text()
    with upstream.fault("*.narinfo", body=changed(narinfo, key, value)):
        got = fresh.get(hello)
        assert is_bad_gateway(got)
        assert "169.254" not in got.text


@pytest.mark.parametrize("status", [400, 429, 500, 502, 503])
def test_a_failing_upstream(fresh: Client, upstream: Upstream, hello: str, status: int) -> None:
    with upstream.fault("*.narinfo", status=status, headers={"Retry-After": "0"}):
        assert is_bad_gateway(fresh.get(hello))
    assert fresh.get(hello).body == trees.SCRIPT
    assert fresh.head("/healthz").status == 200


def test_an_upstream_that_fails_for_a_moment(fresh: Client, upstream: Upstream, hello: str, caches: NixCaches) -> None:
    with upstream.fault("*.narinfo", status=503, times=1), upstream.fault("*.zst", drop=True, times=1):
        assert fresh.get(hello).body == trees.SCRIPT
    big = url_path(caches.store_paths[trees.BIG_NAME], b"data.bin")
    with upstream.fault("*.nar.zst", cut_after=3_000_000, times=1):
        assert fresh.get(big).body == (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()


def test_no_upstream(run_front: RunFront, hello: str) -> None:
    with run_front("http://127.0.0.1:9/cache", expect_trouble=True) as front, Client(front) as client:
        assert is_bad_gateway(client.get(hello))


def test_a_slow_upstream(upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str) -> None:
    impatient = Shape(app="tests.e2e.short_timeouts_app:app")
    with (
        run_front(f"{upstream.url}/zstd", shape=impatient, expect_trouble=True) as front,
        Client(front) as client,
    ):
        with upstream.fault("*.narinfo", delay=1.5):
            got = client.get(hello)
            assert (got.status, got.header("Cache-Control")) == (504, "no-store")
        big = url_path(caches.store_paths[trees.BIG_NAME], b"z-last.txt")
        with upstream.fault("*.nar.zst", stall_after=100_000):
            got = client.get(big)
            assert (got.status, got.header("Cache-Control")) == (504, "no-store")
        with upstream.fault("*.nar.zst", rate=20_000_000):  # slow, but never silent
            assert client.get(big).body == b"behind it\n"


def damages(size: int) -> list[dict[str, Any]]:
    """Ways to damage a file of ``size`` bytes: ends that look clean, cuts, other bytes, another file."""
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
    """How large the archive of a tree is."""
    return int(read_narinfo(caches.cache(cache) / f"{caches.hash_part(name)}.narinfo")["FileSize"])


@pytest.mark.parametrize("compression", STREAMED)
def test_damaged_archives(upstream: Upstream, run_front: RunFront, caches: NixCaches, compression: str) -> None:
    """Cut short or changed anywhere: an error or a cut connection, never a whole answer that is wrong."""
    big = caches.store_paths[trees.BIG_NAME]
    with run_front(f"{upstream.url}/{compression}", expect_trouble=True) as front, Client(front) as client:
        for damage in damages(file_size(caches, compression, trees.BIG_NAME)):
            with upstream.fault(STREAMED[compression], **damage):
                assert fetch(client, url_path(big, b"z-last.txt")) is None, damage


@pytest.mark.parametrize("number", range(7))
def test_a_damaged_archive_is_not_kept(
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


def test_an_archive_that_is_not_the_one_that_was_promised(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    """Nothing but the hash of the NAR can tell. What is behind the file may not have been looked at; nothing is kept."""
    hash_part = caches.hash_part(trees.BIG_NAME)
    narinfo = (caches.cache("gzip") / f"{hash_part}.narinfo").read_text()
    lie = changed(narinfo, "NarHash", "sha256:" + "0" * 52)
    big = caches.store_paths[trees.BIG_NAME]
    with (
        upstream.fault("*.narinfo", body=lie),
        run_front(f"{upstream.url}/gzip", f"{tmp_path}/nars", expect_trouble=True) as front,
        Client(front) as client,
    ):
        assert fetch(client, url_path(big, b"z-last.txt")) is None
        assert fetch(client, url_path(big, b"z-last.txt")) is None
        strict = {"NAR_VERIFY": "strict"}
        with (
            run_front(f"{upstream.url}/gzip", f"{tmp_path}/strict", strict, expect_trouble=True) as front_2,
            Client(front_2) as client_2,
        ):
            for name in (b"a-first.txt", b"data.bin"):
                assert is_bad_gateway(client_2.get(url_path(big, name)))


def test_listings_are_no_more_than_a_hint(fresh: Client, upstream: Upstream, caches: NixCaches, hello: str) -> None:
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
def test_a_listing_that_fits_but_lies(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, cache: str
) -> None:
    """Two sizes are exchanged: the total is right, and what lies between the two places is not."""
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
                    right = (caches.tree(trees.BIG_NAME) / name).read_bytes()
                    assert fetch(client, url_path(big, name.encode())) in (None, right), (name, directory)


def test_passwords_stay_here(upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str) -> None:
    url = upstream.url.replace("://", "://user:hunter2@")
    unknown = caches.store_paths[trees.TYPES_NAME].replace("types", "x")
    with run_front(f"{url}/zstd", expect_trouble=True) as front, Client(front) as client:
        assert client.get(hello).body == trees.SCRIPT
        assert upstream.seen("*.narinfo")[-1].headers["Authorization"].startswith("Basic ")
        answers = [client.get("/", {"Accept": "text/html"})]
        with upstream.fault("*.narinfo", status=401):
            answers += [client.get(unknown, {"Accept": accept}) for accept in ("text/html", "application/json", "*/*")]
        with upstream.fault("*", status=500, headers={"Retry-After": "0"}):
            answers.append(client.get(unknown))
            answers.append(client.get("/readyz"))
        log = front.log_text()
    for got in answers:
        no_secrets(got, "hunter2", "dXNlcjpodW50ZXIy")
    assert "hunter2" not in log


def test_a_client_that_leaves_does_no_harm(upstream: Upstream, run_front: RunFront, caches: NixCaches) -> None:
    big = url_path(caches.store_paths[trees.BIG_NAME], b"data.bin")
    with run_front(f"{upstream.url}/zstd", shape=Shape(threads=4)) as front:
        for _ in range(12):
            connection = front.connect()
            connection.request("GET", big)
            connection.getresponse().read(1000)
            connection.close()
        with Client(front) as client:
            assert client.get(big).body == (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()


def test_the_key_decides(upstream: Upstream, run_front: RunFront, caches: NixCaches, hello: str) -> None:
    name, key = caches.public_key.split(":")
    other = f"{name}:{key[:5]}{'A' if key[5] != 'A' else 'B'}{key[6:]}"
    for keys, status in ((caches.public_key, 200), (f"{other} {caches.public_key}", 200), (other, 502)):
        settings = {"NAR_TRUSTED_PUBLIC_KEYS": keys}
        with run_front(f"{upstream.url}/zstd", "off", settings, expect_trouble=True) as front, Client(front) as client:
            got = client.get(hello)
            assert got.status == status, keys
            assert status == 200 or is_bad_gateway(got)
