"""Every file, listing and link of the small trees, on every front."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import Client, url_path
from tests.e2e.conftest import RunFront
from tests.e2e.fronts import Front
from tests.e2e.nixcaches import NixCaches, parse_listing
from tests.e2e.test_files import SMALL, all_links, check, fetch_with_http_client, link_fault, regular_files
from tests.e2e.upstream import Upstream


@pytest.fixture(scope="module")
def front(upstream: Upstream, run_front: RunFront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory: Path = tmp_path_factory.mktemp("nars")
    with run_front(f"{upstream.url}/zstd", directory) as front:
        yield front


def test_files_of_small_trees_equal_the_source(front: Front, caches: NixCaches) -> None:
    check(fetch_with_http_client, front, regular_files(caches, SMALL))


def test_listings_are_those_of_nix(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        for name in SMALL:
            if caches.listing(name)["root"]["type"] != "directory":
                continue
            got = client.get(url_path(caches.store_paths[name]) + "/?format=json&recursive")
            assert parse_listing(got.body) == caches.listing(name), name


def test_every_link_leads_where_the_table_says(front: Front, caches: NixCaches) -> None:
    with Client(front) as client:
        assert not [
            fault for path, outcome in all_links(caches) if (fault := link_fault(client, caches, path, outcome))
        ]
