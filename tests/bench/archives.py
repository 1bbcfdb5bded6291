"""A tree as an archive, against the same bytes as one file: archiving should cost little in addition to unpacking."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import CacheDirectory, Packed, settle_disk, write_file, write_tree
from tests.bench.memory import memory_growth
from tests.bench.report import MB, MIB, Row, against, alternate, at_most
from tests.bench.setup import Setup

GOALS = {"nar": 0.8, "tar": 0.8, "zip": 0.5, "tar.zst": None}  # zip also computes checksums; tar.zst compresses
MEMORY_LIMIT = 40  # MiB


def archives(setup: Setup) -> Iterator[Row]:
    """MB/s of a large tree (--size) as tar, zip and nar, against one file of that size; memory for a tree of --large MB."""
    upstream = CacheDirectory(setup.directory / "upstream")
    tree = setup.directory / "tree"
    for number in range(20):
        write_file(tree / f"file-{number:02}", setup.size // 20, seed=number)
    packed = upstream.add("tree", write_tree(tree, setup.directory / "tree.nar"), "zstd")
    whole = setup.directory / "whole"
    write_file(whole / "large.bin", setup.size)
    one = upstream.add("whole", write_tree(whole, setup.directory / "whole.nar"), "zstd")
    settle_disk()
    for name, goal in GOALS.items():
        for what, cached in (("cache off", False), ("cache on, cold", True)):
            own, peer = alternate(
                setup.runs,
                partial(_request_seconds, setup, upstream, str(packed.store_path), f"format={name}", cached=cached),
                partial(_request_seconds, setup, upstream, f"{one.store_path}/large.bin", "", cached=cached),
            )
            size = setup.size / MB
            yield against(f"{name}, {what}", size / own, size / peer, "MB/s", peer_name="as one file", at_least=goal)
    yield from _memory(setup, upstream)


def _request_seconds(setup: Setup, upstream: CacheDirectory, path: str, query: str, *, cached: bool) -> float:
    app = App(upstream.url, Path(tempfile.mkdtemp(dir=setup.directory)) if cached else None)
    try:
        response = app.request(path, query=query)
        assert response.status == 200
        return response.seconds
    finally:
        app.close()


def _memory(setup: Setup, upstream: CacheDirectory) -> Iterator[Row]:
    packed = _large(setup, upstream)
    for name in GOALS:
        growth = memory_growth(upstream.url, str(packed.store_path), "", f"?format={name}")
        what = f"peak RSS above idle, {setup.large // 1_000_000} MB as {name}"
        yield at_most(what, growth / MIB, "MiB", MEMORY_LIMIT)


def _large(setup: Setup, upstream: CacheDirectory) -> Packed:
    tree = setup.directory / "large"
    write_file(tree / "large.bin", setup.large)
    write_file(tree / "small.txt", 1000)
    return upstream.add("large", write_tree(tree, setup.directory / "large.nar"), "zstd")
