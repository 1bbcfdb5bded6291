"""The cache directory shared with Nix, as its ``local-nar-cache``.

Nix names the entries there by the hash of the NAR, as we do; Nix before 2.15 or so names them by the hash part of the store
path. With such an older one both write side by side; that the files are the same is shown under the other names.
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
    store = f"file://{cache}?local-nar-cache={nars}"
    command = ["nix", "--extra-experimental-features", "nix-command", "store", "cat", "--store", store, path]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "NIX_CONF_DIR": str(home)}
    return subprocess.run(command, env=environ, check=True, capture_output=True).stdout


@pytest.fixture
def hello(caches: NixCaches) -> str:
    return caches.store_paths[links.HELLO]


def nar_digits(caches: NixCaches) -> str:
    narinfo = read_narinfo(caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo")
    return narinfo["NarHash"].removeprefix("sha256:")


def test_nix_reads_what_we_keep(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str
) -> None:
    nars = tmp_path / "nars"
    with run_front(f"{upstream.url}/zstd", nars) as front:
        body = get(front, url_path(hello, b"bin/hello")).body
        until(lambda: bool(list(nars.glob("*.nar"))))
    digits = nar_digits(caches)
    for suffix in ("nar", "ls"):
        for name in {caches.hash_part(links.HELLO), digits}:
            if not (nars / f"{name}.{suffix}").exists():
                (nars / f"{name}.{suffix}").hardlink_to(nars / f"{digits}.{suffix}")
    bare = tmp_path / "bare"  # a cache that has no NAR and no listing: Nix can have it from ours alone
    bare.mkdir()
    for name in ("nix-cache-info", f"{caches.hash_part(links.HELLO)}.narinfo"):
        (bare / name).write_bytes((caches.cache("zstd") / name).read_bytes())
    assert nix_cat(bare, nars, f"{hello}/bin/hello", tmp_path) == body


def test_we_read_what_nix_keeps(
    upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str
) -> None:
    nars = tmp_path / "nars"
    nars.mkdir(mode=0o700)
    body = nix_cat(caches.cache("zstd"), nars, f"{hello}/bin/hello", tmp_path)
    (written,) = nars.glob("*.nar")
    assert written.stem in (caches.hash_part(links.HELLO), nar_digits(caches))
    theirs = written.with_suffix(".ls").read_text()
    written.rename(nars / f"{nar_digits(caches)}.nar")
    written.with_suffix(".ls").rename(nars / f"{nar_digits(caches)}.ls")
    with run_front(f"{upstream.url}/zstd", nars) as front:
        upstream.clear()
        assert get(front, url_path(hello, b"bin/hello")).body == body
        assert upstream.count("*/nar/*") == 0
        ours, nixs = (json.loads(text) for text in ((nars / f"{nar_digits(caches)}.ls").read_text(), theirs))
    assert ours == nixs == caches.listing(links.HELLO)["root"]


def test_side_by_side(upstream: Upstream, run_front: RunFront, caches: NixCaches, tmp_path: Path, hello: str) -> None:
    """Each leaves alone what it does not know."""
    nars = tmp_path / "nars"
    nars.mkdir(mode=0o700)
    with run_front(f"{upstream.url}/zstd", nars, {"NAR_CACHE_SIZE": "1"}) as front:
        for _ in range(2):
            body = nix_cat(caches.cache("zstd"), nars, f"{hello}/bin/hello", tmp_path)
            assert get(front, url_path(hello, b"bin/hello")).body == body
    assert list(nars.glob("*.nar"))
