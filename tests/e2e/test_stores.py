"""The same cache in every kind of store: two implementations of S3, emulators of Google and Azure, HTTP, HTTPS, files.

The small trees are compressed with zstd; the large one is uncompressed, so that the application reads parts of its NAR.
"""

import os
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from narcore.errors import FileNotInStore, NarcoreError, RangeNotSupported, StoreForbidden, StoreUnavailable
from narcore.stores import open_store, read_file
from tests import needs
from tests.e2e import emulators, links, trees
from tests.e2e.client import Client, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import NixCaches, parse_listing, read_narinfo
from tests.e2e.servedstores import NEED_EMULATORS, SECRET, SERVED_STORES, ServedStore
from tests.e2e.test_files import SMALL, check, fetch_with_http_client, regular_files

# URLs for narinfos that must not be followed: other hosts, and files outside the store.
HOSTILE_URLS = (
    "http://127.0.0.1:{port}/x",
    "HTTPS://127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "http://user@127.0.0.1:{port}/x",
    "\\\\127.0.0.1:{port}\\x",
    "../secret",
    "../../secret",
    "%2e%2e/secret",
    "..%2f..%2fsecret",
    "nar/../../secret",
    "/secret",
    "file:///etc/passwd",
    "s3://127.0.0.1:{port}/x",
)


def hostile_hash(number: int) -> str:
    """Return the hash part of the narinfo with the URL ``HOSTILE_URLS[number]``."""
    return f"{'0' * 30}{number:02}"


pytestmark = pytest.mark.timeout(400)  # the first test installs the emulators


@pytest.fixture(scope="module")
def canary() -> Iterator[socket.socket]:
    """A listener that must get no connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def files(caches: NixCaches, canary: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the module describes, and a narinfo for each URL of `HOSTILE_URLS`."""
    directory = tmp_path_factory.mktemp("cache")
    (directory / "nar").mkdir()
    shutil.copy(caches.cache("zstd") / "nix-cache-info", directory)
    for name in (*SMALL, trees.BIG_NAME):
        source = caches.cache("none" if name == trees.BIG_NAME else "zstd")
        narinfo = source / f"{caches.hash_part(name)}.narinfo"
        for path in (narinfo, narinfo.with_suffix(".ls"), source / read_narinfo(narinfo)["URL"]):
            shutil.copy(path, directory / path.relative_to(source))
    good = directory / f"{caches.hash_part(links.HELLO)}.narinfo"
    fields = read_narinfo(good)
    for number, hostile in enumerate(HOSTILE_URLS):
        # Each with its own NarHash: the application does not fetch a NAR that it has cached.
        forged = good.read_text().replace(fields["NarHash"], f"sha256:{number:064x}")
        forged = forged.replace(fields["URL"], hostile.format(port=canary.getsockname()[1]))
        forged = forged.replace(caches.hash_part(links.HELLO), hostile_hash(number))
        (directory / f"{hostile_hash(number)}.narinfo").write_text(forged)
    return directory


@pytest.fixture(scope="session")
def installed_emulators() -> Path:
    """The directory of the emulators. Skips the test if they can't be installed."""
    needs.program("npm")
    try:
        return emulators.install()
    except emulators.NotInstallable as error:
        needs.missing("emulators of object stores", str(error))


@pytest.fixture(scope="module", params=SERVED_STORES)
def served(
    request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedStore]:
    needed = request.param in NEED_EMULATORS
    directory = request.getfixturevalue("installed_emulators") if needed else Path()
    with SERVED_STORES[request.param](files, directory, tmp_path_factory.mktemp(request.param)) as served:
        yield served


