"""A cache directory shared with Nix, as its ``local-nar-cache``.

Nix names entries by the hash of the NAR, as nar-serve does. Nix before about 2.15 names them by the hash part of the store path:
then both programs write their own entries. The tests rename these, to show that the NARs are the same. Each program has its own
file for the listing: ``.ls`` is that of Nix.
"""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e import links
from tests.e2e.cache_support import get, until
from tests.e2e.client import url_path
from tests.e2e.conftest import RunFront
from tests.e2e.nixcaches import NixCaches, read_narinfo
from tests.e2e.upstream import Upstream


def nix_cat(cache: Path, nars: Path, path: str, home: Path) -> bytes:
    """Return a file of a binary cache, read by Nix with ``nars`` as its ``local-nar-cache``."""
    store = f"file://{cache}?local-nar-cache={nars}"
    command = ["nix", "--extra-experimental-features", "nix-command", "store", "cat", "--store", store, path]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "NIX_CONF_DIR": str(home)}
    return subprocess.run(command, env=environ, check=True, capture_output=True).stdout


@pytest.fixture
def hello(caches: NixCaches) -> str:
    return caches.store_paths[links.HELLO]


def nar_hash(caches: NixCaches) -> str:
    narinfo = read_narinfo(caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo")
    return narinfo["NarHash"].removeprefix("sha256:")


def test_nix_reads_entries_of_nar_serve(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str
) -> None:
    nars = tmp_path / "nars"
    with run_front(f"{upstream.url}/zstd", nars) as front:
        body = get(front, url_path(hello, b"bin/hello")).body
        until(lambda: bool(list(nars.glob("*.nar"))))
    name_by_hash = nar_hash(caches)
    for name in {caches.hash_part(links.HELLO), name_by_hash}:
        if not (nars / f"{name}.nar").exists():
            (nars / f"{name}.nar").hardlink_to(nars / f"{name_by_hash}.nar")
    bare = tmp_path / "bare"  # a cache without the NAR: Nix can read it only from the shared directory
    bare.mkdir()
    for name in ("nix-cache-info", f"{caches.hash_part(links.HELLO)}.narinfo"):
        (bare / name).write_bytes((caches.cache("zstd") / name).read_bytes())
    assert nix_cat(bare, nars, f"{hello}/bin/hello", tmp_path) == body


def test_nar_serve_reads_entries_of_nix(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str
) -> None:
    nars = tmp_path / "nars"
    nars.mkdir(mode=0o700)
    body = nix_cat(caches.cache("zstd"), nars, f"{hello}/bin/hello", tmp_path)
    (written,) = nars.glob("*.nar")
    assert written.stem in (caches.hash_part(links.HELLO), nar_hash(caches))
    nix_listing = written.with_suffix(".ls").read_text()
    written.rename(nars / f"{nar_hash(caches)}.nar")
    written.with_suffix(".ls").rename(nars / f"{nar_hash(caches)}.ls")
    with run_front(f"{upstream.url}/zstd", nars) as front:
        upstream.clear()
        assert get(front, url_path(hello, b"bin/hello")).body == body
        assert upstream.count("*/nar/*") == 0
    assert (nars / f"{nar_hash(caches)}.ls").read_text() == nix_listing
    assert json.loads(nix_listing) == caches.listing(links.HELLO)["root"]


def test_nar_serve_and_nix_leave_foreign_entries_alone(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str
) -> None:
    nars = tmp_path / "nars"
    nars.mkdir(mode=0o700)
    with run_front(f"{upstream.url}/zstd", nars, {"NAR_CACHE_SIZE": "1"}) as front:
        for _ in range(2):
            body = nix_cat(caches.cache("zstd"), nars, f"{hello}/bin/hello", tmp_path)
            assert get(front, url_path(hello, b"bin/hello")).body == body
    assert list(nars.glob("*.nar"))
