"""The requests to the upstream that a response needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import hash_part
from tests.e2e import links, trees
from tests.e2e.client import Client, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.nixcaches import NixCaches
from tests.e2e.upstream import Upstream

NARS = "*/nar/*"
END_OF_NAR = 4096  # bytes that are read to find out whether a large zstd NAR ends with a seek table


@pytest.fixture(params=["cached", "uncached"])
def fresh(request: pytest.FixtureRequest, upstream: Upstream, run_front: RunFront, tmp_path: Path) -> Iterator[Client]:
    """A client of a new front, on a cache with listings."""
    directory = tmp_path / "nars" if request.param == "cached" else "off"
    with run_front(f"{upstream.url}/zstd", directory) as front, Client(front) as client:
        upstream.clear()
        yield client


def test_responses_from_the_listing_need_no_nar(fresh: Client, upstream: Upstream, caches: NixCaches) -> None:
    hello = url_path(caches.store_paths[links.HELLO])
    etag = fresh.head(f"{hello}/bin/hello").header("ETag")
    link_tree = url_path(caches.store_paths[links.LINKS_NAME])
    json = {"Accept": "application/json"}
    requests = [
        ("HEAD", f"{hello}/share/doc/hello/README", {}, 200), ("HEAD", f"{hello}/", {}, 200),
        ("GET", f"{hello}/bin/hello", {"If-None-Match": etag}, 304),
        ("GET", f"{hello}/bin/hello", {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:01 GMT"}, 304),
        ("GET", f"{hello}/bin/hello", {"If-Match": '"other"'}, 412), ("GET", f"{hello}/bin/hello", {"Range": "bytes=99999-"}, 416),
        ("GET", f"{hello}/none", {}, 404), ("GET", f"{hello}/bin/hello/x", {}, 404), ("GET", f"{hello}/", {}, 200),
        ("GET", f"{hello}/share/", json, 200), ("GET", f"{hello}/?format=json&recursive", {}, 200),
        ("GET", f"{hello}/bin/hello?format=json", {}, 200), ("GET", hello, {}, 302), ("GET", f"{hello}/bin/hi", {}, 302),
        ("GET", f"{hello}/bin/hello/", {}, 302), ("GET", hello.replace("2.12", "2") + "/bin/hello", {}, 302),
        ("GET", f"{link_tree}/through", {}, 302), ("GET", f"{link_tree}/other", {}, 302), ("GET", f"{link_tree}/loop-1", {}, 404),
        ("OPTIONS", f"{hello}/bin/hello", {}, None), ("POST", f"{hello}/bin/hello", {}, 405),
        ("GET", f"{hello}/?format=exe", {}, 400),
    ]  # fmt: skip
    for method, path, headers, status in requests:
        got = fresh.request(method, path, headers)
        assert status in (None, got.status), (method, path, got.status)
    assert upstream.count(NARS) == 0
    assert upstream.count("*.narinfo") == 2  # one for each store path: narinfos are remembered
    assert upstream.count("*.ls") == 2


def test_a_file_needs_one_nar_request(fresh: Client, upstream: Upstream, caches: NixCaches) -> None:
    hello = url_path(caches.store_paths[links.HELLO])
    assert fresh.get(f"{hello}/bin/hello").body == trees.SCRIPT
    assert upstream.count(NARS) == 1
    assert upstream.count() <= 4  # narinfo, listing, NAR, and nix-cache-info at most


def test_an_unknown_path_is_remembered_for_seconds(fresh: Client, upstream: Upstream) -> None:
    for rest in ("", "/", "/bin/x", "/?format=json"):
        assert fresh.get(f"/nix/store/{hash_part('cost')}-cost{rest}").status == 404
    assert upstream.count("*.narinfo") == 1


def test_healthz_and_malformed_paths_need_no_upstream(fresh: Client, upstream: Upstream) -> None:
    for path in ("/healthz", "/nix/store/x", "/nix/store/" + "e" * 32):
        fresh.get(path)
    assert upstream.count() == 0


def test_without_a_listing_the_nar_is_fetched_once(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    with run_front(f"{upstream.url}/xz.no-ls", tmp_path / "nars") as front, Client(front) as client:
        hello = url_path(caches.store_paths[links.HELLO])
        upstream.clear()
        for method, path in [
            ("HEAD", "bin/hello"),
            ("GET", ""),
            ("GET", "none"),
            ("GET", "bin/hi"),
            ("GET", "bin/hello"),
        ]:
            client.request(method, f"{hello}/{path}")
        assert upstream.count(NARS) == 1


def test_a_nar_that_was_fetched_is_not_fetched_again(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path
) -> None:
    files = [
        (url_path(caches.store_paths[trees.BIG_NAME], entry.path), entry) for entry in caches.entries(trees.BIG_NAME)
    ]
    for cache in ("zstd", "xz-blocks", "gzip"):  # the same NAR from different caches
        with run_front(f"{upstream.url}/{cache}", tmp_path / "nars") as front, Client(front) as client:
            upstream.clear()
            for path, entry in files:
                if entry.kind == "regular":
                    assert client.get(path).body == entry.source.read_bytes()
            whole = [request for request in upstream.seen(NARS) if request.range is None]
            assert len(whole) == (1 if cache == "zstd" else 0)
            assert upstream.sent(NARS) - sum(request.sent for request in whole) <= END_OF_NAR


@pytest.mark.parametrize("directory", ["off", "nars"])
def test_a_small_file_of_a_large_uncompressed_nar_needs_few_bytes(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, directory: str
) -> None:
    cache_dir = "off" if directory == "off" else tmp_path / directory
    with run_front(f"{upstream.url}/none", cache_dir) as front, Client(front) as client:
        upstream.clear()
        big = url_path(caches.store_paths[trees.BIG_NAME])
        assert client.get(f"{big}/z-last.txt").body == b"behind it\n"
        data = (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()
        assert client.get(f"{big}/data.bin", {"Range": "bytes=9000000-9004095"}).body == data[9_000_000:9_004_096]
        assert all(request.range for request in upstream.seen(NARS))
        assert upstream.count(NARS) <= 4
        assert upstream.sent(NARS) <= 256 * 1024


def test_a_small_file_of_a_large_nar_in_xz_blocks_needs_few_blocks(
    upstream: Upstream, run_front: RunFront, caches: NixCaches
) -> None:
    for cache in ("xz-parallel", "xz-blocks"):
        with run_front(f"{upstream.url}/{cache}") as front, Client(front) as client:
            upstream.clear()
            big = url_path(caches.store_paths[trees.BIG_NAME])
            assert client.get(f"{big}/z-last.txt").body == b"behind it\n"
            data = (caches.tree(trees.BIG_NAME) / "later.bin").read_bytes()
            got = client.get(f"{big}/later.bin", {"Range": "bytes=1000000-1004095"})
            assert got.body == data[1_000_000:1_004_096]
            assert all(request.range for request in upstream.seen(NARS))
            assert upstream.sent(NARS) <= 3 * 1024 * 1024  # blocks of 1 MiB


@pytest.mark.parametrize("wrong", [{"ranges": False}, {"headers": {"Content-Range": "bytes 0-9/10"}}, {"status": 416}])
def test_an_upstream_without_ranges_is_read_as_a_whole(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, wrong: dict[str, object]
) -> None:
    """The application reads the whole NAR instead. The status 416 is injected once, into the first request, which has a range."""
    with run_front(f"{upstream.url}/none") as front, Client(front) as client:
        times = 1 if "status" in wrong else None
        with upstream.fault(NARS, times=times, **wrong):
            big = url_path(caches.store_paths[trees.BIG_NAME])
            assert client.get(f"{big}/a-first.txt").body == b"in front of it\n"
            assert client.get(f"{big}/z-last.txt").body == b"behind it\n"
