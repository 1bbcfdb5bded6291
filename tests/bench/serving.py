"""Serving cached files: against nginx, and to many slow readers."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.material import CacheDirectory, Packed, settle_disk, write_file, write_tree
from tests.bench.report import MB, MIB, Row, against, alternate, at_most
from tests.bench.servers import Server, bare_wsgi, nar_serve, nginx
from tests.bench.setup import Setup

SMALL = 4096
READERS = 64


@dataclass(frozen=True, slots=True)
class _Site:
    """A binary cache with one store path, and the same files unpacked below ``root``."""

    upstream: CacheDirectory
    packed: Packed
    root: Path

    def path(self, name: str) -> str:
        return f"{self.packed.store_path}/{name}"


def _site(setup: Setup) -> _Site:
    tree = setup.directory / "tree"
    write_file(tree / "large.bin", setup.large)
    write_file(tree / "small.txt", SMALL)
    upstream = CacheDirectory(setup.directory / "upstream")
    packed = upstream.add("site", write_tree(tree, setup.directory / "site.nar"), "zstd")
    packed.nar.file.unlink()
    root = setup.directory / "root"
    unpacked = root / str(packed.store_path).lstrip("/")
    unpacked.parent.mkdir(parents=True)
    shutil.move(tree, unpacked)
    os.chmod(setup.directory, 0o755)  # noqa: PTH101  (the workers of nginx run as another user)
    settle_disk()
    return _Site(upstream, packed, root)


def warm(setup: Setup) -> Iterator[Row]:
    """Throughput of a large cached file, and requests per second for a file of 4 KB: nar-serve serve against nginx."""
    site = _site(setup)
    with (
        nar_serve(setup.directory, site.upstream.url) as ours,
        nginx(setup.directory / "nginx", site.root) as peer,
    ):
        for server in (ours, peer):
            server.load("get", [site.path("large.bin")])
        time.sleep(1)  # until the cached NAR is written to disk
        yield from _large(setup, site, ours, peer)
        yield from _small(setup, site, ours, peer)


def _large(setup: Setup, site: _Site, ours: Server, peer: Server) -> Iterator[Row]:
    path = site.path("large.bin")
    before = ours.cpu_seconds(), peer.cpu_seconds()
    own, theirs = alternate(setup.runs, *(partial(_throughput, server, path) for server in (ours, peer)))
    gigabytes = setup.runs * setup.large / 1e9
    yield against(f"{setup.large // 1_000_000} MB from the cache", own, theirs, "MB/s", peer_name="nginx", at_least=0.8)
    cpu = [(server.cpu_seconds() - start) / gigabytes for server, start in zip((ours, peer), before, strict=True)]
    yield Row(
        f"{setup.large // 1_000_000} MB from the cache, CPU time of the server",
        f"{cpu[0]:.2f} s/GB",
        f"{cpu[1]:.2f} s/GB nginx",
    )


def _throughput(server: Server, path: str) -> float:
    seconds, size = server.load("get", [path])
    return size / MB / seconds


def _small(setup: Setup, site: _Site, ours: Server, peer: Server) -> Iterator[Row]:
    path = site.path("small.txt")
    with bare_wsgi(SMALL) as bare:
        own, empty, theirs = alternate(
            setup.runs, *(partial(server.requests_a_second, path) for server in (ours, bare, peer))
        )
    yield against("4 KB file from the cache", own, theirs, "requests/s", peer_name="nginx", at_least=0.25)
    yield against("4 KB file from the cache", own, empty, "requests/s", peer_name="gunicorn with an empty app")


def readers(setup: Setup) -> Iterator[Row]:
    """Memory of all processes with 64 slow readers of one NAR, first while it is fetched, then when it is cached."""
    site = _site(setup)
    with nar_serve(setup.directory, site.upstream.url, threads=READERS) as ours:
        for _ in range(10):
            ours.load("get", [site.path("small.txt")])
        shutil.rmtree(setup.directory / "cache")
        idle = ours.rss()
        for what in ("cold", "warm"):
            growth = _peak_rss(ours, site.path("large.bin")) - idle
            yield at_most(f"RSS above idle with {READERS} slow readers, {what}", growth / MIB, "MiB", 100)


def _peak_rss(server: Server, path: str) -> int:
    client = server.run_client("slow", [path], seconds=5, connections=READERS)
    peak = 0
    while client.poll() is None:
        peak = max(peak, server.rss())
        time.sleep(0.02)
    client.communicate()
    assert client.returncode == 0
    return peak
