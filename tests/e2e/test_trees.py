"""Checks the expected results: the tables written by hand against the kernel and Nix, and the caches against each other."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import builders
from tests.e2e import links, nixcaches, trees
from tests.e2e.nixcaches import NixCaches


def test_the_kernel_follows_links_as_the_table_says(caches: NixCaches) -> None:
    root = caches.tree(links.LINKS_NAME)
    for path, outcome in links.LINKS.items():
        if b"self" in path or b"out-and-in" in path:
            continue  # these links need the store at /nix/store
        found = Path(os.path.realpath(root / os.fsdecode(path)))
        if isinstance(outcome, links.Inside):
            assert found == root / os.fsdecode(outcome.path)
            assert found.is_dir() == (outcome.path == b"" or outcome.path.endswith(b"/"))
        else:
            assert not found.is_relative_to(root) or not found.exists() or found.is_symlink()


def test_every_link_is_in_the_table() -> None:
    assert set(links.LINK_TARGETS) - set(links.LINKS) == {b"other-dots"}


def test_nix_reads_the_source_from_a_cache(caches: NixCaches) -> None:
    cache = f"file://{caches.cache('zstd')}"
    command = ["nix", "--extra-experimental-features", "nix-command", "store", "cat", "--store", cache]
    for name, path in [(links.HELLO, "bin/hello"), (trees.BIG_NAME, "later.bin"), (trees.NAMES_NAME, "what?")]:
        got = subprocess.run([*command, f"{caches.store_paths[name]}/{path}"], stdout=subprocess.PIPE, check=True)
        assert got.stdout == (caches.tree(name) / path).read_bytes()


@pytest.mark.parametrize("name", trees.SPECS)
def test_listings_of_nix_equal_those_of_the_builders(caches: NixCaches, name: str) -> None:
    assert caches.listing(name) == builders.listing(_literal(caches.tree(name)))


@pytest.mark.parametrize(
    "name", [trees.NAMES_NAME, links.LINKS_NAME, trees.ONE_SCRIPT_NAME, "one-link", trees.DEEP_NAME]
)
def test_builders_write_the_same_nar_as_nix(caches: NixCaches, name: str) -> None:
    assert builders.nar(_literal(caches.tree(name))) == caches.nar(name)


def test_every_cache_has_all_paths_and_differs_from_the_others(caches: NixCaches) -> None:
    hash_parts = {caches.hash_part(name) for name in trees.SPECS}
    big = f"{caches.hash_part(trees.BIG_NAME)}.narinfo"
    seen = set()
    for name in nixcaches.CACHES:
        assert {path.stem for path in caches.cache(name).glob("*.narinfo")} == hash_parts
        assert {path.stem for path in caches.cache(name).glob("*.ls")} == hash_parts
        fields = nixcaches.read_narinfo(caches.cache(name) / big)
        assert (caches.cache(name) / fields["URL"]).stat().st_size == int(fields["FileSize"])
        seen.add(fields["FileHash"])
    assert len(seen) == len(nixcaches.CACHES) - len(nixcaches.RELISTED)


def test_only_multi_block_caches_have_several_xz_blocks(caches: NixCaches) -> None:
    def blocks(name: str) -> int:
        fields = nixcaches.read_narinfo(caches.cache(name) / f"{caches.hash_part(trees.BIG_NAME)}.narinfo")
        command = ["xz", "--robot", "--list", str(caches.cache(name) / fields["URL"])]
        totals = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
        return int(totals.split()[2])

    assert blocks("xz") == 1
    assert min(blocks("xz-parallel"), blocks("xz-blocks"), blocks("xz-streams")) > 1


def test_nix_writes_listings_only_if_configured(caches: NixCaches, tmp_path: Path) -> None:
    command = ["nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs"]
    source = f"file://{caches.cache('zstd')}"
    environ = os.environ | {"NIX_REMOTE": f"local?root={tmp_path}", "HOME": str(tmp_path)}
    target = f"file://{tmp_path}/cache?compression=zstd"
    store_path = caches.store_paths[links.HELLO]
    subprocess.run(
        [*command, "--from", source, "--to", target, store_path], env=environ, check=True, capture_output=True
    )
    written = {str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    fields = nixcaches.read_narinfo(caches.cache("zstd") / f"{caches.hash_part(links.HELLO)}.narinfo")
    assert written == {"nix-cache-info", f"{caches.hash_part(links.HELLO)}.narinfo", fields["URL"]}


def test_a_listing_without_offsets_has_none(caches: NixCaches) -> None:
    text = (caches.cache("ls-no-offsets") / f"{caches.hash_part(links.HELLO)}.ls").read_text()
    assert json.loads(text) == builders.listing(_literal(caches.tree(links.HELLO)), offsets=False)


def _literal(path: Path) -> builders.Tree:
    """Read a tree on disk into the form that `tests.builders` uses."""
    if path.is_symlink():
        return builders.link(os.readlink(path))  # noqa: PTH115  (Path.readlink drops "./" and "//")
    if path.is_dir():
        return {child.name: _literal(child) for child in path.iterdir()}
    data = path.read_bytes()
    return builders.exe(data) if path.stat().st_mode & 0o100 else data
