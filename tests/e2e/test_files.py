"""Every file of every tree from every cache, with and without listings, compared byte by byte."""

import random
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

import pytest
import requests

from tests.e2e import links, trees
from tests.e2e.client import Client, location, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import CACHES, NIX_CACHES, RECOMPRESSED, NixCaches, parse_listing
from tests.e2e.trees import Entry
from tests.e2e.upstream import Upstream

ENCODED = ("ls-br.encoded", "ls-gzip.encoded", "ls-zstd.encoded")
WITHOUT_LISTINGS = tuple(f"{name}.no-ls" for name in (*NIX_CACHES, *RECOMPRESSED))
# The caches with NARs of their own. The other caches differ from one of these only in their listings, so that tests with large
# files skip them.
ARCHIVES = (*NIX_CACHES, *RECOMPRESSED, *WITHOUT_LISTINGS)
SMALL = tuple(name for name, spec in trees.SPECS.items() if not spec.slow)


@pytest.fixture(scope="module", params=(*CACHES, *WITHOUT_LISTINGS, *ENCODED))
def front(
    request: pytest.FixtureRequest, upstream: Upstream, run_front: RunFront, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """A front for each cache. Each has its own disk cache, because all caches contain the same NARs."""
    with run_front(f"{upstream.url}/{request.param}", tmp_path_factory.mktemp("nars")) as front:
        yield front


@pytest.fixture(scope="module", params=(*NIX_CACHES, *RECOMPRESSED))
def streaming_front(request: pytest.FixtureRequest, upstream: Upstream, run_front: RunFront) -> Iterator[Front]:
    """A front without a disk cache, so that each file is extracted from a stream. Half of the caches have no listings."""
    suffix = ".no-ls" if [*NIX_CACHES, *RECOMPRESSED].index(request.param) % 2 else ""
    with run_front(f"{upstream.url}/{request.param}{suffix}") as front:
        yield front


def regular_files(caches: NixCaches, names: Iterable[str]) -> list[tuple[str, Entry]]:
    """Return URL path and node of each regular file."""
    return [
        (url_path(caches.store_paths[name], entry.path), entry)
        for name in names
        for entry in caches.entries(name)
        if entry.kind == "regular"
    ]


def faults(status: int, body: bytes, executable: str | None, entry: Entry) -> list[str]:
    """Return what is wrong with the response to a request for a file."""
    found = []
    if status != 200:
        found.append(f"status {status}")
    elif body != entry.source.read_bytes():
        found.append("wrong bytes")
    if (executable == "1") != entry.executable or executable not in (None, "1"):
        found.append(f"NAR-Executable {executable}")
    return [f"{entry.path!r}: {fault}" for fault in found]


def fetch_with_requests(front: Front, files: list[tuple[str, Entry]]) -> list[str]:
    """Fetch files with requests, like most Python programs; returns what is wrong with them."""
    wrong: list[str] = []
    with requests.Session() as session:
        for path, entry in files:
            got = session.get(front.url + path, headers={"Accept-Encoding": "identity"}, allow_redirects=False)
            wrong += faults(got.status_code, got.content, got.headers.get("NAR-Executable"), entry)
    return wrong


def fetch_with_http_client(front: Front, files: list[tuple[str, Entry]]) -> list[str]:
    """Fetch files with http.client, which is much faster; returns what is wrong with them."""
    wrong: list[str] = []
    with Client(front) as client:
        for path, entry in files:
            got = client.get(path)
            wrong += faults(got.status, got.body, got.headers.get("NAR-Executable"), entry)
    return wrong


def check(
    fetch: Callable[[Front, list[tuple[str, Entry]]], list[str]], front: Front, files: list[tuple[str, Entry]]
) -> None:
    """Fetch files over four connections; fails if a file differs from the tree."""
    assert files
    with ThreadPoolExecutor(4) as pool:
        shares = [files[number::4] for number in range(4)]
        assert not [fault for found in pool.map(fetch, [front] * 4, shares) for fault in found]


def test_files_of_small_trees_equal_the_source(front: Front, caches: NixCaches) -> None:
    check(fetch_with_requests, front, regular_files(caches, SMALL))


def test_files_of_the_standard_library_equal_the_source(front: Front, caches: NixCaches) -> None:
    check(fetch_with_http_client, front, regular_files(caches, [trees.STDLIB_NAME]))


@pytest.mark.parametrize("front", ARCHIVES, indirect=True)
def test_large_files_and_their_neighbours_equal_the_source(front: Front, caches: NixCaches) -> None:
    check(fetch_with_requests, front, regular_files(caches, [trees.BIG_NAME]))


@pytest.mark.parametrize("front", ARCHIVES, indirect=True)
def test_ranges_of_a_large_file_equal_the_source(front: Front, caches: NixCaches) -> None:
    generator = random.Random(3)
    wrong: list[tuple[object, ...]] = []
    with Client(front) as client:
        for name in ("data.bin", "later.bin"):
            data = (caches.tree(trees.BIG_NAME) / name).read_bytes()
            for _ in range(6):
                start = generator.randrange(len(data))
                stop = min(len(data), start + generator.choice([1, 100, 70_000, 3_000_000]))
                path = url_path(caches.store_paths[trees.BIG_NAME], name.encode())
                got = client.get(path, {"Range": f"bytes={start}-{stop - 1}"})
                if (got.status, got.body) != (206, data[start:stop]):
                    wrong.append((name, start, stop, got.status))
                elif got.header("Content-Range") != f"bytes {start}-{stop - 1}/{len(data)}":
                    wrong.append((name, start, stop, got.headers["Content-Range"]))
    assert not wrong


def test_listings_are_those_of_nix(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        for name in trees.SPECS:
            got = client.get(url_path(caches.store_paths[name]) + "/?format=json&recursive")
            if got.status == 302:  # a store path that is not a directory has no trailing slash
                got = client.get(location(got, url_path(caches.store_paths[name]) + "/?format=json&recursive"))
            assert got.status == 200, (name, got.body[:300])
            assert parse_listing(got.body) == caches.listing(name), name


def test_every_link_leads_where_the_table_says(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        wrong = [fault for path, outcome in all_links(caches) if (fault := link_fault(client, caches, path, outcome))]
    assert not wrong


def all_links(caches: NixCaches) -> Iterator[tuple[str, links.Outcome]]:
    """Yield URL path and outcome of every link in the tables."""
    for path, outcome in links.LINKS.items():
        yield url_path(caches.store_paths[links.LINKS_NAME], path), outcome
    for name, (_, outcome) in links.ONE_LINKS.items():
        yield url_path(caches.store_paths[name]), outcome
    names = caches.store_paths[trees.NAMES_NAME]
    for path, target in trees.NAME_LINKS.items():
        inside = target + b"/" if target == trees.ODD_DIRECTORY else target
        yield url_path(names, path), links.Inside(inside)
    for path, target in trees.NAME_LINKS_NOWHERE.items():
        yield url_path(names, path), links.Nowhere(target.split()[0])


def link_fault(client: Client, caches: NixCaches, path: str, outcome: links.Outcome) -> str:
    """Return what is wrong with the response to a request for a link; empty if it agrees with ``outcome``."""
    got = client.get(path)
    if isinstance(outcome, links.Nowhere):
        if got.status == 404 and outcome.target.decode() in got.text:
            return ""
        return f"{path}: expected a 404 that names {outcome.target!r}, got {got.status} {got.body[:200]!r}"
    if isinstance(outcome, links.Inside):
        store_path = next(each for each in caches.store_paths.values() if path.startswith(url_path(each) + "/"))
        expected = url_path(store_path, outcome.path) if outcome.path else url_path(store_path) + "/"
    else:
        expected = url_path(outcome.path)
    if got.status != 302:
        return f"{path}: expected a redirect to {expected}, got {got.status} {got.body[:200]!r}"
    found = location(got, path)
    return "" if same_url(found, expected) else f"{path}: expected a redirect to {expected}, got {found}"


def same_url(one: str, other: str) -> bool:
    """Return whether two URL paths are equal when decoded: servers may encode different characters."""
    return "?" not in one + other and "#" not in one + other and unquote_to_bytes(one) == unquote_to_bytes(other)


def test_files_extracted_from_a_stream_equal_the_source(streaming_front: Front, caches: NixCaches) -> None:
    large = [(path, entry) for path, entry in regular_files(caches, [trees.BIG_NAME]) if entry.path == b"later.bin"]
    check(fetch_with_requests, streaming_front, regular_files(caches, SMALL) + large)


def test_curl_gets_files_ranges_and_redirects(front: Front, caches: NixCaches) -> None:
    def curl(path: str, *options: str) -> bytes:
        command = ["curl", "--silent", "--show-error", "--path-as-is", *options, front.url + path]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout

    hello = url_path(caches.store_paths[links.HELLO])
    assert curl(f"{hello}/bin/hello", "--fail") == trees.SCRIPT
    assert curl(f"{hello}/bin/hi", "--fail", "--location") == trees.SCRIPT
    assert curl(f"{hello}/bin/hello", "--range", "2-5") == trees.SCRIPT[2:6]
    head = curl(f"{hello}/bin/hello", "--head").decode().lower()
    assert head.startswith("http/1.1 200")
    assert f"content-length: {len(trees.SCRIPT)}\r\n" in head
    assert curl(f"{hello}/bin/../bin/hello", "--output", "/dev/null", "--write-out", "%{http_code}") == b"404"
    raw = url_path(caches.store_paths[trees.NAMES_NAME], b"\xff\xfe")
    assert curl(raw, "--fail") == b"contents of \xff\xfe"