@pytest.fixture(scope="module")
def front(served: ServedStore, run_front: RunFront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with run_front(served.url, tmp_path_factory.mktemp("nars"), served.environ) as front:
        yield front


@pytest.fixture
def _environ(served: ServedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the environment for stores that the test opens in its own process."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    for name, value in served.environ.items():
        monkeypatch.setenv(name, value)


def test_the_landing_page_shows_no_secret(front: Front, served: ServedStore) -> None:
    with Client(front) as client:
        assert client.get("/readyz").status == 200
        landing = client.get("/", {"Accept": "text/html"}).text
    assert served.url.partition(":")[0] + "://" in landing
    assert not [secret for secret in served.secrets if secret in landing]


def test_every_file_is_served(front: Front, caches: NixCaches) -> None:
    check(fetch_with_http_client, front, regular_files(caches, (*SMALL, trees.BIG_NAME)))


def test_ranges_are_read_from_the_store(served: ServedStore, run_front: RunFront, caches: NixCaches) -> None:
    """The front has no disk cache."""
    generator = random.Random(5)
    wrong: list[tuple[object, ...]] = []
    with run_front(served.url, "off", served.environ) as front, Client(front) as client:
        for name in ("data.bin", "later.bin", "z-last.txt"):
            data = (caches.tree(trees.BIG_NAME) / name).read_bytes()
            path = url_path(caches.store_paths[trees.BIG_NAME], name.encode())
            for _ in range(3):
                start = generator.randrange(len(data))
                stop = min(len(data), start + generator.choice([1, 100, 70_000, 3_000_000]))
                got = client.get(path, {"Range": f"bytes={start}-{stop - 1}"})
                if (got.status, got.body) != (206, data[start:stop]):
                    wrong.append((name, start, stop, got.status))
    assert not wrong


def test_listings_and_links_are_served(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        for name in (links.HELLO, trees.NAMES_NAME, trees.BIG_NAME):
            got = client.get(url_path(caches.store_paths[name]) + "/?format=json&recursive")
            assert (got.status, parse_listing(got.body)) == (200, caches.listing(name))
        assert client.get(url_path(caches.store_paths[links.HELLO], b"bin/hi")).status == 302


def test_head_has_the_headers_of_get(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        for name, path in ((links.HELLO, b"bin/hello"), (trees.BIG_NAME, b"data.bin")):
            url = url_path(caches.store_paths[name], path)
            head, got = client.head(url), client.get(url)
            assert (head.status, got.status) == (200, 200)
            for header in ("Content-Length", "ETag", "Cache-Control", "Last-Modified"):
                assert head.header(header) == got.header(header)


def test_missing_paths_return_404(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        for method in ("GET", "HEAD"):
            assert client.request(method, f"/nix/store/{'1' * 32}-nothing/x").status == 404
            assert client.request(method, url_path(caches.store_paths[links.HELLO], b"bin/nothing")).status == 404


def test_urls_of_hostile_narinfos_are_not_followed(front: Front, served: ServedStore, canary: socket.socket) -> None:
    with Client(front) as client:
        for number, hostile in enumerate(HOSTILE_URLS):
            got = client.get(f"/nix/store/{hostile_hash(number)}-{links.HELLO}/bin/hello", {"Accept": "text/plain"})
            assert got.status in (404, 502), hostile
            assert SECRET not in got.body
            assert b"root:" not in got.body
    with pytest.raises(BlockingIOError):
        canary.accept()
    log = front.log_text()
    assert "circuit breaker" not in log  # otherwise, the store was not asked, and the URLs above were not tried
    assert not [secret for secret in served.secrets if secret in log]


@pytest.mark.usefixtures("_environ")
def test_a_store_reads_files_and_ranges(served: ServedStore, files: Path) -> None:
    store = open_store(served.url)
    nar = max((files / "nar").iterdir(), key=lambda path: path.stat().st_size)
    data, name = nar.read_bytes(), f"nar/{nar.name}"
    assert read_file(store, name, len(data)) == data
    for start, stop in ((0, 2), (5, 1_000_000), (len(data) - 7, None), (1, len(data))):
        if served.ranges:
            with store.get_file(name, start, stop) as file:
                assert (b"".join(file), file.size) == (data[start:stop], len(data))
        else:
            with pytest.raises(RangeNotSupported):
                store.get_file(name, start, stop)
    for start, end in ((5, len(data) + 1), (len(data), None), (len(data) + 5, len(data) + 9)):
        with pytest.raises(RangeNotSupported):
            store.get_file(name, start, end)
    for missing in ("nar/nothing", "nothing.narinfo"):
        with pytest.raises(FileNotInStore):
            store.get_file(missing)
    for path in ("../secret", "../../secret", "%2e%2e/secret", "..%2fsecret", "nar/../../secret", ""):
        with pytest.raises(StoreForbidden):
            store.get_file(path)
    store.close()


@pytest.mark.usefixtures("_environ")
@pytest.mark.parametrize("served", ["s3-moto", "s3-s3rver", "az"], indirect=True)
def test_a_missing_bucket_is_reported(served: ServedStore) -> None:
    store = open_store(served.url.replace("nix-cache", "nix-cash"))
    with pytest.raises(StoreUnavailable, match=r"there is no .*bucket"):
        store.get_file("nix-cache-info")
    store.close()


@pytest.mark.usefixtures("_environ")
@pytest.mark.parametrize("served", ["s3-s3rver", "az"], indirect=True)
def test_wrong_credentials_are_reported(served: ServedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWN")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    store = open_store(served.url)
    with pytest.raises(NarcoreError, match="credentials") as caught:
        store.get_file("nix-cache-info")
    assert isinstance(caught.value, StoreForbidden)
    store.close()


@pytest.mark.parametrize("served", ["s3-moto"], indirect=True)
def test_a_private_bucket_without_credentials_is_not_ready(served: ServedStore, run_front: RunFront) -> None:
    """A 403 means that a file is missing, but /readyz reports it, so that a wrong configuration is noticed."""
    with run_front(served.url, "off", {"AWS_SKIP_SIGNATURE": "true"}) as front, Client(front) as client:
        assert client.get(f"/nix/store/{'1' * 32}-nothing/x").status == 404
        assert client.get("/readyz").status == 503
